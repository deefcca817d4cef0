//! LongRoPE's boundary on real graphs: prompts of every length around it, and answers that cross it, against goldens of
//! the reference and against the plain graph that computes every token from the whole sequence.
//!
//! The models beside the repository are tested where they are present, the repository's own always.

#![allow(clippy::cast_possible_truncation, clippy::unwrap_used, missing_docs)]

mod support;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use phi_edge_engine::{
    Decoder, Engine, EngineConfig, Input, Interrupt, KvType, Regime, RopePolicy, Row, RowId, Step, Symbol,
    TokenId, Wanted,
};
use phi_edge_models::ModelDir;
use phi_edge_onnx::{DecoderConfig, Isa, KvCache, Level, Library, OnnxDecoder, Prepare, Provider};
use serde_json::Value;
use support::{fixture, generate, ids, library};

/// Prompts have up to so many tokens less or more than the boundary.
const AROUND: usize = 8;
/// New tokens of an answer: one of the shortest prompt crosses.
const NEW: usize = 12;
const POLICIES: [RopePolicy; 2] = [RopePolicy::Switch, RopePolicy::Pin];

/// A type of the KV cache.
#[derive(Debug, Clone, Copy)]
struct KvForm {
    kv_type: KvType,
    /// The distance of two logits of the reference below which their tokens may change places; the model may have a
    /// greater one.
    near_tie: f32,
}

const F32: KvForm = KvForm {
    kv_type: KvType::F32,
    near_tie: 0.0,
};
const F16: KvForm = KvForm {
    kv_type: KvType::F16,
    near_tie: 0.0,
};

/// The bound on 8 bits: the same token wherever the margin of `f32` exceeds 0.1.
const I8: KvForm = KvForm {
    kv_type: KvType::I8,
    near_tie: 0.1,
};

/// How an engine runs a model.
#[derive(Debug, Clone, Copy)]
struct Run {
    prepare: Prepare,
    prefill_chunk: usize,
    slots: usize,
    prefix_cache: bool,
    speculation: bool,
}

/// Every form that the graph can be edited to, with chunks of which one ends short of the boundary.
fn runs(boundary: usize) -> Vec<Run> {
    let run = |prepare, prefill_chunk, slots, cached| Run {
        prepare,
        prefill_chunk,
        slots,
        prefix_cache: cached,
        speculation: cached,
    };
    let chunk = boundary / 3;
    vec![
        run(Prepare::ALL, chunk, 4, true),
        run(Prepare::form(Level::Logits), chunk, 4, true),
        run(Prepare::PLAIN, 512, 1, true),
        run(Prepare::form(Level::Rope), chunk, 3, true),
        run(Prepare::form(Level::Ragged), 7, 4, true),
        run(Prepare::ALL, 512, 1, false),
        run(Prepare::PLAIN, chunk, 3, false),
    ]
}

/// A model with a sequence that crosses its boundary.
struct Subject {
    folder: PathBuf,
    kv_forms: Vec<KvForm>,
    /// The distance of two logits below which their tokens may change places: kernels round differently.
    near_tie: f32,
    /// At least the boundary and [`AROUND`] tokens.
    sequence: Vec<TokenId>,
    /// The reference's own tokens of `sequence` start here; `None`: the sequence is the plain graph's.
    golden: Option<usize>,
    runs: Vec<Run>,
    /// Edits are verified once, not at each load.
    edit_cache: tempfile::TempDir,
}

impl Subject {
    fn load(&self, library: &Library, rows: usize, prepare: Prepare, kv: KvForm) -> OnnxDecoder {
        let config = DecoderConfig {
            provider: Provider::Cpu,
            threads: Some(2),
            rows,
            prepare,
            kv_cache: if kv.kv_type == KvType::I8 {
                KvCache::I8
            } else {
                KvCache::F32
            },
            edit_cache: Some(self.edit_cache.path().join("edits.json")),
            ..DecoderConfig::default()
        };
        let decoder = OnnxDecoder::load(library, &ModelDir::open(&self.folder).unwrap(), &config).unwrap();
        assert_eq!(decoder.caps().kv_type, kv.kv_type);
        decoder
    }
}

