//! The engine: which sequences run next, and what their logits mean.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use crate::cost::Cost;
use crate::decoder::{Caps, DecodeError, Decoder, Input, Interrupt, Regime, Row, Step, Wanted};
use crate::guess::{self, Proposal};
use crate::ids::{RequestId, RowId, TokenId};
use crate::pace::Pace;
use crate::request::{Event, Failure, Finish, GenerateRequest};
use crate::rows::{Match, Rows, common};
use crate::schedule::{Turns, Work};
use crate::sequence::{Sequence, Waiting};

/// How the engine works.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineConfig {
    /// The most tokens of one prefill run. A cancellation takes effect between runs at the latest.
    pub prefill_chunk: usize,
    /// The most sequences that run at once; at least 1, at most the decoder's rows.
    pub slots: usize,
    /// End an answer that goes round in circles.
    pub stop_repetition: bool,
    /// Rows keep what they hold when their sequence has ended, for prompts that begin alike.
    pub prefix_cache: bool,
    /// Guess how a text goes on from how it went on before, and verify several tokens in one run.
    pub speculation: bool,
    /// The most bytes of keys and values, of running and remembered sequences together.
    pub kv_budget: Option<u64>,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            prefill_chunk: 512,
            slots: 1,
            stop_repetition: true,
            prefix_cache: true,
            speculation: true,
            kv_budget: None,
        }
    }
}

/// Bytes of keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KvUse {
    /// Of sequences that run.
    pub running: u64,
    /// Of rows that keep what they hold for prompts that begin alike.
    pub remembered: u64,
    /// The most that both together may take ([`EngineConfig::kv_budget`]).
    pub budget: Option<u64>,
}

/// Runs sequences over a [`Decoder`]. See the crate's documentation for what it is not.
pub struct Engine<D> {
    decoder: D,
    config: EngineConfig,
    waiting: VecDeque<Waiting>,
    running: Vec<Sequence>,
    rows: Rows,
    turns: Turns,
    pace: Pace,
    cost: Cost,
    /// Decode steps of single sequences so far: tells who was served last.
    steps: u64,
    /// Idle rows that took part in a run between others, and hold a token behind their own since.
    bystanders: BTreeSet<RowId>,
    /// Raised by nobody: for runs that must not be cut short for the sake of one of their rows.
    undisturbed: Interrupt,
    /// The input of rows that take part in a run only because they lie between others.
    filler: [TokenId; 1],
}

