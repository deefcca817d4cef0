//! What the tests of the engine share: a decoder that keeps what a real one would keep, and objects to what a real one would get wrong.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    reason = "each test file uses its part of one module"
)]

use std::ops::Range;

use std::cell::Cell;
use std::time::Duration;

use phi_edge_engine::{
    Caps, DecodeError, Decoder, Detokenizer, Engine, EngineConfig, Event, GenerateRequest, Input, Interrupt,
    Logits, Regime, RequestId, RowId, Sampling, Step, Stop, Summary, TokenId, Wanted,
};

pub const VOCAB: usize = 32;

/// The next token is a function of all tokens before it and of the regime they were computed in.
pub struct Scripted {
    pub caps: Caps,
    pub rows: Vec<Vec<(TokenId, Regime)>>,
    pub logits: Vec<f32>,
    pub longest_run: usize,
    pub widest_run: usize,
    pub computed: usize,
    pub runs: usize,
    pub fail_at: Option<usize>,
    pub script: fn(&[(TokenId, Regime)]) -> u32,
}

impl Scripted {
    pub fn new(script: fn(&[(TokenId, Regime)]) -> u32) -> Self {
        let caps = Caps::plain(4, VOCAB);
        Self {
            caps,
            rows: vec![vec![]; 4],
            logits: vec![],
            longest_run: 0,
            widest_run: 0,
            computed: 0,
            runs: 0,
            fail_at: None,
            script,
        }
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
        if self.fail_at == Some(self.runs) {
            return Err(DecodeError::Failed("scripted".into()));
        }
        self.logits.clear();
        for row in step.rows {
            let Input::Tokens(ids) = row.input else {
                panic!("tokens only")
            };
            let held = &mut self.rows[row.row.0 as usize];
            assert!(
                row.past <= held.len(),
                "the row holds {} tokens, not {}",
                held.len(),
                row.past
            );
            if ids.is_empty() {
                // It stands idle and keeps all it has.
                continue;
            }
            held.truncate(row.past);
            let mut wanted = match row.logits {
                Wanted::None => 0..0,
                Wanted::Last => ids.len()..ids.len() + 1,
                Wanted::All => 1..ids.len() + 1,
            };
            for (n, id) in (1..).zip(ids) {
                held.push((*id, row.regime));
                if wanted.start == n && !wanted.is_empty() && wanted.next().is_some() {
                    // A row that lies between others may hold a token of the other regime behind its own.
                    assert!(
                        held.iter().all(|(_, regime)| *regime == row.regime),
                        "two regimes in one row"
                    );
                    let short = self.caps.rope_boundary.is_none_or(|most| held.len() <= most);
                    assert!(
                        short || row.regime == Regime::Long,
                        "the short factors beyond the boundary"
                    );
                    let mut logits = vec![0.0; VOCAB];
                    logits[(self.script)(held) as usize] = 5.0;
                    self.logits.extend(logits);
                }
            }
            self.longest_run = self.longest_run.max(ids.len());
            self.computed += ids.len();
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

    fn ensure(&mut self, _row: RowId, len: usize) -> Result<(), DecodeError> {
        assert!(len <= self.caps.context_length);
        Ok(())
    }
    fn copy(&mut self, from: RowId, to: RowId, tokens: Range<usize>) -> Result<(), DecodeError> {
        assert_eq!(tokens.start, 0, "no shared spans");
        let len = tokens.end;
        // What stands behind the copy stays, and its memory with it.
        let held = &self.rows[to.0 as usize];
        let tail = &held[len.min(held.len())..];
        self.rows[to.0 as usize] = [&self.rows[from.0 as usize][..len], tail].concat();
        Ok(())
    }
    fn truncate(&mut self, row: RowId, len: usize) {
        self.rows[row.0 as usize].truncate(len);
    }
    fn release(&mut self, row: RowId) {
        self.rows[row.0 as usize].clear();
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

pub fn request(id: u64, prompt: &[u32], max_tokens: usize) -> GenerateRequest {
    GenerateRequest {
        id: RequestId(id),
        prompt: prompt.iter().copied().map(TokenId).collect(),
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
}

pub fn scripted(boundary: bool, form: Form) -> Scripted {
    let mut decoder = Scripted::new(digest);
    decoder.caps.rope_boundary = boundary.then_some(45);
    decoder.caps.ragged_chunks = matches!(form, Form::Chunks | Form::Ragged);
    decoder.caps.idle_rows = form == Form::Ragged;
    decoder.caps.mixed_regimes = form == Form::Ragged;
    decoder.caps.batches_below_boundary = form != Form::Positions;
    decoder.caps.rows = 6;
    decoder.rows = vec![vec![]; 6];
    decoder
}