/// The plain graph without a cache: what is right by definition.
struct Reference {
    decoder: OnnxDecoder,
    boundary: usize,
    /// By tokens and regime: the logits and the largest one's token.
    known: HashMap<(Vec<TokenId>, Regime), (Vec<f32>, TokenId)>,
}

impl Reference {
    fn new(library: &Library, subject: &Subject) -> Self {
        let decoder = subject.load(library, 1, Prepare::PLAIN, subject.kv_forms[0]);
        let boundary = decoder.caps().rope_boundary.unwrap();
        Self {
            decoder,
            boundary,
            known: HashMap::new(),
        }
    }

    fn regime(&self, tokens: usize) -> Regime {
        if tokens > self.boundary {
            Regime::Long
        } else {
            Regime::Short
        }
    }

    /// The logits after `tokens`, computed in one run, and the token of the largest, the lowest among equals.
    fn after(&mut self, tokens: &[TokenId], regime: Regime) -> &(Vec<f32>, TokenId) {
        let decoder = &mut self.decoder;
        self.known.entry((tokens.to_vec(), regime)).or_insert_with(|| {
            let symbols = Symbol::of_tokens(tokens.iter().copied());
            let row = Row {
                row: RowId(0),
                past: 0,
                shared: &[],
                input: Input::of(&symbols),
                logits: Wanted::Last,
                regime,
            };
            let logits = decoder.run(&Step { rows: &[row] }, &Interrupt::new()).unwrap();
            let logits = logits.row(0).unwrap().to_vec();
            let ids = (0..logits.len()).rev();
            let best = ids.max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
            (logits, TokenId(best as u32))
        })
    }

    /// The regime in which token `at` of an answer is computed.
    fn regime_of_token(&self, prompt: usize, max: usize, at: usize, policy: RopePolicy) -> Regime {
        self.regime(match policy {
            RopePolicy::Switch => prompt + at,
            RopePolicy::Pin => prompt + max,
        })
    }

    fn answer(&mut self, prompt: &[TokenId], max: usize, policy: RopePolicy) -> Vec<TokenId> {
        let mut tokens = prompt.to_vec();
        for at in 0..max {
            let regime = self.regime_of_token(prompt.len(), max, at, policy);
            let best = self.after(&tokens, regime).1;
            tokens.push(best);
        }
        tokens.split_off(prompt.len())
    }

    /// Equal tokens, up to the first that differs at a near tie.
    fn check(&mut self, ask: &Ask<'_>, got: &[TokenId], near_tie: f32, how: &str) {
        let expected = self.answer(ask.prompt, ask.max, ask.policy);
        assert_eq!(got.len(), expected.len(), "{how}");
        let Some(at) = got.iter().zip(&expected).position(|(a, b)| a != b) else {
            return;
        };
        let regime = self.regime_of_token(ask.prompt.len(), ask.max, at, ask.policy);
        let (logits, _) = self.after(&[ask.prompt, &expected[..at]].concat(), regime);
        let gap = logits[expected[at].0 as usize] - logits[got[at].0 as usize];
        assert!(
            gap < near_tie,
            "{how}: token {at} of {} + {} is {:?} instead of {:?}, {gap} apart",
            ask.prompt.len(),
            ask.max,
            got[at],
            expected[at]
        );
    }
}

/// A request, and the policy that it is answered under.
struct Ask<'a> {
    prompt: &'a [TokenId],
    max: usize,
    policy: RopePolicy,
}

impl Ask<'_> {
    fn parts(&self) -> (&[TokenId], usize) {
        (self.prompt, self.max)
    }
}

