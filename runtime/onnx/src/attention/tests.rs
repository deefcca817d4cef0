//! The attention against its definition, computed as plainly as possible, and against itself in other company and over
//! other places of the same tokens.

#![allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::similar_names
)]

use proptest::prelude::*;

use crate::attention::attend::{AttentionInputs, attend};
use crate::attention::kernel::{AttentionKernels, HeadToken, Heads, Rope};
use crate::attention::layout::{BLOCK_TOKENS, BlockElement, LayerBlocks, RowTable, TILE_TOKENS};
use crate::isa::Isa;
use crate::workers::Alone;

/// Positions of the rope table.
const TABLE: usize = 600;
/// What marks bytes that were never written.
const POISON: u8 = 0xff;

/// A row of a run: what it holds, how many tokens enter, and where in the table its first token stands.
#[derive(Debug, Clone)]
struct Row {
    past: usize,
    length: usize,
    offset: usize,
    /// Ends of the spans that it shares with all rows that have the same.
    spans: Vec<usize>,
}

#[derive(Debug, Clone)]
struct Case {
    element: BlockElement,
    heads: Heads,
    half: usize,
    rows: Vec<Row>,
    seed: u32,
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

impl Case {
    fn blocks(&self) -> usize {
        let ends = self.rows.iter().map(|row| row.past + row.length);
        ends.max().unwrap().max(1).next_multiple_of(TILE_TOKENS) / BLOCK_TOKENS
    }

    /// Whose numbers the token of a row has: those of all rows that share the span, or its own.
    fn source(&self, row: usize, token: usize) -> usize {
        let span = self.rows[row].spans.iter().position(|end| token < *end);
        span.map_or(row, |span| 1_000 + 10 * span + self.rows[row].spans[span])
    }

    /// Key (side 1) or value (side 2) of a token before the run, rotated already.
    fn held(&self, row: usize, head: usize, token: usize, side: u32) -> Vec<f32> {
        let source = self.source(row, token);
        let size = self.heads.size;
        (0..size)
            .map(|at| number(self.seed ^ side, source, head * 100_000 + token * size + at))
            .collect()
    }

    /// Queries, keys and values of a token that enters.
    fn packed(&self, row: usize, token: usize) -> Vec<f32> {
        let all = (self.heads.queries + 2 * self.heads.keys) * self.heads.size;
        (0..all)
            .map(|at| number(self.seed ^ 3, row, token * all + at))
            .collect()
    }
}

type KernelCase<'a> = (&'a AttentionKernels, &'a Case);

/// The KV memory of one layer.
struct Memory {
    bytes: Vec<u64>,
    blocks: usize,
    rows: usize,
    heads: Heads,
    element: BlockElement,
}

impl Memory {
    fn new(case: &Case, rows: usize) -> Self {
        let bytes = rows * case.blocks() * case.heads.keys * case.element.head_bytes(case.heads.size);
        Self {
            bytes: vec![u64::from_ne_bytes([POISON; 8]); bytes / 8],
            blocks: case.blocks(),
            rows,
            heads: case.heads,
            element: case.element,
        }
    }

    fn layer(&mut self) -> LayerBlocks {
        LayerBlocks {
            base: self.bytes.as_mut_ptr().cast(),
            rows: self.rows,
            blocks: self.blocks,
            heads: self.heads.keys,
            head_bytes: self.element.head_bytes(self.heads.size),
        }
    }

    /// What the operator gives for `inputs`: `[rows, width, queries * size]`.
    fn attend(&mut self, kernels: &AttentionKernels, inputs: &AttentionInputs<'_>) -> Vec<f32> {
        let heads = self.heads;
        let count = inputs.lengths.len() * inputs.width * heads.queries * heads.size;
        let (mut out, mut scratch) = (vec![f32::NAN; count], Vec::new());
        // SAFETY: the processor was asked; the memory has room for these rows.
        unsafe {
            attend(
                kernels,
                heads,
                inputs,
                self.layer(),
                &mut out,
                &mut scratch,
                &Alone,
            )
        }
        .unwrap();
        out
    }

