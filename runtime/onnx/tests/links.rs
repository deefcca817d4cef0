//! A model folder whose files are links, as in a cache of Hugging Face.

#![cfg(unix)]
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use phi_edge_models::ModelDir;
use phi_edge_onnx::{DecoderConfig, KvCache, Library, OnnxDecoder, Prepare, Provider};
use support::golden::logits_of_some_tokens;
use support::library;

/// Copies the files of `model` to `root/blobs` under other names, and returns `root/snapshots/REVISION` with a relative
/// link to each under its own.
fn hub_cache(root: &Path, model: &Path) -> PathBuf {
    let (blobs, snapshot) = (root.join("blobs"), root.join("snapshots/0123abcd"));
    std::fs::create_dir_all(&blobs).unwrap();
    std::fs::create_dir_all(&snapshot).unwrap();
    for (number, entry) in std::fs::read_dir(model).unwrap().enumerate() {
        let file = entry.unwrap();
        let blob = format!("{number:064x}");
        std::fs::copy(file.path(), blobs.join(&blob)).unwrap();
        symlink(
            Path::new("../../blobs").join(blob),
            snapshot.join(file.file_name()),
        )
        .unwrap();
    }
    snapshot
}

fn load(library: &Library, folder: &Path, prepare: Prepare) -> OnnxDecoder {
    let config = DecoderConfig {
        provider: Provider::Cpu,
        threads: Some(1),
        kv_cache: KvCache::F32,
        prepare,
        ..DecoderConfig::default()
    };
    OnnxDecoder::load(library, &ModelDir::open(folder).unwrap(), &config).unwrap()
}

#[test]
fn a_folder_of_links_is_edited_like_the_files_themselves() {
    let Some(library) = library() else { return };
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo");
    let root = tempfile::tempdir().unwrap();
    let linked = hub_cache(root.path(), &demo);
    for most in [Prepare::ALL, "ragged".parse().unwrap(), Prepare::PLAIN] {
        let mut plain = load(&library, &demo, most);
        let mut links = load(&library, &linked, most);
        assert_eq!(links.prepared(), plain.prepared());
        assert_eq!(
            logits_of_some_tokens(&mut links),
            logits_of_some_tokens(&mut plain),
            "{most}"
        );
        // Every edit that this machine has applies to the demonstration's graph.
        assert_eq!(links.prepared() == Prepare::PLAIN, most == Prepare::PLAIN);
    }
}
