//! What is computed of a window's fields.

use super::Time;

/// What a field of a message holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A finite number.
    Number(f64),
    /// Anything else, as text.
    Text(String),
}

/// The facts of one field over a window.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct FieldFacts {
    /// Messages that had the field.
    pub count: u64,
    /// The least number.
    pub min: Option<f64>,
    /// The greatest number.
    pub max: Option<f64>,
    /// The mean of the numbers.
    pub mean: Option<f64>,
    /// The earliest value.
    pub first: Option<Value>,
    /// The latest value.
    pub last: Option<Value>,
    /// Change of the numbers in a second, from the earliest to the latest; none if they are not apart in time.
    pub rate: Option<f64>,
    /// When the earliest value was.
    pub from: Option<Time>,
    /// When the latest value was.
    pub to: Option<Time>,
    /// How often each text was there, the most frequent first, at most ten.
    pub values: Vec<(String, u64)>,
}
