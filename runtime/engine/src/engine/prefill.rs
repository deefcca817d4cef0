//! Prefill: a run of one sequence's prompt, or of a chunk of it.

use std::time::Duration;

use super::Engine;
use super::settle::sample;
use crate::decoder::{DecodeError, Decoder, Input, Interrupt, Row, Step, Wanted};
use crate::request::Event;
use crate::scheduler::computed_of_awaited;
use crate::sequence::Sequence;

impl<D: Decoder> Engine<D> {
    /// One prefill step: a chunk of one sequence's prompt.
    pub(super) fn prefill(
        &mut self,
        index: usize,
        now: &dyn Fn() -> Duration,
        interrupt: &Interrupt,
        events: &mut Vec<Event>,
    ) {
        if self.running[index].computed == 0 || self.running[index].chunks == 0 {
            self.reuse_running(index);
        }
        let context = self.context();
        let others_decode = self.running.iter().any(Sequence::decodes);
        let most = self.config.prefill_chunk;
        let chunk = if others_decode {
            self.run_times.chunk_size(most)
        } else {
            most
        };
        // With what was taken from another row just now another image may be next.
        let computable = self.computable(index);
        if computable.is_empty() {
            return;
        }
        let rest = computable.len();
        let sequence = &mut self.running[index];
        // A short prompt is not cut for a small remainder, which would read all weights once more.
        let whole = sequence.chunks == 0 && rest <= most.min(chunk + chunk / 2);
        sequence.chunks += 1;
        let end = sequence.computed + if whole { rest } else { rest.min(chunk) };
        let features = self.features.of(&sequence.images, &(sequence.computed..end));
        let logits = if end == sequence.tokens.len() {
            Wanted::Last
        } else {
            Wanted::None
        };
        let started = now();
        let outcome = match self.decoder.ensure(sequence.row, end) {
            Ok(()) => {
                let row = Row {
                    row: sequence.row,
                    past: sequence.computed,
                    shared: self.rows.spans(sequence.row),
                    input: Input {
                        symbols: &sequence.tokens[sequence.computed..end],
                        features: &features,
                    },
                    logits,
                    regime: sequence.regime,
                };
                // The run serves one request, so that its cancellation may end it.
                interrupt.set_sole_request(sequence.id());
                self.decoder.run(&Step { rows: &[row] }, interrupt)
            }
            Err(error) => Err(error),
        };
        interrupt.clear_sole_request();
        let time = now();
        match outcome {
            Ok(logits) => {
                let (computed, took) = (end - sequence.computed, time.saturating_sub(started));
                self.run_times.record_prefill(computed, took);
                record_prompt_run(sequence, computed, took);
                sequence.computed = end;
                report_progress(sequence, end, events);
                if self.config.prefix_cache {
                    report_shared_progress(&mut self.running, events);
                }
                let sequence = &mut self.running[index];
                if end < sequence.tokens.len() {
                    return;
                }
                let outcome = sample(sequence, &logits, &[], context, time);
                self.conclude(index, outcome, time, events);
            }
            // The row still holds what it held before; the caller that raised the interrupt cancels what is to end.
            Err(DecodeError::Interrupted) => interrupt.clear(),
            Err(error) => self.fail(index, &error.to_string(), events),
        }
    }
}

/// Records a run of a prompt; one of an answer that is computed again for other rope factors is none.
fn record_prompt_run(sequence: &mut Sequence, computed: usize, took: Duration) {
    if sequence.tokens.len() == sequence.request.prompt.len() {
        let runs = &mut sequence.prefill_runs;
        runs.tokens += computed;
        runs.end = sequence.computed + computed;
        runs.time = runs.time.saturating_add(took);
    }
}

/// Reports to those that wait for the prefix of another sequence what is computed of it.
fn report_shared_progress(running: &mut [Sequence], events: &mut Vec<Event>) {
    for follower in 0..running.len() {
        if let Some(done) = computed_of_awaited(running, follower) {
            report_progress(&mut running[follower], done, events);
        }
    }
}

/// Reports that `done` tokens of a prompt are computed, unless as many were reported before.
fn report_progress(sequence: &mut Sequence, done: usize, events: &mut Vec<Event>) {
    let total = sequence.request.prompt.len();
    // An answer that is computed again for other rope factors has no prompt to wait for.
    if sequence.tokens.len() == total && done > sequence.reported {
        sequence.reported = done;
        let id = sequence.id();
        events.push(Event::Progress { id, done, total });
    }
}
