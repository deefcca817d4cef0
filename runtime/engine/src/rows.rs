//! The rows of KV memory: who has which, what the idle ones remember, and what that costs.
//!
//! Rows `0..slots` are the running zone: a batched run takes neighbours, so running sequences live close
//! together. The rows beyond only remember. A row that a sequence has left keeps its keys and values until
//! their memory or the row is wanted: the least recently used goes first.

use crate::decoder::Regime;
use crate::ids::{RequestId, RowId, TokenId};

/// What every row holds.
#[derive(Debug)]
pub(crate) struct Rows {
    slots: Vec<Slot>,
    running: usize,
    clock: u64,
}

#[derive(Debug, Default)]
struct Slot {
    owner: Option<RequestId>,
    /// Tokens whose keys and values an idle row holds; those of a running row are the sequence's business.
    held: Vec<TokenId>,
    regime: Option<Regime>,
    last_used: u64,
    pinned: bool,
}

/// A row that begins as a prompt does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Match {
    pub(crate) row: RowId,
    /// Tokens in common.
    pub(crate) len: usize,
}

/// What a sequence gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) row: RowId,
    /// What stood there and may be kept elsewhere: the row to copy to, and how many tokens.
    pub(crate) rescue: Option<(RowId, usize)>,
}

impl Rows {
    /// `total` rows, of which the first `running` may hold running sequences.
    pub(crate) fn new(total: usize, running: usize) -> Self {
        Self {
            slots: (0..total.max(running)).map(|_| Slot::default()).collect(),
            running,
            clock: 0,
        }
    }

    /// True if a sequence could be placed.
    pub(crate) fn has_room(&self) -> bool {
        self.slots[..self.running].iter().any(|row| row.owner.is_none())
    }

    /// The idle row that has most in common with `prompt`, up to `most` tokens.
    pub(crate) fn best_match(&self, prompt: &[TokenId], most: usize, regime: Regime) -> Option<Match> {
        let idle = self
            .slots
            .iter()
            .enumerate()
            .filter(|(_, row)| row.owner.is_none());
        idle.filter(|(_, row)| row.regime == Some(regime))
            .map(|(index, row)| Match {
                row: row_id(index),
                len: common(&row.held, prompt).min(most),
            })
            .filter(|found| found.len > 0)
            // The most tokens; among equals one that can be used in place.
            .max_by_key(|found| (found.len, self.in_running_zone(found.row)))
    }

    /// Gives a row of the running zone to `owner`, close to those that run already: rows between them cost as much in
    /// a run as they do. `wanted` is the row that holds its prefix: taken in place if that is possible.
    pub(crate) fn place(&mut self, owner: RequestId, wanted: Option<Match>) -> Option<Place> {
        let in_place = wanted.filter(|found| {
            let slot = &self.slots[index(found.row)];
            self.in_running_zone(found.row)
                && slot.owner.is_none()
                && !slot.pinned
                && self.widening(index(found.row)) <= self.least_widening()
        });
        let row = match in_place {
            Some(found) => found.row,
            None => self.least_wanted(0..self.running, wanted.map(|found| found.row))?,
        };
        // What goes on in place keeps what it wants; the rest of it is the new sequence's to overwrite.
        let rescue = if in_place.is_some() {
            None
        } else {
            self.refuge_for(row, wanted)
        };
        if let Some((refuge, _)) = rescue {
            let held = std::mem::take(&mut self.slots[index(row)].held);
            let (regime, last_used) = (self.slots[index(row)].regime, self.slots[index(row)].last_used);
            let slot = &mut self.slots[index(refuge)];
            slot.held = held;
            slot.regime = regime;
            slot.last_used = last_used;
        }
        let now = self.tick();
        let slot = &mut self.slots[index(row)];
        slot.owner = Some(owner);
        slot.held.clear();
        slot.regime = None;
        slot.pinned = false;
        slot.last_used = now;
        Some(Place { row, rescue })
    }

    /// Takes a row back; it remembers `held`.
    pub(crate) fn leave(&mut self, row: RowId, held: Vec<TokenId>, regime: Regime) {
        let now = self.tick();
        let slot = &mut self.slots[index(row)];
        slot.owner = None;
        slot.regime = Some(regime).filter(|_| !held.is_empty());
        slot.held = held;
        slot.last_used = now;
    }

    /// Notes that a row's content was of use.
    pub(crate) fn touch(&mut self, row: RowId) {
        let now = self.tick();
        self.slots[index(row)].last_used = now;
    }

    /// Keeps an idle row's content for good.
    pub(crate) fn pin(&mut self, row: RowId) {
        self.slots[index(row)].pinned = true;
    }

    /// The row that is pinned with just these tokens.
    pub(crate) fn pinned(&self, tokens: &[TokenId]) -> Option<RowId> {
        let found = self
            .slots
            .iter()
            .position(|slot| slot.pinned && slot.held == tokens)?;
        Some(row_id(found))
    }

    /// A row for a pinned prefix: the last of those beyond the running zone that holds none.
    pub(crate) fn row_to_pin(&self) -> Option<RowId> {
        let beyond = (self.running..self.slots.len()).rev();
        beyond
            .filter(|&index| !self.slots[index].pinned)
            .map(row_id)
            .next()
    }

    /// Tokens that idle rows hold and that may be given up.
    pub(crate) fn spare_tokens(&self) -> usize {
        self.slots
            .iter()
            .filter(|row| row.owner.is_none() && !row.pinned)
            .map(|row| row.held.len())
            .sum()
    }

    /// Tokens that `row` holds if it may be given up.
    pub(crate) fn spare_tokens_of(&self, row: RowId) -> usize {
        let slot = &self.slots[index(row)];
        if slot.owner.is_none() && !slot.pinned {
            slot.held.len()
        } else {
            0
        }
    }

