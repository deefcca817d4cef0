//! The folder of rule files.

use std::path::{Path, PathBuf};

use super::Rule;
use super::read::{one, read, taken};
use super::values::Place;
use crate::document::{self, Document, join};
use crate::schema::RULES;
use crate::{ConfigError, Origin, file, topic};

/// Reads the rules of a folder, its files in the order of their names; a missing folder has none. The files that were
/// read are added to `files`.
pub(crate) fn folder(path: &Path, files: &mut Vec<PathBuf>) -> Result<Vec<Rule>, ConfigError> {
    let mut rules: Vec<Rule> = Vec::new();
    for path in file::folder(path)? {
        for rule in parse(&path, &file::text(&path)?)? {
            if let Some(other) = rules.iter().find(|other| other.name == rule.name) {
                return Err(taken(&rule, other));
            }
            rules.push(rule);
        }
        files.push(path);
    }
    Ok(rules)
}

/// Reads the text of a rule file: the keys of one rule, or `[[rules]]`. A file in which everything is commented out
/// has none.
fn parse(path: &Path, text: &str) -> Result<Vec<Rule>, ConfigError> {
    let Document {
        mut table,
        keys,
        rules: lines,
        as_rule,
    } = document::parse(path, text)?;
    if table.is_empty() {
        return Ok(Vec::new());
    }
    let Some(rules) = table.remove(RULES) else {
        let place = Place {
            path,
            lines: &as_rule,
        };
        let name = name(path, place, table.get("name"))?;
        return one(name, place, table).map(|rule| vec![rule]);
    };
    if let Some(other) = table.keys().next() {
        let other = join("", other);
        let origin = Origin::File {
            path: path.to_owned(),
            line: keys.get(&other).copied(),
        };
        let problem = format!(
            "`{other}` stands beside [[rules]], but a rule file holds either the keys of one rule or [[rules]]; move it \
             below the line [[rules]] of its rule"
        );
        return Err(ConfigError::Rule {
            rule: format!("{:?}", stem(path)),
            origin,
            problem,
        });
    }
    read(rules, path, &lines)
}

/// The name of a file's only rule: its `name`, or that of the file.
fn name(path: &Path, place: Place<'_>, given: Option<&toml::Value>) -> Result<String, ConfigError> {
    let expected = "1 to 64 of A-Z a-z 0-9 . _ -";
    let stem = path
        .file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let (name, problem) = match given {
        Some(value) => (
            value.as_str().unwrap_or_default().to_owned(),
            format!("`name` must be {expected}"),
        ),
        None => (
            stem.clone(),
            format!("is named by its file, which is not {expected}; give it a `name` or rename the file"),
        ),
    };
    if topic::is_name(&name) {
        return Ok(name);
    }
    Err(ConfigError::Rule {
        rule: format!("{stem:?}"),
        origin: place.key("name"),
        problem,
    })
}

fn stem(path: &Path) -> String {
    path.file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}
