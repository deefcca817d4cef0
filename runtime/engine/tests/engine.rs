//! The engine over a scripted decoder that keeps what a real one would keep, and objects to what a real
//! one would get wrong.

#![allow(clippy::cast_possible_truncation, clippy::unwrap_used, missing_docs)]

use std::cell::Cell;
use std::time::Duration;

use phi_edge_engine::{
    Caps, DecodeError, Decoder, Detokenizer, Engine, EngineConfig, Event, Failure, Finish, GenerateRequest,
    Input, Interrupt, KvType, Logits, Regime, RequestId, RowId, Sampling, Step, Stop, Summary, TokenId,
    Wanted,
};
use proptest::prelude::*;

const VOCAB: usize = 32;

/// The next token is a function of all tokens before it and of the regime they were computed in.
struct Scripted {
    caps: Caps,
    rows: Vec<Vec<(TokenId, Regime)>>,
    logits: Vec<f32>,
    longest_run: usize,
    runs: usize,
    fail_at: Option<usize>,
    script: fn(&[(TokenId, Regime)]) -> u32,
}

impl Scripted {
    fn new(script: fn(&[(TokenId, Regime)]) -> u32) -> Self {
        let caps = Caps {
            kv_type: KvType::F32,
            ragged_chunks: false,
            idle_rows: false,
            mixed_regimes: false,
            shared_kv: true,
            contiguous_rows: true,
            kv_bytes_per_token: 8,
            context_length: 100,
            rope_boundary: None,
            vocab_size: VOCAB,
            rows: 4,
        };
        Self {
            caps,
            rows: vec![vec![]; 4],
            logits: vec![],
            longest_run: 0,
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
            held.truncate(row.past);
            held.extend(ids.iter().map(|id| (*id, row.regime)));
            assert!(
                held.iter().all(|(_, regime)| *regime == row.regime),
                "two regimes in one row"
            );
            self.longest_run = self.longest_run.max(ids.len());
            if row.logits == Wanted::Last {
                let mut logits = vec![0.0; VOCAB];
                logits[(self.script)(held) as usize] = 5.0;
                self.logits.extend(logits);
            }
        }
        Ok(Logits::new(&self.logits, VOCAB))
    }

