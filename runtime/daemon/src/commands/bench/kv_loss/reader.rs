//! Running a decoder over passages, and generating answers with it.

use std::ops::Range;

use phi_edge_engine::{
    DecodeError, Decoder, Input, Interrupt, Regime, Row, RowId, Step, Symbol, TokenId, Wanted,
};

use super::passages::{Compared, Passage};

/// The only row that is used.
const ROW: RowId = RowId(0);

/// A decoder that reads one passage after the other.
pub(super) struct Reader<'a, D> {
    pub(super) decoder: &'a mut D,
    /// The most tokens of a run.
    pub(super) chunk: usize,
}

/// The end of an answer.
pub(super) struct AnswerEnd {
    pub(super) max_tokens: usize,
    pub(super) stop: Vec<TokenId>,
}

/// A function that takes the logits after a compared token, with the index of its group.
pub(super) type Visit<'a> = &'a mut dyn FnMut(usize, &[f32]) -> Result<(), DecodeError>;

/// A sequence that is run in chunks.
#[derive(Clone, Copy)]
struct Run<'a> {
    tokens: &'a [Symbol],
    chunk: usize,
    regime: Regime,
}

impl<D: Decoder> Reader<'_, D> {
    /// Reads `passage` and hands the logits at each compared position to `visit`, in order.
    pub(super) fn read(&mut self, passage: &Passage, visit: Visit<'_>) -> Result<(), DecodeError> {
        let outcome = self.read_all(passage, visit);
        self.decoder.release(ROW);
        outcome
    }

    /// Generates the greedy answer to `prompt`, and hands the logits by which each of its tokens was chosen to `visit`, as
    /// group 0. The passage of prompt and answer, with these positions as the compared ones; reading it gives the logits
    /// again. The last token of the answer is not part of it: nothing is predicted from it.
    pub(super) fn answer(
        &mut self,
        prompt: &[Symbol],
        end: &AnswerEnd,
        visit: Visit<'_>,
    ) -> Result<Passage, DecodeError> {
        let outcome = self.generate(prompt, end, visit);
        self.decoder.release(ROW);
        outcome
    }

    fn generate(
        &mut self,
        prompt: &[Symbol],
        end: &AnswerEnd,
        visit: Visit<'_>,
    ) -> Result<Passage, DecodeError> {
        let regime = self.regime(prompt.len() + end.max_tokens);
        let first = prompt.len().saturating_sub(1);
        let mut tokens = prompt.to_vec();
        let chunk = self.chunk;
        self.run(
            Run {
                tokens: &tokens,
                chunk,
                regime,
            },
            0..first,
            Wanted::None,
            &mut |_| Ok(()),
        )?;
        for position in first..first + end.max_tokens {
            let mut next = None;
            let run = Run {
                tokens: &tokens,
                chunk: 1,
                regime,
            };
            self.run(run, position..position + 1, Wanted::All, &mut |logits| {
                next = largest(logits);
                visit(0, logits)
            })?;
            match next {
                Some(next) if !end.stop.contains(&next) && position + 1 < first + end.max_tokens => {
                    tokens.push(Symbol::Token(next))
                }
                _ => break,
            }
        }
        let positions = first..tokens.len();
        Ok(Passage {
            tokens,
            compared: vec![Compared { group: 0, positions }],
            regime_tokens: prompt.len() + end.max_tokens,
            decoded: true,
        })
    }

    fn read_all(&mut self, passage: &Passage, visit: Visit<'_>) -> Result<(), DecodeError> {
        let run = Run {
            tokens: &passage.tokens,
            chunk: self.chunk,
            regime: self.regime(passage.regime_tokens),
        };
        let compared_run = Run {
            chunk: if passage.decoded { 1 } else { self.chunk },
            ..run
        };
        let mut past = 0;
        // A run's logits are wanted all or not at all: chunks end where compared positions begin and end.
        for Compared { group, positions } in &passage.compared {
            self.run(run, past..positions.start, Wanted::None, &mut |_| Ok(()))?;
            self.run(compared_run, positions.clone(), Wanted::All, &mut |logits| {
                visit(*group, logits)
            })?;
            past = positions.end;
        }
        Ok(())
    }

    /// The factors of a sequence of `tokens` tokens.
    fn regime(&self, tokens: usize) -> Regime {
        match self.decoder.caps().rope_boundary {
            Some(boundary) if tokens > boundary => Regime::Long,
            _ => Regime::Short,
        }
    }

    /// Appends `range` of the sequence to the row, in chunks.
    fn run(
        &mut self,
        Run {
            tokens,
            chunk,
            regime,
        }: Run<'_>,
        range: Range<usize>,
        logits: Wanted,
        visit: &mut dyn FnMut(&[f32]) -> Result<(), DecodeError>,
    ) -> Result<(), DecodeError> {
        let mut past = range.start;
        while past < range.end {
            let next = range.end.min(past + chunk.max(1));
            let row = Row {
                row: ROW,
                past,
                shared: &[],
                input: Input::of(tokens.get(past..next).unwrap_or_default()),
                logits,
                regime,
            };
            self.decoder.ensure(ROW, next)?;
            let rows = self.decoder.run(&Step { rows: &[row] }, &Interrupt::new())?;
            for index in 0..row.logits_count() {
                let missing = || DecodeError::Failed("logits are missing".to_owned());
                let logits = rows.row(index).ok_or_else(missing)?;
                if !logits.iter().all(|logit| logit.is_finite()) {
                    return Err(DecodeError::Failed(
                        "logits are infinite or not a number".to_owned(),
                    ));
                }
                visit(logits)?;
            }
            past = next;
        }
        Ok(())
    }
}

/// The token of the largest logit, the first of several.
fn largest(logits: &[f32]) -> Option<TokenId> {
    let mut largest: Option<(usize, f32)> = None;
    for (index, &logit) in logits.iter().enumerate() {
        if largest.is_none_or(|(_, most)| logit > most) {
            largest = Some((index, logit));
        }
    }
    largest
        .and_then(|(index, _)| u32::try_from(index).ok())
        .map(TokenId)
}
