//! The product against what it stands for, computed as plainly as possible.

#![allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)]

use proptest::prelude::*;

use crate::isa::Isa;
use crate::matmul::kernels::MatMulKernels;
use crate::matmul::multiply::{RowScratch, multiply};
use crate::matmul::operands::WeightBits;
use crate::matmul::pack::{MatrixShape, PackedWeights, WeightInputs};
use crate::workers::Alone;

/// Whether two results are the same to the last bit.
fn equal(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

/// A matrix as it stands in a file.
#[derive(Debug)]
struct Matrix {
    shape: MatrixShape,
    weights: Vec<u8>,
    scales: Vec<f32>,
    zeros: Option<Vec<u8>>,
}

impl Matrix {
    fn packed(&self, kernels: &'static MatMulKernels, threads: usize) -> PackedWeights {
        let source = WeightInputs {
            weights: &self.weights,
            scales: &self.scales,
            zeros: self.zeros.as_deref(),
        };
        PackedWeights::new_with(kernels, self.shape, source, threads).unwrap()
    }

    fn product(&self, kernels: &'static MatMulKernels, input: &[f32]) -> Vec<f32> {
        let mut out = vec![f32::NAN; input.len() / self.shape.k * self.shape.n];
        multiply(
            &self.packed(kernels, 2),
            input,
            &mut out,
            &mut RowScratch::default(),
            &Alone,
        )
        .unwrap();
        out
    }

    fn nibble(bytes: &[u8], index: usize) -> i32 {
        i32::from(if index.is_multiple_of(2) {
            bytes[index / 2] & 15
        } else {
            bytes[index / 2] >> 4
        })
    }

    /// The product as accuracy level 4 of `MatMulNBits` defines it.
    fn reference(&self, input: &[f32]) -> Vec<f64> {
        let MatrixShape { k, n, block, .. } = self.shape;
        let blocks = self.shape.blocks();
        let mut out = Vec::new();
        for row in input.chunks(k) {
            for column in 0..n {
                let mut sum = 0f64;
                for (index, values) in row.chunks(block).enumerate() {
                    let largest = values.iter().fold(0f32, |most, value| most.max(value.abs()));
                    let inverse = if largest == 0.0 { 0.0 } else { 127.0 / largest };
                    let zero = self.zeros.as_ref().map_or(8, |zeros| {
                        Self::nibble(&zeros[column * blocks.div_ceil(2)..], index)
                    });
                    let weights = &self.weights[(column * blocks + index) * block / 2..];
                    let whole: i32 = (0..values.len())
                        .map(|at| {
                            (values[at] * inverse).round_ties_even() as i32
                                * (Self::nibble(weights, at) - zero)
                        })
                        .sum();
                    let scale = self.scales[column * blocks + index] * (largest / 127.0);
                    sum += f64::from(whole) * f64::from(scale);
                }
                out.push(sum);
            }
        }
        out
    }
}

fn matrices() -> impl Strategy<Value = Matrix> {
    let shapes = (1..400usize, 1..120usize, 4..=8u32).prop_map(|(k, n, log)| MatrixShape {
        k,
        n,
        block: 1 << log,
        bits: WeightBits::Four,
    });
    shapes.prop_flat_map(|shape| {
        let blocks = shape.blocks();
        let bytes = |count: usize| proptest::collection::vec(any::<u8>(), count);
        let scales = proptest::collection::vec(0.001f32..0.1, shape.n * blocks);
        let zeros = proptest::option::of(bytes(shape.n * blocks.div_ceil(2)));
        (bytes(shape.n * blocks * shape.block / 2), scales, zeros).prop_map(
            move |(weights, scales, zeros)| Matrix {
                shape,
                weights,
                scales,
                zeros,
            },
        )
    })
}

#[test]
fn an_instruction_set_that_the_processor_does_not_have_is_refused() {
    let shape = MatrixShape {
        k: 16,
        n: 1,
        block: 16,
        bits: WeightBits::Eight,
    };
    for isa in Isa::ALL {
        let packed = PackedWeights::quantised(shape, &[0.5; 16], (isa, 1));
        assert_eq!(packed.is_ok(), isa.is_supported(), "{isa:?}");
    }
}

fn rows(k: usize, count: usize) -> impl Strategy<Value = Vec<f32>> {
    proptest::collection::vec(-3f32..3.0, k * count)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_product_is_the_references_and_a_row_is_what_it_is_alone(
        (matrix, input) in matrices().prop_flat_map(|m| (1..12usize).prop_flat_map({
            let k = m.shape.k;
            move |count| rows(k, count)
        }).prop_map(move |input| (Matrix { zeros: m.zeros.clone(), weights: m.weights.clone(), scales: m.scales.clone(), ..m }, input)))
    ) {
        let got = matrix.product(MatMulKernels::of(Isa::Scalar), &input);
        let expected = matrix.reference(&input);
        let largest = expected.iter().fold(1e-3f64, |most, value| most.max(value.abs()));
        for (got, expected) in got.iter().zip(&expected) {
            prop_assert!((f64::from(*got) - expected).abs() <= 1e-5 * largest, "{got} is not {expected}");
        }
        for (name, kernels) in MatMulKernels::all() {
            let together = matrix.product(kernels, &input);
            prop_assert!(equal(&together, &got), "{name}");
            for (row, together) in input.chunks(matrix.shape.k).zip(together.chunks(matrix.shape.n)) {
                prop_assert!(equal(&matrix.product(kernels, row), together), "{name}, a row alone");
            }
        }
    }

    #[test]
    fn packing_keeps_every_value(matrix in matrices()) {
        let packed = matrix.packed(MatMulKernels::of(Isa::Scalar), 3);
        let MatrixShape { n, .. } = matrix.shape;
        let (blocks, words) = (matrix.shape.blocks(), matrix.shape.words());
        let tile_bytes = blocks * matrix.shape.block_bytes(3);
        for column in 0..n {
            let (tile, at) = (column / 48, column % 48);
            let groups = matrix.shape.groups(tile);
            for block in 0..blocks {
                let data = &packed.data[tile * tile_bytes + block * matrix.shape.block_bytes(groups)..];
                for word in 0..words {
                    let from = ((column * blocks + block) * words + word) * 4;
                    let to = (word * groups * 16 + at) * 4;
                    prop_assert_eq!(&data[to..to + 4], &matrix.weights[from..from + 4]);
                }
                let scale = (words * groups * 16 + at) * 4;
                let expected = matrix.scales[column * blocks + block].to_ne_bytes();
                prop_assert_eq!(&data[scale..scale + 4], &expected[..]);
            }
        }
        for (name, kernels) in MatMulKernels::all() {
            prop_assert_eq!(&matrix.packed(kernels, 1).data[..], &packed.data[..], "{}", name);
        }
    }
}

/// Runs of many blocks are cut into chunks where there is more than one panel: that must not change a bit.
#[test]
fn a_row_of_many_blocks_is_what_it_is_alone() {
    let shape = MatrixShape {
        k: 3000,
        n: 100,
        block: 64,
        bits: WeightBits::Four,
    };
    let mut state = 1u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as u32
    };
    let matrix = Matrix {
        shape,
        weights: (0..shape.n * shape.blocks() * shape.block / 2)
            .map(|_| random() as u8)
            .collect(),
        scales: (0..shape.n * shape.blocks())
            .map(|_| random() as f32 / 1e12)
            .collect(),
        zeros: None,
    };
    let input: Vec<f32> = (0..23 * shape.k).map(|_| random() as f32 / 1e9 - 1.0).collect();
    let expected = matrix.product(MatMulKernels::of(Isa::Scalar), &input);
    for (name, kernels) in MatMulKernels::all() {
        let got = matrix.product(kernels, &input);
        assert!(equal(&got, &expected), "{name}");
        for (row, together) in input.chunks(shape.k).zip(got.chunks(shape.n)) {
            assert!(equal(&matrix.product(kernels, row), together), "{name}");
        }
    }
}

