//! The placement of sequences in rows, and the prefixes that they take from other rows there.

use super::Engine;
use super::regime::regime_of;
use crate::decoder::{Decoder, Regime};
use crate::ids::{RequestId, RowId};
use crate::request::GenerateRequest;
use crate::rows::{PrefixMatch, Reservation, RowPlan, common_prefix};
use crate::symbol::Symbol;

/// The row of a sequence that starts.
pub(super) struct PlacedRow {
    pub(super) row: RowId,
    pub(super) regime: Regime,
    /// The number of tokens that need not be computed.
    pub(super) computed: usize,
}

impl<D: Decoder> Engine<D> {
    /// Gives a row to a request, with the longest prefix that other rows hold; `None` if there is no row or not enough
    /// memory at present.
    pub(super) fn place(&mut self, request: &GenerateRequest) -> Option<PlacedRow> {
        let regime = self.initial_regime(request);
        let reservation = self.reservation(request, regime);
        if self.decoder.caps().contiguous_rows {
            return self.place_beside_others(request, regime, reservation);
        }
        if self.running.len() >= self.config.slots {
            return None;
        }
        let found = self.best_source(request.id, &request.prompt, regime, reservation);
        let plan = self.rows.plan(reservation, found, self.config.kv_budget)?;
        Some(PlacedRow {
            row: plan.row,
            regime,
            computed: self.carry_out(request.id, &plan),
        })
    }

    /// Takes what other rows have come to hold of the prefix of a running sequence in the meantime.
    pub(super) fn reuse_running(&mut self, index: usize) {
        if !self.config.prefix_cache {
            return;
        }
        let computed = if self.decoder.caps().contiguous_rows {
            self.copy_running(index)
        } else {
            self.share_running(index)
        };
        let sequence = &mut self.running[index];
        if let Some(computed) = computed {
            sequence.computed = computed;
            // Beyond the boundary the sequence's own new tokens are recomputed as well.
            sequence.cached = computed.min(sequence.request.prompt.len());
        }
    }

    /// The most that a request may come to hold.
    fn reservation(&self, request: &GenerateRequest, regime: Regime) -> Reservation {
        let asked = request.prompt.len().saturating_add(request.max_tokens);
        let tokens = asked.min(self.context());
        let last = regime_of(tokens, self.decoder.caps());
        Reservation {
            tokens,
            may_cross: (regime, last) == (Regime::Short, Regime::Long),
        }
    }

    /// Places a request in the running zone of a decoder that wants neighbours.
    fn place_beside_others(
        &mut self,
        request: &GenerateRequest,
        regime: Regime,
        reservation: Reservation,
    ) -> Option<PlacedRow> {
        let bytes = self.rows.bytes().of(reservation.tokens);
        let committed = self.rows.committed_bytes(None).saturating_add(bytes);
        let fits = self.config.kv_budget.is_none_or(|budget| committed <= budget);
        if !self.rows.has_free_row() || !fits {
            return None;
        }
        // The last token is always computed: its logits choose the next one.
        let most = request.prompt.len().saturating_sub(1);
        let found = self
            .rows
            .best_match(&request.prompt, most, regime)
            .filter(|_| self.config.prefix_cache);
        // The row with its prefix is evicted last: taken in place it costs nothing more.
        self.make_room(bytes, found.map(|found| found.row));
        let place = self.rows.place(request.id, reservation, found)?;
        if let Some((spare, len)) = place.copy_out {
            if self.decoder.copy(place.row, spare, 0..len).is_ok() {
                // The spare row may have held more before.
                self.decoder.truncate(spare, len);
            } else {
                self.rows.clear(spare);
                self.decoder.release(spare);
            }
        }
        // Memory that the sequence will overwrite stays allocated: the system need not provide it again.
        self.decoder.truncate(place.row, reservation.tokens);
        Some(PlacedRow {
            row: place.row,
            regime,
            computed: found
                .and_then(|found| self.copy_prefix(place.row, found))
                .unwrap_or(0),
        })
    }

