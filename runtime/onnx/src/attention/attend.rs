//! Attention of a run's rows over their keys and values in the slab, after the run's own are written there.

use crate::attention::LANES;
use crate::attention::online_softmax::{BLOCK, Query, block};
use crate::workers::{SharedPointer, Workers};

/// The most query vectors of one piece of work. All are scored against a block of keys while it is in the first
/// caches.
const MAX_PART_VECTORS: usize = 32;

/// The dimensions of the heads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Heads {
    /// Heads of queries.
    pub(crate) queries: usize,
    /// Heads of keys and values; each serves the same number of query heads.
    pub(crate) keys: usize,
    /// Values of a vector.
    pub(crate) size: usize,
    /// The factor of the scores.
    pub(crate) scale: f32,
}

/// The inputs of a run.
pub(crate) struct AttentionInputs<'a> {
    /// Queries, keys and values of each token: `[rows, width, (queries + 2 * keys) * size]`.
    pub(crate) packed: &'a [f32],
    /// Tokens of each row, padding included.
    pub(crate) width: usize,
    /// `[positions, half]`, cosines and sines of each pair that is rotated.
    pub(crate) tables: [&'a [f32]; 2],
    /// Pairs that are rotated in each vector: half of its values or less.
    pub(crate) half: usize,
    /// `[rows, width]`: each token's place in the tables.
    pub(crate) positions: &'a [i64],
    /// `[rows]`: tokens that count.
    pub(crate) lengths: &'a [i32],
    /// `[rows]`: tokens of the whole sequence, less one.
    pub(crate) last: &'a [i32],
}

/// Keys and values of a run's rows: `[rows, keys, room, size]` each.
#[derive(Clone, Copy)]
pub(crate) struct KvPointers {
    pub(crate) keys: *mut f32,
    pub(crate) values: *mut f32,
    /// Tokens that a row has room for.
    pub(crate) room: usize,
}

/// A buffer for rotated queries, kept from one run to the next.
pub(crate) type QueryScratch = Vec<f32>;

// SAFETY: what is written through them is divided among the threads by the pieces of work.
unsafe impl Send for KvPointers {}
// SAFETY: as above.
unsafe impl Sync for KvPointers {}

/// The validated lengths of one row of a run.
#[derive(Clone, Copy)]
struct RowSpan {
    past: usize,
    length: usize,
}

/// Computes `out[rows, width, queries * size]`; padding becomes 0. Keys and values of the run's tokens are added to
/// the slab.
///
/// # Errors
/// The inputs contradict each other; one line.
///
/// # Safety
/// The processor has AVX-512. `slab` points to the keys and values of all rows, which no other code uses meanwhile.
pub(crate) unsafe fn attend(
    heads: Heads,
    inputs: &AttentionInputs<'_>,
    slab: KvPointers,
    out: &mut [f32],
    scratch: &mut QueryScratch,
    workers: &impl Workers,
) -> Result<(), String> {
    let rows = rows(heads, inputs, slab, out.len())?;
    let group = heads.queries / heads.keys;
    let run = AttentionRun {
        heads,
        group,
        inputs,
        slab,
    };
    // Queries of a row and head of keys stand together: token by token, each with those of its group.
    let per_head = inputs.width * group * heads.size;
    scratch.resize(scratch.len().max(rows.len() * heads.keys * per_head), 0.0);
    let queries = SharedPointer(scratch.as_mut_ptr());
    for (row, RowSpan { length, .. }) in rows.iter().enumerate() {
        let width = heads.queries * heads.size;
        out[(row * inputs.width + length) * width..(row + 1) * inputs.width * width].fill(0.0);
    }
    let out = SharedPointer(out.as_mut_ptr());
    let pieces = |row: &RowSpan| (row.length * group).div_ceil(MAX_PART_VECTORS);
    let parts = rows.iter().map(pieces).max().unwrap_or(0);
    let place = |at: usize| (at / heads.keys, at % heads.keys);
    // SAFETY: each row and head is one piece of work that alone writes its places; the rest is as the caller
    // guarantees.
    let store = |at: usize| unsafe {
        let (row, head) = place(at);
        run.rotate_and_store(row, rows[row], head, queries.at(at * per_head));
    };
    // SAFETY: as above; keys and values are only read by now.
    let attend = |at: usize, part: usize| unsafe {
        let (row, head) = place(at);
        run.attend_part(row, rows[row], head, part, queries.at(at * per_head), out);
    };
    if parts <= 1 {
        return workers.each(rows.len() * heads.keys, |at| {
            store(at);
            attend(at, 0);
        });
    }
    workers.each(rows.len() * heads.keys, store)?;
    workers.each(rows.len() * heads.keys * parts, |at| {
        attend(at / parts, at % parts);
    })
}

