//! The load of a checked configuration from files, environment and flags.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml::Value;

use crate::derive::{Effective, RULES_DIR_KEY, derive};
use crate::layer::{Layer, find};
use crate::secret::REDACTED;
use crate::validate::{validate, warnings};
use crate::{Config, ConfigError, LoadOptions, Origin, Rule, file, rules};

/// A configuration, and the origins of its values.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The configuration, every value checked.
    pub config: Config,
    /// The origin of each value by key; unset optional keys are left out.
    pub origins: BTreeMap<String, Origin>,
    /// Warnings for the operator, one line each.
    pub warnings: Vec<String>,
    /// The files that were read, in their order; those of `node.rules_dir` are the last.
    pub files: Vec<PathBuf>,
    /// The effective values by key for printing, secrets already hidden.
    pub(crate) values: BTreeMap<&'static str, Value>,
}

/// Loads the configuration: built-in defaults, `config.toml` and `conf.d/*.toml` of the system's folder, the named
/// file, the environment, flags; a later one wins. Rules of `node.rules_dir` come after those of all files.
///
/// No state is kept between calls; a running daemon applies a changed configuration by [`reload`](crate::reload).
pub fn load(options: &LoadOptions) -> Result<Loaded, ConfigError> {
    load_over(options, None)
}

/// Loads as [`load`] does, with a layer over all others.
pub(crate) fn load_over(options: &LoadOptions, top: Option<Layer>) -> Result<Loaded, ConfigError> {
    let mut files = Vec::new();
    let mut layers = vec![Layer::defaults()];
    if !options.system_dir.as_os_str().is_empty() {
        let main = options.system_dir.join("config.toml");
        if let Some(layer) = file::read_if_there(&main)? {
            layers.push(layer);
            files.push(main);
        }
        for path in file::folder(&options.system_dir.join("conf.d"))? {
            layers.push(file::read(&path)?);
            files.push(path);
        }
    }
    if let Some(path) = &options.config {
        layers.push(file::read(path)?);
        files.push(path.clone());
    }
    layers.push(Layer::environment(&options.env)?);
    layers.push(Layer::flags(&options.flags)?);
    layers.extend(top);

    let credentials = options
        .env
        .iter()
        .find(|(name, _)| name == "CREDENTIALS_DIRECTORY");
    let derived = derive(
        &overlay(&layers),
        options,
        credentials.map(|(_, folder)| folder.as_str()),
    )?;
    layers.push(derived);
    let effective = overlay(&layers);
    // Where there is no folder of the system, its folder of rules is none either: only a named one is read.
    let rules_dir = effective
        .get(RULES_DIR_KEY)
        .filter(|entry| entry.origin != Origin::Default || !options.system_dir.as_os_str().is_empty());
    let rules_dir = rules_dir.and_then(|entry| entry.value.as_ref()?.as_str());
    let folder_rules = match rules_dir {
        Some(path) => rules::folder(Path::new(path), &mut files)?,
        None => Vec::new(),
    };
    let mut all_rules = Vec::new();
    for layer in &mut layers {
        rules::merge(&mut all_rules, std::mem::take(&mut layer.rules));
    }
    rules::merge(&mut all_rules, folder_rules);
    assemble(layers, effective, all_rules, files)
}

fn overlay(layers: &[Layer]) -> Effective {
    let entries = layers.iter().flat_map(|layer| layer.entries.iter());
    entries.map(|(key, entry)| (*key, entry.clone())).collect()
}

fn assemble(
    layers: Vec<Layer>,
    effective: Effective,
    rules: Vec<Rule>,
    files: Vec<PathBuf>,
) -> Result<Loaded, ConfigError> {
    let mut builder = config::Config::builder();
    for layer in layers {
        builder = builder.add_source(layer);
    }
    let merged = builder
        .build()
        .and_then(config::Config::try_deserialize::<Config>);
    let mut config = merged.map_err(|fault| ConfigError::Internal(fault.to_string()))?;
    config.rules = rules;

    let mut origins = BTreeMap::new();
    let mut values = BTreeMap::new();
    for (key, entry) in effective {
        if let Some(value) = entry.value {
            origins.insert(key.to_owned(), entry.origin);
            values.insert(key, hide_secret(key, value));
        }
    }
    validate(&config, &origins)?;
    rules::settle(&mut config)?;
    let warnings = warnings(&config, &origins);
    Ok(Loaded {
        config,
        origins,
        warnings,
        files,
        values,
    })
}

fn hide_secret(key: &str, value: Value) -> Value {
    if find(key).is_some_and(|key| key.secret) {
        Value::String(REDACTED.to_owned())
    } else {
        value
    }
}
