//! Plugin providers: what is refused, what is missing, and a real plugin that computes on this machine.
//!
//! `cargo xtask test` fetches two plugins of PyPI: onnxruntime-ep-webgpu (`PHI_EDGE_TEST_WEBGPU_PLUGIN`), which finds no device
//! on a machine without a GPU, and onnxruntime-ggml (`PHI_EDGE_TEST_GGML_PLUGIN`), which computes products of matrices on the
//! processor. Tests skip where they are absent.
#![cfg(unix)]
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::path::PathBuf;

use phi_edge_models::ModelDir;
use phi_edge_onnx::{
    DecoderConfig, KvCache, Library, OnnxDecoder, OnnxError, PluginSettings, Provider, ProviderSettings,
};
use support::golden::logits_of_some_tokens;
use support::{fixture, library};

/// The plugin that a variable names.
fn plugin(variable: &str) -> Option<PathBuf> {
    let path = std::env::var_os(variable).map(PathBuf::from);
    if path.is_none() {
        assert!(
            !cfg!(target_arch = "x86_64") || std::env::var_os("CI").is_none_or(|v| v != "true"),
            "{variable} is not set"
        );
        println!("SKIPPED: {variable} is not set");
    }
    path
}

fn config(provider: Provider, library: PathBuf, options: &[(&str, &str)]) -> DecoderConfig {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    DecoderConfig {
        provider,
        provider_settings: ProviderSettings {
            plugin: Some(PluginSettings {
                library,
                options: options.iter().map(owned).collect(),
            }),
            ..ProviderSettings::default()
        },
        threads: Some(1),
        rows: 2,
        kv_cache: KvCache::F32,
        ..DecoderConfig::default()
    }
}

fn load(library: &Library, config: &DecoderConfig) -> Option<Result<OnnxDecoder, OnnxError>> {
    let folder = fixture("phi3-mini-tiny-fp32")?;
    Some(OnnxDecoder::load(
        library,
        &ModelDir::open(&folder).unwrap(),
        config,
    ))
}

/// Whether these files may be loaded: only root's may, and a checkout of another user's has none.
fn belongs_to_root(error: &OnnxError) -> bool {
    if let OnnxError::PluginRefused { fault, .. } = error {
        assert!(std::env::var_os("CI").is_none_or(|v| v != "true"), "{error}");
        println!("SKIPPED: {fault}");
        return false;
    }
    true
}

#[test]
fn a_library_that_is_missing_or_none_is_named() {
    let Some(library) = library() else { return };
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("ep.so");
    let asked = config(Provider::Plugin, missing.clone(), &[]);
    let Some(error) = load(&library, &asked).map(|loaded| loaded.err().unwrap()) else {
        return;
    };
    assert!(matches!(error, OnnxError::ProviderUnavailable { .. }), "{error}");
    assert!(error.to_string().contains(missing.to_str().unwrap()), "{error}");

    std::fs::write(&missing, "no library").unwrap();
    let error = load(&library, &asked).unwrap().err().unwrap();
    if belongs_to_root(&error) {
        assert!(matches!(error, OnnxError::ProviderUnavailable { .. }), "{error}");
        assert!(error.to_string().contains("can't be loaded"), "{error}");
    }

    // With a fallback the processor takes its place, and says why.
    let mut fallback = asked.clone();
    fallback.provider_settings.fallback_to_cpu = true;
    std::fs::remove_file(&missing).unwrap();
    let decoder = load(&library, &fallback).unwrap().unwrap();
    let report = decoder.provider_report();
    assert_eq!(report.provider, Provider::Cpu);
    assert_eq!(report.refused.len(), 1);
    assert!(report.refused[0].fault.contains("ep.so"), "{report:?}");
    assert_eq!(report.placement, None);
}

#[test]
fn a_library_that_others_can_write_is_refused_with_a_fallback_too() {
    use std::os::unix::fs::PermissionsExt as _;

    let Some(library) = library() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ep.so");
    std::fs::write(&file, "no library").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666)).unwrap();
    for provider in [Provider::Plugin, Provider::Auto] {
        let mut asked = config(provider, file.clone(), &[]);
        asked.provider_settings.fallback_to_cpu = true;
        let Some(loaded) = load(&library, &asked) else {
            return;
        };
        let error = loaded.err().unwrap();
        assert!(matches!(error, OnnxError::PluginRefused { .. }), "{error}");
        assert!(error.to_string().contains("runtime.plugin.library"), "{error}");
    }
}

#[test]
fn a_plugin_without_a_device_says_so() {
    let (Some(library), Some(plugin)) = (library(), plugin("PHI_EDGE_TEST_WEBGPU_PLUGIN")) else {
        return;
    };
    let asked = config(Provider::Plugin, plugin.clone(), &[]);
    let Some(loaded) = load(&library, &asked) else {
        return;
    };
    let error = match loaded {
        Ok(decoder) => {
            println!("this machine has a GPU: {:?}", decoder.provider_report());
            return;
        }
        Err(error) => error,
    };
    if !belongs_to_root(&error) {
        return;
    }
    assert!(matches!(error, OnnxError::ProviderUnavailable { .. }), "{error}");
    let said = error.to_string();
    assert!(
        said.contains("finds no device") && said.contains(plugin.to_str().unwrap()),
        "{said}"
    );
    // `auto` goes on to the processor.
    let auto = config(Provider::Auto, plugin, &[]);
    let decoder = load(&library, &auto).unwrap().unwrap();
    let report = decoder.provider_report();
    assert_eq!(report.provider, Provider::Cpu);
    assert_eq!(report.refused[0].provider, Provider::Plugin);
    assert_eq!(report.reason, "no better one is available");
}

#[test]
fn a_plugin_that_takes_no_node_of_the_model_is_refused_and_auto_goes_on() {
    let (Some(library), Some(plugin)) = (library(), plugin("PHI_EDGE_TEST_GGML_PLUGIN")) else {
        return;
    };
    // It knows neither the model's attention nor its norms.
    let asked = config(Provider::Plugin, plugin.clone(), &[("device", "cpu")]);
    let Some(loaded) = load(&library, &asked) else {
        return;
    };
    let error = loaded.err().unwrap();
    if !belongs_to_root(&error) {
        return;
    }
    let said = error.to_string();
    assert!(
        matches!(error, OnnxError::ProviderUnavailable { .. })
            && said.contains("the processor would run nodes"),
        "{said}"
    );
    let auto = config(Provider::Auto, plugin.clone(), &[("device", "cpu")]);
    let mut decoder = load(&library, &auto).unwrap().unwrap();
    assert_eq!(decoder.provider_report().provider, Provider::Cpu);
    assert!(
        decoder.provider_report().refused[0]
            .fault
            .contains("the processor would run nodes"),
        "{:?}",
        decoder.provider_report()
    );
    let cpu = config(Provider::Cpu, plugin, &[]);
    let expected = logits_of_some_tokens(&mut load(&library, &cpu).unwrap().unwrap());
    assert_eq!(logits_of_some_tokens(&mut decoder), expected);
}
