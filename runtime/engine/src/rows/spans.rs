//! Prefixes that rows share by reference, where any rows may run together.
//!
//! A row reads the beginning of its tokens from a chain of other rows, each of which holds its part itself. The rows of a
//! chain keep what is read until their last reader is gone, whatever becomes of their own sequences. A chain names all rows
//! that it reads from: reading from a row with spans means reading from the rows of those spans as well.

use std::cmp::Reverse;

use super::reservation::Reservation;
use super::{KvRows, MIN_KEPT_TOKENS, PrefixMatch, RowState, index, row_id};
use crate::decoder::SharedSpan;
use crate::ids::{RequestId, RowId};

/// The most rows that a row reads from; what lies beyond is copied. Each costs the attention operator another pass.
const MAX_SPANS: usize = 4;

/// The row of a sequence, and where its first tokens come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RowPlan {
    pub(crate) row: RowId,
    /// The tokens that it reads from other rows.
    pub(crate) spans: Vec<SharedSpan>,
    /// The tokens that it copies from other rows, behind those of `spans`.
    pub(crate) copies: Vec<SharedSpan>,
    /// The number of tokens that it has then.
    pub(crate) len: usize,
    /// The row holds the tokens behind `spans` already.
    pub(crate) in_place: bool,
    pub(crate) reservation: Reservation,
}

impl RowPlan {
    /// The number of tokens that it reads from other rows.
    pub(crate) fn shared_end(&self) -> usize {
        self.spans.last().map_or(0, |span| span.end)
    }

    /// The spans that must keep their tokens for it.
    pub(super) fn reads(&self) -> impl Iterator<Item = &SharedSpan> {
        self.spans.iter().chain(&self.copies)
    }
}

impl KvRows {
    /// The tokens that `row` reads from other rows.
    pub(crate) fn spans(&self, row: RowId) -> &[SharedSpan] {
        &self.rows[index(row)].spans
    }

    /// The end of the tokens of `row` that other rows read; 0 if none does.
    pub(crate) fn read_end(&self, row: RowId) -> usize {
        let reads = self.rows.iter().flat_map(RowState::reads);
        let ends = reads.filter(|span| span.row == row).map(|span| span.end);
        ends.max().unwrap_or(0)
    }

    /// How good a source a row is for a sequence: by the length of the prefix, then whether the sequence can go on in the
    /// row itself without loss, then by the number of rows to read from.
    pub(crate) fn preference(
        &self,
        found: PrefixMatch,
        reservation: Reservation,
    ) -> (usize, bool, Reverse<usize>) {
        let in_place = self.can_continue(found, reservation) && self.loss(found) < MIN_KEPT_TOKENS;
        (found.len, in_place, Reverse(self.chain(found).len()))
    }

    /// A row for a sequence that is to begin with the prefix `found`, such that the rows that must stay fit `budget`
    /// (everything else can be evicted). `None`: there is no row or not enough memory at present.
    pub(crate) fn plan(
        &self,
        reservation: Reservation,
        found: Option<PrefixMatch>,
        budget: Option<u64>,
    ) -> Option<RowPlan> {
        let in_place = found
            .filter(|found| self.can_continue(*found, reservation))
            .map(|found| self.plan_in_place(found, reservation));
        let lossless = found.is_some_and(|found| self.loss(found) < MIN_KEPT_TOKENS);
        let first = in_place.clone().filter(|_| lossless);
        let elsewhere = || {
            let found = found?;
            let row = self.least_wanted_row(&self.chain(found))?;
            Some(self.plan_from(found, row, reservation))
        };
        let from_start = || {
            Some(RowPlan {
                row: self.least_wanted_row(&[])?,
                spans: Vec::new(),
                copies: Vec::new(),
                len: 0,
                in_place: false,
                reservation,
            })
        };
        let fits = |plan: &RowPlan| self.fits(plan, budget);
        first
            .filter(fits)
            .or_else(|| elsewhere().filter(fits))
            .or_else(|| in_place.filter(fits))
            .or_else(|| from_start().filter(fits))
    }

    /// Another beginning for the sequence that has `row`: the prefix `found` of another row. `None` if it would cost more
    /// than `budget`, or if other rows read from this one.
    pub(crate) fn plan_again(&self, row: RowId, found: PrefixMatch, budget: Option<u64>) -> Option<RowPlan> {
        let (_, reservation) = self.rows[index(row)].owner?;
        if self.read_end(row) > 0 {
            return None;
        }
        let plan = self.plan_from(found, row, reservation);
        self.fits(&plan, budget).then_some(plan)
    }

    /// Gives the row of `plan` to `owner`; returns whether the row has read from other rows before. The sources of copies
    /// keep their tokens until [`KvRows::end_copies`].
    pub(crate) fn seat(&mut self, owner: RequestId, plan: &RowPlan) -> bool {
        let now = self.tick();
        for span in plan.reads() {
            self.rows[index(span.row)].last_used = now;
        }
        let state = &mut self.rows[index(plan.row)];
        let had_spans = !state.spans.is_empty();
        state.owner = Some((owner, plan.reservation));
        state.held = Vec::new();
        state.spans.clone_from(&plan.spans);
        state.copies.clone_from(&plan.copies);
        state.regime = None;
        state.last_used = now;
        had_spans
    }

    /// Ends the copies of a plan: their sources may be evicted.
    pub(crate) fn end_copies(&mut self, row: RowId) {
        self.rows[index(row)].copies = Vec::new();
    }

