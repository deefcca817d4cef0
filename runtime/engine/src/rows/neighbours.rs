//! Rows for a decoder whose runs take neighbours.
//!
//! Rows `0..slots` are the running zone: running sequences lie close together in it. The rows beyond only cache prefixes.
//! Prefixes are copied from row to row.

use super::{KvRows, MIN_KEPT_TOKENS, PrefixMatch, Reservation, RowState, common_prefix, index, row_id};
use crate::decoder::Regime;
use crate::ids::{RequestId, RowId};
use crate::symbol::Symbol;

/// The row that a sequence is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Placement {
    pub(crate) row: RowId,
    /// The spare row that the row's content is to be copied out to, and its number of tokens; `None`: it is not worth
    /// keeping.
    pub(crate) copy_out: Option<(RowId, usize)>,
}

impl KvRows {
    /// Whether a row of the running zone is idle.
    pub(crate) fn has_free_row(&self) -> bool {
        self.rows[..self.slots].iter().any(RowState::is_idle)
    }

    /// The idle row with the longest prefix in common with `prompt`, up to `most` tokens.
    pub(crate) fn best_match(&self, prompt: &[Symbol], most: usize, regime: Regime) -> Option<PrefixMatch> {
        self.idle_matches(prompt, most, regime)
            // The most tokens; among equals one that can be used in place.
            .max_by_key(|found| (found.len, self.in_running_zone(found.row)))
    }

    /// Gives a row of the running zone to `owner`, close to running ones: rows between them cost as much in a run as
    /// they do. `wanted` is the row that holds the prompt's prefix: taken in place if that is possible.
    pub(crate) fn place(
        &mut self,
        owner: RequestId,
        reservation: Reservation,
        wanted: Option<PrefixMatch>,
    ) -> Option<Placement> {
        let in_place = wanted.filter(|found| {
            let state = &self.rows[index(found.row)];
            self.in_running_zone(found.row)
                && state.is_idle()
                && !state.pinned
                && self.widening(index(found.row)) <= self.least_widening()
        });
        let row = match in_place {
            Some(found) => found.row,
            None => self.least_wanted(0..self.slots, wanted.map(|found| found.row))?,
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
        state.owner = Some((owner, reservation));
        state.held.clear();
        state.regime = None;
        state.pinned = false;
        state.last_used = now;
        Some(Placement { row, copy_out })
    }

    /// A row for a pinned prefix: the last of those beyond the running zone that holds none.
    pub(super) fn spare_row_to_pin(&self) -> Option<RowId> {
        let beyond = (self.slots..self.rows.len()).rev();
        beyond
            .filter(|&index| !self.rows[index].pinned)
            .map(row_id)
            .next()
    }

    /// The number of rows by which a run of all running rows would grow if this one joined.
    fn widening(&self, index: usize) -> usize {
        let busy = || (0..self.slots).filter(|&at| !self.rows[at].is_idle());
        match (busy().min(), busy().max()) {
            (Some(first), Some(last)) => first.saturating_sub(index) + index.saturating_sub(last),
            _ => 0,
        }
    }

    fn least_widening(&self) -> usize {
        let idle = (0..self.slots).filter(|&at| self.rows[at].is_idle());
        idle.map(|at| self.widening(at)).min().unwrap_or(0)
    }

    fn in_running_zone(&self, row: RowId) -> bool {
        index(row) < self.slots
    }

    /// An idle row of `range`: one that keeps runs narrow, of those an empty one, else the least recently used;
    /// `keep` only if no other is left.
    fn least_wanted(&self, range: std::ops::Range<usize>, keep: Option<RowId>) -> Option<RowId> {
        let idle = range.filter(|&index| self.rows[index].is_idle() && !self.rows[index].pinned);
        idle.min_by_key(|&index| {
            let row = &self.rows[index];
            (
                Some(row_id(index)) == keep,
                if index < self.slots {
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
        let spare = self.least_wanted(self.slots..self.rows.len(), wanted.map(|found| found.row))?;
        let older =
            self.rows[index(spare)].held.is_empty() || self.rows[index(spare)].last_used < state.last_used;
        (older && Some(spare) != wanted.map(|found| found.row)).then_some((spare, state.held.len()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::decoder::Caps;
    use crate::ids::TokenId;

    const RESERVED: Reservation = Reservation {
        tokens: 60,
        may_cross: false,
    };

    fn tokens(range: std::ops::Range<u32>) -> Vec<Symbol> {
        range.map(|id| Symbol::from(TokenId(id))).collect()
    }

    #[test]
    fn a_prefix_is_found_and_used_in_place() {
        let mut rows = KvRows::new(&Caps::plain(4, 32), 2);
        let first = rows.place(RequestId(1), RESERVED, None).unwrap().row;
        rows.leave(first, tokens(0..50), Regime::Short);
        let found = rows.best_match(&tokens(0..40), 39, Regime::Short).unwrap();
        assert_eq!((found.row, found.len), (first, 39));
        assert_eq!(rows.best_match(&tokens(0..40), 39, Regime::Long), None);
        assert_eq!(
            rows.place(RequestId(2), RESERVED, Some(found)).unwrap(),
            Placement {
                row: first,
                copy_out: None
            }
        );
    }

    #[test]
    fn what_runs_together_lies_together() {
        let mut rows = KvRows::new(&Caps::plain(10, 32), 8);
        for request in 0..8u64 {
            let row = rows.place(RequestId(request), RESERVED, None).unwrap().row;
            assert_eq!(u64::from(row.0), request);
        }
        // The last one leaves first, so its row would be the least recently used.
        for row in [7u32, 0, 1, 2, 3, 5, 6] {
            rows.leave(RowId(row), tokens(row * 100..row * 100 + 60), Regime::Short);
        }
        let next = rows.place(RequestId(9), RESERVED, None).unwrap().row;
        assert!([3, 5].contains(&next.0), "{next:?} is no neighbour of row 4");
        // A prefix far away is copied.
        let found = rows.best_match(&tokens(700..760), 59, Regime::Short).unwrap();
        let place = rows.place(RequestId(10), RESERVED, Some(found)).unwrap();
        assert!(
            place.row.0.abs_diff(4) <= 2 && place.row != found.row,
            "{place:?}"
        );
    }

    #[test]
    fn replaced_rows_are_copied_out() {
        let mut rows = KvRows::new(&Caps::plain(3, 32), 1);
        for (request, start) in [(1u64, 0u32), (2, 100), (3, 200), (4, 300)] {
            let place = rows.place(RequestId(request), RESERVED, None).unwrap();
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
        let mut rows = KvRows::new(&Caps::plain(3, 32), 1);
        let pinned = rows.row_to_pin().unwrap();
        rows.leave(pinned, tokens(0..60), Regime::Short);
        rows.pin(pinned);
        assert_eq!([rows.pinned_bytes(), rows.idle_bytes()], [8 * 60; 2]);
        assert_eq!(rows.evictable_bytes(pinned), 0);
        for request in 1..10u64 {
            let start = u32::try_from(request).unwrap() * 100;
            rows.place(RequestId(request), RESERVED, None).unwrap();
            rows.leave(RowId(0), tokens(start..start + 60), Regime::Short);
        }
        while rows.evict_oldest(None).is_some() {}
        assert_eq!(
            rows.best_match(&tokens(0..60), 60, Regime::Short).unwrap().row,
            pinned
        );
    }
}
