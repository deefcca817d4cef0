//! A layer: the values of one source (the built-in defaults, a file, the environment or the flags), checked by itself
//! so that a fault is reported even if a later layer overrides it.

use std::collections::BTreeMap;

use config::{Map, Source, ValueKind};
use toml::Value;

use crate::nearest::nearest;
use crate::schema::{KEYS, Key, Preset, RULES};
use crate::secret::REDACTED;
use crate::{ConfigError, Origin, Rule};

/// The prefix of environment variables that are configuration.
pub(crate) const ENV_PREFIX: &str = "PHI_EDGE__";
/// The length to which a message shortens a wrong value, in characters.
const MAX_SHOWN_CHARS: usize = 60;

/// A value and its origin; no value means that the layer unsets an optional key.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) value: Option<Value>,
    pub(crate) origin: Origin,
}

/// The values of one source by key.
#[derive(Debug, Clone, Default)]
pub(crate) struct Layer {
    pub(crate) entries: BTreeMap<&'static str, Entry>,
    pub(crate) rules: Vec<Rule>,
}

impl Layer {
    /// The built-in defaults.
    pub(crate) fn defaults() -> Self {
        let mut layer = Self::default();
        for key in &KEYS {
            if let Some(value) = preset_value(key.default) {
                layer.entries.insert(
                    key.path,
                    Entry {
                        value: Some(value),
                        origin: Origin::Default,
                    },
                );
            }
        }
        layer
    }

    /// The variables of the environment that begin with `PHI_EDGE__`.
    pub(crate) fn environment(variables: &[(String, String)]) -> Result<Self, ConfigError> {
        let mut layer = Self::default();
        for (name, text) in variables {
            let Some(rest) = name.strip_prefix(ENV_PREFIX) else {
                continue;
            };
            let path = rest.to_lowercase().replace("__", ".");
            let origin = Origin::Environment(name.clone());
            let Some(key) = find(&path) else {
                return Err(unknown_in_text(path, origin));
            };
            layer.set(key, &key.shape.value_of_text(text), origin)?;
        }
        Ok(layer)
    }

    /// The flags of the command line, given as keys and texts.
    pub(crate) fn flags(flags: &[(String, String)]) -> Result<Self, ConfigError> {
        let mut layer = Self::default();
        for (path, text) in flags {
            let origin = Origin::Flag(path.clone());
            let Some(key) = find(path) else {
                return Err(unknown_in_text(path.clone(), origin));
            };
            layer.set(key, &key.shape.value_of_text(text), origin)?;
        }
        Ok(layer)
    }

    /// Checks a value and stores it.
    pub(crate) fn set(&mut self, key: &Key, value: &Value, origin: Origin) -> Result<(), ConfigError> {
        let accepted = if takes_back(key, value) {
            None
        } else {
            Some(
                key.shape
                    .accept(value)
                    .ok_or_else(|| wrong_value(key, value, origin.clone()))?,
            )
        };
        self.entries.insert(
            key.path,
            Entry {
                value: accepted,
                origin,
            },
        );
        Ok(())
    }
}

/// The key of this path.
pub(crate) fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

/// The environment variable that sets a key.
pub(crate) fn variable(path: &str) -> String {
    format!("{ENV_PREFIX}{}", path.to_uppercase().replace('.', "__"))
}

/// Whether a text unsets the key: an empty one does for an optional key, so that a later layer can undo an earlier
/// one.
fn takes_back(key: &Key, value: &Value) -> bool {
    let empty = match value {
        Value::String(text) => text.is_empty(),
        _ => false,
    };
    empty && key.default == Preset::Unset
}

fn wrong_value(key: &Key, value: &Value, origin: Origin) -> ConfigError {
    let mut found = if key.secret {
        format!("{REDACTED} ({})", value.type_str())
    } else {
        shown(value)
    };
    if let Some(hint) = key.shape.hint(value) {
        found = format!("{found} ({hint})");
    }
    ConfigError::Value {
        key: key.path.to_owned(),
        origin,
        found,
        expected: key.shape.to_string(),
    }
}

