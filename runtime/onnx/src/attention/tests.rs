//! The attention against its definition, computed as plainly as possible, and against itself in other company.

#![cfg(target_arch = "x86_64")]
#![allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::similar_names
)]

use proptest::prelude::*;

use crate::attention::attend::{AttentionInputs, Heads, KvPointers, attend};
use crate::attention::available;
use crate::workers::Workers;

/// The calling thread alone, last piece first: the order must not matter.
struct Alone;

impl Workers for Alone {
    fn each(&self, total: usize, work: impl Fn(usize) + Send + Sync) -> Result<(), String> {
        (0..total).rev().for_each(work);
        Ok(())
    }
}

/// Positions of the rope table.
const TABLE: usize = 400;

/// A row of a run: what it holds, how many tokens enter, and where in the table its first token stands.
#[derive(Debug, Clone, Copy)]
struct Row {
    past: usize,
    length: usize,
    offset: usize,
}

#[derive(Debug, Clone)]
struct Case {
    heads: Heads,
    half: usize,
    rows: Vec<Row>,
    seed: u32,
}

impl Case {
    fn room(&self) -> usize {
        self.rows
            .iter()
            .map(|row| row.past + row.length + 3)
            .max()
            .unwrap()
    }

    fn vectors(&self) -> usize {
        self.heads.queries + 2 * self.heads.keys
    }
}

/// Numbers that depend on their place alone, so that a row is the same in any company.
fn number(seed: u32, row: usize, at: usize) -> f32 {
    let mixed = (seed as usize)
        .wrapping_add(row.wrapping_mul(7_919))
        .wrapping_add(at.wrapping_mul(104_729));
    let mixed = (mixed as u32).wrapping_mul(2_654_435_761) ^ 0x5bd1;
    (mixed.wrapping_mul(1_664_525) >> 8) as f32 / 8_388_608.0 - 1.0
}

fn tables(half: usize) -> [Vec<f32>; 2] {
    let angle = |at: usize| (at / half) as f32 / 10f32.powf((at % half) as f32 / half as f32);
    [f32::cos, f32::sin].map(|of| (0..TABLE * half).map(|at| of(angle(at))).collect())
}

/// Keys and values of the rows `of`, before the run; what lies behind them is poison.
fn slab(case: &Case, of: &[usize], side: u32) -> Vec<f32> {
    let (size, room) = (case.heads.size, case.room());
    let mut slab = vec![f32::NAN; of.len() * case.heads.keys * room * size];
    for (place, &row) in of.iter().enumerate() {
        for head in 0..case.heads.keys {
            for at in 0..case.rows[row].past * size {
                slab[(place * case.heads.keys + head) * room * size + at] =
                    number(case.seed ^ side, row, head * 100_000 + at);
            }
        }
    }
    slab
}

fn packed(case: &Case, of: &[usize], width: usize) -> Vec<f32> {
    let all = case.vectors() * case.heads.size;
    let mut packed = vec![f32::NAN; of.len() * width * all];
    for (place, &row) in of.iter().enumerate() {
        for at in 0..case.rows[row].length * all {
            packed[place * width * all + at] = number(case.seed ^ 3, row, at);
        }
    }
    packed
}

/// What the operator gives for the rows `of`: `[rows, width, queries * size]`, keys, values.
fn run(case: &Case, of: &[usize]) -> (usize, Vec<f32>, Vec<f32>, Vec<f32>) {
    let rows: Vec<Row> = of.iter().map(|&row| case.rows[row]).collect();
    let width = rows.iter().map(|row| row.length).max().unwrap();
    let tables = tables(case.half);
    let positions: Vec<i64> = rows
        .iter()
        .flat_map(|row| (0..width).map(|token| (row.offset + token) as i64))
        .collect();
    let lengths: Vec<i32> = rows.iter().map(|row| row.length as i32).collect();
    let last: Vec<i32> = rows
        .iter()
        .map(|row| (row.past + row.length).max(1) as i32 - 1)
        .collect();
    let packed = packed(case, of, width);
    let inputs = AttentionInputs {
        packed: &packed,
        width,
        tables: [&tables[0], &tables[1]],
        half: case.half,
        positions: &positions,
        lengths: &lengths,
        last: &last,
    };
    let (mut keys, mut values) = (slab(case, of, 1), slab(case, of, 2));
    let mut out = vec![f32::NAN; of.len() * width * case.heads.queries * case.heads.size];
    let slab = KvPointers {
        keys: keys.as_mut_ptr(),
        values: values.as_mut_ptr(),
        room: case.room(),
    };
    // SAFETY: the processor was asked; the slab has room for these rows.
    unsafe { attend(case.heads, &inputs, slab, &mut out, &mut Vec::new(), &Alone) }.unwrap();
    (width, out, keys, values)
}