fn rows(
    heads: Heads,
    inputs: &AttentionInputs<'_>,
    slab: KvPointers,
    out: usize,
) -> Result<Vec<RowSpan>, String> {
    let Heads {
        queries, keys, size, ..
    } = heads;
    let count = inputs.lengths.len();
    let tokens = count * inputs.width;
    let [cosines, sines] = inputs.tables;
    let fits = keys > 0
        && queries.is_multiple_of(keys)
        && size.is_multiple_of(LANES)
        && (LANES..=8 * LANES).contains(&size)
        && (1..=size / 2).contains(&inputs.half)
        && inputs.packed.len() == tokens * (queries + 2 * keys) * size
        && inputs.positions.len() == tokens
        && inputs.last.len() == count
        && cosines.len() == sines.len()
        && out == tokens * queries * size;
    if !fits {
        return Err(format!(
            "inputs of the attention do not fit {queries} heads of {size}"
        ));
    }
    let table = cosines.len() / inputs.half;
    let mut rows = Vec::with_capacity(count);
    for (row, (&length, &last)) in inputs.lengths.iter().zip(inputs.last).enumerate() {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let total = usize::try_from(last).map_or(usize::MAX, |last| last + 1);
        if length > inputs.width || (length > 0 && (total > slab.room || total < length)) {
            return Err(format!(
                "row {row} has {length} of {} tokens, {total} in all, and room for {}",
                inputs.width, slab.room
            ));
        }
        let positions = &inputs.positions[row * inputs.width..][..length];
        if let Some(position) = positions
            .iter()
            .find(|position| usize::try_from(**position).map_or(true, |at| at >= table))
        {
            return Err(format!("position {position} is beyond the rope table of {table}"));
        }
        rows.push(RowSpan {
            past: total.saturating_sub(length),
            length,
        });
    }
    Ok(rows)
}

struct AttentionRun<'a> {
    heads: Heads,
    /// Heads of queries for each of keys.
    group: usize,
    inputs: &'a AttentionInputs<'a>,
    slab: KvPointers,
}

impl AttentionRun<'_> {
    /// The offset of the vectors of a row and head in the slab.
    fn start(&self, row: usize, head: usize) -> usize {
        (row * self.heads.keys + head) * self.slab.room * self.heads.size
    }

    /// Rotates the queries of a row and head of keys into `queries`, its keys into the slab, and puts its values there.
    ///
    /// # Safety
    /// As for [`attend`]; `queries` has room for them.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn rotate_and_store(&self, row: usize, of: RowSpan, head: usize, queries: *mut f32) {
        let Heads { size, scale, .. } = self.heads;
        let scale = scale * std::f32::consts::LOG2_E;
        for token in 0..of.length {
            let at = row * self.inputs.width + token;
            let all = (self.heads.queries + 2 * self.heads.keys) * size;
            let packed = &self.inputs.packed[at * all..][..all];
            let vector = |index: usize| &packed[index * size..][..size];
            // Validated with the row.
            let position = usize::try_from(self.inputs.positions[at]).unwrap_or(0) * self.inputs.half;
            let [cosines, sines] = self
                .inputs
                .tables
                .map(|table| &table[position..][..self.inputs.half]);
            for query in 0..self.group {
                let to = queries.wrapping_add((token * self.group + query) * size);
                // SAFETY: as the caller guarantees.
                let to = unsafe { std::slice::from_raw_parts_mut(to, size) };
                rotate(vector(head * self.group + query), cosines, sines, scale, to);
            }
            let to = self.start(row, head) + (of.past + token) * size;
            // SAFETY: as the caller guarantees; the row has room for it.
            let (key, value) = unsafe {
                (
                    std::slice::from_raw_parts_mut(self.slab.keys.add(to), size),
                    std::slice::from_raw_parts_mut(self.slab.values.add(to), size),
                )
            };
            rotate(vector(self.heads.queries + head), cosines, sines, 1.0, key);
            value.copy_from_slice(vector(self.heads.queries + self.heads.keys + head));
        }
    }

    /// Computes the attention of one part of a row's queries.
    ///
    /// # Safety
    /// As for [`attend`]; [`AttentionRun::rotate_and_store`] was done for the row and head.
    unsafe fn attend_part(
        &self,
        row: usize,
        of: RowSpan,
        head: usize,
        part: usize,
        queries: *const f32,
        out: SharedPointer<f32>,
    ) {
        let Heads { size, .. } = self.heads;
        let first = part * MAX_PART_VECTORS;
        let last = (of.length * self.group).min(first + MAX_PART_VECTORS);
        if first >= last {
            return;
        }
        let stride = self.heads.queries * size;
        let mut vectors: Vec<Query> = (first..last)
            .map(|index| {
                let (token, query) = (index / self.group, index % self.group);
                let to = (row * self.inputs.width + token) * stride + (head * self.group + query) * size;
                Query {
                    vector: queries.wrapping_add(index * size),
                    sees: of.past + token + 1,
                    sum: out.at(to),
                    largest: f32::NEG_INFINITY,
                    weight: 0.0,
                }
            })
            .collect();
        let end = vectors.last().map_or(0, |query| query.sees);
        let (keys, values) = (self.slab.keys, self.slab.values);
        let start = self.start(row, head);
        // SAFETY: as the caller guarantees; each query's sum is its own place of the output.
        unsafe {
            let (keys, values) = (keys.add(start).cast_const(), values.add(start).cast_const());
            for query in &vectors {
                std::slice::from_raw_parts_mut(query.sum, size).fill(0.0);
            }
            for from in (0..end).step_by(BLOCK) {
                let seeing = vectors.iter().position(|query| query.sees > from).unwrap_or(0);
                // After the last block a thread likely goes on with the head but one: its neighbour takes the next.
                let next = if from + BLOCK < end {
                    keys.wrapping_add((from + BLOCK) * size)
                } else {
                    keys.wrapping_add(2 * self.slab.room * size)
                };
                blocks(
                    size / LANES,
                    &mut vectors[seeing..],
                    keys,
                    values,
                    from,
                    end,
                    next,
                );
            }
            for query in &vectors {
                let sum = std::slice::from_raw_parts_mut(query.sum, size);
                for value in sum {
                    *value /= query.weight;
                }
            }
        }
    }
}

