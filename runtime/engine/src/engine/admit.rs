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
        let tokens = request.prompt.iter().filter_map(|symbol| symbol.token());
        if let Some(id) = tokens.into_iter().find(|id| id.0 as usize >= caps.vocab_size) {
            return Err(Failure::Invalid(format!(
                "token id {} is outside the model's vocabulary of {}",
                id.0, caps.vocab_size
            )));
        }
        self.validate_images(request)?;
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
        while let Some(waiting) = self.waiting.pop_front() {
            let Some(placed) = self.place(&waiting.request) else {
                self.waiting.push_front(waiting);
                return;
            };
            let mut sequence = Sequence::new(waiting, placed.row, now, self.config.stop_repetition);
            sequence.regime = placed.regime;
            sequence.computed = placed.computed;
            sequence.cached = placed.computed;
            events.push(Event::Started { id: sequence.id() });
            self.running.push(sequence);
            // A copied prefix takes memory twice now.
            self.make_room(0, None);
        }
    }

    /// Evicts idle rows except `keep`, the least recently used first, until `bytes` more fit the budget beside what
    /// running requests may come to hold.
    pub(super) fn make_room(&mut self, bytes: u64, keep: Option<RowId>) {
        let Some(budget) = self.config.kv_budget else {
            return;
        };
        let kept = keep.map_or(0, |row| self.rows.evictable_bytes(row));
        while self.rows.taken_bytes().saturating_add(bytes).saturating_sub(kept) > budget {
            if !self.evict_oldest(keep) {
                return;
            }
        }
    }

    /// Evicts the least recently used idle row except `keep`, or what no other row reads of it; false if there is none.
    pub(super) fn evict_oldest(&mut self, keep: Option<RowId>) -> bool {
        let Some(evicted) = self.rows.evict_oldest(keep) else {
            return false;
        };
        if evicted.len == 0 {
            self.decoder.release(evicted.row);
        } else {
            self.decoder.truncate(evicted.row, evicted.len);
        }
        true
    }
}
