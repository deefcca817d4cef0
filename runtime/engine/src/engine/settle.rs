//! The outcome of a run for each sequence: text, its end, or a failure.

use std::time::Duration;

use super::Engine;
use crate::decoder::{Decoder, Logits, Regime};
use crate::ids::RowId;
use crate::request::{Event, Failure, Finish};
use crate::sequence::Sequence;
use crate::symbol::Symbol;

impl<D: Decoder> Engine<D> {
    /// Turns the outcome of a run for one sequence into events.
    pub(super) fn conclude(
        &mut self,
        index: usize,
        outcome: Result<SampleOutcome, String>,
        now: Duration,
        events: &mut Vec<Event>,
    ) {
        match outcome {
            Ok(SampleOutcome {
                text,
                finish: Some(finish),
            }) => self.finish(index, text, finish, now, events),
            Ok(SampleOutcome { text, finish: None }) => {
                if !text.is_empty() {
                    events.push(Event::Text {
                        id: self.running[index].id(),
                        delta: text,
                    });
                }
            }
            Err(error) => self.fail(index, &error, events),
        }
    }

    /// Makes a row idle, with the tokens `held`.
    fn leave_row(&mut self, row: RowId, held: Vec<Symbol>, regime: Regime) {
        match self.rows.leave(row, held, regime) {
            0 => self.decoder.release(row),
            kept => self.decoder.truncate(row, kept),
        }
    }

    /// Truncates rows that took part as padding, once nothing runs any more.
    fn truncate_padding_rows(&mut self) {
        if self.running.is_empty() {
            while let Some(row) = self.padding_rows.pop_first() {
                self.decoder.truncate(row, self.rows.held(row).len());
            }
        }
    }

    /// Ends a sequence for which the decoder failed.
    pub(super) fn fail(&mut self, index: usize, error: &str, events: &mut Vec<Event>) {
        self.fail_for(index, Failure::Decoder(error.to_owned()), events);
    }

    /// Ends a sequence without an answer.
    pub(super) fn fail_for(&mut self, index: usize, reason: Failure, events: &mut Vec<Event>) {
        let sequence = self.running.remove(index);
        // A failed run may have written some layers and not others, but not what other rows read: they stay.
        let mut held = sequence.tokens;
        held.truncate(self.rows.read_end(sequence.row));
        self.leave_row(sequence.row, held, sequence.regime);
        events.push(Event::Failed {
            id: sequence.request.id,
            reason,
        });
        self.truncate_padding_rows();
    }

    pub(super) fn finish(
        &mut self,
        index: usize,
        text: String,
        finish: Finish,
        now: Duration,
        events: &mut Vec<Event>,
    ) {
        let sequence = self.running.remove(index);
        let id = sequence.id();
        if !text.is_empty() {
            events.push(Event::Text { id, delta: text });
        }
        events.push(Event::Finished {
            id,
            summary: sequence.summary(finish, now),
        });
        let mut held = sequence.tokens;
        held.truncate(if self.config.prefix_cache {
            sequence.computed
        } else {
            0
        });
        self.leave_row(sequence.row, held, sequence.regime);
        self.make_room(0, None);
        self.truncate_padding_rows();
    }
}

/// The outcome of sampling for one sequence: new text, and how it ended.
pub(super) struct SampleOutcome {
    text: String,
    finish: Option<Finish>,
}

/// Samples the logits after the last token and after each draft token, for as long as the draft agrees. The choices
/// are those of plain decoding, one by one, and so is the text.
pub(super) fn sample(
    sequence: &mut Sequence,
    logits: &Logits<'_>,
    draft: &[Symbol],
    context: usize,
    now: Duration,
) -> Result<SampleOutcome, String> {
    let mut text = String::new();
    let mut accepted = 0;
    sequence.computed = sequence.tokens.len();
    loop {
        let row = logits.row(accepted).ok_or("the decoder returned no logits")?;
        let sampled = sequence
            .sample(row, context, now)
            .map_err(|error| error.to_string())?;
        text.push_str(&sampled.text);
        let goes_on = sampled.finish.is_none();
        let as_drafted = draft
            .get(accepted)
            .is_some_and(|token| sequence.tokens.last() == Some(token));
        if goes_on && as_drafted {
            // Its keys and values were computed in this run.
            accepted += 1;
            sequence.computed = sequence.tokens.len();
            continue;
        }
        if !draft.is_empty() {
            sequence.drafter.record(draft.len(), accepted);
        }
        return Ok(SampleOutcome {
            text,
            finish: sampled.finish,
        });
    }
}
