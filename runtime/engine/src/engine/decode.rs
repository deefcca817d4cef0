//! Decode: a run of many sequences, for the next token of each and its draft beyond that.

use std::time::Duration;

use super::Engine;
use super::settle::{SampleOutcome, sample};
use crate::decoder::{Caps, DecodeError, Decoder, Input, Interrupt, Regime, Row, Step, Wanted};
use crate::ids::RowId;
use crate::request::Event;
use crate::rows::KvRows;
use crate::sequence::Sequence;
use crate::speculation::{self, Draft};
use crate::symbol::Symbol;

/// A sequence, by index, and what a run's logits mean for it.
type Sampled = (usize, Result<SampleOutcome, String>);

impl<D: Decoder> Engine<D> {
    /// One decode step: the next token of every sequence whose prompt is computed, or of those of `regime`.
    pub(super) fn decode(
        &mut self,
        regime: Option<Regime>,
        now: &dyn Fn() -> Duration,
        interrupt: &Interrupt,
        events: &mut Vec<Event>,
    ) {
        let caps = self.decoder.caps().clone();
        let mut members = self.members(regime);
        for &index in &members {
            self.steps += 1;
            let sequence = &mut self.running[index];
            sequence.served = self.steps;
            // The last token of a prompt that chunks did not reach.
            let total = sequence.request.prompt.len();
            if sequence.chunks > 0 && sequence.tokens.len() == total {
                let (id, done) = (sequence.id(), total);
                events.push(Event::Progress { id, done, total });
            }
        }
        let drafts = self.drafts(&members, &caps);
        if let Err((index, error)) = self.reserve(&members, &drafts, &caps) {
            return self.fail(index, &error, events);
        }
        let (outcome, time) = self.run_and_sample(&members, &drafts, &caps, now, interrupt);
        match outcome {
            Ok(mut sampled) => {
                // From the end: a sequence that leaves moves those behind it.
                sampled.sort_by_key(|(index, _)| std::cmp::Reverse(*index));
                for (index, outcome) in sampled {
                    self.conclude(index, outcome, time, events);
                }
            }
            Err(DecodeError::Interrupted) => interrupt.clear(),
            Err(error) => {
                let error = error.to_string();
                members.sort_by_key(|index| std::cmp::Reverse(*index));
                for index in members {
                    self.fail(index, &error, events);
                }
            }
        }
    }

    /// The sequences of the next decode step, by index, in the order of their rows.
    fn members(&mut self, regime: Option<Regime>) -> Vec<usize> {
        let mut ready: Vec<usize> = (0..self.running.len())
            .filter(|&index| {
                let sequence = &self.running[index];
                sequence.decodes() && regime.is_none_or(|regime| regime == sequence.regime)
            })
            .collect();
        ready.sort_by_key(|&index| self.running[index].row);
        self.segment(ready, regime)
    }

    /// Makes room for the tokens of a step. The error names the sequence that has none.
    fn reserve(
        &mut self,
        members: &[usize],
        drafts: &[Vec<Symbol>],
        caps: &Caps,
    ) -> Result<(), (usize, String)> {
        for &index in members {
            let end = self.running[index].tokens.len() + drafts[index].len();
            self.decoder
                .ensure(self.running[index].row, end)
                .map_err(|error| (index, error.to_string()))?;
        }
        // Rows that may stand idle in a run append nothing.
        if caps.idle_rows {
            return Ok(());
        }
        for between in self.between(members) {
            if self.rows.is_idle(between) {
                self.padding_rows.insert(between);
            }
            let held = held_by(&self.running, &self.rows, between);
            // Refused only where the row is full, and then it would fail in the run as well.
            let _ = self.decoder.ensure(between, held + 1);
        }
        Ok(())
    }