    /// The number of tokens that `row` has after it has taken `found`; `None` if they can't be copied: only time is lost.
    fn copy_prefix(&mut self, row: RowId, found: PrefixMatch) -> Option<usize> {
        if found.row != row {
            self.decoder.ensure(row, found.len).ok()?;
            self.decoder.copy(found.row, row, 0..found.len).ok()?;
            if self.rows.is_idle(found.row) {
                self.rows.touch(found.row);
            }
        }
        Some(found.len)
    }

    /// Copies what another row has come to hold of the prefix of a running sequence.
    fn copy_running(&mut self, index: usize) -> Option<usize> {
        let sequence = &self.running[index];
        let most = sequence.tokens.len() - 1;
        let idle = self.rows.best_match(&sequence.tokens, most, sequence.regime);
        let best = self
            .running_matches(sequence.id(), &sequence.tokens, sequence.regime)
            .chain(idle)
            .max_by_key(|found| found.len)
            .filter(|found| found.len > sequence.computed)?;
        self.copy_prefix(self.running[index].row, best)
    }

    /// Shares what another row has come to hold of the prefix of a running sequence.
    fn share_running(&mut self, index: usize) -> Option<usize> {
        let sequence = &self.running[index];
        let (id, row) = (sequence.id(), sequence.row);
        let reservation = self.rows.reservation(row)?;
        let best = self
            .best_source(id, &sequence.tokens, sequence.regime, reservation)
            .filter(|found| found.len > sequence.computed)?;
        let plan = self.rows.plan_again(row, best, self.config.kv_budget)?;
        Some(self.carry_out(id, &plan))
    }

    /// The row, idle or running, that is the best source of a prefix of `tokens`.
    fn best_source(
        &self,
        id: RequestId,
        tokens: &[Symbol],
        regime: Regime,
        reservation: Reservation,
    ) -> Option<PrefixMatch> {
        if !self.config.prefix_cache {
            return None;
        }
        let most = tokens.len().saturating_sub(1);
        self.running_matches(id, tokens, regime)
            .chain(self.rows.idle_matches(tokens, most, regime))
            .max_by_key(|found| self.rows.preference(*found, reservation))
    }

    /// The rows of running sequences other than `id` that have computed a prefix of `tokens`.
    fn running_matches<'a>(
        &'a self,
        id: RequestId,
        tokens: &'a [Symbol],
        regime: Regime,
    ) -> impl Iterator<Item = PrefixMatch> + 'a {
        let most = tokens.len().saturating_sub(1);
        let others = self.running.iter();
        others
            .filter(move |other| other.id() != id && other.regime == regime)
            .map(move |other| PrefixMatch {
                row: other.row,
                len: common_prefix(&other.tokens[..other.computed], tokens).min(most),
            })
            .filter(|found| found.len > 0)
    }

    /// Gives the row of `plan` to a sequence; returns the number of tokens that it has then.
    fn carry_out(&mut self, id: RequestId, plan: &RowPlan) -> usize {
        let row = plan.row;
        let had_spans = self.rows.seat(id, plan);
        if plan.in_place || (!had_spans && plan.spans.is_empty()) {
            // Memory that the sequence will overwrite stays allocated: the system need not provide it again.
            self.decoder.truncate(row, plan.reservation.tokens);
        } else {
            // What a row reads from others changes only while it holds nothing itself.
            self.decoder.release(row);
        }
        self.make_room(0, None);
        let mut computed = if plan.in_place {
            plan.len
        } else {
            plan.shared_end()
        };
        for copy in &plan.copies {
            let copied = self
                .decoder
                .ensure(row, copy.end)
                .and_then(|()| self.decoder.copy(copy.row, row, computed..copy.end));
            if copied.is_err() {
                // Only time is lost: the rest is computed.
                break;
            }
            computed = copy.end;
        }
        self.rows.end_copies(row);
        computed
    }
}
