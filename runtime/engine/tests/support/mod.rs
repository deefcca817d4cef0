//! What the tests of the engine share: a decoder that keeps what a real one would keep, and objects to what a real one would get wrong.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    clippy::unwrap_used,
    reason = "each test file uses its part of one module"
)]

use std::ops::Range;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::time::Duration;

use phi_edge_engine::{
    Caps, DecodeError, Decoder, Detokenizer, Engine, EngineConfig, Event, GenerateRequest, ImageEncoding,
    ImageFeatures, ImageId, ImagePixels, Interrupt, Logits, Regime, RequestId, Row, RowId, Sampling, Step,
    Stop, Summary, Symbol, TokenId, Wanted,
};

pub const VOCAB: usize = 32;

mod held_row;
pub mod images;

use held_row::{HeldRow, HeldToken};

/// The next token is a function of all tokens before it and of the regime they were computed in.
pub struct Scripted {
    pub caps: Caps,
    pub rows: Vec<HeldRow>,
    pub logits: Vec<f32>,
    pub longest_run: usize,
    pub widest_run: usize,
    /// The most tokens that a row took from others.
    pub longest_shared: usize,
    /// The most rows that a row took tokens from.
    pub longest_chain: usize,
    pub computed: usize,
    pub runs: usize,
    pub copies: usize,
    pub fail_at: Cell<Option<usize>>,
    /// Every n-th copy fails.
    pub failing_copies: Option<usize>,
    /// Memory that is never exceeded, not even within a step.
    pub budget: Option<u64>,
    pub script: fn(&[(TokenId, Regime)]) -> u32,
    /// The crops that were encoded, by image.
    pub encoded: BTreeMap<ImageId, usize>,
    /// Calls of the image encoder, interrupted ones too.
    pub encoder_calls: usize,
    pub encoder_fails_at: Option<usize>,
    /// All crops in one call.
    pub encodes_whole: bool,
    writes: u64,
}

impl Scripted {
    pub fn new(script: fn(&[(TokenId, Regime)]) -> u32) -> Self {
        Self::with_caps(script, Caps::plain(4, VOCAB))
    }

    pub fn with_caps(script: fn(&[(TokenId, Regime)]) -> u32, caps: Caps) -> Self {
        Self {
            rows: (0..caps.rows).map(|_| HeldRow::default()).collect(),
            caps,
            logits: vec![],
            longest_run: 0,
            widest_run: 0,
            longest_shared: 0,
            longest_chain: 0,
            computed: 0,
            runs: 0,
            copies: 0,
            fail_at: Cell::new(None),
            failing_copies: None,
            budget: None,
            script,
            encoded: BTreeMap::new(),
            encoder_calls: 0,
            encoder_fails_at: None,
            encodes_whole: false,
            writes: 0,
        }
    }

    /// The number of tokens that all rows hold themselves.
    pub fn held(&self) -> usize {
        self.rows.iter().map(|row| row.own.len()).sum()
    }

    /// The bytes that the rows take.
    pub fn bytes(&self) -> u64 {
        let bytes = self.rows.iter().map(|row| match row.written() {
            0 => 0,
            tokens => {
                let blocks = tokens.div_ceil(self.caps.kv_block) * self.caps.kv_block;
                blocks as u64 * self.caps.kv_bytes_per_token + self.caps.kv_row_overhead
            }
        });
        bytes.sum()
    }

    /// The end of the tokens of a row that others read.
    fn read_end(&self, row: RowId) -> usize {
        let reads = self.rows.iter().flat_map(|reader| &reader.shared);
        let ends = reads.filter(|span| span.row == row).map(|span| span.end);
        ends.max().unwrap_or(0)
    }

    fn assert_unread(&self, row: RowId, from: usize) {
        let read = self.read_end(row);
        assert!(
            read <= from,
            "row {} is changed from token {from} on, and others read {read}",
            row.0
        );
    }

    fn assert_within_budget(&self) {
        if let Some(budget) = self.budget {
            let bytes = self.bytes();
            assert!(bytes <= budget, "{bytes} bytes in a budget of {budget}");
        }
    }

