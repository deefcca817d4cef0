//! Attention of a run's rows over their keys and values in the KV memory, after the run's own are written there.

use crate::workers::{SharedPointer, Workers};

use super::kernel::{self, AttentionKernels, HeadToken, Heads};
use super::layout::{BLOCK_TOKENS, BlockElement, LayerBlocks, RowTable, TILE_TOKENS};
use super::partition::{Unit, units};
use super::softmax::{KvTile, Query};

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
    /// Where the tokens of each row are.
    pub(crate) rows: &'a RowTable,
}

/// A buffer for packed queries, kept from one run to the next.
pub(crate) type QueryScratch = Vec<u64>;

/// The validated lengths of one row of a run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowSpan {
    pub(crate) past: usize,
    pub(crate) length: usize,
}

/// Computes `out[rows, width, queries * size]`; padding becomes 0. Keys and values of the run's tokens are added to
/// the blocks.
///
/// # Errors
/// The inputs contradict each other; one line.
///
/// # Safety
/// The processor has the instruction set of `kernels`. `blocks` points to the KV memory of a layer, which
/// no other code uses meanwhile.
pub(crate) unsafe fn attend(
    kernels: &AttentionKernels,
    heads: Heads,
    inputs: &AttentionInputs<'_>,
    blocks: LayerBlocks,
    out: &mut [f32],
    scratch: &mut QueryScratch,
    workers: &impl Workers,
) -> Result<(), String> {
    let rows = rows(heads, inputs, blocks, out.len())?;
    let element = BlockElement::of_bytes(blocks.head_bytes, heads.size)
        .ok_or_else(|| format!("blocks of {} bytes a head of {}", blocks.head_bytes, heads.size))?;
    let group = heads.queries / heads.keys;
    let query_bytes = kernel::query_bytes(element, heads.size);
    // Queries of a row and head of keys stand together: token by token, each with those of its group.
    let per_head = inputs.width * group * query_bytes;
    let bytes = rows.len() * heads.keys * per_head;
    scratch.resize(scratch.len().max(bytes.div_ceil(8)), 0);
    for (row, RowSpan { length, .. }) in rows.iter().enumerate() {
        let width = heads.queries * heads.size;
        out[(row * inputs.width + length) * width..(row + 1) * inputs.width * width].fill(0.0);
    }
    let run = AttentionRun {
        kernels,
        heads,
        element,
        group,
        query_bytes,
        inputs,
        rows: &rows,
        blocks,
        queries: SharedPointer(scratch.as_mut_ptr().cast()),
        per_head,
        out: SharedPointer(out.as_mut_ptr()),
    };
    let lengths: Vec<usize> = rows.iter().map(|row| row.length).collect();
    let units = units(&lengths, group, inputs.rows);
    let place = |at: usize| (at / heads.keys, at % heads.keys);
    if units.iter().all(Unit::is_whole) {
        return workers.each(units.len() * heads.keys, |at| {
            let (unit, head) = place(at);
            // SAFETY: the rows of a unit, for one head, are one piece of work that alone writes their places; what a
            // row shares of others lies before their own new tokens.
            unsafe {
                for &row in &units[unit].rows {
                    run.rotate_and_store(row, head);
                }
                run.attend(&units[unit], head);
            }
        });
    }
    // SAFETY: as above.
    workers.each(rows.len() * heads.keys, |at| unsafe {
        let (row, head) = place(at);
        run.rotate_and_store(row, head);
    })?;
    // Head by head, so that the parts of a row read its keys and values while they are in the caches.
    workers.each(units.len() * heads.keys, |at| {
        // SAFETY: as above; keys and values are only read by now.
        unsafe { run.attend(&units[at % units.len()], at / units.len()) };
    })
}