/// The definition: rotate, score, softmax, sum.
fn reference(case: &Case, row: usize) -> Vec<f64> {
    let Heads {
        queries,
        keys: heads,
        size,
        scale,
    } = case.heads;
    let Row { past, length, offset } = case.rows[row];
    let all = case.vectors() * size;
    let tables = tables(case.half);
    let packed = packed(case, &[row], length);
    let (keys, values) = (slab(case, &[row], 1), slab(case, &[row], 2));
    let vector = |token: usize, index: usize| -> Vec<f64> {
        packed[token * all + index * size..][..size]
            .iter()
            .map(|value| f64::from(*value))
            .collect()
    };
    let rotated = |token: usize, index: usize| {
        let mut vector = vector(token, index);
        for at in 0..case.half {
            let place = (offset + token) * case.half + at;
            let (cosine, sine) = (f64::from(tables[0][place]), f64::from(tables[1][place]));
            let (low, high) = (vector[at], vector[at + case.half]);
            vector[at] = low * cosine - high * sine;
            vector[at + case.half] = high * cosine + low * sine;
        }
        vector
    };
    let held = |slab: &[f32], head: usize, at: usize| -> Vec<f64> {
        slab[(head * case.room() + at) * size..][..size]
            .iter()
            .map(|value| f64::from(*value))
            .collect()
    };
    let mut out = Vec::new();
    for token in 0..length {
        for query in 0..queries {
            let head = query / (queries / heads);
            let asks = rotated(token, query);
            let seen: Vec<(Vec<f64>, Vec<f64>)> = (0..=past + token)
                .map(|at| {
                    if at < past {
                        (held(&keys, head, at), held(&values, head, at))
                    } else {
                        (
                            rotated(at - past, queries + head),
                            vector(at - past, queries + heads + head),
                        )
                    }
                })
                .collect();
            let scores: Vec<f64> = seen
                .iter()
                .map(|(key, _)| {
                    let product: f64 = key.iter().zip(&asks).map(|(a, b)| a * b).sum();
                    product * f64::from(scale)
                })
                .collect();
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
            let total: f64 = weights.iter().sum();
            out.extend((0..size).map(|at| {
                let weighted = seen
                    .iter()
                    .zip(&weights)
                    .map(|((_, value), weight)| value[at] * weight);
                weighted.sum::<f64>() / total
            }));
        }
    }
    out
}

