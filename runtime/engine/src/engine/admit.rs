//! Which requests are taken, and when each gets its row: by the rows and by the budget of memory.

use std::time::Duration;

use super::Engine;
use crate::decoder::{Caps, Decoder, Regime};
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
        if let Some(budget) = self.budget_tokens() {
            // Room for the prompt and one token at least; the answer may be cut short by its own limit alone.
            let promised = promised(request, caps.context_length);
            let usable = budget.saturating_sub(self.rows.pinned_tokens());
            if promised > usable {
                return Err(Failure::MemoryOverflow {
                    prompt,
                    new: promised - prompt,
                    budget: usable,
                });
            }
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

    /// Tokens that the budget has room for.
    pub(super) fn budget_tokens(&self) -> Option<usize> {
        let per_token = self.decoder.caps().kv_bytes_per_token.max(1);
        let budget = self.config.kv_budget?;
        Some(usize::try_from(budget / per_token).unwrap_or(usize::MAX))
    }

    pub(super) fn end_what_is_over(&mut self, now: Duration, events: &mut Vec<Event>) {
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

    /// Starts what has waited longest, as far as rows and memory reach. What does not fit waits for its memory and
    /// is not overtaken: otherwise small requests would starve a large one.
    pub(super) fn start_waiting(&mut self, now: Duration, events: &mut Vec<Event>) {
        while self.rows.has_room() && self.waiting.front().is_some_and(|w| self.fits(&w.request)) {
            let Some(waiting) = self.waiting.pop_front() else {
                return;
            };
            let id = waiting.request.id;
            self.make_room(promised(&waiting.request, self.decoder.caps().context_length));
            let found = self.remembered(
                &waiting.request.prompt,
                regime_of(waiting.request.prompt.len(), self.caps()),
            );
            let Some(place) = self.rows.place(id, found) else {
                self.waiting.push_front(waiting);
                return;
            };
            if let Some((refuge, len)) = place.rescue
                && self.decoder.copy(place.row, refuge, len).is_err()
            {
                self.rows.shorten(refuge, 0);
            }
            let mut sequence = Sequence::new(waiting, place.row, now, self.config.stop_repetition);
            sequence.regime = regime_of(sequence.tokens.len(), self.decoder.caps());
            events.push(Event::Started { id });
            self.reuse(&mut sequence, found);
            self.running.push(sequence);
        }
    }

    pub(super) fn fits(&self, request: &GenerateRequest) -> bool {
        let Some(budget) = self.budget_tokens() else {
            return true;
        };
        let context = self.decoder.caps().context_length;
        let running: usize = self.running.iter().map(|s| promised(&s.request, context)).sum();
        running + self.rows.pinned_tokens() + promised(request, context) <= budget
    }

    /// Forgets idle rows until `tokens` more fit the budget beside what is promised.
    pub(super) fn make_room(&mut self, tokens: usize) {
        let Some(budget) = self.budget_tokens() else {
            return;
        };
        let context = self.decoder.caps().context_length;
        let running: usize = self.running.iter().map(|s| promised(&s.request, context)).sum();
        while running + tokens + self.rows.pinned_tokens() + self.rows.spare_tokens() > budget {
            let Some(row) = self.rows.forget_oldest(None) else {
                return;
            };
            self.decoder.release(row);
        }
    }
}

/// Tokens that a request may come to hold.
pub(super) fn promised(request: &GenerateRequest, context: usize) -> usize {
    request
        .prompt
        .len()
        .saturating_add(request.max_tokens)
        .min(context)
}

pub(super) fn regime_of(tokens: usize, caps: &Caps) -> Regime {
    match caps.rope_boundary {
        Some(boundary) if tokens > boundary => Regime::Long,
        _ => Regime::Short,
    }
}
