//! Admission: which requests are accepted, and when each gets its row, by free rows and by the memory budget.

use std::time::Duration;

use super::Engine;
use crate::decoder::Decoder;
use crate::ids::RowId;
use crate::request::{Event, Failure, Finish, GenerateRequest};
use crate::sequence::Sequence;

impl<D: Decoder> Engine<D> {
    pub(super) fn validate(&self, request: &GenerateRequest) -> Result<(), Failure> {
        let caps = self.decoder.caps();
        let prompt = request.prompt.len();
        if prompt == 0 {
            return Err(Failure::Invalid("the prompt is empty".into()));
        }
        if request.max_tokens == 0 {
            return Err(Failure::Invalid("max_tokens must be at least 1".into()));
        }
        if let Some(id) = request.prompt.iter().find(|id| id.0 as usize >= caps.vocab_size) {
            return Err(Failure::Invalid(format!(
                "token id {} is outside the model's vocabulary of {}",
                id.0, caps.vocab_size
            )));
        }
        if prompt >= caps.context_length {
            return Err(Failure::ContextOverflow {
                prompt,
                context: caps.context_length,
            });
        }
        if prompt >= self.context() {
            return Err(Failure::MemoryOverflow {
                prompt,
                new: 1,
                budget: self.context(),
            });
        }
        let known = self.running.iter().any(|s| s.id() == request.id)
            || self.waiting.iter().any(|w| w.request.id == request.id);
        if known {
            return Err(Failure::Invalid(format!(
                "request {} is already there",
                request.id.0
            )));
        }
        Ok(())
    }

    /// Tokens that the memory budget holds; `None` without one.
    pub(super) fn budget_tokens(&self) -> Option<usize> {
        let per_token = self.decoder.caps().kv_bytes_per_token.max(1);
        let budget = self.config.kv_budget?;
        Some(usize::try_from(budget / per_token).unwrap_or(usize::MAX))
    }

    pub(super) fn end_expired(&mut self, now: Duration, events: &mut Vec<Event>) {
        let over = |ended: Option<Finish>, deadline: Option<Duration>| {
            ended.or_else(|| deadline.filter(|d| *d <= now).map(|_| Finish::Deadline))
        };
        self.waiting
            .retain(|waiting| match over(waiting.ended, waiting.request.deadline) {
                Some(finish) => {
                    let summary = waiting.summary(finish, now);
                    events.push(Event::Finished {
                        id: waiting.request.id,
                        summary,
                    });
                    false
                }
                None => true,
            });
        let mut index = 0;
        while let Some(sequence) = self.running.get_mut(index) {
            match over(sequence.ended, sequence.request.deadline) {
                Some(finish) => {
                    let closed = sequence.close(finish);
                    self.finish(index, closed.text, closed.finish.unwrap_or(finish), now, events);
                }
                None => index += 1,
            }
        }
    }

    /// Starts the requests that have waited longest, as far as rows and memory reach. A request that does not fit is
    /// not overtaken: otherwise small requests would starve a large one.
    pub(super) fn start_waiting(&mut self, now: Duration, events: &mut Vec<Event>) {
        while self.rows.has_free_row() && self.waiting.front().is_some_and(|w| self.fits(&w.request)) {
            let Some(waiting) = self.waiting.pop_front() else {
                return;
            };
            let id = waiting.request.id;
            let regime = self.initial_regime(&waiting.request);
            let found = self.cached_prefix(&waiting.request.prompt, regime);
            // The row with its prefix is evicted last: taken in place it costs nothing more.
            self.make_room(
                self.reserved_tokens(&waiting.request),
                found.map(|found| found.row),
            );
            let Some(place) = self.rows.place(id, found) else {
                self.waiting.push_front(waiting);
                return;
            };
            if let Some((spare, len)) = place.copy_out {
                if self.decoder.copy(place.row, spare, 0..len).is_ok() {
                    // The spare row may have held more before.
                    self.decoder.truncate(spare, len);
                } else {
                    self.rows.shorten(spare, 0);
                    self.decoder.release(spare);
                }
            }
            let mut sequence = Sequence::new(waiting, place.row, now, self.config.stop_repetition);
            sequence.regime = regime;
            events.push(Event::Started { id });
            self.reuse(&mut sequence, found);
            self.running.push(sequence);
            // The copied prefix takes memory twice now.
            self.make_room(0, None);
        }
    }

    pub(super) fn fits(&self, request: &GenerateRequest) -> bool {
        let Some(budget) = self.budget_tokens() else {
            return true;
        };
        let running: usize = self
            .running
            .iter()
            .map(|s| self.reserved_tokens(&s.request))
            .sum();
        running + self.rows.pinned_tokens() + self.reserved_tokens(request) <= budget
    }

    /// Evicts idle rows except `keep`, the least recently used first, until `tokens` more fit the budget beside what
    /// running requests may come to hold.
    pub(super) fn make_room(&mut self, tokens: usize, keep: Option<RowId>) {
        let Some(budget) = self.budget_tokens() else {
            return;
        };
        let running: usize = self
            .running
            .iter()
            .map(|s| self.reserved_tokens(&s.request))
            .sum();
        let kept = keep.map_or(0, |row| self.rows.evictable_tokens_of(row));
        while running + tokens + self.rows.pinned_tokens() + self.rows.evictable_tokens() - kept > budget {
            let Some(row) = self.rows.evict_oldest(keep) else {
                return;
            };
            self.decoder.release(row);
        }
    }

    /// Tokens that a request may come to hold: the upper bound of its memory.
    pub(super) fn reserved_tokens(&self, request: &GenerateRequest) -> usize {
        let asked = request.prompt.len().saturating_add(request.max_tokens);
        asked.min(self.context())
    }
}
