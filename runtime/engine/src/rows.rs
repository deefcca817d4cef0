//! The rows of KV memory: their owners, and the prefixes that idle ones keep.
//!
//! Rows `0..running` are the running zone: a batched run takes neighbours, so running sequences lie close together.
//! The rows beyond only cache prefixes. A row that a sequence has left keeps its keys and values until their memory
//! or the row is needed: the least recently used goes first.

use crate::decoder::Regime;
use crate::ids::{RequestId, RowId, TokenId};

/// The state of all rows.
#[derive(Debug)]
pub(crate) struct KvRows {
    rows: Vec<RowState>,
    running: usize,
    clock: u64,
}

#[derive(Debug, Default)]
struct RowState {
    owner: Option<RequestId>,
    /// Tokens whose keys and values an idle row holds; empty while a sequence owns the row.
    held: Vec<TokenId>,
    regime: Option<Regime>,
    last_used: u64,
    pinned: bool,
}

/// A row that shares a prefix with a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PrefixMatch {
    pub(crate) row: RowId,
    /// The number of shared tokens.
    pub(crate) len: usize,
}

/// The row that a sequence is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Placement {
    pub(crate) row: RowId,
    /// The spare row that the row's content is to be copied out to, and its number of tokens; `None`: it is not worth
    /// keeping.
    pub(crate) copy_out: Option<(RowId, usize)>,
}

impl KvRows {
    /// Empty rows: `total`, of which the first `running` may hold running sequences.
    pub(crate) fn new(total: usize, running: usize) -> Self {
        Self {
            rows: (0..total.max(running)).map(|_| RowState::default()).collect(),
            running,
            clock: 0,
        }
    }

    /// Whether a row of the running zone is idle.
    pub(crate) fn has_free_row(&self) -> bool {
        self.rows[..self.running].iter().any(|row| row.owner.is_none())
    }

    /// The idle row with the longest prefix in common with `prompt`, up to `most` tokens.
    pub(crate) fn best_match(&self, prompt: &[TokenId], most: usize, regime: Regime) -> Option<PrefixMatch> {
        let idle = self
            .rows
            .iter()
            .enumerate()
            .filter(|(_, row)| row.owner.is_none());
        idle.filter(|(_, row)| row.regime == Some(regime))
            .map(|(index, row)| PrefixMatch {
                row: row_id(index),
                len: common_prefix(&row.held, prompt).min(most),
            })
            .filter(|found| found.len > 0)
            // The most tokens; among equals one that can be used in place.
            .max_by_key(|found| (found.len, self.in_running_zone(found.row)))
    }

    /// Gives a row of the running zone to `owner`, close to running ones: rows between them cost as much in a run as
    /// they do. `wanted` is the row that holds the prompt's prefix: taken in place if that is possible.
    pub(crate) fn place(&mut self, owner: RequestId, wanted: Option<PrefixMatch>) -> Option<Placement> {
        let in_place = wanted.filter(|found| {
            let state = &self.rows[index(found.row)];
            self.in_running_zone(found.row)
                && state.owner.is_none()
                && !state.pinned
                && self.widening(index(found.row)) <= self.least_widening()
        });
        let row = match in_place {
            Some(found) => found.row,
            None => self.least_wanted(0..self.running, wanted.map(|found| found.row))?,
        };
        // A sequence that continues in place keeps the prefix that it needs and overwrites the rest.
        let copy_out = if in_place.is_some() {
            None
        } else {
            self.spare_row_for(row, wanted)
        };
        if let Some((spare, _)) = copy_out {
            let held = std::mem::take(&mut self.rows[index(row)].held);
            let (regime, last_used) = (self.rows[index(row)].regime, self.rows[index(row)].last_used);
            let state = &mut self.rows[index(spare)];
            state.held = held;
            state.regime = regime;
            state.last_used = last_used;
        }
        let now = self.tick();
        let state = &mut self.rows[index(row)];
        state.owner = Some(owner);
        state.held.clear();
        state.regime = None;
        state.pinned = false;
        state.last_used = now;
        Some(Placement { row, copy_out })
    }

    /// Makes a row idle; it keeps `held`.
    pub(crate) fn leave(&mut self, row: RowId, held: Vec<TokenId>, regime: Regime) {
        let now = self.tick();
        let state = &mut self.rows[index(row)];
        state.owner = None;
        state.regime = Some(regime).filter(|_| !held.is_empty());
        state.held = held;
        state.last_used = now;
    }

