//! Models that take images, with keys and values in device memory: features and answers against the references'. On the
//! processor its own allocator stands in for a device's; `PHI_EDGE_TEST_PROVIDER` names another provider.

#![allow(clippy::cast_possible_truncation, clippy::unwrap_used, missing_docs)]

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use phi_edge_engine::{
    Decoder, ImageFeatures, Input, Interrupt, Regime, Row, RowId, Step, Symbol, TokenId, Wanted,
};
use phi_edge_models::ModelDir;
use phi_edge_onnx::{
    DecoderConfig, KvCache, Library, OnnxDecoder, Prepare, Provider, ProviderSettings, VisionWeights,
};
use support::vision::{Case, answers, cases, check_features, encode_all, symbols};
use support::{device_provider, fixture, library};

/// The operators that a provider may leave to the processor: those that find the places of images, and those of shapes. None of
/// them computes a product.
const HOST_OPERATORS: [&str; 18] = [
    "Cast",
    "Concat",
    "ConstantOfShape",
    "Div",
    "Equal",
    "Expand",
    "Gather",
    "Less",
    "Mul",
    "NonZero",
    "Range",
    "Reshape",
    "Shape",
    "Slice",
    "Sub",
    "Transpose",
    "Unsqueeze",
    "Where",
];

/// The repository's small vision models; `PHI_EDGE_TEST_MODELS` names a folder of copies.
fn own_models() -> PathBuf {
    match std::env::var_os("PHI_EDGE_TEST_MODELS") {
        Some(folder) => Path::new(&folder).join("vision"),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/vision"),
    }
}

/// The symbols of a prompt, and the features of its pictures.
type Prompt = (Vec<Symbol>, Vec<Arc<ImageFeatures>>);

/// How near features and logits are to the references'.
struct Tolerance {
    feature: f64,
    near_tie: f32,
}

/// A model, its pictures and its goldens.
struct Subject<'a> {
    library: &'a Library,
    model: &'a Path,
    images: PathBuf,
    golden: PathBuf,
    crops: usize,
}

impl Subject<'_> {
    fn load(&self, provider: Provider, device_rows: bool, prepare: Prepare) -> OnnxDecoder {
        let config = DecoderConfig {
            provider,
            threads: Some(2),
            rows: 3,
            kv_cache: KvCache::F32,
            provider_settings: ProviderSettings {
                device_memory: Some(512 << 20),
                allow_cpu_nodes: HOST_OPERATORS.map(ToOwned::to_owned).to_vec(),
                ..ProviderSettings::default()
            },
            device_rows,
            prepare,
            vision_weights: VisionWeights::F32,
            ..DecoderConfig::default()
        };
        let decoder = OnnxDecoder::load(self.library, &ModelDir::open(self.model).unwrap(), &config).unwrap();
        assert_eq!(decoder.provider(), provider);
        assert_eq!(decoder.device_budget().is_some(), device_rows);
        decoder
    }

    /// Each case alone, then those with one picture in pairs.
    fn check(&self, prepare: Prepare, tolerance: &Tolerance) {
        let mut device = self.load(device_provider(), true, prepare);
        let mut host = self.load(Provider::Cpu, false, Prepare::PLAIN);
        let mut prompts = Vec::new();
        for case in cases(&self.golden) {
            let features = encode_all(&mut device, &self.images, self.crops, &case);
            if !features.is_empty() {
                // JPEG decoders differ where the chroma is subsampled.
                let is_photo = case.images.iter().any(|file| file.ends_with("photo.jpg"));
                check_features(&case, &features, if is_photo { 0.6 } else { tolerance.feature });
            }
            let prompt = (symbols(&case, &features), features);
            let got = answers(&mut device, std::slice::from_ref(&prompt), case.expected.len()).remove(0);
            check_answer(&mut host, &case, &prompt, &got, tolerance.near_tie);
            if case.images.len() == 1 {
                prompts.push((case, prompt));
            }
        }
        if device.caps().ragged_chunks {
            check_pairs(&mut device, &mut host, &prompts, tolerance);
        }
    }
}