fn rows(
    heads: Heads,
    inputs: &AttentionInputs<'_>,
    blocks: LayerBlocks,
    out: usize,
) -> Result<Vec<RowSpan>, String> {
    let Heads {
        queries, keys, size, ..
    } = heads;
    let count = inputs.lengths.len();
    let tokens = count * inputs.width;
    let [cosines, sines] = inputs.tables;
    let fits = keys > 0
        && keys == blocks.heads
        && queries.is_multiple_of(keys)
        && kernel::supports(size)
        && (1..=size / 2).contains(&inputs.half)
        && inputs.packed.len() == tokens * (queries + 2 * keys) * size
        && inputs.positions.len() == tokens
        && inputs.last.len() == count
        && inputs.rows.own.len() == count
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
        let room = blocks.room();
        let own_from = inputs.rows.own_from(row);
        if length > inputs.width || (length > 0 && (total > room || total < length + own_from)) {
            return Err(format!(
                "row {row} has {length} of {} tokens, {total} in all, {own_from} of them shared, and room for {room}",
                inputs.width
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
    kernels: &'a AttentionKernels,
    heads: Heads,
    element: BlockElement,
    /// Heads of queries for each of keys.
    group: usize,
    /// The bytes of a packed query.
    query_bytes: usize,
    inputs: &'a AttentionInputs<'a>,
    rows: &'a [RowSpan],
    blocks: LayerBlocks,
    queries: SharedPointer<u8>,
    /// The bytes of the packed queries of a row and head of keys.
    per_head: usize,
    out: SharedPointer<f32>,
}

impl AttentionRun<'_> {
    /// The packed query of a row and head of keys.
    fn query(&self, row: usize, head: usize, index: usize) -> *mut u8 {
        self.queries
            .at((row * self.heads.keys + head) * self.per_head + index * self.query_bytes)
    }

    /// Rotates and packs the queries of a row and head of keys, and writes its keys and values to the blocks.
    ///
    /// # Safety
    /// As for [`attend`].
    unsafe fn rotate_and_store(&self, row: usize, head: usize) {
        let Heads { size, scale, .. } = self.heads;
        let RowSpan { past, length } = self.rows[row];
        let scale = scale * std::f32::consts::LOG2_E;
        let all = (self.heads.queries + 2 * self.heads.keys) * size;
        for token in 0..length {
            let at = row * self.inputs.width + token;
            let packed = &self.inputs.packed[at * all..][..all];
            let vector = |index: usize| &packed[index * size..][..size];
            // Validated with the row.
            let position = usize::try_from(self.inputs.positions[at]).unwrap_or(0) * self.inputs.half;
            let [cosines, sines] = self
                .inputs
                .tables
                .map(|table| &table[position..][..self.inputs.half]);
            let rope = kernel::Rope { cosines, sines };
            for query in 0..self.group {
                let to = self.query(row, head, token * self.group + query);
                let from = vector(head * self.group + query);
                // SAFETY: as the caller guarantees.
                unsafe { (self.kernels.pack_query)(self.element, from, rope, scale, to) };
            }
            let place = past + token;
            let block = self
                .blocks
                .head(self.inputs.rows.own[row], place / BLOCK_TOKENS, head);
            let (key, value) = (
                self.heads.queries + head,
                self.heads.queries + self.heads.keys + head,
            );
            // SAFETY: as the caller guarantees; the row has room for it.
            unsafe {
                let to = HeadToken {
                    head: block,
                    token: place % BLOCK_TOKENS,
                };
                (self.kernels.store)(self.element, to, vector(key), rope, vector(value));
            }
        }
    }

    /// Computes the attention of a unit for one head of keys.
    ///
    /// # Safety
    /// As for [`attend`]; [`AttentionRun::rotate_and_store`] was done for the unit's rows and the head.
    unsafe fn attend(&self, unit: &Unit, head: usize) {
        let Heads { size, queries, .. } = self.heads;
        let stride = queries * size;
        let mut vectors: Vec<Query> = Vec::with_capacity(unit.vectors);
        let mut firsts = Vec::with_capacity(unit.rows.len() + 1);
        for &row in &unit.rows {
            firsts.push(vectors.len());
            let all = self.rows[row].length * self.group;
            vectors.extend(
                (unit.first.min(all)..all.min(unit.first + unit.vectors)).map(|index| {
                    let (token, query) = (index / self.group, index % self.group);
                    let to = (row * self.inputs.width + token) * stride + (head * self.group + query) * size;
                    Query {
                        vector: self.query(row, head, index),
                        sees: self.rows[row].past + token + 1,
                        sum: self.out.at(to),
                        largest: f32::NEG_INFINITY,
                        weight: 0.0,
                    }
                }),
            );
        }
        firsts.push(vectors.len());
        // SAFETY: as the caller guarantees; each query's sum is its own place of the output.
        unsafe {
            for query in &vectors {
                std::slice::from_raw_parts_mut(query.sum, size).fill(0.0);
            }
            self.descend(unit, head, 0..unit.rows.len(), (0, 0), &firsts, &mut vectors);
            for query in &vectors {
                (self.kernels.conclude)(self.element, query, size);
            }
        }
    }

    /// Attends to the tokens of the unit's rows `members` from `from` on: first to what they share, all together, then to
    /// what fewer of them share, down to what each holds itself. `depth` spans of each lie before `from`.
    ///
    /// # Safety
    /// As for [`attend`].
    unsafe fn descend(
        &self,
        unit: &Unit,
        head: usize,
        members: std::ops::Range<usize>,
        (depth, from): (usize, usize),
        firsts: &[usize],
        vectors: &mut [Query],
    ) {
        let table = self.inputs.rows;
        let span = |member: usize| table.shared[unit.rows[member]].get(depth).copied();
        let mut start = members.start;
        while start < members.end {
            let next = span(start);
            let mut end = start + 1;
            while next.is_some() && end < members.end && span(end) == next {
                end += 1;
            }
            let queries = &mut vectors[firsts[start]..firsts[end]];
            let sees = queries.iter().map(|query| query.sees).max().unwrap_or(0);
            // SAFETY: as the caller guarantees.
            unsafe {
                match next {
                    Some((row, to)) => {
                        self.tiles(row, head, from..to.min(sees), queries);
                        self.descend(unit, head, start..end, (depth + 1, to), firsts, vectors);
                    }
                    None => self.tiles(table.own[unit.rows[start]], head, from..sees, queries),
                }
            }
            start = end;
        }
    }

    /// Attends to a range of tokens that one KV row holds.
    ///
    /// # Safety
    /// As for [`attend`].
    unsafe fn tiles(&self, row: usize, head: usize, range: std::ops::Range<usize>, queries: &mut [Query]) {
        for from in range.clone().step_by(TILE_TOKENS) {
            let seeing = queries.iter().position(|query| query.sees > from).unwrap_or(0);
            let ahead = from + TILE_TOKENS;
            let tile = KvTile {
                first: self.blocks.head(row, from / BLOCK_TOKENS, head),
                stride: self.blocks.stride(),
                from,
                count: TILE_TOKENS.min(range.end - from),
                next: (ahead < range.end)
                    .then(|| self.blocks.head(row, ahead / BLOCK_TOKENS, head).cast_const()),
            };
            // SAFETY: as the caller guarantees.
            unsafe { (self.kernels.tile)(self.element, self.heads.size, &mut queries[seeing..], tile) };
        }
    }
}