    /// Writes the tokens of a case's row that lie in `range` to `kv_row`.
    fn fill(
        &mut self,
        (kernels, case): KernelCase<'_>,
        row: usize,
        range: std::ops::Range<usize>,
        kv_row: usize,
    ) {
        let rope = Rope {
            cosines: &[1.0],
            sines: &[0.0],
        };
        for token in range {
            for head in 0..self.heads.keys {
                let (key, value) = (case.held(row, head, token, 1), case.held(row, head, token, 2));
                let block = self.layer().head(kv_row, token / BLOCK_TOKENS, head);
                let to = HeadToken {
                    head: block,
                    token: token % BLOCK_TOKENS,
                };
                // SAFETY: the processor was asked; the memory has room for the token.
                unsafe { (kernels.store)(self.element, to, &key, rope, &value) };
            }
        }
    }
}

/// What the operator gives for the rows `of`, each alone in memory or sharing spans: `[rows, width, queries * size]`.
fn run((kernels, case): KernelCase<'_>, of: &[usize], share: bool) -> (usize, Vec<f32>) {
    let mut memory = Memory::new(case, 12);
    let mut table = RowTable {
        own: Vec::new(),
        shared: Vec::new(),
    };
    let mut spans: Vec<(usize, usize)> = Vec::new();
    for (place, &row) in of.iter().enumerate() {
        let Row {
            past,
            spans: ref ends,
            ..
        } = case.rows[row];
        // In another order than that of the run.
        let own = 11 - place;
        let mut shared = Vec::new();
        let mut from = 0;
        for &end in ends.iter().filter(|_| share) {
            let source = case.source(row, from);
            let known = spans.iter().find(|span| span.0 == source).map(|span| span.1);
            let kv_row = known.unwrap_or_else(|| {
                spans.push((source, spans.len()));
                memory.fill((kernels, case), row, from..end, spans.len() - 1);
                spans.len() - 1
            });
            shared.push((kv_row, end));
            from = end;
        }
        memory.fill((kernels, case), row, from..past, own);
        table.own.push(own);
        table.shared.push(shared);
    }
    let rows: Vec<Row> = of.iter().map(|&row| case.rows[row].clone()).collect();
    let width = rows.iter().map(|row| row.length).max().unwrap();
    let all = (case.heads.queries + 2 * case.heads.keys) * case.heads.size;
    let mut packed = vec![f32::NAN; of.len() * width * all];
    for (place, &row) in of.iter().enumerate() {
        for token in 0..case.rows[row].length {
            packed[(place * width + token) * all..][..all].copy_from_slice(&case.packed(row, token));
        }
    }
    let positions: Vec<i64> = rows
        .iter()
        .flat_map(|row| (0..width).map(|token| (row.offset + token) as i64))
        .collect();
    let lengths: Vec<i32> = rows.iter().map(|row| row.length as i32).collect();
    let last: Vec<i32> = rows
        .iter()
        .map(|row| (row.past + row.length).max(1) as i32 - 1)
        .collect();
    let tables = tables(case.half);
    let inputs = AttentionInputs {
        packed: &packed,
        width,
        tables: [&tables[0], &tables[1]],
        half: case.half,
        positions: &positions,
        lengths: &lengths,
        last: &last,
        rows: &table,
    };
    (width, memory.attend(kernels, &inputs))
}

/// The definition: rotate, score, softmax, sum.
fn reference(case: &Case, row: usize) -> Vec<f64> {
    let Heads {
        queries,
        keys: heads,
        size,
        scale,
    } = case.heads;
    let Row {
        past, length, offset, ..
    } = case.rows[row];
    let tables = tables(case.half);
    let vector = |token: usize, index: usize| -> Vec<f64> {
        case.packed(row, token)[index * size..][..size]
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
    let held = |head: usize, at: usize, side: u32| -> Vec<f64> {
        let held = case.held(row, head, at, side);
        held.iter().map(|value| f64::from(*value)).collect()
    };
    let mut out = Vec::new();
    for token in 0..length {
        for query in 0..queries {
            let head = query / (queries / heads);
            let asks = rotated(token, query);
            let seen: Vec<(Vec<f64>, Vec<f64>)> = (0..=past + token)
                .map(|at| {
                    if at < past {
                        (held(head, at, 1), held(head, at, 2))
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
    let plain = |past, length, offset| Row {
        past,
        length,
        offset: offset + past,
        spans: Vec::new(),
    };
    let row = (0..150usize, 0..70usize, 0..100usize)
        .prop_map(move |(past, length, offset)| plain(past, length, offset));
    let short = (0..300usize, 0..6usize, 0..90usize)
        .prop_map(move |(past, length, offset)| plain(past, length, offset));
    let sharing =
        (0..3usize, 0..100usize, 1..8usize, prop::bool::ANY).prop_map(|(spans, own, length, one)| {
            let ends = if one { vec![64, 128] } else { vec![128] };
            let spans = ends[..spans.min(ends.len())].to_vec();
            let past = spans.last().copied().unwrap_or(0) + own;
            Row {
                past,
                length,
                offset: past,
                spans,
            }
        });
    let rows = proptest::collection::vec(prop_oneof![row, short, sharing], 1..6);
    let heads = (1..3usize, 1..4usize, 1..=8usize);
    let element = prop_oneof![Just(BlockElement::F32), Just(BlockElement::I8)];
    (rows, heads, any::<bool>(), any::<u32>(), 0.05f32..1.0, element).prop_map(
        |(mut rows, (keys, group, pieces), whole, seed, scale, element)| {
            if rows.iter().all(|row| row.length == 0) {
                rows[0].length = 1;
            }
            let size = pieces * 16;
            Case {
                element,
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
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn tokens_get_what_the_definition_says_and_the_same_alone(case in cases()) {
        let everybody: Vec<usize> = (0..case.rows.len()).collect();
        let (width, out) = run((AttentionKernels::of(Isa::Scalar), &case), &everybody, true);
        // Values lie between -1 and 1. Of each result, and of their root mean square.
        let (most, mean) = match case.element {
            BlockElement::F32 => (2e-5, 2e-5),
            BlockElement::I8 => (1e-1, 1.5e-2),
        };
        let stride = case.heads.queries * case.heads.size;
        for (row, length) in case.rows.iter().map(|row| row.length).enumerate() {
            let (got, padding) = out[row * width * stride..][..width * stride].split_at(length * stride);
            prop_assert!(padding.iter().all(|value| *value == 0.0), "padding is nothing");
            let mut squares = 0.0;
            for (got, expected) in got.iter().zip(reference(&case, row)) {
                let error = (f64::from(*got) - expected).abs();
                prop_assert!(error <= most, "{got} is not {expected}");
                squares += error * error;
            }
            let error = (squares / got.len().max(1) as f64).sqrt();
            prop_assert!(error <= mean, "a mean error of {error}");
            if length == 0 {
                continue;
            }
            // Alone and sharing nothing: to the last bit.
            for (name, kernels) in AttentionKernels::all() {
                let (_, alone) = run((kernels, &case), &[row], false);
                prop_assert_eq!(got, alone.as_slice(), "{}", name);
            }
        }
        for (name, kernels) in AttentionKernels::all() {
            let (_, got) = run((kernels, &case), &everybody, true);
            let same = got.iter().zip(&out).all(|(a, b)| a.to_bits() == b.to_bits());
            prop_assert!(same, "{name}");
        }
    }
}

#[test]
fn a_token_gets_the_same_in_one_run_and_step_by_step() {
    for element in [BlockElement::F32, BlockElement::I8] {
        for (name, kernels) in AttentionKernels::all() {
            step_by_step(kernels, element, name);
        }
    }
}

fn step_by_step(kernels: &AttentionKernels, element: BlockElement, name: &str) {
    let heads = Heads {
        queries: 2,
        keys: 1,
        size: 32,
        scale: 0.3,
    };
    let case = Case {
        element,
        heads,
        half: 16,
        rows: vec![Row {
            past: 0,
            length: 140,
            offset: 0,
            spans: Vec::new(),
        }],
        seed: 5,
    };
    let tables = tables(case.half);
    let all = 4 * 32;
    let packed: Vec<f32> = (0..140).flat_map(|token| case.packed(0, token)).collect();
    let table = RowTable {
        own: vec![1],
        shared: vec![Vec::new()],
    };
    let step = |from: usize, to: usize, memory: &mut Memory| {
        let positions: Vec<i64> = (from..to).map(|at| at as i64).collect();
        let inputs = AttentionInputs {
            packed: &packed[from * all..to * all],
            width: to - from,
            tables: [&tables[0], &tables[1]],
            half: case.half,
            positions: &positions,
            lengths: &[(to - from) as i32],
            last: &[to as i32 - 1],
            rows: &table,
        };
        memory.attend(kernels, &inputs)
    };
    let mut memory = Memory::new(&case, 2);
    let whole = step(0, 140, &mut memory);
    // No other row was written to.
    let other = memory.bytes.len() / 2;
    let poison = u64::from_ne_bytes([POISON; 8]);
    assert!(memory.bytes[..other].iter().all(|bytes| *bytes == poison));
    let mut parts = Vec::new();
    let mut stepwise = Memory::new(&case, 2);
    for (from, to) in [(0, 1), (1, 50), (50, 53), (53, 120), (120, 121), (121, 140)] {
        parts.extend(step(from, to, &mut stepwise));
    }
    assert_eq!(whole, parts, "{name}");
    assert_eq!(memory.bytes, stepwise.bytes, "{name}");
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
    let packed = vec![0f32; 2 * 3 * 16];
    let refusal = |heads: Heads, positions: &[i64], length: i32, last: i32, shared: Vec<(usize, usize)>| {
        let mut bytes = vec![0u64; 4 * BlockElement::F32.head_bytes(16) / 8];
        let blocks = LayerBlocks {
            base: bytes.as_mut_ptr().cast(),
            rows: 1,
            blocks: 4,
            heads: 1,
            head_bytes: BlockElement::F32.head_bytes(16),
        };
        let inputs = AttentionInputs {
            packed: &packed,
            width: 2,
            tables: [&tables[0], &tables[1]],
            half: 8,
            positions,
            lengths: &[length],
            last: &[last],
            rows: &RowTable {
                own: vec![0],
                shared: vec![shared],
            },
        };
        // SAFETY: it is refused before anything is touched.
        unsafe {
            attend(
                AttentionKernels::of(Isa::Scalar),
                heads,
                &inputs,
                blocks,
                &mut [0f32; 2 * 16],
                &mut Vec::new(),
                &Alone,
            )
        }
        .unwrap_err()
    };
    assert!(refusal(heads, &[0, 1], 3, 2, vec![]).contains("3 of 2 tokens"));
    assert!(refusal(heads, &[0, 1], 2, 64, vec![]).contains("room for 64"));
    assert!(refusal(heads, &[0, 1], 2, 0, vec![]).contains("1 in all"));
    assert!(refusal(heads, &[0, 1], 2, 64, vec![(0, 64)]).contains("64 of them shared"));
    assert!(refusal(heads, &[0, 600], 2, 1, vec![]).contains("position 600"));
    assert!(refusal(heads, &[0, -1], 2, 1, vec![]).contains("position -1"));
    assert!(refusal(Heads { size: 24, ..heads }, &[0, 1], 2, 1, vec![]).contains("do not fit"));
}

#[test]
fn a_table_of_rows_is_read_strictly() {
    let read = |table: &[i32], rows: usize| RowTable::read(table, rows, 8);
    let table = read(&[3, 1, 64, 2, 192, 5, 0, 0, 0, 0], 2).unwrap();
    assert_eq!(table.own, [3, 5]);
    assert_eq!(table.shared, [vec![(1, 64), (2, 192)], vec![]]);
    assert_eq!((table.own_from(0), table.own_from(1)), (192, 0));
    for (wrong, says) in [
        (&[8][..], "row 8 of a slab of 8"),
        (&[-1], "row -1"),
        (&[0, 9, 64], "row 9"),
        (&[0, 1, 63], "tokens 0..63"),
        (&[0, 1, -64], "tokens 0..-64"),
        (&[0, 1, 128, 2, 64], "tokens 128..64"),
        (&[0, 1], "a table of 2"),
        (&[], "a table of 0"),
    ] {
        let error = read(wrong, 1).unwrap_err();
        assert!(error.contains(says), "{error}");
    }
}