/// Prompts in the same runs, by two.
fn check_pairs(
    device: &mut OnnxDecoder,
    host: &mut OnnxDecoder,
    prompts: &[(Case, Prompt)],
    tolerance: &Tolerance,
) {
    let boundary = device.caps().rope_boundary.unwrap_or(usize::MAX);
    for pair in prompts.chunks_exact(2).take(2) {
        let is_long = |(_, prompt): &(Case, Prompt)| prompt.0.len() > boundary;
        if pair.iter().any(is_long) && !pair.iter().all(is_long) && !device.caps().mixed_regimes {
            continue;
        }
        let count = pair.iter().map(|(case, _)| case.expected.len()).min().unwrap();
        let together: Vec<Prompt> = pair.iter().map(|(_, prompt)| prompt.clone()).collect();
        let answers = answers(device, &together, count);
        for ((case, prompt), got) in pair.iter().zip(&answers) {
            check_answer(host, case, prompt, got, tolerance.near_tie);
        }
    }
}

/// Equal ids, but where the processor's logits of both are as near as `near_tie`.
fn check_answer(host: &mut OnnxDecoder, case: &Case, prompt: &Prompt, got: &[TokenId], near_tie: f32) {
    let Some(at) = got.iter().zip(&case.expected).position(|(a, b)| a != b) else {
        return;
    };
    let (symbols, features) = prompt;
    let mut sequence = symbols.clone();
    sequence.extend(case.expected[..at].iter().copied().map(Symbol::Token));
    let boundary = host.caps().rope_boundary.unwrap_or(usize::MAX);
    let row = Row {
        row: RowId(0),
        past: 0,
        shared: &[],
        input: Input {
            symbols: &sequence,
            features,
        },
        logits: Wanted::Last,
        regime: if symbols.len() > boundary {
            Regime::Long
        } else {
            Regime::Short
        },
    };
    let logits = host.run(&Step { rows: &[row] }, &Interrupt::new()).unwrap();
    let logits = logits.row(0).unwrap();
    let gap = logits[case.expected[at].0 as usize] - logits[got[at].0 as usize];
    assert!(
        gap.abs() < near_tie,
        "{}: token {at} is {:?} instead of {:?}, {gap} apart",
        case.name,
        got[at],
        case.expected[at]
    );
}

#[test]
fn the_exporters_model_gives_the_references_features_and_answers() {
    let (Some(folder), Some(library)) = (fixture("phi35-vision-tiny"), library()) else {
        return;
    };
    let subject = Subject {
        library: &library,
        model: &folder,
        images: folder.join("images"),
        golden: folder.join("golden.json"),
        crops: 16,
    };
    let (feature, near_tie) = if device_provider() == Provider::Cpu {
        (1e-3, 1e-3)
    } else {
        // Products with TF32 and convolutions by another algorithm.
        (0.03, 0.1)
    };
    subject.check(Prepare::ALL, &Tolerance { feature, near_tie });
}

/// A form of the repository's vision model. Its products with int4 weights round inputs to 8 bits in the goldens.
fn own_form(form: &str, prepare: Prepare, tolerance: &Tolerance) {
    let Some(library) = library() else { return };
    let folder = own_models();
    let subject = Subject {
        library: &library,
        model: &folder.join(form),
        images: folder.join("images"),
        golden: folder.join(format!("golden-{form}.json")),
        crops: 4,
    };
    subject.check(prepare, tolerance);
}

#[test]
fn the_form_for_the_processor() {
    let near_tie = if device_provider() == Provider::Cpu {
        0.01
    } else {
        0.3
    };
    own_form(
        "cpu",
        Prepare::PLAIN,
        &Tolerance {
            feature: 0.03,
            near_tie,
        },
    );
}

#[test]
fn the_form_for_cuda() {
    let near_tie = if device_provider() == Provider::Cpu {
        0.01
    } else {
        0.3
    };
    own_form(
        "cuda",
        Prepare::ALL,
        &Tolerance {
            feature: 0.06,
            near_tie,
        },
    );
}

#[test]
fn the_form_for_directml() {
    let near_tie = if device_provider() == Provider::Cpu {
        0.01
    } else {
        0.3
    };
    own_form(
        "directml",
        Prepare::ALL,
        &Tolerance {
            feature: 0.06,
            near_tie,
        },
    );
}
