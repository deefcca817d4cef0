//! Rules: the part of their form that is fixed. The rest is kept as written, for the crate that runs them.

use toml::{Table, Value};

use super::{
    Output, PayloadFormat, Prompt, Rule, RuleLimits, TextFormat, TimeSource, Window, WindowKind, Words,
};
use crate::{ByteSize, ConfigError, Origin, TimeSpan, topic};

/// Reads the `[[rules]]` of one file.
pub(crate) fn read(value: Value, origins: &dyn Fn(usize) -> Origin) -> Result<Vec<Rule>, ConfigError> {
    let Value::Array(items) = value else {
        return Err(ConfigError::Value {
            key: "rules".to_owned(),
            origin: origins(0),
            found: value.type_str().to_owned(),
            expected: "an array of tables, each begun by a line [[rules]]".to_owned(),
        });
    };
    let mut rules: Vec<Rule> = Vec::with_capacity(items.len());
    for (place, item) in items.into_iter().enumerate() {
        let rule = read_one(item, place, origins(place))?;
        if rules.iter().any(|other| other.name == rule.name) {
            return Err(fault(
                &rule.name,
                rule.origin,
                "its name is taken by an earlier rule of this file",
            ));
        }
        rules.push(rule);
    }
    Ok(rules)
}

/// Adds a later layer's rules: one of a known name takes that one's place, so that a site can change a rule
/// that a package brought.
pub(crate) fn merge(rules: &mut Vec<Rule>, later: Vec<Rule>) {
    for rule in later {
        match rules.iter_mut().find(|known| known.name == rule.name) {
            Some(known) => *known = rule,
            None => rules.push(rule),
        }
    }
}

fn read_one(item: Value, place: usize, origin: Origin) -> Result<Rule, ConfigError> {
    let unnamed = |origin: Origin, problem: &str| ConfigError::Rule {
        rule: format!("number {}", place + 1),
        origin,
        problem: problem.to_owned(),
    };
    let Value::Table(table) = item else {
        return Err(unnamed(origin, "must be a table, begun by a line [[rules]]"));
    };
    let name = match table.get("name").map(Value::as_str) {
        Some(Some(name)) if topic::is_name(name) => name.to_owned(),
        Some(_) => return Err(unnamed(origin, "`name` must be 1 to 64 of A-Z a-z 0-9 . _ -")),
        None => {
            return Err(unnamed(
                origin,
                "has no `name`; give one of 1 to 64 of A-Z a-z 0-9 . _ -",
            ));
        }
    };
    let Some(topics) = table.get("topics") else {
        return Err(fault(
            &name,
            origin,
            "has no `topics`; name the topic filters whose messages it takes",
        ));
    };
    let Some(topics) = read_topics(topics) else {
        let problem =
            "`topics` must be a list of topic filters without leading $, such as [\"plant/+/alarm\"]";
        return Err(fault(&name, origin, problem));
    };
    if let Some(problem) = fixed_part(&table) {
        return Err(fault(&name, origin, &problem));
    }
    Ok(Rule {
        name,
        topics,
        origin,
        payload: PayloadFormat::Auto,
        fields: Vec::new(),
        group_by: None,
        dedupe: None,
        window: Window {
            kind: WindowKind::Tumbling {
                every: TimeSpan::from_secs(60),
            },
            time: TimeSource::Arrival,
            tz: None,
            empty: false,
            max_messages: None,
            max_bytes: None,
            early: None,
            early_rate: None,
            cool_down: TimeSpan::from_millis(0),
            max_age: None,
            absence: None,
            max_groups: 1_000,
        },
        words: Words {
            prompt: Prompt::None,
            system: None,
            max_tokens: 256,
            temperature: 0.0,
            top_p: 1.0,
            seed: 0,
            stop: Vec::new(),
            format: TextFormat::Text,
            check_numbers: false,
            deadline: None,
            max_parts: 8,
            max_prompt_tokens: None,
        },
        output: Output {
            topic: None,
            qos: 1,
            expiry: None,
            retain: false,
        },
        limits: RuleLimits {
            keep_messages: 2_000,
            keep_bytes: ByteSize::from_bytes(1 << 20),
            store: ByteSize::from_bytes(64 << 20),
        },
    })
}

fn read_topics(value: &Value) -> Option<Vec<String>> {
    let items = value.as_array().filter(|items| !items.is_empty())?;
    items
        .iter()
        .map(|item| {
            item.as_str()
                .filter(|text| topic::is_filter(text))
                .map(str::to_owned)
        })
        .collect()
}

/// A key, the check of its value, and what is expected.
type Demand = (&'static str, fn(&Value) -> bool, &'static str);

/// What of the fixed part is wrong, beyond name and topics.
fn fixed_part(table: &Table) -> Option<String> {
    let wrong = |key: &str, good: fn(&Value) -> bool| table.get(key).is_some_and(|value| !good(value));
    let demands: [Demand; 7] = [
        (
            "group_by",
            is_selector,
            "\"topic:N\" with N counted from 0, or \"field:/json/pointer\"",
        ),
        (
            "dedupe",
            is_selector,
            "\"topic:N\" with N counted from 0, or \"field:/json/pointer\"",
        ),
        (
            "fields",
            is_pointers,
            "a table of JSON pointers, such as { value = \"/value\" }",
        ),
        (
            "window",
            Value::is_table,
            "a table, such as { kind = \"tumbling\", every = \"10s\" }",
        ),
        ("prompt", Value::is_str, "a text"),
        ("template", Value::is_str, "a text"),
        ("max_tokens", is_positive, "a whole number of at least 1"),
    ];
    if let Some((key, _, expected)) = demands.into_iter().find(|(key, good, _)| wrong(key, *good)) {
        return Some(format!("`{key}` must be {expected}"));
    }
    let both = table.contains_key("prompt") && table.contains_key("template");
    both.then(|| "has both `prompt` and `template`; remove one".to_owned())
}

fn is_selector(value: &Value) -> bool {
    let Some((kind, rest)) = value.as_str().and_then(|text| text.split_once(':')) else {
        return false;
    };
    match kind {
        "topic" => rest.parse::<u16>().is_ok(),
        "field" => rest.is_empty() || rest.starts_with('/'),
        _ => false,
    }
}

fn is_pointers(value: &Value) -> bool {
    let is_pointer = |value: &Value| {
        value
            .as_str()
            .is_some_and(|text| text.is_empty() || text.starts_with('/'))
    };
    value
        .as_table()
        .is_some_and(|table| table.values().all(is_pointer))
}

fn is_positive(value: &Value) -> bool {
    value.as_integer().is_some_and(|number| number > 0)
}

fn fault(name: &str, origin: Origin, problem: &str) -> ConfigError {
    ConfigError::Rule {
        rule: format!("\"{name}\""),
        origin,
        problem: problem.to_owned(),
    }
}