#[test]
fn what_is_no_number_stays_none_and_zeros_stay_zero() {
    let matrix = Matrix {
        shape: MatrixShape {
            k: 64,
            n: 3,
            block: 32,
            bits: WeightBits::Four,
        },
        weights: vec![0x5a; 3 * 32],
        scales: vec![0.5; 6],
        zeros: None,
    };
    for (name, kernels) in MatMulKernels::all() {
        let mut input = vec![0.0; 128];
        input[40] = f32::NAN;
        let got = matrix.product(kernels, &input);
        assert!(got[..3].iter().all(|value| value.is_nan()), "{name} {got:?}");
        assert_eq!(got[3..], [0.0; 3]);
        input[40] = f32::INFINITY;
        let got = matrix.product(kernels, &input);
        assert!(got[..3].iter().all(|value| !value.is_finite()), "{name} {got:?}");
    }
}

#[test]
fn what_does_not_fit_is_told() {
    let packed = |shape, weights: usize, scales: usize| {
        let source = WeightInputs {
            weights: &vec![0; weights],
            scales: &vec![0.0; scales],
            zeros: None,
        };
        PackedWeights::new(shape, source, (Isa::Scalar, 1)).err()
    };
    let shape = MatrixShape {
        k: 64,
        n: 3,
        block: 32,
        bits: WeightBits::Four,
    };
    assert!(packed(shape, 96, 6).is_none());
    assert!(packed(shape, 95, 6).is_some());
    assert!(packed(shape, 96, 5).is_some());
    assert!(packed(MatrixShape { block: 24, ..shape }, 96, 6).is_some());
    assert!(packed(MatrixShape { n: 0, ..shape }, 0, 0).is_some());
    {
        let matrix = PackedWeights::new(
            shape,
            WeightInputs {
                weights: &[0; 96],
                scales: &[0.0; 6],
                zeros: None,
            },
            (Isa::Scalar, 1),
        )
        .unwrap();
        let outcome = multiply(
            &matrix,
            &[0.0; 65],
            &mut [0.0; 3],
            &mut RowScratch::default(),
            &Alone,
        );
        assert!(outcome.is_err());
    }
}

