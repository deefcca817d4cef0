//! Models with experts on the real library against a reference whose LongRoPE factors go by a sequence's length.
//!
//! The repository's own models are tested always, the one beside it where it is present.

#![allow(clippy::cast_possible_truncation, clippy::unwrap_used, missing_docs)]

mod support;

use std::path::{Path, PathBuf};

use phi_edge_engine::{Decoder, Engine, EngineConfig};
use phi_edge_models::ModelDir;
use phi_edge_onnx::{DecoderConfig, KvCache, Library, OnnxDecoder, Prepare, Provider};
use support::golden::{Golden, INT4_LOGITS, check_ids, goldens, logits_after};
use support::{fixture, generate, library};

/// The distance of two logits of products with 8-bit rows below which their tokens may change places.
const INT4_TIE: f32 = 0.25;

/// A model and how near it is to its goldens.
struct Subject {
    folder: PathBuf,
    rope_boundary: usize,
    logit_tolerance: f32,
    near_tie: f32,
}

fn load(library: &Library, folder: &Path, rows: usize, prepare: Prepare) -> OnnxDecoder {
    let model = ModelDir::open(folder).unwrap();
    let config = DecoderConfig {
        provider: Provider::Cpu,
        threads: Some(2),
        rows,
        kv_cache: KvCache::F32,
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
    for prepare in [Prepare::PLAIN, Prepare::ALL] {
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
    let runs = [
        (512, 1, Prepare::PLAIN),
        (7, 1, Prepare::PLAIN),
        (24, 3, Prepare::PLAIN),
        (512, 1, Prepare::ALL),
        (7, 1, Prepare::ALL),
        (24, 4, Prepare::ALL),
    ];
    for (prefill_chunk, slots, prepare) in runs {
        let config = EngineConfig {
            prefill_chunk,
            slots,
            ..EngineConfig::default()
        };
        let mut engine = Engine::new(load(&library, &subject.folder, slots + 2, prepare), config);
        let answers = generate(&mut engine, goldens.iter().map(Golden::ask));
        for (golden, got) in goldens.iter().zip(&answers) {
            let how = format!("in chunks of {prefill_chunk}, {slots} at once, {prepare}");
            check_ids(&mut reference, golden, got, subject.near_tie, &how);
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
    });
}

#[test]
fn experts_with_rows_of_8_bits() {
    check(&Subject {
        folder: own("level4"),
        rope_boundary: 64,
        logit_tolerance: INT4_LOGITS,
        near_tie: INT4_TIE,
    });
}

#[test]
fn experts_with_zero_points() {
    check(&Subject {
        folder: own("level4-asymmetric"),
        rope_boundary: 64,
        logit_tolerance: INT4_LOGITS,
        near_tie: INT4_TIE,
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
    });
}
