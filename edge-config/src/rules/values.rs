//! The values of one rule by key, each checked by itself, with their lines.

use std::collections::BTreeMap;
use std::path::Path;

use serde::de::DeserializeOwned;
use toml::{Table, Value};

use super::keys::{RULE_KEYS, TABLES, find};
use super::topics::{about_filter, about_output};
use crate::document::{Lines, join};
use crate::layer::{preset_value, shown};
use crate::nearest::nearest_of;
use crate::{ConfigError, Key, Origin};

/// The position of a rule in a file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) path: &'a Path,
    pub(super) lines: &'a Lines,
}

impl Place<'_> {
    /// The origin of the rule.
    pub(super) fn rule(self) -> Origin {
        self.line(self.lines.start)
    }

    /// The origin of a key, or of the rule if it has no such key.
    pub(super) fn key(self, path: &str) -> Origin {
        self.line(self.lines.keys.get(path).copied().or(self.lines.start))
    }

    fn line(self, line: Option<usize>) -> Origin {
        Origin::File {
            path: self.path.to_owned(),
            line,
        }
    }
}

/// The values of a rule.
pub(super) struct Values<'a> {
    /// The name of the rule in messages.
    label: String,
    place: Place<'a>,
    given: BTreeMap<&'static str, Value>,
    /// The tables that the rule itself has.
    tables: Vec<&'static str>,
}

impl<'a> Values<'a> {
    /// Checks every key of the table by itself.
    pub(super) fn check(label: String, place: Place<'a>, table: Table) -> Result<Self, ConfigError> {
        let mut values = Self {
            label,
            place,
            given: BTreeMap::new(),
            tables: Vec::new(),
        };
        values.take("", table)?;
        Ok(values)
    }

    fn take(&mut self, prefix: &str, table: Table) -> Result<(), ConfigError> {
        for (name, value) in table {
            let path = join(prefix, &name);
            if let Some(key) = find(&path) {
                let accepted = key.shape.accept(&value).ok_or_else(|| self.wrong(key, &value))?;
                self.given.insert(key.path, accepted);
            } else if let Some(known) = TABLES.into_iter().find(|known| *known == path) {
                let Value::Table(inner) = value else {
                    let problem = format!(
                        "`{path}` must be a table, such as {}, but is {}",
                        example(&path),
                        shown(&value)
                    );
                    return Err(self.fault(&path, problem));
                };
                self.tables.push(known);
                self.take(known, inner)?;
            } else {
                let known = RULE_KEYS.iter().map(|key| key.path).chain(TABLES);
                let nearest = nearest_of(&path, known).unwrap_or("name");
                let problem = format!("unknown key `{path}`; the nearest known one is `{nearest}`");
                return Err(self.fault(&path, problem));
            }
        }
        Ok(())
    }

    fn wrong(&self, key: &Key, value: &Value) -> ConfigError {
        let item = |about: fn(&str) -> Option<String>| {
            value.as_array()?.iter().find_map(|item| about(item.as_str()?))
        };
        let hint = match key.path {
            "topics" => item(about_filter),
            "output.topic" => value.as_str().and_then(about_output),
            _ => key.shape.hint(value),
        };
        let hint = hint.map(|hint| format!(" ({hint})")).unwrap_or_default();
        let problem = format!(
            "`{}` must be {}, but is {}{hint}",
            key.path,
            key.shape,
            shown(value)
        );
        self.fault(key.path, problem)
    }

    /// A fault of the rule at one of its keys.
    pub(super) fn fault(&self, path: &str, problem: impl Into<String>) -> ConfigError {
        ConfigError::Rule {
            rule: self.label.clone(),
            origin: self.place.key(path),
            problem: problem.into(),
        }
    }

    /// The origin of the rule.
    pub(super) fn origin(&self) -> Origin {
        self.place.rule()
    }

    /// Whether the rule itself has the key.
    pub(super) fn has(&self, path: &str) -> bool {
        self.given.contains_key(path)
    }

    /// Whether the rule itself has this table, even an empty one.
    pub(super) fn has_table(&self, path: &str) -> bool {
        self.tables.contains(&path)
    }

    /// The value of a key or its default; none if it has neither.
    pub(super) fn optional<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, ConfigError> {
        let preset = || find(path).and_then(|key| preset_value(key.default));
        let Some(value) = self.given.get(path).cloned().or_else(preset) else {
            return Ok(None);
        };
        let fault = |fault| ConfigError::Internal(format!("`{path}` of rule {}: {fault}", self.label));
        value.try_into().map(Some).map_err(fault)
    }

    /// The value of a key that has a default or was found to be there.
    pub(super) fn value<T: DeserializeOwned>(&self, path: &str) -> Result<T, ConfigError> {
        let missing = || ConfigError::Internal(format!("`{path}` of rule {} has no value", self.label));
        self.optional(path)?.ok_or_else(missing)
    }

    /// The value of a text key in its own form.
    pub(super) fn parsed<T>(
        &self,
        path: &str,
        parse: fn(&str) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        let wrong = || ConfigError::Internal(format!("`{path}` of rule {} is not in its form", self.label));
        let text: Option<String> = self.optional(path)?;
        text.map(|text| parse(&text).ok_or_else(wrong)).transpose()
    }
}

fn example(table: &str) -> &'static str {
    match table {
        "output" => "{ topic = \"plant/summary\", retain = true }",
        "limits" => "{ keep_messages = 500 }",
        "picture" => "{ which = \"sheet\", sheet = 4 }",
        _ => "{ kind = \"tumbling\", every = \"10s\" }",
    }
}