    /// Declares that the sequence of `row` has crossed the rope boundary: it reads from no other row any more.
    pub(crate) fn cross(&mut self, row: RowId) {
        debug_assert_eq!(
            self.read_end(row),
            0,
            "keys and values that others read don't last"
        );
        let state = &mut self.rows[index(row)];
        if let Some((_, reservation)) = &mut state.owner {
            reservation.may_cross = false;
        }
        state.spans = Vec::new();
    }

    /// An idle row that no other reads: an empty one, else the least recently used; none of `except`.
    pub(super) fn least_wanted_row(&self, except: &[SharedSpan]) -> Option<RowId> {
        let idle = (0..self.rows.len()).filter(|&at| {
            let row = &self.rows[at];
            row.is_idle() && !row.pinned && !except.iter().any(|span| index(span.row) == at)
        });
        let unread = idle.filter(|&at| self.read_end(row_id(at)) == 0);
        let wanted = |at: &usize| match &self.rows[*at] {
            row if row.held.is_empty() => 0,
            row => row.last_used,
        };
        unread.min_by_key(wanted).map(row_id)
    }

    /// The number of rows that stay for as long as running sequences do: pinned ones and those that they read from, with
    /// `plan` made.
    pub(super) fn source_rows(&self, plan: Option<&RowPlan>) -> usize {
        let readers = self.rows.iter().enumerate();
        let running =
            readers.filter(|(at, row)| !row.is_idle() && plan.is_none_or(|plan| index(plan.row) != *at));
        let spans = running.flat_map(|(_, row)| &row.spans);
        let spans: Vec<&SharedSpan> = spans.chain(plan.iter().flat_map(|plan| &plan.spans)).collect();
        let stays = |at: usize, pinned: bool| pinned || spans.iter().any(|span| index(span.row) == at);
        let rows = self.rows.iter().enumerate();
        rows.filter(|(at, row)| stays(*at, row.pinned)).count()
    }

    fn fits(&self, plan: &RowPlan, budget: Option<u64>) -> bool {
        self.leaves_rows(plan) && budget.is_none_or(|budget| self.committed_bytes(Some(plan)) <= budget)
    }

    /// Whether `plan` leaves a row to each slot, even when the sequences that computed the shared prefixes have ended. A
    /// decoder without spare rows shares one prefix nonetheless.
    fn leaves_rows(&self, plan: &RowPlan) -> bool {
        let spare = self.rows.len().saturating_sub(self.slots).max(1);
        plan.spans.is_empty() || self.source_rows(Some(plan)) <= spare
    }

    /// Whether a sequence can go on in the row of `found` itself: nothing that it overwrites is read by others, and what
    /// they read lasts.
    fn can_continue(&self, found: PrefixMatch, reservation: Reservation) -> bool {
        let state = &self.rows[index(found.row)];
        let read_end = self.read_end(found.row);
        state.is_idle()
            && !state.pinned
            && found.len > state.shared_end()
            && read_end <= found.len
            && !(reservation.may_cross && read_end > 0)
    }

    /// The number of cached tokens that are lost where a sequence goes on in the row of `found`.
    fn loss(&self, found: PrefixMatch) -> usize {
        self.held(found.row).len().saturating_sub(found.len)
    }

    fn plan_in_place(&self, found: PrefixMatch, reservation: Reservation) -> RowPlan {
        RowPlan {
            row: found.row,
            spans: self.spans(found.row).to_vec(),
            copies: Vec::new(),
            len: found.len,
            in_place: true,
            reservation,
        }
    }

    /// The plan of a sequence in `row` with the prefix `found` of another: shared as far as possible, the rest copied.
    fn plan_from(&self, found: PrefixMatch, row: RowId, reservation: Reservation) -> RowPlan {
        let chain = self.chain(found);
        let mut plan = RowPlan {
            row,
            spans: self.shareable(&chain, found.len),
            copies: Vec::new(),
            len: found.len,
            in_place: false,
            reservation,
        };
        while !self.leaves_rows(&plan) {
            plan.spans.pop();
        }
        let shared = plan.shared_end();
        plan.copies = chain.into_iter().filter(|link| link.end > shared).collect();
        plan
    }

    /// The rows that hold the prefix `found`, each its part.
    fn chain(&self, found: PrefixMatch) -> Vec<SharedSpan> {
        let mut chain: Vec<SharedSpan> = Vec::new();
        let own = SharedSpan {
            row: found.row,
            end: found.len,
        };
        for link in self.spans(found.row).iter().copied().chain([own]) {
            let start = chain.last().map_or(0, |link| link.end);
            let end = link.end.min(found.len);
            if end > start {
                chain.push(SharedSpan { row: link.row, end });
            }
        }
        chain
    }

    /// The part of `chain`, which holds `len` tokens, that can be read by reference.
    fn shareable(&self, chain: &[SharedSpan], len: usize) -> Vec<SharedSpan> {
        let Some(granularity) = self.granularity else {
            return Vec::new();
        };
        let most = len / granularity * granularity;
        let mut spans: Vec<SharedSpan> = Vec::new();
        for link in chain.iter().take(MAX_SPANS) {
            let start = spans.last().map_or(0, |span| span.end);
            let end = link.end.min(most);
            let lasts = !matches!(self.rows[index(link.row)].owner, Some((_, owner)) if owner.may_cross);
            if end <= start || !lasts {
                break;
            }
            spans.push(SharedSpan { row: link.row, end });
        }
        spans
    }
}

#[cfg(test)]
mod tests;