/// The product by weights that are quantised at load, as plainly as possible: rows and weights by block.
fn plain_quantised(shape: MatrixShape, weights: &[f32], row: &[f32]) -> Vec<f32> {
    let quantise = |values: &[f32], bits: WeightBits| {
        let largest = values.iter().fold(0f32, |largest, value| {
            if value.abs() > largest.abs() {
                *value
            } else {
                largest
            }
        });
        let scale = match bits {
            WeightBits::Four => largest / -8.0,
            WeightBits::Eight => largest.abs() / 127.0,
        };
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        let whole = |value: &f32| {
            let whole = (value * inverse).round_ties_even();
            if bits == WeightBits::Four {
                whole.clamp(-8.0, 7.0)
            } else {
                whole
            }
        };
        (values.iter().map(whole).collect::<Vec<f32>>(), scale)
    };
    (0..shape.n)
        .map(|column| {
            let column: Vec<f32> = (0..shape.k).map(|at| weights[at * shape.n + column]).collect();
            let blocks = column.chunks(shape.block).zip(row.chunks(shape.block));
            let products = blocks.map(|(weights, row)| {
                let ((weights, scale), (row, row_scale)) =
                    (quantise(weights, shape.bits), quantise(row, WeightBits::Eight));
                let sum: f32 = weights.iter().zip(&row).map(|(a, b)| a * b).sum();
                f64::from(sum) * f64::from(scale) * f64::from(row_scale)
            });
            products.sum::<f64>() as f32
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn weights_quantised_at_load_give_their_product(
        (k, n, log) in (1..300usize, 1..120usize, 4..=8u32),
        rows in 1..20usize,
        four in any::<bool>(),
        seed in any::<u32>(),
    ) {
        let bits = if four { WeightBits::Four } else { WeightBits::Eight };
        let shape = MatrixShape { k, n, block: 1 << log, bits };
        let mut state = seed;
        let mut values = |count: usize| -> Vec<f32> {
            (0..count)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (state >> 8) as f32 / 8_388_608.0 - 1.0
                })
                .collect()
        };
        let (weights, input) = (values(k * n), values(rows * k));
        let mut packed = PackedWeights::quantised(shape, &weights, (Isa::Scalar, 2)).unwrap();
        let mut out = vec![0.0; rows * n];
        multiply(&packed, &input, &mut out, &mut RowScratch::default(), &Alone).unwrap();
        for (name, kernels) in MatMulKernels::all() {
            packed.kernels = kernels;
            let mut got = vec![0.0; rows * n];
            multiply(&packed, &input, &mut got, &mut RowScratch::default(), &Alone).unwrap();
            prop_assert!(equal(&got, &out), "{name}");
        }
        for (row, got) in input.chunks(k).zip(out.chunks(n)) {
            let expected = plain_quantised(shape, &weights, row);
            // A value halfway between two whole numbers may be rounded the other way.
            let tolerance = 0.02 + k as f32 * if four { 2e-3 } else { 1e-4 };
            for (got, expected) in got.iter().zip(&expected) {
                prop_assert!((got - expected).abs() < tolerance, "{got} is not {expected}");
            }
            let mut alone = vec![0.0; n];
            multiply(&packed, row, &mut alone, &mut RowScratch::default(), &Alone).unwrap();
            prop_assert!(equal(&alone, got));
        }
    }
}

#[test]
fn weights_that_fit_no_shape_are_refused() {
    let shape = MatrixShape {
        k: 40,
        n: 3,
        block: 32,
        bits: WeightBits::Eight,
    };
    assert!(PackedWeights::quantised(shape, &[0.5; 120], (Isa::Scalar, 1)).is_ok());
    assert!(PackedWeights::quantised(shape, &[0.5; 119], (Isa::Scalar, 1)).is_err());
    assert!(
        PackedWeights::quantised(MatrixShape { block: 24, ..shape }, &[0.5; 120], (Isa::Scalar, 1)).is_err()
    );
    for (name, kernels) in MatMulKernels::all() {
        // Zeros stay zeros, and what is no number stays none.
        let mut packed = PackedWeights::quantised(shape, &[0.0; 120], (Isa::Scalar, 1)).unwrap();
        packed.kernels = kernels;
        let mut out = [1.0; 3];
        multiply(&packed, &[7.0; 40], &mut out, &mut RowScratch::default(), &Alone).unwrap();
        assert!(out.iter().all(|value| value.to_bits() == 0), "{name}");
    }
}
