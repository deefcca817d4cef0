//! Holds `default.toml` against the known keys and the structs, both ways.
#![allow(clippy::unwrap_used, reason = "a test may end at a fault")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use phi_edge_config::{DEFAULT_FILE, LoadOptions, Preset, Shape, known_keys, load};
use toml::{Table, Value};

struct Documented {
    comment: String,
    value: Value,
}

/// The keys of the default file with the comment above each.
fn documented() -> BTreeMap<String, Documented> {
    let mut found = BTreeMap::new();
    let (mut section, mut comment) = (String::new(), String::new());
    for line in DEFAULT_FILE.lines() {
        if let Some(name) = line.strip_prefix('[') {
            name.trim_end_matches(']').clone_into(&mut section);
            comment.clear();
        } else if line.is_empty() || line == "#" {
            comment.clear();
        } else if let Some(text) = line.strip_prefix("# ") {
            comment.push_str(text);
            comment.push('\n');
        } else {
            let setting = line
                .strip_prefix('#')
                .unwrap_or_else(|| panic!("not commented out: {line}"));
            let mut table: Table = setting
                .parse()
                .unwrap_or_else(|fault| panic!("{setting}: {fault}"));
            assert_eq!(table.len(), 1, "{setting}");
            let name = table.keys().next().unwrap().clone();
            let value = table.remove(&name).unwrap();
            let path = format!("{section}.{name}");
            let again = found.insert(
                path.clone(),
                Documented {
                    comment: comment.clone(),
                    value,
                },
            );
            assert!(again.is_none(), "{path} stands twice");
        }
    }
    found
}

fn preset(default: Preset) -> Option<Value> {
    match default {
        Preset::Unset => None,
        Preset::Text(text) => Some(Value::from(text)),
        Preset::Number(number) => Some(Value::from(number)),
        Preset::Switch(on) => Some(Value::from(on)),
        Preset::List(items) => Some(Value::from(items.to_vec())),
    }
}

fn flatten(prefix: &str, table: &Table, into: &mut BTreeSet<String>) {
    for (name, value) in table {
        let path = if prefix.is_empty() {
            name.clone()
        } else {
            format!("{prefix}.{name}")
        };
        match value {
            Value::Table(inner) => flatten(&path, inner, into),
            _ => {
                into.insert(path);
            }
        }
    }
}

#[test]
fn the_file_documents_every_key_and_no_other() {
    let in_file: BTreeSet<String> = documented().into_keys().collect();
    let known: BTreeSet<String> = known_keys().iter().map(|key| key.path.to_owned()).collect();
    assert_eq!(in_file, known);
}

#[test]
fn every_key_has_a_meaning_a_unit_and_its_default() {
    let documented = documented();
    for key in known_keys() {
        let Documented { comment, value } = &documented[key.path];
        let lines: Vec<&str> = comment.lines().collect();
        assert!(lines.len() >= 2, "{} has no meaning", key.path);
        let last = lines[lines.len() - 1];
        let (unit, default) = last
            .strip_prefix("Unit: ")
            .and_then(|rest| rest.split_once(". Default: "))
            .unwrap_or_else(|| {
                panic!(
                    "the comment of {} does not end with its unit and default: {last}",
                    key.path
                )
            });
        let word = match key.shape {
            Shape::Duration { .. } => "duration",
            Shape::Size { .. } => "size",
            Shape::Path => "path",
            Shape::Address => "IP address and port",
            Shape::Switch => "true or false",
            _ => "",
        };
        assert!(unit.contains(word), "{}: {unit}", key.path);
        match preset(key.default) {
            Some(expected) => {
                assert_eq!(*value, expected, "{}", key.path);
                assert_eq!(default, expected.to_string(), "{}", key.path);
            }
            None => assert!(
                default.ends_with('.'),
                "{}: the default is not said in words: {default}",
                key.path
            ),
        }
    }
}

/// Sets every key of the file, so that the structs, which refuse unknown fields, must know them all, and no field
/// of theirs may be left without a key.
#[test]
fn the_structs_have_every_key_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("all.toml");
    let mut text = String::new();
    for line in DEFAULT_FILE.lines() {
        let setting = line
            .strip_prefix('#')
            .filter(|rest| !rest.is_empty() && !rest.starts_with(' '));
        let clear_password = setting.is_some_and(|setting| setting.starts_with("password ="));
        text.push_str(if clear_password {
            ""
        } else {
            setting.unwrap_or(line)
        });
        text.push('\n');
    }
    fs::write(&path, text).unwrap();
    let config = load(LoadOptions {
        config: Some(path),
        ..LoadOptions::default()
    })
    .unwrap()
    .config;

    let mut fields = BTreeSet::new();
    flatten("", &Table::try_from(&config).unwrap(), &mut fields);
    // The one key that can't stand beside another, mqtt.password_file.
    assert!(fields.insert("mqtt.password".to_owned()));
    let known: BTreeSet<String> = known_keys().iter().map(|key| key.path.to_owned()).collect();
    assert_eq!(fields, known);
}

#[test]
fn the_file_as_it_is_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("default.toml");
    fs::write(&path, DEFAULT_FILE).unwrap();
    let with = load(LoadOptions {
        config: Some(path),
        ..LoadOptions::default()
    })
    .unwrap();
    let without = load(LoadOptions::default()).unwrap();
    assert_eq!(with.config, without.config);
    assert_eq!(with.origins, without.origins);
}
