//! What rows take of the memory budget, and which idle ones are evicted for it.
//!
//! A running sequence takes what it may come to hold, an idle row what it holds; tokens that several rows read count once,
//! in the row that holds them.

use super::reservation::Reservation;
use super::spans::RowPlan;
use super::{KvRows, RowState, index, row_id};
use crate::decoder::{Caps, SharedSpan};
use crate::ids::RowId;

/// The bytes that a row takes, by its number of tokens ([`Caps::kv_block`], [`Caps::kv_row_overhead`]).
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowBytes {
    block: usize,
    block_bytes: u64,
    overhead: u64,
}

impl RowBytes {
    /// The formula of a decoder.
    pub(crate) fn new(caps: &Caps) -> Self {
        let block = caps.kv_block.max(1);
        Self {
            block,
            block_bytes: caps.kv_bytes_per_token.max(1).saturating_mul(block as u64),
            overhead: caps.kv_row_overhead,
        }
    }

    /// The bytes of a row that holds `tokens` itself.
    pub(crate) fn of(&self, tokens: usize) -> u64 {
        if tokens == 0 {
            return 0;
        }
        let blocks = tokens.div_ceil(self.block) as u64;
        blocks
            .saturating_mul(self.block_bytes)
            .saturating_add(self.overhead)
    }

    /// The most tokens that one row of `bytes` holds.
    pub(crate) fn tokens_in(&self, bytes: u64) -> usize {
        let blocks = bytes.saturating_sub(self.overhead) / self.block_bytes;
        usize::try_from(blocks).map_or(usize::MAX, |blocks| blocks.saturating_mul(self.block))
    }
}

/// An idle row that is to keep its first `len` tokens only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Eviction {
    pub(crate) row: RowId,
    pub(crate) len: usize,
}

impl KvRows {
    /// The formula of the decoder.
    pub(crate) fn bytes(&self) -> RowBytes {
        self.bytes
    }

    /// What is reserved for the running sequence that has `row`.
    pub(crate) fn reservation(&self, row: RowId) -> Option<Reservation> {
        self.rows[index(row)].owner.map(|(_, reservation)| reservation)
    }

    /// The bytes that all rows take, with what running sequences may come to hold.
    pub(crate) fn taken_bytes(&self) -> u64 {
        self.sum(|_, row| match row.owner {
            Some((_, reservation)) => self.bytes.of(reservation.own_tokens(&row.spans)),
            None => self.idle_bytes_of(row),
        })
    }

    /// The bytes that remain taken when everything is evicted that can be, with `plan` made.
    pub(crate) fn committed_bytes(&self, plan: Option<&RowPlan>) -> u64 {
        let planned = |at: usize| plan.filter(|plan| index(plan.row) == at);
        let running = self.rows.iter().enumerate();
        let running = running.filter(|(at, row)| !row.is_idle() && planned(*at).is_none());
        let reads = running.flat_map(|(_, row)| row.reads());
        let reads: Vec<&SharedSpan> = reads.chain(plan.iter().flat_map(|plan| plan.reads())).collect();
        self.sum(|at, row| {
            if let Some(plan) = planned(at) {
                return self.bytes.of(plan.reservation.own_tokens(&plan.spans));
            }
            if let Some((_, reservation)) = row.owner {
                return self.bytes.of(reservation.own_tokens(&row.spans));
            }
            if row.pinned {
                return self.idle_bytes_of(row);
            }
            let ends = reads.iter().filter(|span| index(span.row) == at);
            let read_end = ends.map(|span| span.end).max().unwrap_or(0);
            self.bytes.of(read_end.saturating_sub(row.shared_end()))
        })
    }

    /// The bytes of pinned rows.
    pub(crate) fn pinned_bytes(&self) -> u64 {
        self.sum(|_, row| if row.pinned { self.idle_bytes_of(row) } else { 0 })
    }

    /// The bytes of idle rows.
    pub(crate) fn idle_bytes(&self) -> u64 {
        self.sum(|_, row| if row.is_idle() { self.idle_bytes_of(row) } else { 0 })
    }

    /// The bytes of a row whose sequence has computed `tokens`.
    pub(crate) fn running_bytes(&self, row: RowId, tokens: usize) -> u64 {
        self.bytes
            .of(tokens.saturating_sub(self.rows[index(row)].shared_end()))
    }

    /// The bytes of `row` if it may be evicted, else 0.
    pub(crate) fn evictable_bytes(&self, row: RowId) -> u64 {
        let state = &self.rows[index(row)];
        if state.is_idle() && !state.pinned {
            self.idle_bytes_of(state)
        } else {
            0
        }
    }

    /// Evicts the least recently used idle row except `keep`: the tokens of it that no other row reads.
    pub(crate) fn evict_oldest(&mut self, keep: Option<RowId>) -> Option<Eviction> {
        let candidates = (0..self.rows.len()).filter(|&at| {
            let row = &self.rows[at];
            row.is_idle()
                && !row.pinned
                && Some(row_id(at)) != keep
                && self.read_end(row_id(at)) < row.held.len()
        });
        let oldest = candidates.min_by_key(|&at| self.rows[at].last_used)?;
        let row = row_id(oldest);
        let len = self.read_end(row);
        if len == 0 {
            self.clear(row);
        } else {
            self.rows[oldest].held.truncate(len);
        }
        Some(Eviction { row, len })
    }

    fn idle_bytes_of(&self, row: &RowState) -> u64 {
        self.bytes.of(row.held.len().saturating_sub(row.shared_end()))
    }

    fn sum(&self, bytes: impl Fn(usize, &RowState) -> u64) -> u64 {
        let rows = self.rows.iter().enumerate();
        rows.fold(0, |sum: u64, (at, row)| sum.saturating_add(bytes(at, row)))
    }
}
