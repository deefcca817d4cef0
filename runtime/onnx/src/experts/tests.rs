//! The experts against what they stand for, computed as plainly as possible.

#![allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)]

use proptest::prelude::*;

use crate::experts::apply::{ExpertScratch, apply};
use crate::experts::packed_experts::{ExpertsShape, PackedExperts};
use crate::experts::routing::{RouterOutputs, Routing};
use crate::experts::swiglu::SwiGlu;
use crate::isa::Isa;
use crate::matmul::WeightInputs;
use crate::workers::Alone;

const SWIGLU: SwiGlu = SwiGlu {
    alpha: 1.0,
    beta: 0.0,
};
const CHOSEN: usize = 2;

/// Matrices as they stand in a file: one for each expert.
#[derive(Debug)]
struct Matrices {
    k: usize,
    n: usize,
    weights: Vec<u8>,
    scales: Vec<f32>,
    zeros: Option<Vec<u8>>,
}

impl Matrices {
    fn inputs(&self) -> WeightInputs<'_> {
        WeightInputs {
            weights: &self.weights,
            scales: &self.scales,
            zeros: self.zeros.as_deref(),
        }
    }

    /// The weight of an expert's `column` for value `at` of a row.
    fn weight(&self, (expert, column): (usize, usize), at: usize, block: usize) -> f64 {
        let blocks = self.k.div_ceil(block);
        let nibble = |bytes: &[u8], index: usize| f64::from(bytes[index / 2] >> (index % 2 * 4) & 15);
        let column = expert * self.n + column;
        let zero = self.zeros.as_ref().map_or(8.0, |zeros| {
            let width = blocks.div_ceil(2);
            nibble(&zeros[column * width..][..width], at / block)
        });
        let width = blocks * block / 2;
        let whole = nibble(&self.weights[column * width..][..width], at) - zero;
        whole * f64::from(self.scales[column * blocks + at / block])
    }

    /// The products of a row, and the sums of their terms' magnitudes.
    fn product(&self, expert: usize, row: &[f64], block: usize) -> Vec<(f64, f64)> {
        let column = |column: usize| {
            let terms = row.iter().enumerate();
            let terms = terms.map(|(at, value)| value * self.weight((expert, column), at, block));
            terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()))
        };
        (0..self.n).map(column).collect()
    }
}

/// A row in eight bits by block.
fn rounded(row: &[f32], block: usize) -> Vec<f64> {
    let of_block = |values: &[f32]| -> Vec<f64> {
        let largest = values.iter().fold(0f32, |most, value| most.max(value.abs()));
        let inverse = if largest == 0.0 { 0.0 } else { 127.0 / largest };
        let whole = values
            .iter()
            .map(|value| f64::from((value * inverse).round_ties_even()));
        whole.map(|whole| whole * f64::from(largest / 127.0)).collect()
    };
    row.chunks(block).flat_map(of_block).collect()
}

/// A layer and tokens for it.
#[derive(Debug)]
struct Layer {
    shape: ExpertsShape,
    first: Matrices,
    second: Matrices,
    tokens: Vec<f32>,
    scores: Vec<f32>,
    weights: Vec<f32>,
}

impl Layer {
    fn packed(&self, isa: Isa) -> PackedExperts {
        PackedExperts::new(self.shape, self.first.inputs(), self.second.inputs(), (isa, 2)).unwrap()
    }

    fn count(&self) -> usize {
        self.tokens.len() / self.shape.hidden
    }

    fn run(
        &self,
        experts: &PackedExperts,
        counts: impl Fn(usize) -> bool,
        from: usize,
        count: usize,
    ) -> Vec<f32> {
        let part = |values: &[f32], width: usize| values[from * width..][..count * width].to_vec();
        let (scores, weights) = (
            part(&self.scores, self.shape.experts),
            part(&self.weights, self.shape.experts),
        );
        let scores = RouterOutputs {
            scores: &scores,
            weights: &weights,
            experts: self.shape.experts,
            chosen: CHOSEN,
        };
        let routing = Routing::new(scores, counts);
        let mut out = vec![f32::NAN; count * self.shape.hidden];
        let tokens = part(&self.tokens, self.shape.hidden);
        apply(
            experts,
            (&tokens, &routing),
            SWIGLU,
            &mut out,
            &mut ExpertScratch::default(),
            &Alone,
        )
        .unwrap();
        out
    }

    /// The result, with rows rounded to eight bits, and the size of what it is the sum of.
    fn reference(&self, token: usize) -> Vec<(f64, f64)> {
        let ExpertsShape {
            experts,
            hidden,
            block,
            ..
        } = self.shape;
        let scores = &self.scores[token * experts..][..experts];
        let mut order: Vec<usize> = (0..experts).collect();
        order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
        let row = rounded(&self.tokens[token * hidden..][..hidden], block);
        let mut sums = vec![(0.0, 0.0); hidden];
        for expert in order.into_iter().take(CHOSEN) {
            let products = self.first.product(expert, &row, block);
            let silu = |gate: f64| gate / (1.0 + (-gate).exp());
            let gated: Vec<f32> = products
                .chunks(2)
                .map(|pair| (silu(pair[0].0) * pair[1].0) as f32)
                .collect();
            let weight = f64::from(self.weights[token * experts + expert]);
            let results = self.second.product(expert, &rounded(&gated, block), block);
            for ((sum, size), (result, of)) in sums.iter_mut().zip(results) {
                *sum += weight * result;
                *size += weight * of;
            }
        }
        sums
    }
}

