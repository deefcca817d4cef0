//! Holds `default.toml` against the known keys and the structs, both ways.
#![allow(clippy::unwrap_used, reason = "a test may end at a fault")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use phi_edge_config::{
    ConfigError, DEFAULT_FILE, Key, LoadOptions, Loaded, Origin, Preset, Rule, Shape, known_keys, load,
    rule_keys,
};
use toml::{Table, Value};

struct Documented {
    comment: String,
    value: Value,
}

/// The file's keys of sections, and its keys of a rule.
fn halves() -> (&'static str, &'static str) {
    DEFAULT_FILE.split_once("#[[rules]]\n").unwrap()
}

/// The keys of a half of the default file with the comment above each.
fn documented(half: &str) -> BTreeMap<String, Documented> {
    let mut found = BTreeMap::new();
    let (mut section, mut comment) = (String::new(), String::new());
    for line in half.lines() {
        if let Some(name) = line.strip_prefix('[').or_else(|| line.strip_prefix("#[rules.")) {
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
            let path = format!("{section}.{name}").trim_start_matches('.').to_owned();
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
            // Options are one value, whatever their names are.
            Value::Table(inner) if known_keys().iter().all(|key| key.path != path) => {
                flatten(&path, inner, into);
            }
            _ => {
                into.insert(path);
            }
        }
    }
}

fn paths(keys: &[Key]) -> BTreeSet<String> {
    keys.iter().map(|key| key.path.to_owned()).collect()
}

#[test]
fn the_file_documents_every_key_and_no_other() {
    let (sections, rule) = halves();
    let in_file = |half| documented(half).into_keys().collect::<BTreeSet<_>>();
    assert_eq!(in_file(sections), paths(known_keys()));
    assert_eq!(in_file(rule), paths(rule_keys()));
}

#[test]
fn every_key_has_a_meaning_a_unit_and_its_default() {
    let (sections, rule) = halves();
    check_comments(&documented(sections), known_keys());
    check_comments(&documented(rule), rule_keys());
}

fn check_comments(documented: &BTreeMap<String, Documented>, keys: &[Key]) {
    for key in keys {
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
            Shape::Pointers => "table of JSON pointers",
            Shape::Options => "table of texts",
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

/// What a rule must also have for this key to mean something.
fn around(key: &str) -> &'static str {
    match key {
        "template" => "",
        "window.kind" => "prompt = \"p\"\nwindow.every = \"1m\"",
        "window.every" => "prompt = \"p\"\nwindow.kind = \"tumbling\"",
        "window.length" => "prompt = \"p\"\nwindow = { kind = \"hopping\", every = \"10s\" }",
        "window.gap" => "prompt = \"p\"\nwindow.kind = \"session\"",
        "window.messages" => "prompt = \"p\"\nwindow.kind = \"count\"",
        "window.at" => "prompt = \"p\"\nwindow.kind = \"schedule\"",
        "window.days" => "prompt = \"p\"\nwindow = { kind = \"schedule\", at = [\"06:00\"] }",
        "window.lateness" => {
            "prompt = \"p\"\nwindow = { kind = \"tumbling\", every = \"1m\", time = \"field:/time\" }"
        }
        "window.cool_down" => {
            "prompt = \"p\"\nwindow = { kind = \"tumbling\", every = \"1m\", early = \"true\" }"
        }
        "window.max_age" => "prompt = \"p\"\nwindow = { kind = \"session\", gap = \"1m\" }",
        "picture.sheet" => "prompt = \"p\"\npayload = \"image\"\npicture = { which = \"sheet\" }",
        key if key.starts_with("picture.") => "prompt = \"p\"\npayload = \"image\"\npicture = {}",
        key if key.starts_with("window.") => {
            "prompt = \"p\"\nwindow = { kind = \"tumbling\", every = \"1m\" }"
        }
        _ => "prompt = \"p\"",
    }
}

/// Every key of a rule is taken as the file has it, changes the rule if it has no default, and changes nothing if it has.
#[test]
fn rules_take_every_key_as_documented() {
    let documented = documented(halves().1);
    for key in rule_keys() {
        let mut table: Table = around(key.path).parse().unwrap();
        table.entry("name").or_insert("r".into());
        table.entry("topics").or_insert(vec!["t"].into());
        let without = rule_of(&table);
        let value = documented[key.path].value.clone();
        match key.path.split_once('.') {
            None => table.insert(key.path.to_owned(), value),
            Some((section, name)) => {
                let inner = table.entry(section).or_insert(Table::new().into());
                inner.as_table_mut().unwrap().insert(name.to_owned(), value)
            }
        };
        let with = rule_of(&table).unwrap_or_else(|fault| panic!("{}: {fault}", key.path));
        match without {
            Ok(without) if preset(key.default).is_some() => assert_eq!(with, without, "{}", key.path),
            Ok(without) => assert_ne!(with, without, "{}", key.path),
            Err(fault) => assert!(preset(key.default).is_none(), "{}: {fault}", key.path),
        }
    }
}

fn rule_of(table: &Table) -> Result<Rule, ConfigError> {
    let whole = Table::from_iter([(
        "rules".to_owned(),
        Value::Array(vec![Value::Table(table.clone())]),
    )]);
    let mut rule = load_text(&whole.to_string())?.config.rules.remove(0);
    rule.origin = Origin::Default;
    Ok(rule)
}

fn load_text(text: &str) -> Result<Loaded, ConfigError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.toml");
    fs::write(&path, text).unwrap();
    load(&LoadOptions {
        config: Some(path),
        ..LoadOptions::default()
    })
}

/// Sets every key of the file, so that the structs, which refuse unknown fields, must know them all, and no field
/// of theirs may be left without a key.
#[test]
fn the_structs_have_every_key_and_no_other() {
    let mut text = String::new();
    for line in halves().0.lines() {
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
    let config = load_text(&text).unwrap().config;

    let mut fields = BTreeSet::new();
    flatten("", &Table::try_from(&config).unwrap(), &mut fields);
    // The one key that can't stand beside another, mqtt.password_file.
    assert!(fields.insert("mqtt.password".to_owned()));
    assert_eq!(fields, paths(known_keys()));
}

#[test]
fn the_file_as_it_is_changes_nothing() {
    let with = load_text(DEFAULT_FILE).unwrap();
    let without = load(&LoadOptions::default()).unwrap();
    assert_eq!(with.config, without.config);
    assert_eq!(with.origins, without.origins);
}