    /// The tokens that a row takes from others: each is held by its row itself, and is what it was in the run before.
    fn shared_tokens(&mut self, row: &Row<'_>) -> Vec<HeldToken> {
        let mut tokens: Vec<HeldToken> = Vec::new();
        for span in row.shared {
            let granularity = self.caps.share_granularity.expect("rows are not shared");
            assert!(span.end > tokens.len() && span.end <= row.past && span.row != row.row);
            assert_eq!(span.end % granularity, 0);
            let source = &self.rows[span.row.0 as usize];
            tokens.extend(source.range(tokens.len()..span.end));
        }
        self.longest_shared = self.longest_shared.max(tokens.len());
        self.longest_chain = self.longest_chain.max(row.shared.len());
        let held = &mut self.rows[row.row.0 as usize];
        if held.shared == row.shared {
            assert_eq!(held.read, tokens, "shared tokens have changed");
        } else {
            assert!(
                held.shared.is_empty() && (held.own.is_empty() || held.start == tokens.len()),
                "a row takes other tokens than before, and was not released"
            );
            held.shared = row.shared.to_vec();
            held.read.clone_from(&tokens);
        }
        tokens
    }

    /// Appends the input of a row and the logits that are wanted of it.
    fn run_row(&mut self, row: &Row<'_>, fails: bool) {
        let ids = row.input.symbols;
        images::assert_features(&row.input);
        let shared = self.shared_tokens(row);
        let held = &mut self.rows[row.row.0 as usize];
        let end = held.end().max(shared.len());
        assert!(row.past <= end, "the row holds {end} tokens, not {}", row.past);
        if ids.is_empty() {
            // It stands idle and keeps all it has.
            return;
        }
        self.assert_unread(row.row, row.past);
        let held = &mut self.rows[row.row.0 as usize];
        if held.own.is_empty() {
            held.start = shared.len();
        }
        assert_eq!(
            held.start,
            shared.len(),
            "tokens are missing between shared and own ones"
        );
        held.own.truncate(row.past - held.start);
        let mut all: Vec<(TokenId, Regime)> =
            shared.iter().chain(&held.own).map(|token| token.value).collect();
        let mut wanted = match row.logits {
            Wanted::None => 0..0,
            Wanted::Last => ids.len()..ids.len() + 1,
            Wanted::All => 1..ids.len() + 1,
        };
        for (n, id) in (1..).zip(ids) {
            self.writes += 1;
            // What a failed run leaves is of no use.
            let id = if fails {
                TokenId(u32::MAX)
            } else {
                images::value(*id, row.input.features)
            };
            all.push((id, row.regime));
            held.push(HeldToken {
                value: (id, row.regime),
                write: self.writes,
            });
            if !fails && wanted.start == n && !wanted.is_empty() && wanted.next().is_some() {
                // A row that lies between others may hold a token of the other regime behind its own.
                assert!(
                    all.iter().all(|(_, regime)| *regime == row.regime),
                    "two regimes in one row"
                );
                let short = self.caps.rope_boundary.is_none_or(|most| all.len() <= most);
                assert!(
                    short || row.regime == Regime::Long,
                    "the short factors beyond the boundary"
                );
                let mut logits = vec![0.0; VOCAB];
                logits[(self.script)(&all) as usize] = 5.0;
                self.logits.extend(logits);
            }
        }
        self.longest_run = self.longest_run.max(ids.len());
        self.computed += ids.len();
    }
}