fn cases() -> impl Strategy<Value = Case> {
    let row = (0..150usize, 0..70usize, 0..100usize).prop_map(|(past, length, offset)| Row {
        past,
        length,
        offset: offset + past,
    });
    let short =
        (0..300usize, 0..6usize, 0..90usize).prop_map(|(past, length, offset)| Row { past, length, offset });
    let rows = proptest::collection::vec(prop_oneof![row, short], 1..4);
    let heads = (1..3usize, 1..4usize, 1..=8usize);
    (rows, heads, any::<bool>(), any::<u32>(), 0.05f32..2.0).prop_map(
        |(mut rows, (keys, group, pieces), whole, seed, scale)| {
            if rows.iter().all(|row| row.length == 0) {
                rows[0].length = 1;
            }
            let size = pieces * 16;
            Case {
                heads: Heads {
                    queries: keys * group,
                    keys,
                    size,
                    scale,
                },
                half: if whole { size / 2 } else { size / 4 },
                rows,
                seed,
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn tokens_get_what_the_definition_says_and_the_same_alone(case in cases()) {
        if !available() {
            println!("SKIPPED: this processor has no AVX-512");
            return Ok(());
        }
        let everybody: Vec<usize> = (0..case.rows.len()).collect();
        let (width, out, keys, values) = run(&case, &everybody);
        let stride = case.heads.queries * case.heads.size;
        let held = case.heads.keys * case.room() * case.heads.size;
        for (row, Row { length, past, .. }) in case.rows.iter().copied().enumerate() {
            let (got, padding) = out[row * width * stride..][..width * stride].split_at(length * stride);
            prop_assert!(padding.iter().all(|value| *value == 0.0), "padding is nothing");
            let largest = 1.0f64;
            for (got, expected) in got.iter().zip(reference(&case, row)) {
                let near = (f64::from(*got) - expected).abs() <= 2e-5 * largest;
                prop_assert!(near, "{got} is not {expected}");
            }
            if length == 0 {
                continue;
            }
            // Alone, and its last token by itself: to the last bit.
            let (_, alone, own_keys, own_values) = run(&case, &[row]);
            prop_assert_eq!(got, alone.as_slice());
            let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(bits(&keys[row * held..][..held]), bits(&own_keys));
            prop_assert_eq!(bits(&values[row * held..][..held]), bits(&own_values));
            // What the slab holds behind the row's end is left as it was.
            let size = case.heads.size;
            for head in 0..case.heads.keys {
                let behind = (head * case.room() + past + length) * size..(head + 1) * case.room() * size;
                prop_assert!(own_keys[behind.clone()].iter().all(|value| value.is_nan()));
                prop_assert!(own_values[behind].iter().all(|value| value.is_nan()));
            }
        }
    }
}

#[test]
fn a_token_gets_the_same_in_one_run_and_step_by_step() {
    if !available() {
        println!("SKIPPED: this processor has no AVX-512");
        return;
    }
    let heads = Heads {
        queries: 2,
        keys: 1,
        size: 32,
        scale: 0.3,
    };
    let (half, width, room, all) = (16, 140, 200, 4 * 32);
    let tables = tables(half);
    let packed: Vec<f32> = (0..width * all).map(|at| number(5, 0, at)).collect();
    let step = |from: usize, to: usize, keys: &mut Vec<f32>, values: &mut Vec<f32>| {
        let positions: Vec<i64> = (from..to).map(|at| at as i64).collect();
        let inputs = AttentionInputs {
            packed: &packed[from * all..to * all],
            width: to - from,
            tables: [&tables[0], &tables[1]],
            half,
            positions: &positions,
            lengths: &[(to - from) as i32],
            last: &[to as i32 - 1],
        };
        let slab = KvPointers {
            keys: keys.as_mut_ptr(),
            values: values.as_mut_ptr(),
            room,
        };
        let mut out = vec![0f32; (to - from) * 2 * 32];
        // SAFETY: the processor was asked; the slab has room for the row.
        unsafe { attend(heads, &inputs, slab, &mut out, &mut Vec::new(), &Alone) }.unwrap();
        out
    };
    let slab = || vec![f32::NAN; room * 32];
    let whole = step(0, width, &mut slab(), &mut slab());
    let (mut keys, mut values) = (slab(), slab());
    let mut parts = Vec::new();
    for (from, to) in [(0, 1), (1, 50), (50, 53), (53, 120), (120, 121), (121, 140)] {
        parts.extend(step(from, to, &mut keys, &mut values));
    }
    assert_eq!(whole, parts);
}

#[test]
fn inputs_that_contradict_each_other_are_refused() {
    let heads = Heads {
        queries: 1,
        keys: 1,
        size: 16,
        scale: 1.0,
    };
    let tables = tables(8);
    let (mut keys, mut values) = (vec![0f32; 4 * 16], vec![0f32; 4 * 16]);
    let slab = KvPointers {
        keys: keys.as_mut_ptr(),
        values: values.as_mut_ptr(),
        room: 4,
    };
    let packed = vec![0f32; 2 * 3 * 16];
    let refusal = |heads: Heads, positions: &[i64], length: i32, last: i32| {
        let inputs = AttentionInputs {
            packed: &packed,
            width: 2,
            tables: [&tables[0], &tables[1]],
            half: 8,
            positions,
            lengths: &[length],
            last: &[last],
        };
        // SAFETY: it is refused before anything is touched.
        unsafe { attend(heads, &inputs, slab, &mut [0f32; 2 * 16], &mut Vec::new(), &Alone) }.unwrap_err()
    };
    assert!(refusal(heads, &[0, 1], 3, 2).contains("3 of 2 tokens"));
    assert!(refusal(heads, &[0, 1], 2, 4).contains("room for 4"));
    assert!(refusal(heads, &[0, 1], 2, 0).contains("1 in all"));
    assert!(refusal(heads, &[0, 400], 2, 1).contains("position 400"));
    assert!(refusal(heads, &[0, -1], 2, 1).contains("position -1"));
    assert!(refusal(Heads { size: 24, ..heads }, &[0, 1], 2, 1).contains("do not fit"));
}
