//! The exporter's forms of 2024 and of today, on models of the repository's own (models/export/forms.py).

#![allow(clippy::cast_possible_truncation, clippy::unwrap_used, missing_docs)]

mod support;

use std::path::{Path, PathBuf};

use phi_edge_engine::{Engine, EngineConfig};
use phi_edge_models::ModelDir;
use phi_edge_onnx::{
    DecoderConfig, KvCache, Level, Library, OnnxDecoder, Prepare, Provider, ProviderSettings, VisionWeights,
};
use serde_json::Value;
use support::{generate, ids, library};

/// Logits closer than this may change places with the number of tokens in a run.
const LOGIT_TOLERANCE: f64 = 0.01;

fn forms() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/forms")
}

fn load(library: &Library, folder: &Path, prepare: Prepare) -> OnnxDecoder {
    let config = DecoderConfig {
        provider: Provider::Cpu,
        provider_settings: ProviderSettings::default(),
        threads: Some(2),
        rows: 1,
        cache_rows: 0,
        kv_cache: KvCache::F32,
        kv_memory: None,
        prepare,
        edit_cache: None,
        vision_weights: VisionWeights::Auto,
        ..DecoderConfig::default()
    };
    OnnxDecoder::load(library, &ModelDir::open(folder).unwrap(), &config).unwrap()
}

#[test]
fn both_forms_give_the_reference_without_a_cache() {
    let Some(library) = library() else { return };
    let golden: Value = serde_json::from_slice(&std::fs::read(forms().join("golden.json")).unwrap()).unwrap();
    for form in ["2024", "2026"] {
        for (prefill_chunk, prepare) in [
            (512, Prepare::ALL),
            (7, Prepare::ALL),
            (512, Prepare::form(Level::Ragged)),
            (16, Prepare::form(Level::Ragged)),
            (16, Prepare::form(Level::Rope)),
            (7, Prepare::form(Level::Logits)),
            (16, Prepare::PLAIN),
        ] {
            let config = EngineConfig {
                prefill_chunk,
                slots: 1,
                stop_repetition: false,
                ..EngineConfig::default()
            };
            let mut engine = Engine::new(load(&library, &forms().join(form), prepare), config);
            for (n, case) in golden.as_array().unwrap().iter().enumerate() {
                let expected = ids(&case["ids"]);
                let prompt = ids(&case["prompt_ids"]);
                let got = generate(&mut engine, [(prompt.as_slice(), expected.len())]).remove(0);
                assert_eq!(got.len(), expected.len(), "{form}, case {n}");
                let differs = got
                    .iter()
                    .zip(&expected)
                    .position(|(got, expected)| got != expected);
                if let Some(at) = differs {
                    let gap = case["gaps"][at].as_f64().unwrap();
                    assert!(
                        gap < LOGIT_TOLERANCE,
                        "{form}, case {n}, chunks of {prefill_chunk}: token {at} is {:?}, not {:?}, by {gap}",
                        got[at],
                        expected[at]
                    );
                }
            }
        }
    }
}

/// A copy of a form with its genai_config.json changed.
fn changed(form: &str, change: impl FnOnce(&mut Value)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(forms().join(form)).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
    }
    let path = folder.path().join("genai_config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut config);
    std::fs::write(&path, config.to_string()).unwrap();
    folder
}

#[test]
fn a_list_or_a_number_of_end_tokens_and_unknown_keys_are_fine() {
    let Some(library) = library() else { return };
    let folder = changed("2024", |config| {
        config["model"]["eos_token_id"] = 263.into();
        config["model"]["decoder"]["a_key_of_2027"] = serde_json::json!({"x": [1]});
        config["search"]["a_key_of_2027"] = true.into();
    });
    load(&library, folder.path(), Prepare::ALL);
}

#[test]
fn a_graph_that_lacks_what_the_config_names_is_told() {
    let Some(library) = library() else { return };
    let folder = changed("2026", |config| {
        config["model"]["decoder"]["inputs"]["past_key_names"] = "past.%d.key".into();
    });
    let config = DecoderConfig {
        provider: Provider::Cpu,
        provider_settings: ProviderSettings::default(),
        threads: Some(1),
        rows: 1,
        cache_rows: 0,
        kv_cache: KvCache::F32,
        kv_memory: None,
        prepare: Prepare::ALL,
        edit_cache: None,
        vision_weights: VisionWeights::Auto,
        ..DecoderConfig::default()
    };
    let model = ModelDir::open(folder.path()).unwrap();
    let error = OnnxDecoder::load(&library, &model, &config)
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains("past.0.key") && error.contains("model.onnx"),
        "{error}"
    );
}
