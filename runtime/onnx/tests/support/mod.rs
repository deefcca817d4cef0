//! What the tests of the library share.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    reason = "each test file uses its part of one module"
)]

pub mod golden;
pub mod rows;
pub mod vision;

use std::path::{Path, PathBuf};
use std::time::Duration;

use phi_edge_engine::{
    Detokenizer, Engine, Event, GenerateRequest, Interrupt, RequestId, Sampling, Stop, Symbol, TokenId,
};
use phi_edge_onnx::{Library, OnnxDecoder, Provider};
use serde_json::Value;

/// The library as `cargo xtask test` names it; without it these tests can't run.
pub fn library() -> Option<Library> {
    match Library::find(None) {
        Ok(library) => Some(library),
        Err(error) => {
            assert!(std::env::var_os("CI").is_none_or(|v| v != "true"), "{error}");
            println!("SKIPPED: {error}");
            None
        }
    }
}

/// The folder of a model with golden outputs beside the repository (`PHI_EDGE_FIXTURES`); where it is absent, tests skip,
/// and fail under `CI=true`.
pub fn fixture(name: &str) -> Option<PathBuf> {
    let root = std::env::var_os("PHI_EDGE_FIXTURES").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/fixtures"),
        PathBuf::from,
    );
    let folder = root.join(name);
    if folder.is_dir() {
        return Some(folder);
    }
    assert!(
        std::env::var_os("CI").is_none_or(|v| v != "true"),
        "fixture {} is missing",
        folder.display()
    );
    println!("SKIPPED: fixture {} is absent", folder.display());
    None
}

/// The provider under test: `PHI_EDGE_TEST_PROVIDER`, else the processor.
pub fn device_provider() -> Provider {
    match std::env::var("PHI_EDGE_TEST_PROVIDER") {
        Ok(name) => name.parse().unwrap(),
        Err(_) => Provider::Cpu,
    }
}

/// For tests that look at tokens alone.
pub struct Silent;

impl Detokenizer for Silent {
    fn push(&mut self, _: TokenId) -> String {
        String::new()
    }
    fn finish(&mut self) -> String {
        String::new()
    }
}

pub fn ids(value: &Value) -> Vec<TokenId> {
    let number = |id: &Value| TokenId(id.as_u64().unwrap() as u32);
    value.as_array().unwrap().iter().map(number).collect()
}

/// A greedy request for `max` tokens at most.
pub fn request(id: u64, prompt: &[TokenId], max: usize) -> GenerateRequest {
    GenerateRequest {
        id: RequestId(id),
        prompt: Symbol::of_tokens(prompt.iter().copied()),
        images: Vec::new(),
        max_tokens: max,
        sampling: Sampling::default(),
        stop: Stop::default(),
        detokenizer: Box::new(Silent),
        deadline: None,
    }
}

/// Runs greedy requests, prompts with the most tokens of their answers, together; returns each one's tokens.
pub fn generate<'a>(
    engine: &mut Engine<OnnxDecoder>,
    asks: impl IntoIterator<Item = (&'a [TokenId], usize)>,
) -> Vec<Vec<TokenId>> {
    let mut results = Vec::new();
    for (id, (prompt, max)) in (0u64..).zip(asks) {
        engine.submit(request(id, prompt, max), Duration::ZERO).unwrap();
        results.push(Vec::new());
    }
    let mut events = Vec::new();
    while !engine.is_idle() {
        engine.step(&|| Duration::ZERO, &Interrupt::new(), &mut events);
    }
    for event in events {
        match event {
            Event::Finished { id, summary } => results[usize::try_from(id.0).unwrap()] = summary.tokens,
            Event::Failed { reason, .. } => panic!("{reason}"),
            _ => {}
        }
    }
    results
}