/// A value for a message, on one line and shortened.
pub(crate) fn shown(value: &Value) -> String {
    match value {
        Value::Table(_) => return "a table".to_owned(),
        Value::String(text) => {
            let text = without_user(text);
            let mut start: String = text.chars().take(MAX_SHOWN_CHARS).collect();
            if start.len() < text.len() {
                start.push('…');
            }
            return format!("{start:?}");
        }
        _ => {}
    }
    let whole = value.to_string().replace(char::is_control, " ");
    let mut start: String = whole.chars().take(MAX_SHOWN_CHARS).collect();
    if start.len() < whole.len() {
        start.push('…');
    }
    start
}

/// An address with its user and password hidden; any other text as it is.
fn without_user(text: &str) -> String {
    match (text.find("://"), text.rfind('@')) {
        (Some(scheme), Some(at)) if scheme < at => {
            format!("{}{REDACTED}{}", &text[..scheme + 3], &text[at..])
        }
        _ => text.to_owned(),
    }
}

/// The fault of an unknown key in the environment or a flag. Rules are known, but can't be written in one line.
fn unknown_in_text(path: String, origin: Origin) -> ConfigError {
    if path == RULES || path.starts_with("rules.") {
        return ConfigError::Value {
            key: RULES.to_owned(),
            origin,
            found: "a text".to_owned(),
            expected: "given in a file, as [[rules]]".to_owned(),
        };
    }
    // A section alone can't be set by text, so the suggestion goes on to the section's first key.
    let near = nearest(&path);
    let near = if find(near).is_some() {
        near
    } else {
        KEYS.iter()
            .map(|key| key.path)
            .find(|key| key.starts_with(near))
            .unwrap_or(near)
    };
    let nearest = match origin {
        Origin::Environment(_) => variable(near),
        _ => near.to_owned(),
    };
    ConfigError::UnknownKey {
        key: path,
        origin,
        nearest,
    }
}

/// A built-in default as a value.
pub(crate) fn preset_value(preset: Preset) -> Option<Value> {
    match preset {
        Preset::Unset => None,
        Preset::Text(text) => Some(Value::String(text.to_owned())),
        Preset::Number(number) => Some(Value::Integer(number)),
        Preset::Switch(on) => Some(Value::Boolean(on)),
        Preset::List(items) => Some(Value::Array(
            items
                .iter()
                .map(|item| Value::String((*item).to_owned()))
                .collect(),
        )),
    }
}

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, config::Value>, config::ConfigError> {
        let entry = |(path, entry): (&&'static str, &Entry)| {
            let origin = entry.origin.to_string();
            let kind = entry
                .value
                .as_ref()
                .map_or(ValueKind::Nil, |value| kind_of(value, &origin));
            ((*path).to_owned(), config::Value::new(Some(&origin), kind))
        };
        Ok(self.entries.iter().map(entry).collect())
    }
}

/// A checked value as a TOML value; only the types that shapes accept occur.
fn kind_of(value: &Value, origin: &String) -> ValueKind {
    match value {
        Value::String(text) => ValueKind::String(text.clone()),
        Value::Integer(number) => ValueKind::I64(*number),
        Value::Boolean(on) => ValueKind::Boolean(*on),
        Value::Array(items) => {
            let item = |item| config::Value::new(Some(origin), kind_of(item, origin));
            ValueKind::Array(items.iter().map(item).collect())
        }
        Value::Table(table) => {
            let item = |(name, item): (&String, _)| {
                (
                    name.clone(),
                    config::Value::new(Some(origin), kind_of(item, origin)),
                )
            };
            ValueKind::Table(table.iter().map(item).collect())
        }
        Value::Float(_) | Value::Datetime(_) => ValueKind::Nil,
    }
}
