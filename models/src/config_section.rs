//! Objects of `genai_config.json`, read key by key.

use std::path::Path;

use phi_edge_engine::TokenId;
use serde_json::Value;

/// An object of the file, with its path for messages.
pub(crate) struct Section<'a> {
    value: &'a Value,
    path: String,
}

impl<'a> Section<'a> {
    /// The whole file.
    pub(crate) fn whole(value: &'a Value) -> Self {
        Self {
            value,
            path: String::new(),
        }
    }

    /// Whether the file has it.
    pub(crate) fn is_there(&self) -> bool {
        !self.value.is_null()
    }

    pub(crate) fn key(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.value.get(key).filter(|value| !value.is_null())
    }

    pub(crate) fn section(&self, key: &str) -> Result<Section<'a>, String> {
        let section = self.optional_section(key)?;
        if section.value.is_null() {
            Err(format!("has no section {}", section.path))
        } else {
            Ok(section)
        }
    }

    pub(crate) fn optional_section(&self, key: &str) -> Result<Section<'a>, String> {
        let path = self.key(key);
        match self.get(key) {
            None => Ok(Section {
                value: &Value::Null,
                path,
            }),
            Some(value) if value.is_object() => Ok(Section { value, path }),
            Some(_) => Err(format!("{path} must be an object")),
        }
    }

    pub(crate) fn count(&self, key: &str) -> Result<usize, String> {
        self.optional_count(key)?
            .ok_or_else(|| format!("has no {}", self.key(key)))
    }

    /// A whole number of at least one.
    pub(crate) fn optional_count(&self, key: &str) -> Result<Option<usize>, String> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.as_u64().and_then(|number| usize::try_from(number).ok()) {
            Some(number) if number > 0 => Ok(Some(number)),
            _ => Err(format!(
                "{} must be a whole number above zero, not {value}",
                self.key(key)
            )),
        }
    }

    pub(crate) fn optional_text(&self, key: &str) -> Result<Option<String>, String> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) if !text.is_empty() && !text.contains('\0') => Ok(Some(text.clone())),
            Some(value) => Err(format!("{} must be a text, not {value}", self.key(key))),
        }
    }

    pub(crate) fn layer_template(&self, key: &str, default: &str) -> Result<String, String> {
        let template = self.optional_text(key)?.unwrap_or_else(|| default.to_owned());
        if template.contains("%d") {
            Ok(template)
        } else {
            Err(format!(
                "{} must hold %d in the layer's place, not \"{template}\"",
                self.key(key)
            ))
        }
    }

    /// A file within the directory: a name that leads out of it is refused.
    pub(crate) fn file_name(&self, key: &str) -> Result<String, String> {
        let name = self
            .optional_text(key)?
            .ok_or_else(|| format!("has no {}", self.key(key)))?;
        let inside = Path::new(&name)
            .components()
            .all(|part| matches!(part, std::path::Component::Normal(_)));
        if inside {
            Ok(name)
        } else {
            Err(format!(
                "{} must name a file of the model directory, not \"{name}\"",
                self.key(key)
            ))
        }
    }

    pub(crate) fn token_ids(&self, key: &str) -> Result<Vec<TokenId>, String> {
        let fault = || format!("{} must be a token id or a list of them", self.key(key));
        let id = |value: &Value| {
            value
                .as_u64()
                .and_then(|id| u32::try_from(id).ok())
                .map(TokenId)
                .ok_or_else(fault)
        };
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(ids)) => ids.iter().map(id).collect(),
            Some(value) => Ok(vec![id(value)?]),
        }
    }
}
