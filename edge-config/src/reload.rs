//! The reload of a configuration while the daemon runs: which keys can change, and which keep their values.

use crate::layer::{Entry, Layer};
use crate::load::load_over;
use crate::schema::KEYS;
use crate::{ConfigError, LoadOptions, Loaded, Origin, load};

/// Keys outside of `[limits]` that take effect when the configuration is read again.
const RELOADABLE_KEYS: [&str; 5] = [
    "node.rules_dir",
    "log.level",
    "store.keep_for",
    "store.keep_outcomes",
    "store.keep_memory",
];
/// Keys of `[limits]` that need a restart.
const FIXED_LIMIT_KEYS: [&str; 1] = ["limits.rule_jobs"];

/// A configuration that was read again.
#[derive(Debug, Clone)]
pub struct Reloaded {
    /// The configuration that the running daemon can apply: keys that need a restart have their running values, also
    /// in all that is derived from them, such as the topics of rules.
    pub loaded: Loaded,
    /// The keys whose new values need a restart.
    pub held: Vec<&'static str>,
}

/// Reads the configuration again; `running` is the one that the daemon was started with.
///
/// # Errors
/// The configuration is wrong, by itself or together with the values that stay.
pub fn reload(options: &LoadOptions, running: &Loaded) -> Result<Reloaded, ConfigError> {
    // By itself first: the next start reads it so.
    let written = load(options)?;
    let held = KEYS
        .iter()
        .map(|key| key.path)
        .filter(|key| !is_reloadable(key) && written.values.get(key) != running.values.get(key))
        .collect();
    let mut loaded = load_over(options, Some(fixed(running)))?;
    // Hidden in the values.
    loaded
        .config
        .mqtt
        .password
        .clone_from(&running.config.mqtt.password);
    Ok(Reloaded { loaded, held })
}

fn is_reloadable(key: &str) -> bool {
    RELOADABLE_KEYS.contains(&key) || (key.starts_with("limits.") && !FIXED_LIMIT_KEYS.contains(&key))
}

/// The values that stay, as a layer over all others.
fn fixed(running: &Loaded) -> Layer {
    let mut layer = Layer::default();
    for key in KEYS.iter().filter(|key| !is_reloadable(key.path)) {
        let origin = running.origins.get(key.path).cloned();
        let entry = Entry {
            value: running.values.get(key.path).cloned(),
            origin: origin.unwrap_or(Origin::Default),
        };
        layer.entries.insert(key.path, entry);
    }
    layer
}