fn matrices(
    experts: usize,
    k: usize,
    n: usize,
    block: usize,
    zeros: bool,
) -> impl Strategy<Value = Matrices> {
    let blocks = k.div_ceil(block);
    let columns = experts * n;
    (
        proptest::collection::vec(any::<u8>(), columns * blocks * block / 2),
        proptest::collection::vec(0.01f32..0.05, columns * blocks),
        proptest::collection::vec(any::<u8>(), columns * blocks.div_ceil(2)),
    )
        .prop_map(move |(weights, scales, points)| Matrices {
            k,
            n,
            weights,
            scales,
            zeros: zeros.then_some(points),
        })
}

fn layers() -> impl Strategy<Value = Layer> {
    let dims = (
        2usize..6,
        1usize..4,
        1usize..60,
        0usize..2,
        any::<bool>(),
        1usize..24,
    );
    dims.prop_flat_map(|(experts, hidden, inner, block, zeros, tokens)| {
        let (hidden, block) = (hidden * 32, [16, 32][block]);
        let shape = ExpertsShape {
            experts,
            hidden,
            inner,
            block,
        };
        let count =
            |width: usize, range: std::ops::Range<f32>| proptest::collection::vec(range, tokens * width);
        (
            matrices(experts, hidden, 2 * inner, block, zeros),
            matrices(experts, inner, hidden, block, zeros),
            count(hidden, -1.0..1.0),
            proptest::collection::vec(0u16..500, tokens * experts),
            count(experts, 0.1..1.0),
        )
            .prop_map(move |(first, second, tokens, scores, weights)| Layer {
                shape,
                first,
                second,
                tokens,
                // No two are equal.
                scores: scores
                    .iter()
                    .enumerate()
                    .map(|(at, score)| f32::from(*score) + at as f32 / 1e4)
                    .collect(),
                weights,
            })
    })
}

/// The instruction sets that this processor has.
fn isas() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.is_supported())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn results_are_those_of_the_chosen_experts(layer in layers()) {
        let got = layer.run(&layer.packed(Isa::Scalar), |_| true, 0, layer.count());
        for (token, got) in got.chunks(layer.shape.hidden).enumerate() {
            for (got, (expected, size)) in got.iter().zip(layer.reference(token)) {
                // A gated value may be rounded the other way.
                prop_assert!((f64::from(*got) - expected).abs() < 0.02 * size + 1e-3, "{} {}", got, expected);
            }
        }
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits(layer in layers()) {
        let bits = |isa| -> Vec<u32> {
            layer.run(&layer.packed(isa), |_| true, 0, layer.count()).iter().map(|value| value.to_bits()).collect()
        };
        let expected = bits(Isa::Scalar);
        for isa in isas() {
            prop_assert_eq!(&bits(isa), &expected, "{}", isa.as_str());
        }
    }

    #[test]
    fn a_token_alone_is_what_it_is_in_company(layer in layers(), idle in any::<proptest::sample::Index>()) {
        for isa in isas() {
            let experts = layer.packed(isa);
            let together = layer.run(&experts, |_| true, 0, layer.count());
            let idle = idle.index(layer.count());
            let without = layer.run(&experts, |token| token != idle, 0, layer.count());
            for token in 0..layer.count() {
                let of = |values: &[f32]| -> Vec<u32> {
                    values[token * layer.shape.hidden..][..layer.shape.hidden].iter().map(|value| value.to_bits()).collect()
                };
                let alone = layer.run(&experts, |_| true, token, 1);
                prop_assert_eq!(of(&together), alone.iter().map(|value| value.to_bits()).collect::<Vec<_>>());
                // One that does not count is zeros, and changes no other.
                let expected = if token == idle { vec![0; layer.shape.hidden] } else { of(&together) };
                prop_assert_eq!(of(&without), expected);
            }
        }
    }
}

#[test]
fn weights_that_do_not_fit_are_told() {
    let shape = ExpertsShape {
        experts: 3,
        hidden: 32,
        inner: 16,
        block: 32,
    };
    let (weights, scales) = (vec![0u8; 3 * 32 * 16], vec![0f32; 3 * 32]);
    let inputs = |weights, scales| WeightInputs {
        weights,
        scales,
        zeros: None,
    };
    let pack = |first, second| PackedExperts::new(shape, first, second, (Isa::Scalar, 1)).err();
    let whole = inputs(&weights, &scales);
    assert_eq!(pack(whole, whole), None);
    assert!(
        pack(inputs(&weights[1..], &scales), whole)
            .unwrap()
            .contains("3 experts")
    );
    assert!(
        pack(whole, inputs(&weights, &scales[..3]))
            .unwrap()
            .contains("do not fit")
    );
}
