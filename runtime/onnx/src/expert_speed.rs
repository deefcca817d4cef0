//! The speed of the operator for experts beside ONNX Runtime's.

use std::time::{Duration, Instant};

use phi_edge_models::ModelDir;

use crate::decoder::DecoderConfig;
use crate::error::OnnxError;
use crate::experts_session::{ExpertInputs, ExpertsSession};
use crate::graph_file::{folder_of, read_graph};
use crate::library::Library;
use crate::load::cpu_resources;
use crate::prepare::{self, SingleExperts, replace_experts, single_experts};

/// The times of one layer's experts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpertSpeed {
    /// Tokens of a run.
    pub tokens: usize,
    /// Of each turn: the custom operator's run, and that of ONNX Runtime's `QMoE`.
    pub turns: Vec<[Duration; 2]>,
}

/// Measures the first layer's experts of `model` with each number of tokens, in turns with ONNX Runtime's operator. Each turn has
/// tokens of its own, which choose other experts.
///
/// # Errors
/// The model has no experts that the operator supports, this processor has no kernels for it, or a session can't be opened.
pub fn expert_speeds(
    library: &Library,
    model: &ModelDir,
    config: &DecoderConfig,
    (tokens, turns): (&[usize], usize),
) -> Result<Vec<ExpertSpeed>, OnnxError> {
    let path = model.decoder_path();
    let located = prepare::resolve_links(read_graph(&path)?, folder_of(&path));
    let fault = |fault: String| OnnxError::Model {
        path: path.clone(),
        fault,
    };
    let none =
        || fault("has no experts that the operator for them supports (QMoE of accuracy level 4)".into());
    let single = single_experts(&located.graph).ok_or_else(none)?;
    let edited = replace_experts(&single.graph).ok_or_else(none)?;
    let cpu = cpu_resources(config)?;
    if cpu.isa.is_none() {
        return Err(fault(
            "can't be measured: there are no kernels for this processor (docs/hardware.md)".into(),
        ));
    }
    let open = |graph: &[u8]| ExpertsSession::open(library, cpu, &located.weights_folder, graph, &single);
    let mut own = open(&edited).map_err(&fault)?;
    let mut librarys = open(&single.graph).map_err(&fault)?;
    let of_tokens = |&tokens: &usize| {
        let mut turn = |number: usize| {
            let inputs = inputs(&single, tokens, number);
            let run = |session: &mut ExpertsSession<'_>| {
                let inputs = inputs.clone();
                let begun = Instant::now();
                session.run(inputs).map(|_| begun.elapsed())
            };
            Ok([run(&mut own)?, run(&mut librarys)?])
        };
        // The first one pays for pages.
        turn(0)?;
        let turns = (1..=turns).map(turn).collect::<Result<_, String>>()?;
        Ok(ExpertSpeed { tokens, turns })
    };
    tokens
        .iter()
        .map(of_tokens)
        .collect::<Result<_, String>>()
        .map_err(fault)
}

/// Pseudo-random tokens, of which each chooses two experts or more by chance.
fn inputs(experts: &SingleExperts, tokens: usize, seed: usize) -> ExpertInputs {
    let mut state = u64::try_from(seed).unwrap_or(0).wrapping_add(1);
    let mut next = || {
        // Knuth's generator: nothing depends on its quality.
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        f32::from(u16::from_be_bytes([
            state.to_be_bytes()[0],
            state.to_be_bytes()[1],
        ])) / 65_536.0
    };
    let mut values = |count: usize| -> Vec<f32> { (0..count).map(|_| next()).collect() };
    ExpertInputs {
        tokens: values(tokens * experts.hidden),
        scores: values(tokens * experts.experts),
        // None weighs nothing.
        weights: vec![0.5; tokens * experts.experts],
    }
}
