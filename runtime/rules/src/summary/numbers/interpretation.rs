//! The meanings of a number in a text.

/// What a number may mean.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Interpretation {
    /// A quantity.
    Number {
        value: f64,
        /// Digits after the point.
        decimals: usize,
        /// It has a sign of its own.
        signed: bool,
        /// A percent sign follows.
        percent: bool,
    },
    /// A time of day, in seconds; `exact` if it has seconds.
    Clock { seconds: u32, exact: bool },
    /// A date; the year may not be said.
    Date { year: Option<u32>, month: u32, day: u32 },
}
