//! Runs of single rows, and prefixes that rows hold or an engine saves.

use std::path::Path;
use std::time::Duration;

use phi_edge_engine::{
    Decoder as _, Engine, EngineConfig, Event, Input, Interrupt, Regime, Row, RowId, Step, Summary, Symbol,
    TokenId, Wanted,
};
use phi_edge_onnx::OnnxDecoder;

use super::golden::{Golden, goldens};
use super::request;

/// A row of the short regime whose last logits are wanted.
pub fn row(row: u32, past: usize, input: &[Symbol]) -> Row<'_> {
    Row {
        row: RowId(row),
        past,
        shared: &[],
        input: Input::of(input),
        logits: Wanted::Last,
        regime: Regime::Short,
    }
}

/// Runs one row; returns the logits of its last token.
pub fn run_alone(decoder: &mut OnnxDecoder, number: u32, past: usize, tokens: &[TokenId]) -> Vec<f32> {
    let symbols = Symbol::of_tokens(tokens.iter().copied());
    let rows = [row(number, past, &symbols)];
    let logits = decoder.run(&Step { rows: &rows }, &Interrupt::new());
    logits.unwrap().row(0).unwrap().to_vec()
}

/// Checks that a prompt takes its prefix from the row that holds it, and from what another engine saved: the answer stays the golden
/// one: the longest of the goldens in `folder`. `load` makes a decoder without tokens, for an engine with one slot.
pub fn check_prefixes(folder: &Path, load: impl Fn() -> OnnxDecoder) {
    let goldens = goldens(folder);
    let golden = goldens.iter().max_by_key(|golden| golden.prompt.len()).unwrap();
    let engine = || {
        let decoder = load();
        let config = EngineConfig {
            slots: 1,
            kv_budget: decoder.device_budget(),
            ..EngineConfig::default()
        };
        Engine::new(decoder, config)
    };
    let mut first = engine();
    let whole = answer(&mut first, golden);
    assert_eq!((whole.cached_tokens, &whole.tokens), (0, &golden.expected));
    let again = answer(&mut first, golden);
    assert!(
        again.cached_tokens + 1 >= golden.prompt.len(),
        "{}",
        again.cached_tokens
    );
    assert_eq!(again.tokens, golden.expected);
    let prefix = Symbol::of_tokens(golden.prompt[..golden.prompt.len() / 2].iter().copied());
    let mut kept = engine();
    kept.pin(&prefix, None).unwrap();
    let saved = kept.saved_prefix(&prefix).unwrap();
    let mut restarted = engine();
    assert!(
        restarted.pin(&prefix, Some(&saved)).unwrap(),
        "the saved prefix is not taken"
    );
    assert_eq!(restarted.saved_prefix(&prefix), Some(saved));
    assert_eq!(answer(&mut restarted, golden).tokens, golden.expected);
}

fn answer(engine: &mut Engine<OnnxDecoder>, golden: &Golden) -> Summary {
    let request = request(0, &golden.prompt, golden.max_new);
    engine.submit(request, Duration::ZERO).unwrap();
    let mut events = Vec::new();
    while !engine.is_idle() {
        engine.step(&|| Duration::ZERO, &Interrupt::new(), &mut events);
    }
    let summary = events.into_iter().find_map(|event| match event {
        Event::Finished { summary, .. } => Some(summary),
        Event::Failed { reason, .. } => panic!("{reason}"),
        _ => None,
    });
    summary.unwrap()
}
