//! The conversion of a TOML table to a rule.

use std::collections::BTreeMap;
use std::path::Path;

use toml::{Table, Value};

use super::parse::selector;
use super::topics::names_group;
use super::values::{Place, Values};
use super::{Field, Output, PayloadFormat, Rule, RuleLimits, Selector, TimeSource, picture, window, words};
use crate::document::Lines;
use crate::{ConfigError, Origin, TimeSpan, topic};

/// Reads the `[[rules]]` of one file.
pub(crate) fn read(value: Value, path: &Path, lines: &[Lines]) -> Result<Vec<Rule>, ConfigError> {
    let unknown = Lines::default();
    let place = |number: usize| Place {
        path,
        lines: lines.get(number).unwrap_or(&unknown),
    };
    let Value::Array(items) = value else {
        return Err(ConfigError::Value {
            key: "rules".to_owned(),
            origin: place(0).rule(),
            found: value.type_str().to_owned(),
            expected: "an array of tables, each begun by a line [[rules]]".to_owned(),
        });
    };
    let mut rules: Vec<Rule> = Vec::with_capacity(items.len());
    for (number, item) in items.into_iter().enumerate() {
        let place = place(number);
        let unnamed = |origin: Origin, problem: &str| ConfigError::Rule {
            rule: format!("number {}", number + 1),
            origin,
            problem: problem.to_owned(),
        };
        let Value::Table(table) = item else {
            return Err(unnamed(
                place.rule(),
                "must be a table, begun by a line [[rules]]",
            ));
        };
        let name = match table.get("name").map(Value::as_str) {
            Some(Some(name)) if topic::is_name(name) => name.to_owned(),
            Some(_) => {
                return Err(unnamed(
                    place.key("name"),
                    "`name` must be 1 to 64 of A-Z a-z 0-9 . _ -",
                ));
            }
            None => {
                let problem = "has no `name`; give one of 1 to 64 of A-Z a-z 0-9 . _ -";
                return Err(unnamed(place.rule(), problem));
            }
        };
        let rule = one(name, place, table)?;
        if let Some(other) = rules.iter().find(|other| other.name == rule.name) {
            return Err(taken(&rule, other));
        }
        rules.push(rule);
    }
    Ok(rules)
}

/// The fault of two rules with the same name in one layer.
pub(super) fn taken(rule: &Rule, earlier: &Rule) -> ConfigError {
    ConfigError::Rule {
        rule: format!("\"{}\"", rule.name),
        origin: rule.origin.clone(),
        problem: format!("its name is taken by the rule at {}; rename one", earlier.origin),
    }
}

/// Adds a later layer's rules: one with a known name replaces the earlier one, so that a site can change a rule of a
/// package.
pub(crate) fn merge(rules: &mut Vec<Rule>, later: Vec<Rule>) {
    for rule in later {
        match rules.iter_mut().find(|known| known.name == rule.name) {
            Some(known) => *known = rule,
            None => rules.push(rule),
        }
    }
}

/// Reads one rule, whose name has been checked.
pub(super) fn one(name: String, place: Place<'_>, table: Table) -> Result<Rule, ConfigError> {
    let values = Values::check(format!("\"{name}\""), place, table)?;
    if !values.has("topics") {
        let problem = "has no `topics`; name the topic filters whose messages it takes";
        return Err(values.fault("name", problem));
    }
    let payload = payload(&values)?;
    let words = words::read(&values)?;
    let rule = Rule {
        name,
        topics: values.value("topics")?,
        payload,
        fields: fields(&values)?,
        group_by: values.parsed("group_by", selector)?,
        dedupe: values.parsed("dedupe", selector)?,
        window: window::read(&values)?,
        picture: picture::read(&values, payload, &words.prompt)?,
        words,
        output: output(&values)?,
        limits: RuleLimits {
            keep_messages: values.value("limits.keep_messages")?,
            keep_bytes: values.value("limits.keep_bytes")?,
            store: values.value("limits.store")?,
        },
        origin: values.origin(),
    };
    pointers_fit(&rule, &values)?;
    Ok(rule)
}

fn payload(values: &Values<'_>) -> Result<PayloadFormat, ConfigError> {
    let word: String = values.value("payload")?;
    Ok(match word.as_str() {
        "json" => PayloadFormat::Json,
        "text" => PayloadFormat::Text,
        "number" => PayloadFormat::Number,
        "image" => PayloadFormat::Image,
        _ => PayloadFormat::Auto,
    })
}

fn fields(values: &Values<'_>) -> Result<Vec<Field>, ConfigError> {
    let pointers: BTreeMap<String, String> = values.optional("fields")?.unwrap_or_default();
    let field = |(name, pointer)| Field { name, pointer };
    Ok(pointers.into_iter().map(field).collect())
}

fn output(values: &Values<'_>) -> Result<Output, ConfigError> {
    let topic: Option<String> = values.optional("output.topic")?;
    if topic.as_deref().is_some_and(names_group) && !values.has("group_by") {
        let problem =
            "`output.topic` names {group}, but the rule has no `group_by`; add it, or leave {group} out";
        return Err(values.fault("output.topic", problem));
    }
    let expiry: Option<TimeSpan> = values.optional("output.expiry")?;
    if expiry.is_some_and(|expiry| !expiry.as_millis().is_multiple_of(1_000)) {
        let problem = "`output.expiry` must be whole seconds, as MQTT counts them";
        return Err(values.fault("output.expiry", problem));
    }
    Ok(Output {
        topic,
        qos: values.value("output.qos")?,
        expiry,
        retain: values.value("output.retain")?,
    })
}

/// The pointers of an image: its size, its format and its digest.
const IMAGE_POINTERS: [&str; 3] = ["/bytes", "/format", "/digest"];

/// Checks the pointers of a rule against its payload format: text has no fields, a number only itself, an image a few.
fn pointers_fit(rule: &Rule, values: &Values<'_>) -> Result<(), ConfigError> {
    let word = match rule.payload {
        PayloadFormat::Auto | PayloadFormat::Json => return Ok(()),
        PayloadFormat::Text => "text",
        PayloadFormat::Number => "number",
        PayloadFormat::Image => "image",
    };
    let of_selector = |selector: &Option<Selector>| match selector {
        Some(Selector::Field(pointer)) => Some(pointer.clone()),
        Some(Selector::Topic(_)) | None => None,
    };
    let of_time = match &rule.window.time {
        TimeSource::Field { pointer, .. } => Some(pointer.clone()),
        TimeSource::Arrival => None,
    };
    let pointers = rule
        .fields
        .iter()
        .map(|field| ("fields", field.pointer.clone()))
        .chain(of_selector(&rule.group_by).map(|pointer| ("group_by", pointer)))
        .chain(of_selector(&rule.dedupe).map(|pointer| ("dedupe", pointer)))
        .chain(of_time.map(|pointer| ("window.time", pointer)));
    for (key, pointer) in pointers {
        let (known, only) = match rule.payload {
            PayloadFormat::Number => (pointer.is_empty(), "only the pointer \"\", the number itself"),
            PayloadFormat::Image => (
                IMAGE_POINTERS.contains(&pointer.as_str()),
                "only \"/bytes\", \"/format\" and \"/digest\"",
            ),
            _ => (false, "no field"),
        };
        if known {
            continue;
        }
        let instead = match rule.payload {
            PayloadFormat::Image => "use one of them",
            _ => "use \"json\" or \"auto\"",
        };
        let problem = format!(
            "`{key}` points at {pointer:?}, but with `payload` \"{word}\" there is {only}; {instead}"
        );
        return Err(values.fault(key, problem));
    }
    Ok(())
}