/// Rotates pairs `half` apart and scales all values.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
#[inline]
fn rotate(vector: &[f32], cosines: &[f32], sines: &[f32], scale: f32, to: &mut [f32]) {
    let half = cosines.len();
    let (low, rest) = vector.split_at(half);
    let (high, rest) = rest.split_at(half);
    let (to_low, to_rest) = to.split_at_mut(half);
    let (to_high, to_rest) = to_rest.split_at_mut(half);
    for at in 0..half {
        to_low[at] = (low[at] * cosines[at] - high[at] * sines[at]) * scale;
        to_high[at] = (high[at] * cosines[at] + low[at] * sines[at]) * scale;
    }
    for (to, value) in to_rest.iter_mut().zip(rest) {
        *to = value * scale;
    }
}

/// Attends to one block of keys for all queries, a few at a time so that their sums stay in registers. `next`: as for
/// [`block`].
///
/// # Safety
/// As for [`block`].
unsafe fn blocks(
    pieces: usize,
    queries: &mut [Query],
    keys: *const f32,
    values: *const f32,
    from: usize,
    end: usize,
    next: *const f32,
) {
    // Fetched by the first chunk of queries only.
    let mut next = Some(next);
    macro_rules! by {
        ($pieces:literal, $most:literal) => {{
            let mut few = queries.chunks_exact_mut($most);
            for queries in &mut few {
                // A query sees no further than the last of its chunk.
                let end = end.min(queries[$most - 1].sees);
                // SAFETY: as the caller guarantees.
                unsafe { block::<$pieces, $most>(queries, keys, values, from, end, next.take()) };
            }
            let rest = few.into_remainder();
            let end = rest.last().map_or(end, |query| end.min(query.sees));
            // SAFETY: as the caller guarantees.
            unsafe {
                match rest.len() {
                    0 => {}
                    1 => block::<$pieces, 1>(rest, keys, values, from, end, next),
                    2 => block::<$pieces, 2>(rest, keys, values, from, end, next),
                    _ => block::<$pieces, 3>(rest, keys, values, from, end, next),
                }
            }
        }};
    }
    match pieces {
        1 => by!(1, 4),
        2 => by!(2, 4),
        3 => by!(3, 4),
        4 => by!(4, 4),
        5 => by!(5, 4),
        6 => by!(6, 4),
        7 => by!(7, 3),
        _ => by!(8, 3),
    }
}
