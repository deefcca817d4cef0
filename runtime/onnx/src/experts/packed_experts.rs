//! The experts' packed weights.

use crate::isa::Isa;
use crate::matmul::{MatrixShape, PackedWeights, WeightBits, WeightInputs};

/// The dimensions of a layer's experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ExpertsShape {
    pub(crate) experts: usize,
    /// Values of a token.
    pub(crate) hidden: usize,
    /// Gates, and as many values, of the first matrix.
    pub(crate) inner: usize,
    /// Values that share a scale.
    pub(crate) block: usize,
}

impl ExpertsShape {
    /// Of the matrix to gates and values.
    fn first(self) -> MatrixShape {
        MatrixShape {
            k: self.hidden,
            n: 2 * self.inner,
            block: self.block,
            bits: WeightBits::Four,
        }
    }

    /// Of the matrix back.
    fn second(self) -> MatrixShape {
        MatrixShape {
            k: self.inner,
            n: self.hidden,
            block: self.block,
            bits: WeightBits::Four,
        }
    }
}

/// A layer's experts.
pub(crate) struct PackedExperts {
    pub(crate) shape: ExpertsShape,
    /// For each expert the matrix to gates, followed by as many values, and the matrix back.
    pub(crate) matrices: Vec<[PackedWeights; 2]>,
}

impl PackedExperts {
    /// Packs the weights of `first` matrices, whose rows are a gate's and a value's in turns, and of `second` ones, as they stand
    /// in the file, on `threads` threads. The error says what does not fit.
    pub(crate) fn new(
        shape: ExpertsShape,
        first: WeightInputs<'_>,
        second: WeightInputs<'_>,
        (isa, threads): (Isa, usize),
    ) -> Result<Self, String> {
        let matrices = (0..shape.experts).map(|expert| {
            let rows = RowsApart::of(of_expert(first, expert, shape.experts)?, 2 * shape.inner);
            let second = of_expert(second, expert, shape.experts)?;
            Ok([
                PackedWeights::new(shape.first(), rows.inputs(), (isa, threads))?,
                PackedWeights::new(shape.second(), second, (isa, threads))?,
            ])
        });
        Ok(Self {
            shape,
            matrices: matrices.collect::<Result<_, String>>()?,
        })
    }
}

/// One expert's part of the inputs.
fn of_expert(all: WeightInputs<'_>, expert: usize, experts: usize) -> Result<WeightInputs<'_>, String> {
    fn part<T>(all: &[T], expert: usize, experts: usize) -> Result<&[T], String> {
        let size = all.len().checked_div(experts).unwrap_or(0);
        if size * experts != all.len() || size == 0 {
            return Err(format!("{} values are not those of {experts} experts", all.len()));
        }
        Ok(&all[expert * size..][..size])
    }
    Ok(WeightInputs {
        weights: part(all.weights, expert, experts)?,
        scales: part(all.scales, expert, experts)?,
        zeros: all.zeros.map(|zeros| part(zeros, expert, experts)).transpose()?,
    })
}

/// A matrix whose even rows stand before its odd ones.
struct RowsApart {
    weights: Vec<u8>,
    scales: Vec<f32>,
    zeros: Option<Vec<u8>>,
}

impl RowsApart {
    fn of(inputs: WeightInputs<'_>, rows: usize) -> Self {
        Self {
            weights: even_then_odd(inputs.weights, rows),
            scales: even_then_odd(inputs.scales, rows),
            zeros: inputs.zeros.map(|zeros| even_then_odd(zeros, rows)),
        }
    }

    fn inputs(&self) -> WeightInputs<'_> {
        WeightInputs {
            weights: &self.weights,
            scales: &self.scales,
            zeros: self.zeros.as_deref(),
        }
    }
}

/// The even ones of `rows` rows, then the odd ones.
fn even_then_odd<T: Copy>(all: &[T], rows: usize) -> Vec<T> {
    let width = all.len().checked_div(rows).unwrap_or(0).max(1);
    let from = |parity: usize| all.chunks(width).skip(parity).step_by(2).flatten().copied();
    from(0).chain(from(1)).collect()
}