/// The requests of one engine: every length around the boundary, far from it on both sides, and answers that end at the
/// boundary or one and two tokens beyond it.
fn asks<'a>(
    sequence: &'a [TokenId],
    far: &'a [TokenId],
    boundary: usize,
    policy: RopePolicy,
) -> Vec<Ask<'a>> {
    let ask = |prompt, max| Ask { prompt, max, policy };
    let mut asks: Vec<Ask<'_>> = (boundary - AROUND..=boundary + AROUND)
        .map(|length| ask(&sequence[..length], NEW))
        .collect();
    for length in [boundary - AROUND, boundary - 3, boundary - 1] {
        let exact = boundary - length;
        asks.extend([exact, exact + 1, exact + 2].map(|max| ask(&sequence[..length], max)));
    }
    asks.push(ask(&far[..boundary / 2], NEW));
    asks.push(ask(far, NEW));
    asks
}

/// Any tokens of the vocabulary.
fn some_tokens(count: usize, seed: u32, vocab: usize) -> Vec<TokenId> {
    let spread = |at: u32| (at + 1).wrapping_mul(2_654_435_761).wrapping_add(seed * 7_919) >> 3;
    (0..count as u32)
        .map(|at| TokenId(spread(at) % vocab as u32))
        .collect()
}

/// The subject's sequence up to [`AROUND`] tokens beyond the boundary, which the reference and the plain graph agree about.
fn agreed_sequence(reference: &mut Reference, subject: &Subject) -> Vec<TokenId> {
    let boundary = reference.boundary;
    let mut sequence = subject.sequence.clone();
    let Some(start) = subject.golden else {
        let left = boundary + AROUND - sequence.len();
        sequence.extend(reference.answer(&subject.sequence, left, RopePolicy::Switch));
        return sequence;
    };
    for length in start..sequence.len() {
        let regime = reference.regime(length);
        let (logits, best) = reference.after(&sequence[..length], regime);
        let gap = logits[best.0 as usize] - logits[sequence[length].0 as usize];
        assert!(
            gap <= subject.near_tie,
            "token {length} of the golden sequence, {gap} apart"
        );
    }
    sequence
}

