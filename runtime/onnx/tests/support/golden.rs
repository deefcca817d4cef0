//! Golden outputs of the fixtures beside the repository.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    reason = "each test file uses its part of one module"
)]

use std::path::Path;

use phi_edge_engine::{Decoder, Input, Interrupt, Regime, Row, RowId, Step, Symbol, TokenId, Wanted};
use phi_edge_onnx::OnnxDecoder;
use serde_json::Value;

use super::ids;

/// The largest difference of an int4 graph's logits from the goldens, which ONNX Runtime computed on x86-64. Rows of products are
/// rounded to eight bits: by block there, by row and in another form in ONNX Runtime's kernels for Arm. Seen there: 0.19.
pub const INT4_LOGITS: f32 = if cfg!(target_arch = "aarch64") { 0.25 } else { 0.15 };

/// A prompt with the reference's answer.
pub struct Golden {
    pub name: String,
    pub group: Option<String>,
    pub prompt: Vec<TokenId>,
    pub max_new: usize,
    pub expected: Vec<TokenId>,
    pub top: Vec<(TokenId, f32)>,
}

impl Golden {
    pub fn ask(&self) -> (&[TokenId], usize) {
        (&self.prompt, self.max_new)
    }
}

/// The cases of a fixture.
pub fn goldens(folder: &Path) -> Vec<Golden> {
    let json: Value = serde_json::from_slice(&std::fs::read(folder.join("golden.json")).unwrap()).unwrap();
    let cases = json["cases"].as_array().unwrap();
    let golden = |case: &Value| {
        let top = &case["last_logits_top5"];
        let values = top["values"]
            .as_array()
            .unwrap()
            .iter()
            .map(|v| v.as_f64().unwrap() as f32);
        Golden {
            name: case["name"].as_str().unwrap().to_owned(),
            group: case["group"].as_str().map(ToOwned::to_owned),
            prompt: ids(&case["prompt_ids"]),
            max_new: usize::try_from(case["max_new_tokens"].as_u64().unwrap()).unwrap(),
            expected: ids(&case["greedy_ids"]),
            top: ids(&top["ids"]).into_iter().zip(values).collect(),
        }
    };
    assert!(cases.len() > 5);
    cases.iter().map(golden).collect()
}

/// Logits after `tokens`, computed in one run.
pub fn logits_after(decoder: &mut OnnxDecoder, tokens: &[TokenId]) -> Vec<f32> {
    let symbols = Symbol::of_tokens(tokens.iter().copied());
    let regime = match decoder.caps().rope_boundary {
        Some(boundary) if tokens.len() > boundary => Regime::Long,
        _ => Regime::Short,
    };
    let row = Row {
        row: RowId(0),
        past: 0,
        shared: &[],
        input: Input::of(&symbols),
        logits: Wanted::Last,
        regime,
    };
    decoder
        .run(&Step { rows: &[row] }, &Interrupt::new())
        .unwrap()
        .row(0)
        .unwrap()
        .to_vec()
}

/// Logits after a few tokens that mean nothing, for comparisons of decoders with each other.
pub fn logits_of_some_tokens(decoder: &mut OnnxDecoder) -> Vec<f32> {
    let tokens: Vec<TokenId> = (1..20).map(TokenId).collect();
    logits_after(decoder, &tokens)
}

/// Equal ids; where rounding may differ, a difference only at a near tie.
pub fn check_ids(decoder: &mut OnnxDecoder, golden: &Golden, got: &[TokenId], near_tie: f32, how: &str) {
    let Some(at) = got.iter().zip(&golden.expected).position(|(a, b)| a != b) else {
        assert_eq!(got.len(), golden.expected.len(), "{} {how}", golden.name);
        return;
    };
    let mut tokens = golden.prompt.clone();
    tokens.extend(&golden.expected[..at]);
    let logits = logits_after(decoder, &tokens);
    let gap = logits[golden.expected[at].0 as usize] - logits[got[at].0 as usize];
    assert!(
        gap.abs() < near_tie,
        "{} {how}: token {at} is {:?} instead of {:?}, {gap} apart",
        golden.name,
        got[at],
        golden.expected[at]
    );
}