impl<D: Decoder> Engine<D> {
    /// An engine without work.
    pub fn new(decoder: D, mut config: EngineConfig) -> Self {
        let rows = decoder.caps().rows.max(1);
        config.slots = config.slots.clamp(1, rows);
        config.prefill_chunk = config.prefill_chunk.max(1);
        Self {
            rows: Rows::new(rows, config.slots),
            decoder,
            config,
            waiting: VecDeque::new(),
            running: Vec::new(),
            turns: Turns::default(),
            pace: Pace::default(),
            cost: Cost::default(),
            steps: 0,
            bystanders: BTreeSet::new(),
            undisturbed: Interrupt::new(),
            filler: [TokenId(0)],
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

    /// The decoder, for measurements while the engine is idle. What its rows held is forgotten.
    pub fn decoder_mut(&mut self) -> &mut D {
        self.forget();
        &mut self.decoder
    }

    /// Has texts guessed and verified from now on, or not ([`EngineConfig::speculation`]).
    pub fn set_speculation(&mut self, on: bool) {
        self.config.speculation = on;
    }

    /// How many sequences run at once.
    pub fn slots(&self) -> usize {
        self.config.slots
    }

    /// True when nothing runs and nothing waits: a step would do nothing.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Gives up all that idle rows remember, but for pinned prefixes.
    pub fn forget(&mut self) {
        while let Some(row) = self.rows.forget_oldest(None) {
            self.decoder.release(row);
        }
    }

    /// Computes `prefix` now and remembers it for good: a template that many prompts begin with. Meant for the
    /// time before the first request. `saved`, as [`Engine::saved_prefix`] gave it for the same prefix and model,
    /// spares the computation. True if it did.
    pub fn pin(&mut self, prefix: &[TokenId], saved: Option<&[u8]>) -> Result<bool, Failure> {
        let decoder_fault = |error: DecodeError| Failure::Decoder(error.to_string());
        let context = self.decoder.caps().context_length;
        if prefix.is_empty() || prefix.len() >= context {
            return Err(Failure::ContextOverflow {
                prompt: prefix.len(),
                context,
            });
        }
        if let Some(budget) = self.budget_tokens() {
            // At least half of the memory is for requests.
            let room = (budget / 2).saturating_sub(self.rows.pinned_tokens());
            if prefix.len() > room {
                return Err(Failure::MemoryOverflow {
                    prompt: prefix.len(),
                    new: 0,
                    budget: room,
                });
            }
        }
        let Some(row) = self.rows.row_to_pin() else {
            return Err(Failure::Invalid("all rows for pinned prefixes are taken".into()));
        };
        self.decoder.release(row);
        let regime = regime_of(prefix.len(), self.decoder.caps());
        let loaded =
            saved.is_some_and(|saved| self.decoder.load(row, saved).is_ok_and(|len| len == prefix.len()));
        let mut computed = if loaded { prefix.len() } else { 0 };
        while computed < prefix.len() {
            let end = prefix.len().min(computed + self.config.prefill_chunk);
            self.decoder.ensure(row, end).map_err(decoder_fault)?;
            let part = Row {
                row,
                past: computed,
                input: Input::Tokens(&prefix[computed..end]),
                logits: Wanted::None,
                regime,
            };
            self.decoder
                .run(&Step { rows: &[part] }, &self.undisturbed)
                .map_err(decoder_fault)?;
            computed = end;
        }
        self.rows.leave(row, prefix.to_vec(), regime);
        self.rows.pin(row);
        Ok(loaded)
    }

    /// The keys and values of a pinned prefix, to be given to [`Engine::pin`] at the next start.
    pub fn saved_prefix(&mut self, prefix: &[TokenId]) -> Option<Vec<u8>> {
        let row = self.rows.pinned(prefix)?;
        self.decoder.save(row, prefix.len()).ok()
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
        self.settle_regimes();
        let mixed = self.decoder.caps().mixed_regimes;
        match self.turns.next(&self.running, self.config.prefix_cache, mixed) {
            Some(Work::Prefill(index)) => self.prefill(index, now, interrupt, events),
            Some(Work::Decode(regime)) => self.decode(regime, now, interrupt, events),
            None => {}
        }
    }

    /// What keys and values take at present.
    pub fn kv_use(&self) -> KvUse {
        let bytes = |tokens: usize| {
            u64::try_from(tokens)
                .unwrap_or(u64::MAX)
                .saturating_mul(self.decoder.caps().kv_bytes_per_token)
        };
        KvUse {
            running: bytes(self.running.iter().map(|sequence| sequence.computed).sum()),
            remembered: bytes(self.rows.spare_tokens() + self.rows.pinned_tokens()),
            budget: self.config.kv_budget,
        }
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
    fn budget_tokens(&self) -> Option<usize> {
        let per_token = self.decoder.caps().kv_bytes_per_token.max(1);
        let budget = self.config.kv_budget?;
        Some(usize::try_from(budget / per_token).unwrap_or(usize::MAX))
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

    /// Starts what has waited longest, as far as rows and memory reach. What does not fit waits for its memory and
    /// is not overtaken: otherwise small requests would starve a large one.
    fn start_waiting(&mut self, now: Duration, events: &mut Vec<Event>) {
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

    /// The idle row that begins as `prompt` does.
    fn remembered(&self, prompt: &[TokenId], regime: Regime) -> Option<Match> {
        // The last token is always computed: its logits choose the next one.
        let most = prompt.len().saturating_sub(1);
        self.rows
            .best_match(prompt, most, regime)
            .filter(|_| self.config.prefix_cache)
    }

    /// Puts what another row holds of a sequence's beginning into its own.
    fn reuse(&mut self, sequence: &mut Sequence, found: Option<Match>) {
        // What the sequence is going to write over keeps its memory: the system need not give it anew.
        let promised = promised(&sequence.request, self.decoder.caps().context_length);
        self.decoder.truncate(sequence.row, promised);
        let Some(found) = found.filter(|found| found.len > sequence.computed) else {
            return;
        };
        if found.row != sequence.row {
            let copied = self
                .decoder
                .ensure(sequence.row, found.len)
                .and_then(|()| self.decoder.copy(found.row, sequence.row, found.len));
            if copied.is_err() {
                // Nothing is lost but time: the prompt is computed.
                return;
            }
            if self.rows.is_idle(found.row) {
                self.rows.touch(found.row);
            }
        }
        sequence.computed = found.len;
        sequence.cached = found.len;
    }

    /// Takes over what a running sequence has computed of the same beginning meanwhile.
    fn reuse_running(&mut self, index: usize) {
        if !self.config.prefix_cache {
            return;
        }
        let sequence = &self.running[index];
        let most = sequence.tokens.len() - 1;
        let best = self
            .running
            .iter()
            .filter(|other| other.id() != sequence.id() && other.regime == sequence.regime)
            .map(|other| Match {
                row: other.row,
                len: common(&other.tokens[..other.computed], &sequence.tokens).min(most),
            })
            .chain(self.rows.best_match(&sequence.tokens, most, sequence.regime))
            .max_by_key(|found| found.len);
        if best.is_some_and(|found| found.len > sequence.computed) {
            let mut sequence = self.running.swap_remove(index);
            self.reuse(&mut sequence, best);
            self.running.push(sequence);
            let last = self.running.len() - 1;
            self.running.swap(index, last);
        }
    }

    fn fits(&self, request: &GenerateRequest) -> bool {
        let Some(budget) = self.budget_tokens() else {
            return true;
        };
        let context = self.decoder.caps().context_length;
        let running: usize = self.running.iter().map(|s| promised(&s.request, context)).sum();
        running + self.rows.pinned_tokens() + promised(request, context) <= budget
    }

    /// Forgets idle rows until `tokens` more fit the budget beside what is promised.
    fn make_room(&mut self, tokens: usize) {
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

    /// Keys of one regime are wrong in the other: a sequence that crosses the boundary is computed anew.
    fn settle_regimes(&mut self) {
        for sequence in &mut self.running {
            let regime = regime_of(sequence.tokens.len(), self.decoder.caps());
            if regime != sequence.regime {
                sequence.regime = regime;
                sequence.cached = 0;
                if sequence.computed > 0 {
                    sequence.computed = 0;
                    self.decoder.truncate(sequence.row, 0);
                }
            }
        }
    }

    /// One chunk of one sequence's prompt.
    fn prefill(
        &mut self,
        index: usize,
        now: &dyn Fn() -> Duration,
        interrupt: &Interrupt,
        events: &mut Vec<Event>,
    ) {
        if self.running[index].computed == 0 || self.running[index].chunks == 0 {
            self.reuse_running(index);
        }
        let context = self.decoder.caps().context_length;
        let others_decode = self.running.iter().any(Sequence::decodes);
        let most = self.config.prefill_chunk;
        let chunk = if others_decode {
            self.pace.chunk(most)
        } else {
            most
        };
        let sequence = &mut self.running[index];
        let rest = sequence.tokens.len() - sequence.computed;
        // A short prompt is not cut for a small rest, which would read all weights once more.
        let whole = sequence.chunks == 0 && rest <= most.min(chunk + chunk / 2);
        sequence.chunks += 1;
        let end = sequence.computed + if whole { rest } else { rest.min(chunk) };
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
                    input: Input::Tokens(&sequence.tokens[sequence.computed..end]),
                    logits,
                    regime: sequence.regime,
                };
                // A lone run: whoever cancels it may cut it short.
                interrupt.only(sequence.id());
                self.decoder.run(&Step { rows: &[row] }, interrupt)
            }
            Err(error) => Err(error),
        };
        interrupt.nobody();
        let time = now();
        match outcome {
            Ok(logits) => {
                self.pace
                    .prefilled(end - sequence.computed, time.saturating_sub(started));
                sequence.computed = end;
                if end < sequence.tokens.len() {
                    return;
                }
                let choices = choices(sequence, &logits, &[], context, time);
                self.conclude(index, choices, time, events);
            }
            // The row still holds what it held before; whoever raised it says by `cancel` what ends.
            Err(DecodeError::Interrupted) => interrupt.clear(),
            Err(error) => self.fail(index, &error.to_string(), events),
        }
    }

    /// The next token of every sequence that is through with its prompt, or of those of `regime`.
    fn decode(
        &mut self,
        regime: Option<Regime>,
        now: &dyn Fn() -> Duration,
        interrupt: &Interrupt,
        events: &mut Vec<Event>,
    ) {
        let caps = self.decoder.caps().clone();
        let mut ready: Vec<usize> = (0..self.running.len())
            .filter(|&index| {
                let sequence = &self.running[index];
                sequence.decodes() && regime.is_none_or(|regime| regime == sequence.regime)
            })
            .collect();
        ready.sort_by_key(|&index| self.running[index].row);
        let mut members = self.segment(ready, regime);
        for &index in &members {
            self.steps += 1;
            self.running[index].served = self.steps;
        }
        let guesses = self.guess(&members, &caps);
        let mut failed = None;
        for &index in &members {
            let end = self.running[index].tokens.len() + guesses[index].len();
            if let Err(error) = self.decoder.ensure(self.running[index].row, end) {
                failed = Some((index, error.to_string()));
                break;
            }
        }
        if let Some((index, error)) = failed {
            return self.fail(index, &error, events);
        }
        // Rows that may stand idle in a run give nothing for it.
        let between = if caps.idle_rows {
            Vec::new()
        } else {
            self.between(&members)
        };
        for between in between {
            if self.rows.is_idle(between) {
                self.bystanders.insert(between);
            }
            let held = held_by(&self.running, &self.rows, between);
            // Refused only where the row is full, and then it would fail in the run as well.
            let _ = self.decoder.ensure(between, held + 1);
        }
        let span = self.span(&members, &caps);
        let started = now();
        let lone = members.len() == 1;
        let rows = batch(
            &self.running,
            &self.rows,
            &members,
            &guesses,
            match (caps.contiguous_rows, caps.idle_rows) {
                (false, _) => None,
                (true, true) => Some(&[]),
                (true, false) => Some(&self.filler),
            },
        );
        if let (true, Some(&index)) = (lone, members.first()) {
            interrupt.only(self.running[index].id());
        }
        let interrupted = if lone { interrupt } else { &self.undisturbed };
        let longest = rows.iter().map(|row| row.input.len()).max().unwrap_or_default();
        // Shorter rows are filled up.
        let computed = span * longest;
        let outcome = self.decoder.run(&Step { rows: &rows }, interrupted);
        interrupt.nobody();
        let time = now();
        let guessed = guesses.iter().any(|guess| !guess.is_empty());
        let outcome = match outcome {
            Ok(logits) => {
                let took = time.saturating_sub(started);
                self.cost.learn(computed, took);
                if !guessed {
                    self.pace.decoded(took);
                }
                let mut at = 0;
                let mut concluded = Vec::with_capacity(members.len());
                for &index in &members {
                    let sequence = &mut self.running[index];
                    let guess = &guesses[index];
                    let rows = logits.skip(at);
                    at += guess.len() + 1;
                    concluded.push((index, choices(sequence, &rows, guess, caps.context_length, time)));
                }
                Ok(concluded)
            }
            Err(error) => Err(error),
        };
        match outcome {
            Ok(mut concluded) => {
                // From the end: a sequence that leaves moves those behind it.
                concluded.sort_by_key(|(index, _)| std::cmp::Reverse(*index));
                for (index, choices) in concluded {
                    self.conclude(index, choices, time, events);
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

    /// The members that can share a run, of those the one that has waited longest among them. A run of the short
    /// regime can't carry a row beyond the boundary: the graph would choose the long factors for all.
    fn segment(&mut self, members: Vec<usize>, regime: Option<Regime>) -> Vec<usize> {
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
                        // What it remembers is worth less than a shared run.
                        self.rows.shorten(between, 0);
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

    /// Rows that a run of `members` computes: those between them too.
    fn span(&self, members: &[usize], caps: &Caps) -> usize {
        let rows = || members.iter().map(|&index| self.running[index].row.0);
        match (rows().min(), rows().max()) {
            (Some(first), Some(last)) if caps.contiguous_rows => (last - first + 1) as usize,
            _ => members.len(),
        }
    }

    /// What each running sequence guesses; by index, empty for most.
    fn guess(&mut self, members: &[usize], caps: &Caps) -> Vec<Vec<TokenId>> {
        let mut guesses = vec![Vec::new(); self.running.len()];
        // Several rows of several tokens need a graph that takes them.
        if !self.config.speculation || (members.len() > 1 && !caps.ragged_chunks) {
            return guesses;
        }
        let span = self.span(members, caps);
        let room = |sequence: &Sequence| {
            let length = sequence.tokens.len();
            let mut room = caps.context_length.saturating_sub(length + 1);
            room = room.min(sequence.tokens_left().saturating_sub(1));
            if let Some(boundary) = caps.rope_boundary.filter(|_| sequence.regime == Regime::Short) {
                room = room.min(boundary.saturating_sub(length));
            }
            room
        };
        let proposals: Vec<(usize, Proposal<'_>)> = members
            .iter()
            .filter_map(|&index| {
                let sequence = &self.running[index];
                let proposal = guess::propose(&sequence.tokens, room(sequence))?;
                Some((index, proposal))
            })
            .collect();
        let weighed: Vec<_> = proposals
            .iter()
            .map(|(index, proposal)| (&self.running[*index].guesser, proposal.clone()))
            .collect();
        let length = guess::worth(&weighed, span, members.len(), &self.cost);
        let chosen: Vec<_> = proposals
            .into_iter()
            .map(|(index, proposal)| {
                let tokens = &proposal.tokens[..length.min(proposal.tokens.len())];
                (index, proposal.class(), tokens.to_vec())
            })
            .collect();
        for (index, class, tokens) in chosen {
            let sequence = &mut self.running[index];
            sequence.guesser.verify(class, length > 0);
            sequence.guess_input.clear();
            sequence.guess_input.extend(sequence.tokens.last());
            sequence.guess_input.extend(&tokens);
            guesses[index] = tokens;
        }
        guesses
    }

    /// Rows that lie between those of `members` (in the order of their rows) and must take part in their run. Each
    /// appends a token behind what it holds, where it does no harm.
    fn between(&self, members: &[usize]) -> Vec<RowId> {
        if !self.decoder.caps().contiguous_rows {
            return Vec::new();
        }
        let rows: Vec<RowId> = members.iter().map(|&index| self.running[index].row).collect();
        let between = rows.windows(2).flat_map(|pair| pair[0].0 + 1..pair[1].0);
        between.map(RowId).collect()
    }

    /// Passes on what a run has meant for a sequence.
    fn conclude(
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

    fn fail(&mut self, index: usize, error: &str, events: &mut Vec<Event>) {
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

    fn finish(&mut self, index: usize, text: String, finish: Finish, now: Duration, events: &mut Vec<Event>) {
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
        self.make_room(0);
        self.tidy();
    }
}

/// The rows of a run: the members in the order of their rows, and between them, where the decoder wants neighbours,
/// rows that only take part, with `filler` for their input.
fn batch<'a>(
    running: &'a [Sequence],
    idle: &Rows,
    members: &[usize],
    guesses: &[Vec<TokenId>],
    filler: Option<&'a [TokenId]>,
) -> Vec<Row<'a>> {
    let mut rows: Vec<Row<'a>> = Vec::with_capacity(members.len());
    for &index in members {
        let sequence = &running[index];
        let last = rows.last().map_or(sequence.row, |row| row.row);
        for between in (last.0 + 1..sequence.row.0).map(RowId) {
            let Some(filler) = filler else { break };
            rows.push(Row {
                row: between,
                past: held_by(running, idle, between),
                input: Input::Tokens(filler),
                logits: Wanted::None,
                regime: sequence.regime,
            });
        }
        let guesses = &guesses[index];
        rows.push(Row {
            row: sequence.row,
            past: sequence.computed,
            input: Input::Tokens(if guesses.is_empty() {
                &sequence.tokens[sequence.computed..]
            } else {
                &sequence.guess_input
            }),
            logits: if guesses.is_empty() {
                Wanted::Last
            } else {
                Wanted::All
            },
            regime: sequence.regime,
        });
    }
    rows
}

/// Tokens that a row holds: always at least one less than the context.
fn held_by(running: &[Sequence], idle: &Rows, row: RowId) -> usize {
    match running.iter().find(|sequence| sequence.row == row) {
        Some(sequence) => sequence.computed,
        None => idle.held(row).len(),
    }
}

/// What a run's logits have meant for one sequence.
struct Choices {
    text: String,
    finish: Option<Finish>,
}

/// Chooses tokens from the logits after the last token and after each guess, for as long as the guesses are what is
/// chosen. The choices are those of plain decoding, one by one: so the text is, too.
fn choices(
    sequence: &mut Sequence,
    logits: &crate::decoder::Logits<'_>,
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

/// Tokens that a request may come to hold.
fn promised(request: &GenerateRequest, context: usize) -> usize {
    request
        .prompt
        .len()
        .saturating_add(request.max_tokens)
        .min(context)
}

fn regime_of(tokens: usize, caps: &Caps) -> Regime {
    match caps.rope_boundary {
        Some(boundary) if tokens > boundary => Regime::Long,
        _ => Regime::Short,
    }
}
