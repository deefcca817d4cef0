//! Configuration files: how they are found, and how one becomes a layer.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use crate::document::{self, Document, Lines, join};
use crate::layer::{Layer, find};
use crate::nearest::nearest;
use crate::rules;
use crate::schema::{RULES, SECTIONS};
use crate::shape::CREDENTIAL_PREFIX;
use crate::{ConfigError, Origin, Shape};

/// Reads a file that must exist.
pub(crate) fn read(path: &Path) -> Result<Layer, ConfigError> {
    parse(path, &text(path)?)
}

/// The text of a file.
pub(crate) fn text(path: &Path) -> Result<String, ConfigError> {
    fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })
}

/// Reads a file that may be missing.
pub(crate) fn read_if_there(path: &Path) -> Result<Option<Layer>, ConfigError> {
    match read(path) {
        Err(ConfigError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

/// The `*.toml` files of a folder, sorted by name; none if the folder is missing. Hidden files are left out,
/// since editors and package managers leave copies under such names.
pub(crate) fn folder(path: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let fault = |source| ConfigError::Read {
        path: path.to_owned(),
        source,
    };
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(fault(source)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let file = entry.map_err(fault)?.path();
        let hidden = file
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && file.extension().is_some_and(|extension| extension == "toml") {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

/// Reads the text of a file; `path` is for messages and for relative paths in it.
fn parse(path: &Path, text: &str) -> Result<Layer, ConfigError> {
    let Document {
        table, keys, rules, ..
    } = document::parse(path, text)?;
    let mut reader = Reader {
        path,
        lines: keys,
        rules,
        layer: Layer::default(),
    };
    reader.section("", table)?;
    Ok(reader.layer)
}

struct Reader<'a> {
    path: &'a Path,
    lines: BTreeMap<String, usize>,
    rules: Vec<Lines>,
    layer: Layer,
}

impl Reader<'_> {
    fn section(&mut self, prefix: &str, table: Table) -> Result<(), ConfigError> {
        for (name, value) in table {
            let path = join(prefix, &name);
            let origin = self.origin(self.lines.get(&path).copied());
            if path == RULES {
                self.layer.rules = rules::read(value, self.path, &self.rules)?;
            } else if let Some(key) = find(&path) {
                let value = match key.shape {
                    Shape::Path => self.beside_file(value),
                    _ => value,
                };
                self.layer.set(key, &value, origin)?;
            } else if SECTIONS.contains(&path.as_str()) {
                let Value::Table(inner) = value else {
                    return Err(ConfigError::Value {
                        expected: format!("a section, begun by a line [{path}]"),
                        key: path,
                        origin,
                        found: format!("a value ({})", value.type_str()),
                    });
                };
                self.section(&path, inner)?;
            } else {
                let nearest = nearest(&path).to_owned();
                return Err(ConfigError::UnknownKey {
                    key: path,
                    origin,
                    nearest,
                });
            }
        }
        Ok(())
    }

    fn origin(&self, line: Option<usize>) -> Origin {
        Origin::File {
            path: self.path.to_owned(),
            line,
        }
    }

    /// Resolves relative paths against the folder of their file, so that a folder with a configuration and a model
    /// can be moved and used from anywhere.
    fn beside_file(&self, value: Value) -> Value {
        let Value::String(text) = &value else { return value };
        if text.is_empty() || text.starts_with(CREDENTIAL_PREFIX) || Path::new(text).is_absolute() {
            return value;
        }
        let joined = self.path.parent().map(|parent| parent.join(text));
        match joined.as_deref().and_then(Path::to_str) {
            Some(joined) => Value::String(joined.to_owned()),
            None => value,
        }
    }
}