    /// Marks a row as just used.
    pub(crate) fn touch(&mut self, row: RowId) {
        let now = self.tick();
        self.rows[index(row)].last_used = now;
    }

    /// Pins an idle row: it is never evicted.
    pub(crate) fn pin(&mut self, row: RowId) {
        self.rows[index(row)].pinned = true;
    }

    /// The row that is pinned with exactly these tokens.
    pub(crate) fn pinned(&self, tokens: &[TokenId]) -> Option<RowId> {
        let found = self
            .rows
            .iter()
            .position(|state| state.pinned && state.held == tokens)?;
        Some(row_id(found))
    }

    /// A row for a pinned prefix: the last of those beyond the running zone that holds none.
    pub(crate) fn row_to_pin(&self) -> Option<RowId> {
        let beyond = (self.running..self.rows.len()).rev();
        beyond
            .filter(|&index| !self.rows[index].pinned)
            .map(row_id)
            .next()
    }

    /// The number of tokens in idle rows that may be evicted.
    pub(crate) fn evictable_tokens(&self) -> usize {
        self.rows
            .iter()
            .filter(|row| row.owner.is_none() && !row.pinned)
            .map(|row| row.held.len())
            .sum()
    }

    /// The number of tokens in `row` if it may be evicted, else 0.
    pub(crate) fn evictable_tokens_of(&self, row: RowId) -> usize {
        let state = &self.rows[index(row)];
        if state.owner.is_none() && !state.pinned {
            state.held.len()
        } else {
            0
        }
    }

    /// The number of tokens in pinned rows.
    pub(crate) fn pinned_tokens(&self) -> usize {
        self.rows
            .iter()
            .filter(|row| row.owner.is_none() && row.pinned)
            .map(|row| row.held.len())
            .sum()
    }

    /// Evicts the least recently used idle row except `keep`; returns which.
    pub(crate) fn evict_oldest(&mut self, keep: Option<RowId>) -> Option<RowId> {
        let candidates = self.rows.iter().enumerate().filter(|(index, row)| {
            row.owner.is_none() && !row.pinned && !row.held.is_empty() && Some(row_id(*index)) != keep
        });
        let (index, _) = candidates.min_by_key(|(_, row)| row.last_used)?;
        self.rows[index].held = Vec::new();
        self.rows[index].regime = None;
        Some(row_id(index))
    }

    /// The tokens that `row` holds if it is idle.
    pub(crate) fn held(&self, row: RowId) -> &[TokenId] {
        &self.rows[index(row)].held
    }

    /// Whether `row` is idle.
    pub(crate) fn is_idle(&self, row: RowId) -> bool {
        self.rows[index(row)].owner.is_none()
    }

    /// Shortens an idle row to its first `len` tokens.
    pub(crate) fn shorten(&mut self, row: RowId, len: usize) {
        self.rows[index(row)].held.truncate(len);
    }

    /// The number of rows by which a run of all running rows would grow if this one joined.
    fn widening(&self, index: usize) -> usize {
        let busy = || (0..self.running).filter(|&at| self.rows[at].owner.is_some());
        match (busy().min(), busy().max()) {
            (Some(first), Some(last)) => first.saturating_sub(index) + index.saturating_sub(last),
            _ => 0,
        }
    }

    fn least_widening(&self) -> usize {
        let idle = (0..self.running).filter(|&at| self.rows[at].owner.is_none());
        idle.map(|at| self.widening(at)).min().unwrap_or(0)
    }

    fn in_running_zone(&self, row: RowId) -> bool {
        index(row) < self.running
    }

    /// An idle row of `range`: one that keeps runs narrow, of those an empty one, else the least recently used;
    /// `keep` only if no other is left.
    fn least_wanted(&self, range: std::ops::Range<usize>, keep: Option<RowId>) -> Option<RowId> {
        let idle = range.filter(|&index| self.rows[index].owner.is_none() && !self.rows[index].pinned);
        idle.min_by_key(|&index| {
            let row = &self.rows[index];
            (
                Some(row_id(index)) == keep,
                if index < self.running {
                    self.widening(index)
                } else {
                    0
                },
                !row.held.is_empty(),
                if row.held.is_empty() { 0 } else { row.last_used },
            )
        })
        .map(row_id)
    }