impl Decoder for Scripted {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn run(&mut self, step: &Step<'_>, interrupt: &Interrupt) -> Result<Logits<'_>, DecodeError> {
        self.runs += 1;
        if interrupt.is_raised() {
            return Err(DecodeError::Interrupted);
        }
        let fails = self.fail_at.get() == Some(self.runs);
        self.logits.clear();
        for row in step.rows {
            self.run_row(row, fails);
        }
        self.assert_within_budget();
        if fails {
            return Err(DecodeError::Failed("scripted".into()));
        }
        for pair in step.rows.windows(2) {
            let neighbours = pair[0].row.0 + 1 == pair[1].row.0;
            assert!(neighbours || (!self.caps.contiguous_rows && pair[0].row < pair[1].row));
            assert!(self.caps.ragged_chunks || (pair[0].input.len() <= 1 && pair[1].input.len() <= 1));
            assert!(self.caps.mixed_regimes || pair[0].regime == pair[1].regime);
        }
        let idle = step.rows.iter().filter(|row| row.input.is_empty()).count();
        assert!(idle == 0 || (self.caps.idle_rows && idle < step.rows.len()));
        if let Some(boundary) = self.caps.rope_boundary.filter(|_| !self.caps.mixed_regimes) {
            // A graph that looks at the mask's width takes the long factors for all rows if one is beyond.
            let beyond = step.rows.iter().any(|row| row.past + row.input.len() > boundary);
            let long = step.rows[0].regime == Regime::Long;
            assert!(!beyond || long, "a short run with a row beyond the boundary");
            assert!(
                beyond || !long || step.rows.len() == 1 || self.caps.batches_below_boundary,
                "nothing in the run selects the long factors"
            );
        }
        self.widest_run = self.widest_run.max(step.rows.len());
        Ok(Logits::new(&self.logits, VOCAB))
    }

    fn encode_image(
        &mut self,
        image: ImageId,
        pixels: &ImagePixels,
        encoding: &mut ImageEncoding,
        interrupt: &Interrupt,
    ) -> Result<Option<ImageFeatures>, DecodeError> {
        self.encoder_calls += 1;
        if interrupt.is_raised() {
            return Err(DecodeError::Interrupted);
        }
        if self.encoder_fails_at == Some(self.encoder_calls) {
            return Err(DecodeError::Failed("scripted".into()));
        }
        let crops = if self.encodes_whole { pixels.crops } else { 1 };
        for _ in 0..crops {
            images::encode_crop(pixels, encoding);
            *self.encoded.entry(image).or_default() += 1;
        }
        Ok((encoding.crops == pixels.crops).then(|| images::join(image, pixels, encoding)))
    }

    fn ensure(&mut self, _row: RowId, len: usize) -> Result<(), DecodeError> {
        assert!(len <= self.caps.context_length);
        Ok(())
    }
    fn copy(&mut self, from: RowId, to: RowId, tokens: Range<usize>) -> Result<(), DecodeError> {
        let granularity = self.caps.share_granularity.unwrap_or(usize::MAX);
        assert!(tokens.start == 0 || tokens.start.is_multiple_of(granularity));
        assert_ne!(from, to);
        self.copies += 1;
        if self
            .failing_copies
            .is_some_and(|interval| self.copies.is_multiple_of(interval))
        {
            return Err(DecodeError::OutOfMemory("scripted".into()));
        }
        self.assert_unread(to, tokens.start);
        let copied: Vec<HeldToken> = self.rows[from.0 as usize].range(tokens.clone()).collect();
        let target = &mut self.rows[to.0 as usize];
        if target.own.is_empty() {
            target.start = tokens.start;
        }
        assert!(target.start <= tokens.start && tokens.start <= target.end());
        // What stands behind the copy stays, and its memory with it.
        let tail = target
            .own
            .split_off((tokens.end - target.start).min(target.own.len()));
        target.own.truncate(tokens.start - target.start);
        for token in copied {
            self.writes += 1;
            target.push(HeldToken {
                write: self.writes,
                ..token
            });
        }
        target.own.extend(tail);
        self.assert_within_budget();
        Ok(())
    }
    fn truncate(&mut self, row: RowId, len: usize) {
        self.assert_unread(row, len);
        let held = &mut self.rows[row.0 as usize];
        assert!(
            held.shared.is_empty() || len >= held.start,
            "the tokens of other rows are cut off"
        );
        held.truncate(len);
    }
    fn release(&mut self, row: RowId) {
        self.assert_unread(row, 0);
        self.rows[row.0 as usize] = HeldRow::default();
    }
    fn save(&mut self, _row: RowId, _len: usize) -> Result<Vec<u8>, DecodeError> {
        Err(DecodeError::Unsupported("scripted".into()))
    }
    fn load(&mut self, _row: RowId, _saved: &[u8]) -> Result<usize, DecodeError> {
        Err(DecodeError::Unsupported("scripted".into()))
    }
}

/// Token n is the n-th letter.
pub struct Letters;

impl Detokenizer for Letters {
    fn push(&mut self, id: TokenId) -> String {
        char::from(b'a' + u8::try_from(id.0 % 26).unwrap()).to_string()
    }
    fn finish(&mut self) -> String {
        String::new()
    }
}

pub fn symbols(ids: &[u32]) -> Vec<Symbol> {
    ids.iter().map(|id| Symbol::Token(TokenId(*id))).collect()
}

pub fn request(id: u64, prompt: &[u32], max_tokens: usize) -> GenerateRequest {
    GenerateRequest {
        id: RequestId(id),
        prompt: symbols(prompt),
        images: Vec::new(),
        max_tokens,
        sampling: Sampling::default(),
        stop: Stop::default(),
        detokenizer: Box::new(Letters),
        deadline: None,
    }
}

pub fn count_up(held: &[(TokenId, Regime)]) -> u32 {
    (held.last().map_or(0, |(id, _)| id.0) + 1) % 26
}

/// Depends on every token and on the regime.
pub fn digest(held: &[(TokenId, Regime)]) -> u32 {
    held.iter().fold(7u32, |hash, (id, regime)| {
        hash.wrapping_mul(31)
            .wrapping_add(id.0 * 2 + u32::from(*regime == Regime::Long))
    }) % 26
}

pub fn run(engine: &mut Engine<Scripted>) -> Vec<Event> {
    let interrupt = Interrupt::new();
    let clock = Cell::new(Duration::ZERO);
    let now = || {
        clock.set(clock.get() + Duration::from_millis(1));
        clock.get()
    };
    let mut events = Vec::new();
    while !engine.is_idle() {
        engine.step(&now, &interrupt, &mut events);
    }
    events
}

pub fn text(events: &[Event], wanted: u64) -> String {
    let texts = events.iter().filter_map(|event| match event {
        Event::Text { id, delta } if id.0 == wanted => Some(delta.as_str()),
        _ => None,
    });
    texts.collect()
}

pub fn summary(events: &[Event], wanted: u64) -> Summary {
    let mut found = events.iter().filter_map(|event| match event {
        Event::Finished { id, summary } if id.0 == wanted => Some(summary.clone()),
        _ => None,
    });
    let summary = found.next().expect("finished");
    assert!(found.next().is_none(), "finished twice");
    summary
}

pub fn answer(script: fn(&[(TokenId, Regime)]) -> u32, request: GenerateRequest) -> (String, Summary) {
    let id = request.id.0;
    let mut engine = Engine::new(Scripted::new(script), EngineConfig::default());
    engine.submit(request, Duration::ZERO).unwrap();
    let events = run(&mut engine);
    (text(&events, id), summary(&events, id))
}

/// Which runs the decoder takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Form {
    /// One token a row and one regime a run.
    Plain,
    /// The same, and the largest position of a run selects its regime.
    Positions,
    /// Rows of several tokens.
    Chunks,
    /// Rows of any number of tokens and of both regimes.
    Ragged,
    /// The same with any rows, which read prefixes from each other; memory in blocks.
    Shared,
}

pub fn scripted(boundary: bool, form: Form) -> Scripted {
    let mut caps = Caps::plain(6, VOCAB);
    caps.rope_boundary = boundary.then_some(45);
    caps.ragged_chunks = !matches!(form, Form::Plain | Form::Positions);
    caps.idle_rows = form == Form::Ragged;
    caps.mixed_regimes = matches!(form, Form::Ragged | Form::Shared);
    caps.batches_below_boundary = form != Form::Positions;
    if form == Form::Shared {
        caps.contiguous_rows = false;
        caps.share_granularity = Some(8);
        caps.kv_block = 4;
        caps.kv_row_overhead = 20;
    }
    Scripted::with_caps(digest, caps)
}