    /// Runs the graph once and samples for each member; also returns the time after the run.
    fn run_and_sample(
        &mut self,
        members: &[usize],
        drafts: &[Vec<Symbol>],
        caps: &Caps,
        now: &dyn Fn() -> Duration,
        interrupt: &Interrupt,
    ) -> (Result<Vec<Sampled>, DecodeError>, Duration) {
        let context = self.context();
        let span = self.span(members, caps);
        let started = now();
        let lone = members.len() == 1;
        let padding: Option<&[Symbol]> = match (caps.contiguous_rows, caps.idle_rows) {
            (false, _) => None,
            (true, true) => Some(&[]),
            (true, false) => Some(&self.padding_input),
        };
        let rows = batch(&self.running, &self.rows, members, drafts, padding);
        if let (true, Some(&index)) = (lone, members.first()) {
            interrupt.set_sole_request(self.running[index].id());
        }
        let interrupted = if lone { interrupt } else { &self.no_interrupt };
        let longest = rows.iter().map(|row| row.input.len()).max().unwrap_or_default();
        // Shorter rows are filled up.
        let computed = span * longest;
        let outcome = self.decoder.run(&Step { rows: &rows }, interrupted);
        interrupt.clear_sole_request();
        let time = now();
        let logits = match outcome {
            Ok(logits) => logits,
            Err(error) => return (Err(error), time),
        };
        let took = time.saturating_sub(started);
        self.cost.record(computed, took);
        if drafts.iter().all(Vec::is_empty) {
            self.run_times.record_decode(took);
        }
        let mut first = 0;
        let mut sampled = Vec::with_capacity(members.len());
        for &index in members {
            let draft = &drafts[index];
            let rows = logits.skip(first);
            first += draft.len() + 1;
            let outcome = sample(&mut self.running[index], &rows, draft, context, time);
            sampled.push((index, outcome));
        }
        (Ok(sampled), time)
    }

    /// Of the members that can share a run, the group whose member has waited longest. A run of the short regime
    /// can't carry a row beyond the boundary: the graph would choose the long factors for all.
    fn segment(&mut self, members: Vec<usize>, regime: Option<Regime>) -> Vec<usize> {
        if regime == Some(Regime::Long) {
            return self.long_segment(members);
        }
        let (Some(boundary), Some(Regime::Short)) = (self.decoder.caps().rope_boundary, regime) else {
            return members;
        };
        let mut segments: Vec<Vec<usize>> = vec![Vec::new()];
        for index in members {
            let last = segments.last().and_then(|segment| segment.last()).copied();
            if let Some(last) = last {
                for between in self.between(&[last, index]) {
                    if held_by(&self.running, &self.rows, between) < boundary {
                        continue;
                    }
                    if self.rows.is_idle(between) {
                        // A shared run is worth more than the row's cached prefix.
                        self.rows.clear(between);
                        self.decoder.release(between);
                    } else if segments.last().is_some_and(|segment| !segment.is_empty()) {
                        segments.push(Vec::new());
                    }
                }
            }
            if let Some(segment) = segments.last_mut() {
                segment.push(index);
            }
        }
        let waited = |segment: &Vec<usize>| segment.iter().map(|&index| self.running[index].served).min();
        segments.into_iter().min_by_key(waited).unwrap_or_default()
    }

    /// The number of rows that a run of `members` computes, padding rows included.
    fn span(&self, members: &[usize], caps: &Caps) -> usize {
        let rows = || members.iter().map(|&index| self.running[index].row.0);
        match (rows().min(), rows().max()) {
            (Some(first), Some(last)) if caps.contiguous_rows => (last - first + 1) as usize,
            _ => members.len(),
        }
    }