    fn ensure(&mut self, _row: RowId, len: usize) -> Result<(), DecodeError> {
        assert!(len <= self.caps.context_length);
        Ok(())
    }
    fn copy(&mut self, from: RowId, to: RowId, len: usize) -> Result<(), DecodeError> {
        self.rows[to.0 as usize] = self.rows[from.0 as usize][..len].to_vec();
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
struct Letters;

impl Detokenizer for Letters {
    fn push(&mut self, id: TokenId) -> String {
        char::from(b'a' + u8::try_from(id.0 % 26).unwrap()).to_string()
    }
    fn finish(&mut self) -> String {
        String::new()
    }
}

fn request(id: u64, prompt: &[u32], max_tokens: usize) -> GenerateRequest {
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

fn count_up(held: &[(TokenId, Regime)]) -> u32 {
    (held.last().map_or(0, |(id, _)| id.0) + 1) % 26
}

/// Depends on every token and on the regime.
fn digest(held: &[(TokenId, Regime)]) -> u32 {
    held.iter().fold(7u32, |hash, (id, regime)| {
        hash.wrapping_mul(31)
            .wrapping_add(id.0 * 2 + u32::from(*regime == Regime::Long))
    }) % 26
}

fn run(engine: &mut Engine<Scripted>) -> Vec<Event> {
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

fn text(events: &[Event], wanted: u64) -> String {
    let texts = events.iter().filter_map(|event| match event {
        Event::Text { id, delta } if id.0 == wanted => Some(delta.as_str()),
        _ => None,
    });
    texts.collect()
}

fn summary(events: &[Event], wanted: u64) -> Summary {
    let mut found = events.iter().filter_map(|event| match event {
        Event::Finished { id, summary } if id.0 == wanted => Some(summary.clone()),
        _ => None,
    });
    let summary = found.next().expect("finished");
    assert!(found.next().is_none(), "finished twice");
    summary
}

fn answer(script: fn(&[(TokenId, Regime)]) -> u32, request: GenerateRequest) -> (String, Summary) {
    let id = request.id.0;
    let mut engine = Engine::new(Scripted::new(script), EngineConfig::default());
    engine.submit(request, Duration::ZERO).unwrap();
    let events = run(&mut engine);
    (text(&events, id), summary(&events, id))
}

#[test]
fn generates_until_max_tokens() {
    let (text, summary) = answer(count_up, request(1, &[0, 1], 3));
    assert_eq!((text.as_str(), summary.finish), ("cde", Finish::Length));
    assert_eq!((summary.prompt_tokens, summary.tokens.len()), (2, 3));
}

#[test]
fn stops_on_ids_and_strings() {
    let mut by_id = request(1, &[0], 20);
    by_id.stop.ids = vec![TokenId(4)];
    let (text, summary) = answer(count_up, by_id);
    assert_eq!(
        (text.as_str(), summary.finish, summary.tokens.len()),
        ("bcd", Finish::Stop, 3)
    );

    let mut by_string = request(1, &[0], 20);
    by_string.stop.strings = vec!["fg".into(), "zz".into()];
    let (text, summary) = answer(count_up, by_string);
    assert_eq!((text.as_str(), summary.finish), ("bcde", Finish::Stop));
}

#[test]
fn fills_the_context_and_no_more() {
    let prompt: Vec<u32> = (0..97).map(|n| n % 26).collect();
    let (_, summary) = answer(count_up, request(1, &prompt, 50));
    assert_eq!((summary.finish, summary.tokens.len()), (Finish::Length, 3));
    let mut engine = Engine::new(Scripted::new(count_up), EngineConfig::default());
    let refused = engine.submit(request(1, &[1; 100], 5), Duration::ZERO);
    assert_eq!(
        refused,
        Err(Failure::ContextOverflow {
            prompt: 100,
            context: 100
        })
    );
}

#[test]
fn prefills_in_chunks_and_gives_the_same_text() {
    let prompt: Vec<u32> = (0..50).map(|n| n * 7 % 26).collect();
    let whole = answer(digest, request(1, &prompt, 20));
    let mut engine = Engine::new(
        Scripted::new(digest),
        EngineConfig {
            prefill_chunk: 8,
            ..EngineConfig::default()
        },
    );
    engine.submit(request(1, &prompt, 20), Duration::ZERO).unwrap();
    let events = run(&mut engine);
    assert_eq!(text(&events, 1), whole.0);
    assert_eq!(engine.decoder().longest_run, 8);
}

#[test]
fn crossing_the_rope_boundary_computes_the_row_anew() {
    let reference = |prompt: &[u32], n: usize| {
        let mut tokens: Vec<TokenId> = prompt.iter().copied().map(TokenId).collect();
        for _ in 0..n {
            let regime = if tokens.len() > 20 {
                Regime::Long
            } else {
                Regime::Short
            };
            let held: Vec<_> = tokens.iter().map(|id| (*id, regime)).collect();
            tokens.push(TokenId(digest(&held)));
        }
        tokens.split_off(prompt.len())
    };
    for length in [1usize, 19, 20, 21, 40] {
        let prompt: Vec<u32> = (0..length as u32).map(|n| n * 5 % 26).collect();
        let mut decoder = Scripted::new(digest);
        decoder.caps.rope_boundary = Some(20);
        let mut engine = Engine::new(
            decoder,
            EngineConfig {
                prefill_chunk: 6,
                ..EngineConfig::default()
            },
        );
        engine.submit(request(1, &prompt, 30), Duration::ZERO).unwrap();
        let events = run(&mut engine);
        assert_eq!(
            summary(&events, 1).tokens,
            reference(&prompt, 30),
            "prompt of {length}"
        );
    }
}

#[test]
fn cancels_waiting_and_running_requests() {
    let mut engine = Engine::new(Scripted::new(count_up), EngineConfig::default());
    engine.submit(request(1, &[0], 50), Duration::ZERO).unwrap();
    engine.submit(request(2, &[0], 50), Duration::ZERO).unwrap();
    let (interrupt, mut events) = (Interrupt::new(), Vec::new());
    for _ in 0..3 {
        engine.step(&|| Duration::ZERO, &interrupt, &mut events);
    }
    engine.cancel(RequestId(2));
    engine.cancel(RequestId(1));
    engine.cancel(RequestId(77));
    engine.step(&|| Duration::ZERO, &interrupt, &mut events);
    assert!(engine.is_idle());
    assert_eq!(
        (summary(&events, 1).finish, text(&events, 1).as_str()),
        (Finish::Cancelled, "bcd")
    );
    assert_eq!(
        (summary(&events, 2).finish, summary(&events, 2).tokens.len()),
        (Finish::Cancelled, 0)
    );
}

#[test]
fn an_interrupted_run_loses_nothing() {
    let mut engine = Engine::new(
        Scripted::new(digest),
        EngineConfig {
            prefill_chunk: 4,
            ..EngineConfig::default()
        },
    );
    engine.submit(request(1, &[3; 10], 12), Duration::ZERO).unwrap();
    let (interrupt, mut events) = (Interrupt::new(), Vec::new());
    let mut steps = 0;
    while !engine.is_idle() {
        steps += 1;
        if steps % 3 == 0 {
            interrupt.raise();
        }
        engine.step(&|| Duration::ZERO, &interrupt, &mut events);
    }
    assert_eq!(text(&events, 1), answer(digest, request(1, &[3; 10], 12)).0);
}

#[test]
fn deadlines_end_what_runs_and_what_waits() {
    let mut engine = Engine::new(Scripted::new(count_up), EngineConfig::default());
    let mut first = request(1, &[0], 50);
    first.deadline = Some(Duration::from_secs(5));
    let mut second = request(2, &[0], 50);
    second.deadline = Some(Duration::from_secs(1));
    engine.submit(first, Duration::ZERO).unwrap();
    engine.submit(second, Duration::ZERO).unwrap();
    let (interrupt, mut events) = (Interrupt::new(), Vec::new());
    let clock = Cell::new(0);
    for _ in 0..10 {
        engine.step(&|| Duration::from_secs(clock.get()), &interrupt, &mut events);
        clock.set(clock.get() + 1);
    }
    assert_eq!(
        (summary(&events, 1).finish, text(&events, 1).as_str()),
        (Finish::Deadline, "bcdef")
    );
    assert_eq!(
        (summary(&events, 2).finish, summary(&events, 2).tokens.len()),
        (Finish::Deadline, 0)
    );
}

#[test]
fn an_endless_circle_is_ended() {
    let (_, summary) = {
        let mut decoder = Scripted::new(|_| 3);
        decoder.caps.context_length = 2000;
        let mut engine = Engine::new(decoder, EngineConfig::default());
        engine.submit(request(1, &[0], 1900), Duration::ZERO).unwrap();
        let events = run(&mut engine);
        (text(&events, 1), summary(&events, 1))
    };
    assert_eq!(summary.finish, Finish::Repetition);
    assert!(summary.tokens.len() < 200);
}

#[test]
fn a_failing_decoder_fails_the_request_and_not_the_engine() {
    let mut decoder = Scripted::new(count_up);
    decoder.fail_at = Some(3);
    let mut engine = Engine::new(decoder, EngineConfig::default());
    engine.submit(request(1, &[0], 10), Duration::ZERO).unwrap();
    engine.submit(request(2, &[0], 2), Duration::ZERO).unwrap();
    let events = run(&mut engine);
    assert!(events.iter().any(|e| matches!(e, Event::Failed { id: RequestId(1), reason: Failure::Decoder(m) } if m.contains("scripted"))));
    assert_eq!(text(&events, 2), "bc");
}

#[test]
fn refuses_what_it_cannot_run() {
    let mut engine = Engine::new(Scripted::new(count_up), EngineConfig::default());
    for bad in [
        request(1, &[], 5),
        request(1, &[0], 0),
        request(1, &[VOCAB as u32], 5),
    ] {
        assert!(matches!(
            engine.submit(bad, Duration::ZERO),
            Err(Failure::Invalid(_))
        ));
    }
    engine.submit(request(1, &[0], 5), Duration::ZERO).unwrap();
    assert!(matches!(
        engine.submit(request(1, &[0], 5), Duration::ZERO),
        Err(Failure::Invalid(_))
    ));
}

proptest! {
    /// Whatever is asked and cancelled, in whatever company: one end each, and the text of one alone.
    #[test]
    fn every_request_ends_once_with_its_own_text(
        jobs in prop::collection::vec((prop::collection::vec(0u32..26, 1..30), 1usize..20, prop::option::of(0usize..40)), 1..8),
        chunk in 1usize..12, slots in 1usize..5,
    ) {
        let mut decoder = Scripted::new(digest);
        decoder.caps.rope_boundary = Some(25);
        let config = EngineConfig { prefill_chunk: chunk, slots, stop_repetition: true };
        let mut engine = Engine::new(decoder, config);
        for (id, (prompt, max, _)) in (0u64..).zip(&jobs) {
            engine.submit(request(id, prompt, *max), Duration::ZERO).unwrap();
        }
        let (interrupt, mut events, mut steps) = (Interrupt::new(), Vec::new(), 0);
        while !engine.is_idle() {
            for (id, (_, _, cancel)) in (0u64..).zip(&jobs) {
                if *cancel == Some(steps) {
                    engine.cancel(RequestId(id));
                }
            }
            engine.step(&|| Duration::ZERO, &interrupt, &mut events);
            steps += 1;
            prop_assert!(steps < 5_000);
        }
        for (id, (prompt, max, _)) in (0u64..).zip(&jobs) {
            let mut decoder = Scripted::new(digest);
            decoder.caps.rope_boundary = Some(25);
            let mut alone = Engine::new(decoder, EngineConfig::default());
            alone.submit(request(id, prompt, *max), Duration::ZERO).unwrap();
            let expected = text(&run(&mut alone), id);
            let summary = summary(&events, id);
            if summary.finish == Finish::Cancelled {
                prop_assert!(expected.starts_with(&text(&events, id)));
            } else {
                prop_assert_eq!(text(&events, id), expected);
            }
        }
        prop_assert!(engine.decoder().rows.iter().all(Vec::is_empty), "a row was not released");
    }
}
