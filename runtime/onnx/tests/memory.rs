//! What little memory means for the context.

#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::path::Path;

use phi_edge_engine::Decoder;
use phi_edge_models::ModelDir;
use phi_edge_onnx::{DecoderConfig, KvCache, OnnxDecoder, Prepare};
use support::library;

#[test]
fn the_memory_that_is_free_bounds_the_context() {
    let Some(library) = library() else { return };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo");
    let model = ModelDir::open(&folder).unwrap();
    let config = DecoderConfig {
        cache_rows: 3,
        ..DecoderConfig::default()
    };
    let whole = OnnxDecoder::load(&library, &model, &config)
        .unwrap()
        .caps()
        .clone();
    assert_eq!(
        (whole.context_length, whole.rows),
        (model.config().context_length, 4)
    );
    let tokens = 112 - 112 % whole.kv_block;
    let free = whole.kv_bytes_per_token * tokens as u64 + whole.kv_row_overhead;
    let little = OnnxDecoder::load_measuring(&library, &model, &config, || Some(free)).unwrap();
    assert_eq!(little.caps().context_length, tokens - 1);
    // Who says how much there may be is not asked how much there is.
    let config = DecoderConfig {
        kv_memory: Some(free + whole.kv_bytes_per_token * tokens as u64),
        ..config
    };
    let said = OnnxDecoder::load_measuring(&library, &model, &config, || unreachable!()).unwrap();
    assert_eq!(said.caps().context_length, 2 * tokens - 1);
}

#[test]
fn the_footprint_is_that_of_the_loaded_model() {
    let Some(library) = library() else { return };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo");
    let model = ModelDir::open(&folder).unwrap();
    for (kv_cache, prepare) in [
        (KvCache::Auto, Prepare::ALL),
        (KvCache::F32, Prepare::ALL),
        (KvCache::F32, Prepare::PLAIN),
    ] {
        let load = |kv_memory| {
            let config = DecoderConfig {
                kv_cache,
                kv_memory,
                prepare,
                ..DecoderConfig::default()
            };
            OnnxDecoder::load(&library, &model, &config).unwrap()
        };
        let decoder = load(None);
        let caps = decoder.caps();
        let footprints = decoder.kv_footprints();
        let (_, footprint) = footprints
            .iter()
            .find(|(kv_type, _)| *kv_type == caps.kv_type)
            .unwrap();
        assert_eq!(footprint.bytes_per_token, caps.kv_bytes_per_token);
        assert_eq!(footprint.block_tokens, caps.kv_block);
        assert_eq!(footprint.row_overhead, caps.kv_row_overhead);
        // The context of less memory is what the footprint says.
        let memory = footprint.row_bytes(500);
        assert_eq!(
            load(Some(memory)).caps().context_length,
            footprint.context(memory)
        );
    }
}
