//! The choice of the operator for products of one shape: the custom one, or ONNX Runtime's where that is clearly faster.
//!
//! A node has one operator for all its runs, with one row and with many, as each operator packs the weights in a form of its own.
//! So both numbers of rows count, and equally: the geometric mean of the two ratios decides.

use std::fmt;
use std::time::{Duration, Instant};

use crate::prepare::ProductShape;

/// The numbers of rows that are measured: of a step of one sequence, and of a part of a prompt.
pub(crate) const MEASURED_ROWS: [usize; 2] = [1, 64];
/// The most rounds of measurements.
const MAX_ROUNDS: usize = 7;
/// The fewest, where a round takes long.
const MIN_ROUNDS: usize = 3;
/// No further round begins after this time.
const BUDGET: Duration = Duration::from_millis(300);
/// The share of the custom operator's time that ONNX Runtime's may take at most in order to be chosen. Times differ by some
/// percent from one start to the next, and the custom operator's results do not depend on the rows beside a row.
const CLEARLY_FASTER: f64 = 0.9;
/// The notes of the edit cache: which operator is chosen.
const CUSTOM: &str = "custom operator";
const LIBRARY: &str = "ONNX Runtime";

/// The operators that compete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProductOperator {
    /// The program's own.
    Custom,
    /// ONNX Runtime's `MatMulNBits`.
    Library,
}

/// The least times of a product by each operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LeastTimes {
    pub(crate) custom: Duration,
    pub(crate) library: Duration,
}

/// The operator chosen for products of one shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProductChoice {
    /// The shape of their weights.
    pub shape: ProductShape,
    /// Whether ONNX Runtime's operator computes them.
    pub by_library: bool,
    /// The times that were measured, in words.
    pub times: String,
}

impl ProductChoice {
    /// The choice by the least times with [`MEASURED_ROWS`].
    pub(crate) fn by(shape: ProductShape, times: [LeastTimes; 2]) -> Self {
        let ratio = |times: LeastTimes| times.library.as_secs_f64() / times.custom.as_secs_f64();
        let mean = (ratio(times[0]) * ratio(times[1])).sqrt();
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let said: Vec<String> = MEASURED_ROWS
            .iter()
            .zip(times)
            .map(|(rows, LeastTimes { custom, library })| {
                let unit = if *rows == 1 { "row" } else { "rows" };
                format!(
                    "{rows} {unit}: {:.2} ms by ONNX Runtime, {:.2} ms by the custom operator",
                    ms(library),
                    ms(custom)
                )
            })
            .collect();
        Self {
            shape,
            by_library: mean < CLEARLY_FASTER,
            times: said.join("; "),
        }
    }

    /// The note of the edit cache that [`ProductChoice::read`] reads.
    pub(crate) fn note(&self) -> String {
        let operator = if self.by_library { LIBRARY } else { CUSTOM };
        format!("{operator}; {}", self.times)
    }

    /// The choice that a note tells; `None`: it is none.
    pub(crate) fn read(shape: ProductShape, note: &str) -> Option<Self> {
        let (operator, times) = note.split_once("; ")?;
        let by_library = match operator {
            LIBRARY => true,
            CUSTOM => false,
            _ => return None,
        };
        Some(Self {
            shape,
            by_library,
            times: times.to_owned(),
        })
    }
}

impl fmt::Display for ProductChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.shape, self.times)
    }
}

/// Measures both operators in turns, so that what else the processor does meets both alike. `measure` returns the time of one
/// product.
pub(crate) fn in_turns(
    mut measure: impl FnMut(ProductOperator) -> Result<Duration, String>,
) -> Result<LeastTimes, String> {
    let begun = Instant::now();
    let mut least = LeastTimes {
        custom: Duration::MAX,
        library: Duration::MAX,
    };
    // The first of each pays for pages and threads.
    measure(ProductOperator::Library)?;
    measure(ProductOperator::Custom)?;
    for round in 0..MAX_ROUNDS {
        if round >= MIN_ROUNDS && begun.elapsed() > BUDGET {
            break;
        }
        least.library = least.library.min(measure(ProductOperator::Library)?);
        least.custom = least.custom.min(measure(ProductOperator::Custom)?);
    }
    // A clock may be too coarse for small products.
    let some = |time: Duration| time.max(Duration::from_nanos(1));
    Ok(LeastTimes {
        custom: some(least.custom),
        library: some(least.library),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: ProductShape = ProductShape {
        k: 3072,
        n: 9216,
        block: 32,
        zero_points: false,
    };

    fn choice(custom: [u64; 2], library: [u64; 2]) -> ProductChoice {
        let times = [0, 1].map(|at| {
            // Each measurement takes longer than the one before, and the first one of each operator very long.
            let mut taken = [0u64; 2];
            in_turns(|operator| {
                let (at_operator, time) = match operator {
                    ProductOperator::Custom => (0, custom[at]),
                    ProductOperator::Library => (1, library[at]),
                };
                taken[at_operator] += 1;
                let noise = match taken[at_operator] {
                    1 => 100_000,
                    later => later - 2,
                };
                Ok(Duration::from_micros(time + noise))
            })
            .unwrap()
        });
        ProductChoice::by(SHAPE, times)
    }

    #[test]
    fn a_slower_kernel_steps_aside() {
        assert!(choice([1000, 20_000], [800, 15_000]).by_library);
        assert!(!choice([1000, 20_000], [1000, 40_000]).by_library);
    }

    #[test]
    fn the_custom_operator_stays_where_the_difference_is_small() {
        assert!(!choice([1000, 20_000], [1000, 20_000]).by_library);
        assert!(!choice([1000, 20_000], [950, 19_000]).by_library);
    }

    #[test]
    fn both_numbers_of_rows_count() {
        // Much slower with many rows, somewhat faster with one.
        assert!(choice([1000, 20_000], [1100, 10_000]).by_library);
        assert!(!choice([1000, 20_000], [1900, 11_000]).by_library);
        assert!(choice([1000, 20_000], [500, 22_000]).by_library);
    }

    #[test]
    fn notes_are_read_as_they_are_written() {
        for library in [[800, 15_000], [2000, 40_000]] {
            let made = choice([1000, 20_000], library);
            assert_eq!(ProductChoice::read(SHAPE, &made.note()), Some(made));
        }
        for other in ["", "holds", "another operator; 1 row"] {
            assert_eq!(ProductChoice::read(SHAPE, other), None);
        }
        let said = choice([1000, 20_000], [800, 15_000]).to_string();
        assert_eq!(
            said,
            "3072 x 9216 in blocks of 32 (1 row: 0.80 ms by ONNX Runtime, 1.00 ms by the custom operator; \
             64 rows: 15.00 ms by ONNX Runtime, 20.00 ms by the custom operator)"
        );
    }

    #[test]
    fn a_product_that_fails_ends_the_measurement() {
        let mut count = 0;
        let outcome = in_turns(|_| {
            count += 1;
            if count == 4 {
                Err("no memory".to_owned())
            } else {
                Ok(Duration::ZERO)
            }
        });
        assert_eq!(outcome, Err("no memory".to_owned()));
        assert_eq!(count, 4);
    }
}