    /// The draft of each running sequence, by index; empty for most.
    fn drafts(&mut self, members: &[usize], caps: &Caps) -> Vec<Vec<Symbol>> {
        let mut drafts = vec![Vec::new(); self.running.len()];
        // Several rows of several tokens need a graph that takes them.
        if !self.config.speculation || (members.len() > 1 && !caps.ragged_chunks) {
            return drafts;
        }
        let span = self.span(members, caps);
        let context = self.context();
        let room = |sequence: &Sequence| {
            let length = sequence.tokens.len();
            let mut room = context.saturating_sub(length + 1);
            room = room.min(sequence.tokens_left().saturating_sub(1));
            if let Some(boundary) = caps.rope_boundary.filter(|_| sequence.regime == Regime::Short) {
                room = room.min(boundary.saturating_sub(length));
            }
            room
        };
        let candidates: Vec<(usize, Draft<'_>)> = members
            .iter()
            .filter_map(|&index| {
                let sequence = &self.running[index];
                let draft = speculation::draft(&sequence.tokens, room(sequence))?;
                Some((index, draft))
            })
            .collect();
        let weighed: Vec<_> = candidates
            .iter()
            .map(|(index, draft)| (&self.running[*index].drafter, draft.clone()))
            .collect();
        let length = speculation::draft_length(&weighed, span, members.len(), &self.cost);
        let chosen: Vec<_> = candidates
            .into_iter()
            .map(|(index, draft)| {
                let tokens = &draft.tokens[..length.min(draft.tokens.len())];
                (index, draft.class(), tokens.to_vec())
            })
            .collect();
        for (index, class, tokens) in chosen {
            let sequence = &mut self.running[index];
            sequence.drafter.begin_verification(class, length > 0);
            sequence.draft_input.clear();
            sequence.draft_input.extend(sequence.tokens.last());
            sequence.draft_input.extend(&tokens);
            drafts[index] = tokens;
        }
        drafts
    }

    /// The padding rows: those that lie between the rows of `members` (in the order of their rows) and must take part
    /// in their run. Each appends a token behind what it holds, where it does no harm.
    fn between(&self, members: &[usize]) -> Vec<RowId> {
        if !self.decoder.caps().contiguous_rows {
            return Vec::new();
        }
        let rows: Vec<RowId> = members.iter().map(|&index| self.running[index].row).collect();
        let between = rows.windows(2).flat_map(|pair| pair[0].0 + 1..pair[1].0);
        between.map(RowId).collect()
    }
}

/// The rows of a run: the members in the order of their rows, and between them, where the decoder wants neighbours,
/// padding rows with `padding` for their input.
fn batch<'a>(
    running: &'a [Sequence],
    kv_rows: &'a KvRows,
    members: &[usize],
    drafts: &[Vec<Symbol>],
    padding: Option<&'a [Symbol]>,
) -> Vec<Row<'a>> {
    let mut rows: Vec<Row<'a>> = Vec::with_capacity(members.len());
    for &index in members {
        let sequence = &running[index];
        let last = rows.last().map_or(sequence.row, |row| row.row);
        for between in (last.0 + 1..sequence.row.0).map(RowId) {
            let Some(padding) = padding else { break };
            rows.push(Row {
                row: between,
                past: held_by(running, kv_rows, between),
                shared: &[],
                input: Input::of(padding),
                logits: Wanted::None,
                regime: sequence.regime,
            });
        }
        let drafts = &drafts[index];
        rows.push(Row {
            row: sequence.row,
            past: sequence.computed,
            shared: kv_rows.spans(sequence.row),
            input: Input::of(if drafts.is_empty() {
                &sequence.tokens[sequence.computed..]
            } else {
                &sequence.draft_input
            }),
            logits: if drafts.is_empty() {
                Wanted::Last
            } else {
                Wanted::All
            },
            regime: sequence.regime,
        });
    }
    rows
}

/// The number of tokens that a row holds: always at least one less than the context.
fn held_by(running: &[Sequence], kv_rows: &KvRows, row: RowId) -> usize {
    match running.iter().find(|sequence| sequence.row == row) {
        Some(sequence) => sequence.computed,
        None => kv_rows.held(row).len(),
    }
}
