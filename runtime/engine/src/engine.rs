//! The engine: which sequence runs next, and what its logits mean.

use std::collections::VecDeque;
use std::time::Duration;

use crate::decoder::{Caps, DecodeError, Decoder, Input, Interrupt, Regime, Row, Step, Wanted};
use crate::ids::{RequestId, RowId};
use crate::request::{Event, Failure, Finish, GenerateRequest};
use crate::sequence::{Sequence, Waiting};

/// How the engine works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineConfig {
    /// The most tokens of one prefill run. A cancellation takes effect between runs at the latest.
    pub prefill_chunk: usize,
    /// The most sequences that run at once; at least 1, at most the decoder's rows.
    pub slots: usize,
    /// End an answer that goes round in circles.
    pub stop_repetition: bool,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            prefill_chunk: 512,
            slots: 1,
            stop_repetition: true,
        }
    }
}

/// Runs sequences over a [`Decoder`]. See the crate's documentation for what it is not.
pub struct Engine<D> {
    decoder: D,
    config: EngineConfig,
    waiting: VecDeque<Waiting>,
    running: Vec<Sequence>,
    free_rows: Vec<RowId>,
    /// Index into `running` of the sequence whose turn it is.
    turn: usize,
}

impl<D: Decoder> Engine<D> {
    /// An engine without work.
    pub fn new(decoder: D, mut config: EngineConfig) -> Self {
        config.slots = config.slots.clamp(1, decoder.caps().rows.max(1));
        config.prefill_chunk = config.prefill_chunk.max(1);
        let mut free_rows: Vec<RowId> = (0u32..).take(config.slots).map(RowId).collect();
        // Rows are taken from the end: the first sequence gets row 0.
        free_rows.reverse();
        Self {
            decoder,
            config,
            waiting: VecDeque::new(),
            running: Vec::new(),
            free_rows,
            turn: 0,
        }
    }

    /// What the decoder can do.
    pub fn caps(&self) -> &Caps {
        self.decoder.caps()
    }

    /// The decoder.
    pub fn decoder(&self) -> &D {
        &self.decoder
    }

    /// The decoder, for measurements while the engine is idle. What its rows hold is the engine's business.
    pub fn decoder_mut(&mut self) -> &mut D {
        &mut self.decoder
    }

    /// How many sequences run at once.
    pub fn slots(&self) -> usize {
        self.config.slots
    }

    /// True when nothing runs and nothing waits: a step would do nothing.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Takes a request. On `Err` there will be no event for it.
    pub fn submit(&mut self, request: GenerateRequest, now: Duration) -> Result<(), Failure> {
        self.validate(&request)?;
        self.waiting.push_back(Waiting {
            request,
            submitted: now,
            ended: None,
        });
        Ok(())
    }

    /// Ends a request before its next token, with what it has by then. Unknown ids are ignored: the
    /// request may have ended by itself.
    pub fn cancel(&mut self, id: RequestId) {
        if let Some(sequence) = self.running.iter_mut().find(|s| s.id() == id) {
            sequence.ended = Some(Finish::Cancelled);
        } else if let Some(waiting) = self.waiting.iter_mut().find(|w| w.request.id == id) {
            waiting.ended = Some(Finish::Cancelled);
        }
    }

    /// Does one piece of work: at most one run of the graph. `now` is the time since the engine's epoch,
    /// asked for again after the run.
    pub fn step(&mut self, now: &dyn Fn() -> Duration, interrupt: &Interrupt, events: &mut Vec<Event>) {
        self.end_what_is_over(now(), events);
        self.start_waiting(now(), events);
        if self.running.is_empty() {
            return;
        }
        self.turn %= self.running.len();
        let turn = self.turn;
        self.turn += 1;
        self.advance(turn, now, interrupt, events);
    }