    /// The spare row for the content of a row that is given away, and its number of tokens: an empty row beyond the
    /// running zone, or one that was used longer ago.
    fn spare_row_for(&self, row: RowId, wanted: Option<PrefixMatch>) -> Option<(RowId, usize)> {
        let state = &self.rows[index(row)];
        if state.held.len() < MIN_KEPT_TOKENS {
            return None;
        }
        // Another row holds nearly all of it: little is lost.
        let elsewhere = self.rows.iter().enumerate().any(|(other, candidate)| {
            other != index(row)
                && candidate.regime == state.regime
                && common_prefix(&candidate.held, &state.held) + MIN_KEPT_TOKENS > state.held.len()
        });
        if elsewhere {
            return None;
        }
        let spare = self.least_wanted(self.running..self.rows.len(), wanted.map(|found| found.row))?;
        let older =
            self.rows[index(spare)].held.is_empty() || self.rows[index(spare)].last_used < state.last_used;
        (older && Some(spare) != wanted.map(|found| found.row)).then_some((spare, state.held.len()))
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }
}

/// The fewest tokens that are worth copying: fewer are recomputed.
const MIN_KEPT_TOKENS: usize = 32;

/// The length of the prefix that two texts share.
pub(crate) fn common_prefix(a: &[TokenId], b: &[TokenId]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

fn index(row: RowId) -> usize {
    row.0 as usize
}

fn row_id(index: usize) -> RowId {
    RowId(u32::try_from(index).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn tokens(range: std::ops::Range<u32>) -> Vec<TokenId> {
        range.map(TokenId).collect()
    }

    #[test]
    fn a_prefix_is_found_and_used_in_place() {
        let mut rows = KvRows::new(4, 2);
        let first = rows.place(RequestId(1), None).unwrap().row;
        rows.leave(first, tokens(0..50), Regime::Short);
        let found = rows.best_match(&tokens(0..40), 39, Regime::Short).unwrap();
        assert_eq!((found.row, found.len), (first, 39));
        assert_eq!(rows.best_match(&tokens(0..40), 39, Regime::Long), None);
        assert_eq!(
            rows.place(RequestId(2), Some(found)).unwrap(),
            Placement {
                row: first,
                copy_out: None
            }
        );
    }

    #[test]
    fn what_runs_together_lies_together() {
        let mut rows = KvRows::new(10, 8);
        for request in 0..8u64 {
            let row = rows.place(RequestId(request), None).unwrap().row;
            assert_eq!(u64::from(row.0), request);
        }
        // The last one leaves first, so its row would be the least recently used.
        for row in [7u32, 0, 1, 2, 3, 5, 6] {
            rows.leave(RowId(row), tokens(row * 100..row * 100 + 60), Regime::Short);
        }
        let next = rows.place(RequestId(9), None).unwrap().row;
        assert!([3, 5].contains(&next.0), "{next:?} is no neighbour of row 4");
        // A prefix far away is copied.
        let found = rows.best_match(&tokens(700..760), 59, Regime::Short).unwrap();
        let place = rows.place(RequestId(10), Some(found)).unwrap();
        assert!(
            place.row.0.abs_diff(4) <= 2 && place.row != found.row,
            "{place:?}"
        );
    }

    #[test]
    fn replaced_rows_are_copied_out() {
        let mut rows = KvRows::new(3, 1);
        for (request, start) in [(1u64, 0u32), (2, 100), (3, 200), (4, 300)] {
            let place = rows.place(RequestId(request), None).unwrap();
            assert_eq!(place.row, RowId(0));
            assert_eq!(place.copy_out.is_some(), request > 1, "{request}");
            rows.leave(RowId(0), tokens(start..start + 60), Regime::Short);
        }
        // Two spare rows: the oldest of four is gone.
        assert!(rows.best_match(&tokens(0..60), 60, Regime::Short).is_none());
        for start in [100u32, 200, 300] {
            assert_eq!(
                rows.best_match(&tokens(start..start + 60), 60, Regime::Short)
                    .unwrap()
                    .len,
                60
            );
        }
    }

    #[test]
    fn pinned_rows_stay() {
        let mut rows = KvRows::new(3, 1);
        let pinned = rows.row_to_pin().unwrap();
        rows.leave(pinned, tokens(0..60), Regime::Short);
        rows.pin(pinned);
        assert_eq!((rows.pinned_tokens(), rows.evictable_tokens()), (60, 0));
        for request in 1..10u64 {
            let start = u32::try_from(request).unwrap() * 100;
            rows.place(RequestId(request), None).unwrap();
            rows.leave(RowId(0), tokens(start..start + 60), Regime::Short);
        }
        while rows.evict_oldest(None).is_some() {}
        assert_eq!(
            rows.best_match(&tokens(0..60), 60, Regime::Short).unwrap().row,
            pinned
        );
    }
}
