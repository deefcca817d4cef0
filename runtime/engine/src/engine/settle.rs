//! What a run has meant for each sequence: text, its end, or a failure.

use std::time::Duration;

use super::Engine;
use crate::decoder::{Decoder, Logits};
use crate::ids::TokenId;
use crate::request::{Event, Failure, Finish};
use crate::sequence::Sequence;

impl<D: Decoder> Engine<D> {
    /// Passes on what a run has meant for a sequence.
    pub(super) fn conclude(
        &mut self,
        index: usize,
        choices: Result<Choices, String>,
        now: Duration,
        events: &mut Vec<Event>,
    ) {
        match choices {
            Ok(Choices {
                text,
                finish: Some(finish),
            }) => self.finish(index, text, finish, now, events),
            Ok(Choices { text, finish: None }) => {
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

    /// Gives back what bystanders took, once nothing runs any more.
    fn tidy(&mut self) {
        if self.running.is_empty() {
            while let Some(row) = self.bystanders.pop_first() {
                self.decoder.truncate(row, self.rows.held(row).len());
            }
        }
    }

    pub(super) fn fail(&mut self, index: usize, error: &str, events: &mut Vec<Event>) {
        let sequence = self.running.remove(index);
        // A failed run may have written some layers and not others.
        self.decoder.release(sequence.row);
        self.rows.leave(sequence.row, Vec::new(), sequence.regime);
        events.push(Event::Failed {
            id: sequence.id(),
            reason: Failure::Decoder(error.to_owned()),
        });
        self.tidy();
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
        self.decoder.truncate(sequence.row, held.len());
        self.rows.leave(sequence.row, held, sequence.regime);
        self.make_room(0, None);
        self.tidy();
    }
}

/// What a run's logits have meant for one sequence.
pub(super) struct Choices {
    text: String,
    finish: Option<Finish>,
}

/// Chooses tokens from the logits after the last token and after each guess, for as long as the guesses are what is
/// chosen. The choices are those of plain decoding, one by one: so the text is, too.
pub(super) fn choices(
    sequence: &mut Sequence,
    logits: &Logits<'_>,
    guess: &[TokenId],
    context: usize,
    now: Duration,
) -> Result<Choices, String> {
    let mut text = String::new();
    let mut right = 0;
    sequence.computed = sequence.tokens.len();
    loop {
        let row = logits.row(right).ok_or("the decoder returned no logits")?;
        let accepted = sequence
            .sample(row, context, now)
            .map_err(|error| error.to_string())?;
        text.push_str(&accepted.text);
        let goes_on = accepted.finish.is_none();
        let as_guessed = guess
            .get(right)
            .is_some_and(|guess| sequence.tokens.last() == Some(guess));
        if goes_on && as_guessed {
            // Its keys and values are there already.
            right += 1;
            sequence.computed = sequence.tokens.len();
            continue;
        }
        if !guess.is_empty() {
            sequence.guesser.learn(guess.len(), right);
        }
        return Ok(Choices {
            text,
            finish: accepted.finish,
        });
    }
}
