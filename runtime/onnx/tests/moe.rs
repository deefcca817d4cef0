//! Models with experts on the real library against a reference whose LongRoPE factors go by a sequence's length.
//!
//! The repository's own models are tested always, the one beside it where it is present.

#![allow(clippy::cast_possible_truncation, clippy::unwrap_used, missing_docs)]

mod support;

use std::path::{Path, PathBuf};

use phi_edge_engine::{Decoder, Engine, EngineConfig};
use phi_edge_models::ModelDir;
use phi_edge_onnx::{DecoderConfig, Isa, KvCache, Library, OnnxDecoder, Prepare, Provider};
use support::golden::{Golden, INT4_LOGITS, check_ids, goldens, logits_after};
use support::{fixture, generate, library};

/// The distance of two logits of products with 8-bit rows below which their tokens may change places.
const INT4_TIE: f32 = 0.25;
/// The same of 8-bit keys and values.
const I8_TIE: f32 = 0.5;

/// A model and how near it is to its goldens.
struct Subject {
    folder: PathBuf,
    rope_boundary: usize,
    logit_tolerance: f32,
    near_tie: f32,
    /// How far the graph can be edited, on a processor that has all there is to have.
    most: &'static str,
}

fn load(library: &Library, folder: &Path, rows: usize, prepare: Prepare) -> OnnxDecoder {
    load_with(library, folder, rows, prepare, KvCache::F32)
}

fn load_with(
    library: &Library,
    folder: &Path,
    rows: usize,
    prepare: Prepare,
    kv_cache: KvCache,
) -> OnnxDecoder {
    let model = ModelDir::open(folder).unwrap();
    let config = DecoderConfig {
        provider: Provider::Cpu,
        threads: Some(2),
        rows,
        kv_cache,
        prepare,
        ..DecoderConfig::default()
    };
    OnnxDecoder::load(library, &model, &config).unwrap()
}

/// One of `tests/fixtures/moe`; `models/export/moe_forms.py` writes them.
fn own(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/fixtures/moe")
        .join(name)
}

/// Logits after each prompt, then answers alone in chunks of several lengths, then all answers in company; with the graph as
/// it is and with all edits that the model allows.
fn check(subject: &Subject) {
    let Some(library) = library() else {
        return;
    };
    let goldens = goldens(&subject.folder);
    let mut reference = load(&library, &subject.folder, 1, Prepare::PLAIN);
    assert_eq!(reference.caps().rope_boundary, Some(subject.rope_boundary));
    for prepare in [Prepare::PLAIN, Prepare::ALL, Prepare::ALL_WITH_EXPERTS] {
        let mut decoder = load(&library, &subject.folder, 1, prepare);
        for golden in &goldens {
            let logits = logits_after(&mut decoder, &golden.prompt);
            for (id, value) in &golden.top {
                let got = logits[id.0 as usize];
                assert!(
                    (got - value).abs() <= subject.logit_tolerance,
                    "{} {id:?}, {prepare}: {got} is not {value}",
                    golden.name
                );
            }
        }
    }
    let f32 = KvCache::F32;
    let mut runs = vec![
        (512, 1, Prepare::PLAIN, f32),
        (7, 1, Prepare::PLAIN, f32),
        (24, 3, Prepare::PLAIN, f32),
        (512, 1, Prepare::ALL, f32),
        (24, 4, Prepare::ALL, f32),
        (512, 1, Prepare::ALL_WITH_EXPERTS, f32),
        (7, 1, Prepare::ALL_WITH_EXPERTS, f32),
        (24, 4, Prepare::ALL_WITH_EXPERTS, f32),
    ];
    if Isa::detect().is_some() {
        let prepared = load(&library, &subject.folder, 1, Prepare::ALL_WITH_EXPERTS).prepared();
        assert_eq!(prepared.as_str(), subject.most);
        // Rounding changes which experts are chosen where two score nearly alike, which the goldens of 8-bit rows leave out.
        let i8 = [
            (512, 1, Prepare::ALL_WITH_EXPERTS, KvCache::I8),
            (24, 4, Prepare::ALL_WITH_EXPERTS, KvCache::I8),
        ];
        runs.extend(i8.into_iter().filter(|_| subject.near_tie > 0.0));
    }
    for (prefill_chunk, slots, prepare, kv_cache) in runs {
        let config = EngineConfig {
            prefill_chunk,
            slots,
            ..EngineConfig::default()
        };
        let decoder = load_with(&library, &subject.folder, slots + 2, prepare, kv_cache);
        let mut engine = Engine::new(decoder, config);
        let near_tie = if kv_cache == KvCache::I8 {
            I8_TIE
        } else {
            subject.near_tie
        };
        let answers = generate(&mut engine, goldens.iter().map(Golden::ask));
        // The second time they go on from what rows hold of them.
        let again = generate(&mut engine, goldens.iter().map(Golden::ask));
        for (golden, got) in goldens.iter().zip(&answers).chain(goldens.iter().zip(&again)) {
            let how = format!(
                "in chunks of {prefill_chunk}, {slots} at once, {prepare}, {}",
                kv_cache.as_str()
            );
            check_ids(&mut reference, golden, got, near_tie, &how);
        }
    }
}

#[test]
fn experts_of_32_bits() {
    check(&Subject {
        folder: own("plain"),
        rope_boundary: 64,
        logit_tolerance: 1e-3,
        near_tie: 0.0,
        most: "ragged+attention",
    });
}

#[test]
fn experts_with_rows_of_8_bits() {
    check(&Subject {
        folder: own("level4"),
        rope_boundary: 64,
        logit_tolerance: INT4_LOGITS,
        near_tie: INT4_TIE,
        most: "ragged+matmul+attention+experts",
    });
}

#[test]
fn experts_with_zero_points() {
    check(&Subject {
        folder: own("level4-asymmetric"),
        rope_boundary: 64,
        logit_tolerance: INT4_LOGITS,
        near_tie: INT4_TIE,
        most: "ragged+matmul+attention+experts",
    });
}

#[test]
fn the_real_exporters_graph() {
    let Some(folder) = fixture("phi35-moe-tiny") else {
        return;
    };
    check(&Subject {
        folder,
        rope_boundary: 256,
        logit_tolerance: 1e-3,
        near_tie: 0.0,
        most: "ragged+attention",
    });
}

/// The processor's operator ignores the sparse mixer and the third matrices: a wrong answer without an error.
#[test]
fn the_form_for_cuda_is_refused() {
    let Some(library) = library() else {
        return;
    };
    let model = ModelDir::open(&own("cuda")).unwrap();
    for prepare in [Prepare::PLAIN, Prepare::ALL_WITH_EXPERTS] {
        let config = DecoderConfig {
            provider: Provider::Cpu,
            prepare,
            ..DecoderConfig::default()
        };
        let Err(error) = OnnxDecoder::load(&library, &model, &config) else {
            panic!("it was loaded");
        };
        let error = error.to_string();
        for named in ["model.onnx", "use_sparse_mixer", "docs/models.md"] {
            assert!(error.contains(named), "{error}");
        }
    }
}