    fn validate(&self, request: &GenerateRequest) -> Result<(), Failure> {
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

    fn end_what_is_over(&mut self, now: Duration, events: &mut Vec<Event>) {
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

    fn start_waiting(&mut self, now: Duration, events: &mut Vec<Event>) {
        while !self.waiting.is_empty() {
            let Some(row) = self.free_rows.pop() else { return };
            let Some(waiting) = self.waiting.pop_front() else {
                return;
            };
            events.push(Event::Started {
                id: waiting.request.id,
            });
            self.running
                .push(Sequence::new(waiting, row, now, self.config.stop_repetition));
        }
    }

    /// One run for one sequence: a chunk of its prefill, or its next token.
    fn advance(
        &mut self,
        index: usize,
        now: &dyn Fn() -> Duration,
        interrupt: &Interrupt,
        events: &mut Vec<Event>,
    ) {
        let caps = self.decoder.caps();
        let (context, boundary) = (caps.context_length, caps.rope_boundary);
        let sequence = &mut self.running[index];
        let regime = regime_of(sequence.tokens.len(), boundary);
        if regime != sequence.regime {
            // Keys of the other regime are wrong in this one: the sequence is computed anew.
            sequence.regime = regime;
            if sequence.computed > 0 {
                sequence.computed = 0;
                self.decoder.truncate(sequence.row, 0);
            }
        }
        let end = sequence
            .tokens
            .len()
            .min(sequence.computed + self.config.prefill_chunk);
        let logits = if end == sequence.tokens.len() {
            Wanted::Last
        } else {
            Wanted::None
        };
        let outcome = match self.decoder.ensure(sequence.row, end) {
            Ok(()) => {
                let input = Input::Tokens(&sequence.tokens[sequence.computed..end]);
                let row = Row {
                    row: sequence.row,
                    past: sequence.computed,
                    input,
                    logits,
                    regime,
                };
                self.decoder.run(&Step { rows: &[row] }, interrupt)
            }
            Err(error) => Err(error),
        };
        let failure = match outcome {
            Ok(_) if logits == Wanted::None => {
                sequence.computed = end;
                return;
            }
            Ok(logits) => {
                sequence.computed = end;
                let time = now();
                match logits.row(0).map(|row| sequence.sample(row, context, time)) {
                    Some(Ok(accepted)) => {
                        match accepted.finish {
                            Some(finish) => self.finish(index, accepted.text, finish, time, events),
                            None if accepted.text.is_empty() => {}
                            None => events.push(Event::Text {
                                id: sequence.id(),
                                delta: accepted.text,
                            }),
                        }
                        return;
                    }
                    Some(Err(error)) => error.to_string(),
                    None => "the decoder returned no logits".to_owned(),
                }
            }
            Err(DecodeError::Interrupted) => {
                // The row still holds what it held before; whoever raised it says by `cancel` what ends.
                interrupt.clear();
                return;
            }
            Err(error) => error.to_string(),
        };
        let sequence = self.take(index);
        events.push(Event::Failed {
            id: sequence.id(),
            reason: Failure::Decoder(failure),
        });
    }

    fn finish(&mut self, index: usize, text: String, finish: Finish, now: Duration, events: &mut Vec<Event>) {
        let sequence = self.take(index);
        let id = sequence.id();
        if !text.is_empty() {
            events.push(Event::Text { id, delta: text });
        }
        events.push(Event::Finished {
            id,
            summary: sequence.summary(finish, now),
        });
    }

    fn take(&mut self, index: usize) -> Sequence {
        let sequence = self.running.remove(index);
        // The sequence after the removed one has moved into its place.
        if self.turn > index {
            self.turn -= 1;
        }
        self.decoder.release(sequence.row);
        self.free_rows.push(sequence.row);
        sequence
    }
}

fn regime_of(tokens: usize, boundary: Option<usize>) -> Regime {
    match boundary {
        Some(boundary) if tokens > boundary => Regime::Long,
        _ => Regime::Short,
    }
}
