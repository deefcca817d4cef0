//! The effective configuration as text, each value with its origin.

use std::fmt::Write as _;

use toml::Value;

use crate::schema::KEYS;
use crate::{Loaded, Origin, Rule};

/// Prints the effective configuration as TOML, each value followed by its origin. Secrets show as `***`, optional keys
/// that are not set as comments.
pub fn render(loaded: &Loaded) -> String {
    let mut out = String::new();
    let mut section = "";
    let mut lines = Vec::new();
    for key in &KEYS {
        let (this_section, name) = key.path.rsplit_once('.').unwrap_or(("", key.path));
        if this_section != section {
            flush(&mut out, section, &mut lines);
            section = this_section;
        }
        lines.push(match loaded.values.get(key.path) {
            None => (format!("# {name}"), "not set".to_owned()),
            Some(value) => {
                let origin = loaded.origins.get(key.path).unwrap_or(&Origin::Default);
                (format!("{name} = {value}"), origin.to_string())
            }
        });
    }
    flush(&mut out, section, &mut lines);
    for rule in &loaded.config.rules {
        rule_block(&mut out, rule);
    }
    out
}

/// Writes a comment that describes a rule: its file has all of it, and a part would read as another rule.
fn rule_block(out: &mut String, rule: &Rule) {
    let topics: Vec<Value> = rule.topics.iter().cloned().map(Value::String).collect();
    let origin = rule.origin.to_string().replace(char::is_control, " ");
    // Writing to a String can't fail.
    let _ = writeln!(
        out,
        "\n# [[rules]]  # {origin}\n# name = \"{}\"\n# topics = {}\n# window.kind = \"{}\"",
        rule.name,
        Value::Array(topics),
        rule.window.kind.name()
    );
}

/// Writes a section with its origins in one column.
fn flush(out: &mut String, section: &str, lines: &mut Vec<(String, String)>) {
    if lines.is_empty() {
        return;
    }
    let width = lines
        .iter()
        .map(|(setting, _)| setting.chars().count())
        .max()
        .unwrap_or(0)
        .min(48);
    let gap = if out.is_empty() { "" } else { "\n" };
    let _ = writeln!(out, "{gap}[{section}]");
    for (setting, origin) in lines.drain(..) {
        let origin = origin.replace(char::is_control, " ");
        let _ = writeln!(out, "{setting:width$}  # {origin}");
    }
}
