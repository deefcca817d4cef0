//! A configuration file as a layer, with the line of every key.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use crate::layer::{Layer, find};
use crate::nearest::nearest;
use crate::schema::{RULES, SECTIONS};
use crate::shape::CREDENTIAL;
use crate::{ConfigError, Origin, Shape, rules};

/// Reads a file that must exist.
pub(crate) fn read(path: &Path) -> Result<Layer, ConfigError> {
    let text = fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })?;
    parse(path, &text)
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
pub(crate) fn parse(path: &Path, text: &str) -> Result<Layer, ConfigError> {
    let document = DeTable::parse(text).map_err(|fault| syntax(path, text, &fault))?;
    let mut lines = Lines {
        text,
        by_key: BTreeMap::new(),
        rules: Vec::new(),
    };
    lines.collect("", document.get_ref());
    let table: Table = text.parse().map_err(|fault| syntax(path, text, &fault))?;

    let mut reader = Reader {
        path,
        lines: lines.by_key,
        rule_lines: lines.rules,
        layer: Layer::default(),
    };
    reader.section("", table)?;
    Ok(reader.layer)
}

struct Reader<'a> {
    path: &'a Path,
    lines: BTreeMap<String, usize>,
    rule_lines: Vec<usize>,
    layer: Layer,
}

impl Reader<'_> {
    fn section(&mut self, prefix: &str, table: Table) -> Result<(), ConfigError> {
        for (name, value) in table {
            let path = join(prefix, &name);
            let origin = self.origin(self.lines.get(&path).copied());
            if path == RULES {
                let place_of = |place: usize| self.origin(self.rule_lines.get(place).copied());
                let read = rules::read(value, &place_of)?;
                self.layer.rules = read;
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

    /// A relative path counts from the folder of the file that holds it, so that a folder with a configuration
    /// and a model can be moved and used from anywhere.
    fn beside_file(&self, value: Value) -> Value {
        let Value::String(text) = &value else { return value };
        if text.is_empty() || text.starts_with(CREDENTIAL) || Path::new(text).is_absolute() {
            return value;
        }
        let joined = self.path.parent().map(|parent| parent.join(text));
        match joined.as_deref().and_then(Path::to_str) {
            Some(joined) => Value::String(joined.to_owned()),
            None => value,
        }
    }
}

/// The lines of keys and rules, from the spans of the parsed document.
struct Lines<'a> {
    text: &'a str,
    by_key: BTreeMap<String, usize>,
    rules: Vec<usize>,
}

impl Lines<'_> {
    fn collect(&mut self, prefix: &str, table: &DeTable<'_>) {
        for (name, value) in table {
            let path = join(prefix, name.get_ref());
            let line = position(self.text, name.span().start).0;
            match value.get_ref() {
                DeValue::Array(items) if path == RULES => {
                    self.rules = items
                        .iter()
                        .map(|item| position(self.text, item.span().start).0)
                        .collect();
                }
                DeValue::Table(inner) if SECTIONS.contains(&path.as_str()) => self.collect(&path, inner),
                _ => {}
            }
            self.by_key.insert(path, line);
        }
    }
}

/// Line and column of a place in the text, both counted from 1.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
    (
        line,
        before.get(line_start..).unwrap_or_default().chars().count() + 1,
    )
}

fn syntax(path: &Path, text: &str, fault: &toml::de::Error) -> ConfigError {
    let (line, column) = position(text, fault.span().map_or(0, |span| span.start));
    // Only the parser's words, not its picture of the line: that line may hold a secret.
    let problem = fault.message().replace(char::is_control, " ");
    ConfigError::Syntax {
        origin: Origin::File {
            path: path.to_owned(),
            line: Some(line),
        },
        column,
        problem,
    }
}

/// A key below its section. A name that is not bare is quoted, so that a dot in it parts nothing and a control
/// character does not reach a message.
fn join(prefix: &str, name: &str) -> String {
    let bare = !name.is_empty()
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'));
    let name = if bare {
        name.to_owned()
    } else {
        format!("{name:?}")
    };
    if prefix.is_empty() {
        name
    } else {
        format!("{prefix}.{name}")
    }
}
