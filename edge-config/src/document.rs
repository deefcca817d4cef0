//! The parser of a TOML file, which keeps the lines of its keys and rules.

use std::collections::BTreeMap;
use std::path::Path;

use toml::Table;
use toml::de::{DeTable, DeValue};

use crate::rules::TABLES;
use crate::schema::{RULES, SECTIONS};
use crate::{ConfigError, Origin};

/// A parsed file.
pub(crate) struct Document {
    /// The content.
    pub(crate) table: Table,
    /// The lines of its keys, by their paths with sections.
    pub(crate) keys: BTreeMap<String, usize>,
    /// The lines of its `[[rules]]`; one where they are no array, for the message that says so.
    pub(crate) rules: Vec<Lines>,
    /// The lines of its keys if the whole file is one rule.
    pub(crate) as_rule: Lines,
}

/// The lines of a rule and its keys, as far as they are known.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lines {
    /// Where the rule begins; none where the whole file is the rule.
    pub(crate) start: Option<usize>,
    /// The lines of its keys, by their paths within the rule.
    pub(crate) keys: BTreeMap<String, usize>,
}

/// Parses the text of a file; `path` is for messages.
pub(crate) fn parse(path: &Path, text: &str) -> Result<Document, ConfigError> {
    let positions = Positions::new(text);
    let fault = |fault: toml::de::Error| syntax(path, &positions, &fault);
    let spanned = DeTable::parse(text).map_err(fault)?;
    let spanned = spanned.get_ref();
    let mut document = Document {
        table: text.parse().map_err(fault)?,
        keys: BTreeMap::new(),
        rules: Vec::new(),
        as_rule: Lines::default(),
    };
    collect(&mut document.keys, &positions, "", spanned, &SECTIONS);
    collect(&mut document.as_rule.keys, &positions, "", spanned, &TABLES);
    let rules = spanned.get(RULES).map(toml::Spanned::get_ref);
    if let Some(DeValue::Array(items)) = rules {
        let lines = |item: &toml::Spanned<DeValue<'_>>| {
            let mut keys = BTreeMap::new();
            if let DeValue::Table(table) = item.get_ref() {
                collect(&mut keys, &positions, "", table, &TABLES);
            }
            let start = Some(positions.line(item.span().start));
            Lines { start, keys }
        };
        document.rules = items.iter().map(lines).collect();
    } else if rules.is_some() {
        let start = document.keys.get(RULES).copied();
        let keys = BTreeMap::new();
        document.rules = vec![Lines { start, keys }];
    }
    Ok(document)
}

/// Notes the lines of the keys of a table and of its tables that are known to hold keys.
fn collect(
    lines: &mut BTreeMap<String, usize>,
    positions: &Positions<'_>,
    prefix: &str,
    table: &DeTable<'_>,
    tables: &[&str],
) {
    for (name, value) in table {
        let path = join(prefix, name.get_ref());
        if let DeValue::Table(inner) = value.get_ref()
            && tables.contains(&path.as_str())
        {
            collect(lines, positions, &path, inner, tables);
        }
        lines.insert(path, positions.line(name.span().start));
    }
}

/// The offsets of a text's lines, by which a position is found without counting from the start.
struct Positions<'a> {
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Positions<'a> {
    fn new(text: &'a str) -> Self {
        let after_newlines = text.match_indices('\n').map(|(offset, _)| offset + 1);
        Self {
            text,
            starts: std::iter::once(0).chain(after_newlines).collect(),
        }
    }

    /// The line of an offset, counted from 1.
    fn line(&self, offset: usize) -> usize {
        self.starts.partition_point(|start| *start <= offset)
    }

    /// The column of an offset in characters, counted from 1.
    fn column(&self, offset: usize) -> usize {
        let start = self.starts.get(self.line(offset) - 1).copied().unwrap_or(0);
        self.text.get(start..offset).unwrap_or_default().chars().count() + 1
    }
}

fn syntax(path: &Path, positions: &Positions<'_>, fault: &toml::de::Error) -> ConfigError {
    let offset = fault.span().map_or(0, |span| span.start);
    // Only the parser's words, not its picture of the line: that line may hold a secret.
    let problem = fault.message().replace(char::is_control, " ");
    ConfigError::Syntax {
        origin: Origin::File {
            path: path.to_owned(),
            line: Some(positions.line(offset)),
        },
        column: positions.column(offset),
        problem,
    }
}

/// The path of a key below its section. A name that is not bare is quoted, so that a dot in it separates nothing and
/// a control character does not reach a message.
pub(crate) fn join(prefix: &str, name: &str) -> String {
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
