//! The meanings of a number in a text.

/// An interpretation of a number in a text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Interpretation {
    /// A quantity.
    Number {
        value: f64,
        /// Digits after the point.
        decimals: usize,
        /// Whether it has a sign.
        signed: bool,
        /// Whether a percent sign follows.
        percent: bool,
    },
    /// A time of day, in seconds; `exact` if it has seconds.
    Clock { seconds: u32, exact: bool },
    /// A date; the year may not be said.
    Date { year: Option<u32>, month: u32, day: u32 },
}