    /// Tokens that pinned rows hold.
    pub(crate) fn pinned_tokens(&self) -> usize {
        self.slots
            .iter()
            .filter(|row| row.owner.is_none() && row.pinned)
            .map(|row| row.held.len())
            .sum()
    }

    /// Forgets the least recently used idle row but `keep`; says which.
    pub(crate) fn forget_oldest(&mut self, keep: Option<RowId>) -> Option<RowId> {
        let candidates = self.slots.iter().enumerate().filter(|(index, row)| {
            row.owner.is_none() && !row.pinned && !row.held.is_empty() && Some(row_id(*index)) != keep
        });
        let (index, _) = candidates.min_by_key(|(_, row)| row.last_used)?;
        self.slots[index].held = Vec::new();
        self.slots[index].regime = None;
        Some(row_id(index))
    }

    /// Tokens that stand in `row` if it is idle.
    pub(crate) fn held(&self, row: RowId) -> &[TokenId] {
        &self.slots[index(row)].held
    }

    /// Whether `row` is idle.
    pub(crate) fn is_idle(&self, row: RowId) -> bool {
        self.slots[index(row)].owner.is_none()
    }

    /// Cuts what an idle row remembers to `len` tokens.
    pub(crate) fn shorten(&mut self, row: RowId, len: usize) {
        self.slots[index(row)].held.truncate(len);
    }

    /// By how many rows a run of all that runs would grow if this one joined.
    fn widening(&self, index: usize) -> usize {
        let busy = || (0..self.running).filter(|&at| self.slots[at].owner.is_some());
        match (busy().min(), busy().max()) {
            (Some(first), Some(last)) => first.saturating_sub(index) + index.saturating_sub(last),
            _ => 0,
        }
    }

    fn least_widening(&self) -> usize {
        let idle = (0..self.running).filter(|&at| self.slots[at].owner.is_none());
        idle.map(|at| self.widening(at)).min().unwrap_or(0)
    }

    fn in_running_zone(&self, row: RowId) -> bool {
        index(row) < self.running
    }

    /// An idle row of `range`: one that keeps runs narrow, of those an empty one, else the least recently used; `keep`
    /// only if nothing else is left.
    fn least_wanted(&self, range: std::ops::Range<usize>, keep: Option<RowId>) -> Option<RowId> {
        let idle = range.filter(|&index| self.slots[index].owner.is_none() && !self.slots[index].pinned);
        idle.min_by_key(|&index| {
            let row = &self.slots[index];
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

    /// Where the content of `row` can go that has to make place: an empty row beyond the running zone, or one
    /// that was used longer ago.
    fn refuge_for(&self, row: RowId, wanted: Option<Match>) -> Option<(RowId, usize)> {
        let slot = &self.slots[index(row)];
        if slot.held.len() < WORTH_KEEPING {
            return None;
        }
        // Its beginning lives on elsewhere: what is lost is little.
        let elsewhere = self.slots.iter().enumerate().any(|(other, candidate)| {
            other != index(row)
                && candidate.regime == slot.regime
                && common(&candidate.held, &slot.held) + WORTH_KEEPING > slot.held.len()
        });
        if elsewhere {
            return None;
        }
        let refuge = self.least_wanted(self.running..self.slots.len(), wanted.map(|found| found.row))?;
        let older =
            self.slots[index(refuge)].held.is_empty() || self.slots[index(refuge)].last_used < slot.last_used;
        (older && Some(refuge) != wanted.map(|found| found.row)).then_some((refuge, slot.held.len()))
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }
}

/// Fewer tokens than this are computed anew rather than copied.
const WORTH_KEEPING: usize = 32;

/// How many tokens two texts have in common at their beginning.
pub(crate) fn common(a: &[TokenId], b: &[TokenId]) -> usize {
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
        let mut rows = Rows::new(4, 2);
        let first = rows.place(RequestId(1), None).unwrap().row;
        rows.leave(first, tokens(0..50), Regime::Short);
        let found = rows.best_match(&tokens(0..40), 39, Regime::Short).unwrap();
        assert_eq!((found.row, found.len), (first, 39));
        assert_eq!(rows.best_match(&tokens(0..40), 39, Regime::Long), None);
        assert_eq!(
            rows.place(RequestId(2), Some(found)).unwrap(),
            Place {
                row: first,
                rescue: None
            }
        );
    }

    #[test]
    fn what_runs_together_lies_together() {
        let mut rows = Rows::new(10, 8);
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
    fn what_must_make_place_finds_a_refuge() {
        let mut rows = Rows::new(3, 1);
        for (request, start) in [(1u64, 0u32), (2, 100), (3, 200), (4, 300)] {
            let place = rows.place(RequestId(request), None).unwrap();
            assert_eq!(place.row, RowId(0));
            assert_eq!(place.rescue.is_some(), request > 1, "{request}");
            rows.leave(RowId(0), tokens(start..start + 60), Regime::Short);
        }
        // Two refuges: the oldest of four is gone.
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
        let mut rows = Rows::new(3, 1);
        let pinned = rows.row_to_pin().unwrap();
        rows.leave(pinned, tokens(0..60), Regime::Short);
        rows.pin(pinned);
        assert_eq!((rows.pinned_tokens(), rows.spare_tokens()), (60, 0));
        for request in 1..10u64 {
            let start = u32::try_from(request).unwrap() * 100;
            rows.place(RequestId(request), None).unwrap();
            rows.leave(RowId(0), tokens(start..start + 60), Regime::Short);
        }
        while rows.forget_oldest(None).is_some() {}
        assert_eq!(
            rows.best_match(&tokens(0..60), 60, Regime::Short).unwrap().row,
            pinned
        );
    }
}