/// Answers each request, and asks again with prompt and answer in front, as a session does.
fn check_run(
    library: &Library,
    subject: &Subject,
    reference: &mut Reference,
    kv: KvForm,
    run: Run,
    asks: &[Ask<'_>],
) {
    let policy = asks[0].policy;
    let config = EngineConfig {
        prefill_chunk: run.prefill_chunk,
        slots: run.slots,
        prefix_cache: run.prefix_cache,
        speculation: run.speculation,
        stop_repetition: false,
        rope_policy: policy,
        ..EngineConfig::default()
    };
    let decoder = subject.load(library, run.slots + 2, run.prepare, kv);
    let how = format!("{}, {kv:?}, {policy:?}, {run:?}", subject.folder.display());
    let mut engine = Engine::new(decoder, config);
    let near_tie = kv.near_tie.max(subject.near_tie);
    let mut turns: Vec<Vec<TokenId>> = Vec::new();
    for (ask, got) in asks
        .iter()
        .zip(generate(&mut engine, asks.iter().map(Ask::parts)))
    {
        reference.check(ask, &got, near_tie, &how);
        turns.push([ask.prompt, &got, &asks[0].prompt[..3]].concat());
    }
    for turn in turns.iter().step_by(3) {
        let ask = Ask {
            prompt: turn,
            max: 2,
            policy,
        };
        let got = generate(&mut engine, [ask.parts()]);
        reference.check(&ask, &got[0], near_tie, &how);
    }
}

/// Whether a run can have this type: 8 bits need the custom operator, and a processor that runs it.
fn possible(run: Run, kv: KvForm) -> bool {
    kv.kv_type != KvType::I8 || (run.prepare.attention && Isa::detect().is_some())
}

/// All requests around the boundary, under both policies and every form of the KV cache.
fn check(library: &Library, subject: &Subject) {
    let mut reference = Reference::new(library, subject);
    let boundary = reference.boundary;
    let sequence = agreed_sequence(&mut reference, subject);
    let vocab = reference.decoder.caps().vocab_size;
    let far = some_tokens(boundary + boundary / 2, 3, vocab);
    // The two policies are told apart, else the rest would prove little.
    let below = &sequence[..boundary - AROUND];
    let [switched, pinned] = POLICIES.map(|policy| reference.answer(below, NEW, policy));
    let folder = subject.folder.display();
    assert_ne!(switched, pinned, "{folder}: either policy gives the same");
    for (&kv, policy) in subject
        .kv_forms
        .iter()
        .flat_map(|kv| POLICIES.map(|policy| (kv, policy)))
    {
        let asks = asks(&sequence, &far, boundary, policy);
        for &run in subject.runs.iter().filter(|run| possible(**run, kv)) {
            check_run(library, subject, &mut reference, kv, run, &asks);
        }
    }
}

/// A fixture beside the repository; its golden cases that cross the boundary each give a sequence.
fn check_fixture(name: &str, near_tie: f32, kv_forms: &[KvForm]) {
    let (Some(folder), Some(library)) = (fixture(name), library()) else {
        return;
    };
    let json: Value = serde_json::from_slice(&std::fs::read(folder.join("golden.json")).unwrap()).unwrap();
    let boundary = usize::try_from(json["original_max_position_embeddings"].as_u64().unwrap()).unwrap();
    let crossing = json["cases"].as_array().unwrap().iter().map(|case| {
        let prompt = ids(&case["prompt_ids"]);
        (prompt.len(), [prompt, ids(&case["greedy_ids"])].concat())
    });
    let crossing: Vec<_> = crossing
        .filter(|(prompt, sequence)| *prompt < boundary && sequence.len() >= boundary + AROUND)
        .collect();
    assert!(
        !crossing.is_empty(),
        "no golden answer of {name} crosses the boundary"
    );
    let mut runs = runs(boundary);
    for (prompt, sequence) in crossing {
        let subject = Subject {
            folder: folder.clone(),
            kv_forms: kv_forms.to_vec(),
            near_tie,
            sequence,
            golden: Some(prompt),
            runs: runs.clone(),
            edit_cache: tempfile::tempdir().unwrap(),
        };
        // Further sequences are for the goldens, and for the form that serves requests.
        runs.truncate(1);
        check(&library, &subject);
    }
}

#[test]
fn fp32() {
    check_fixture("phi3-mini-tiny-fp32", 1e-3, &[F32, I8]);
}

#[test]
fn int4() {
    check_fixture("phi3-mini-tiny-int4", 0.25, &[F32, I8]);
}

#[test]
fn directml_form_on_the_processor() {
    check_fixture("phi3-mini-tiny-dml", 0.25, &[F16]);
}

#[test]
fn cuda_form_on_the_processor() {
    check_fixture("phi3-mini-tiny-cuda", 0.05, &[F16]);
}

#[test]
fn forms_of_2024_and_2026() {
    let Some(library) = library() else { return };
    let forms = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/forms");
    let golden: Value = serde_json::from_slice(&std::fs::read(forms.join("golden.json")).unwrap()).unwrap();
    // The prompt of 50 tokens crosses while it is answered.
    let case = golden
        .as_array()
        .unwrap()
        .iter()
        .find(|case| ids(&case["prompt_ids"]).len() == 50);
    let case = case.unwrap();
    for form in ["2024", "2026"] {
        let subject = Subject {
            folder: forms.join(form),
            kv_forms: vec![F32, I8],
            near_tie: 0.01,
            sequence: [ids(&case["prompt_ids"]), ids(&case["ids"])].concat(),
            golden: Some(50),
            runs: runs(64),
            edit_cache: tempfile::tempdir().unwrap(),
        };
        check(&library, &subject);
    }
}

#[test]
fn demo_model() {
    let Some(library) = library() else { return };
    let boundary = 1024;
    let subject = Subject {
        folder: Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo"),
        kv_forms: vec![F32, I8],
        near_tie: 0.25,
        sequence: some_tokens(boundary - AROUND, 1, 640),
        golden: None,
        // Without the prefix cache prompts of this length take long in debug builds.
        runs: runs(boundary)
            .into_iter()
            .filter(|run| run.prefix_cache && run.slots != 1)
            .collect(),
        edit_cache: tempfile::tempdir().unwrap(),
    };
    check(&library, &subject);
}
