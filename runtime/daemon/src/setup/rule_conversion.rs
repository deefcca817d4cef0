//! The conversion of the configuration's rules to those of the rule engine: time zones are looked up, and defaults
//! and bounds are taken from the limits.

use std::time::Duration;

use jiff::civil;
use jiff::tz::{self, TimeZone, TimeZoneDatabase};
use phi_edge_config as config;
use phi_edge_rules as service;

use crate::exit::{Exit, Fault};

/// The defaults of a rule's settings, and their bounds.
#[derive(Debug, Clone)]
pub(crate) struct RuleDefaults {
    /// The zone of local times.
    pub(crate) zone: TimeZone,
    /// The maximum time for a rule's model run.
    pub(crate) max_deadline: Duration,
    /// The maximum number of new tokens.
    pub(crate) max_tokens: usize,
    /// The maximum number of tokens of a prompt; none means the context's length.
    pub(crate) max_prompt_tokens: Option<usize>,
    /// The base of the node's topics.
    pub(crate) base: String,
    /// The node's name.
    pub(crate) node: String,
}

impl RuleDefaults {
    /// The limits of the configuration, and the zone of the system (UTC where it has none).
    pub(crate) fn from_config(config: &config::Config) -> Self {
        let limits = &config.limits;
        Self {
            zone: TimeZone::system(),
            max_deadline: limits.max_deadline.get(),
            max_tokens: limits.max_tokens,
            max_prompt_tokens: limits.max_prompt_tokens,
            base: config.node.base.clone(),
            node: config.node.name.clone(),
        }
    }

    /// The topic of a rule's events, with the placeholders filled in that do not depend on a message.
    fn topic(&self, topic: Option<&str>, rule: &str) -> String {
        topic
            .unwrap_or("{base}/event/{rule}")
            .replace("{base}", &self.base)
            .replace("{node}", &self.node)
            .replace("{rule}", rule)
    }
}

/// The rules of a configuration, each checked as far as it can be without running it.
pub(crate) fn convert_all(config: &config::Config) -> Result<Vec<service::Rule>, Fault> {
    let defaults = RuleDefaults::from_config(config);
    config
        .rules
        .iter()
        .map(|one| convert_checked(one, &defaults))
        .collect()
}

/// Converts a rule and checks it.
pub(crate) fn convert_checked(
    written: &config::Rule,
    defaults: &RuleDefaults,
) -> Result<service::Rule, Fault> {
    let rule = convert(written, defaults)?;
    service::check(&rule)
        .map_err(|error| Fault::new(Exit::Config, format!("{}: {error}", written.origin)))?;
    Ok(rule)
}

/// Converts a rule. Every field is named, so that a new one can't be forgotten here.
pub(crate) fn convert(rule: &config::Rule, defaults: &RuleDefaults) -> Result<service::Rule, Fault> {
    let config::Rule {
        name,
        topics,
        payload,
        fields,
        group_by,
        dedupe,
        window: of_window,
        words: of_words,
        output,
        limits,
        origin,
    } = rule;
    let window = window(of_window, defaults)
        .map_err(|problem| Fault::new(Exit::Config, format!("{origin}: rule \"{name}\": {problem}")))?;
    let field = |field: &config::Field| service::Field {
        name: field.name.clone(),
        pointer: field.pointer.clone(),
    };
    Ok(service::Rule {
        name: name.clone(),
        topics: topics.clone(),
        payload: match payload {
            config::PayloadFormat::Auto => service::PayloadFormat::Auto,
            config::PayloadFormat::Json => service::PayloadFormat::Json,
            config::PayloadFormat::Text => service::PayloadFormat::Text,
            config::PayloadFormat::Number => service::PayloadFormat::Number,
        },
        fields: fields.iter().map(field).collect(),
        group_by: group_by.as_ref().map(selector),
        dedupe: dedupe.as_ref().map(selector),
        window,
        summary: summary_spec(of_words, defaults),
        output: service::Output {
            topic: defaults.topic(output.topic.as_deref(), name),
            qos: output.qos,
            expiry: output.expiry.map(Duration::from),
            retain: output.retain,
        },
        limits: service::RuleLimits {
            keep_messages: limits.keep_messages,
            keep_bytes: limits.keep_bytes.get(),
            store_bytes: limits.store.bytes(),
        },
    })
}

fn selector(selector: &config::Selector) -> service::Selector {
    match selector {
        config::Selector::Topic(level) => service::Selector::Topic(*level),
        config::Selector::Field(pointer) => service::Selector::Field(pointer.clone()),
    }
}

/// Converts a window. The error says what is wrong with it and what to do.
fn window(window: &config::Window, defaults: &RuleDefaults) -> Result<service::WindowSpec, String> {
    let config::Window {
        kind,
        time,
        tz,
        empty,
        max_messages,
        max_bytes,
        early,
        early_rate,
        cool_down,
        max_age,
        absence,
        max_groups,
    } = window;
    Ok(service::WindowSpec {
        kind: window_kind(kind)?,
        time: match time {
            config::TimeSource::Arrival => service::TimeSource::Arrival,
            config::TimeSource::Field { pointer, lateness } => service::TimeSource::Field {
                pointer: pointer.clone(),
                lateness: lateness.get(),
            },
        },
        zone: match tz {
            Some(name) => zone(name)?,
            None => defaults.zone.clone(),
        },
        empty: *empty,
        max_messages: *max_messages,
        max_bytes: max_bytes.map(config::ByteSize::bytes),
        early: early.clone(),
        early_rate: early_rate.map(|rate| (rate.messages, rate.within.get())),
        cool_down: cool_down.get(),
        max_age: max_age.map(Duration::from),
        absence: absence.map(Duration::from),
        max_groups: *max_groups,
    })
}

fn window_kind(kind: &config::WindowKind) -> Result<service::WindowKind, String> {
    Ok(match kind {
        config::WindowKind::Tumbling { every } => service::WindowKind::Tumbling { every: every.get() },
        config::WindowKind::Hopping { every, length } => service::WindowKind::Hopping {
            every: every.get(),
            length: length.get(),
        },
        config::WindowKind::Session { gap } => service::WindowKind::Session { gap: gap.get() },
        config::WindowKind::Count { messages } => service::WindowKind::Count { messages: *messages },
        config::WindowKind::Schedule { at, days } => service::WindowKind::Schedule {
            at: at
                .iter()
                .map(|time| civil_time(*time))
                .collect::<Result<_, _>>()?,
            days: service::Weekdays(days.0),
        },
    })
}

fn civil_time(time: config::TimeOfDay) -> Result<civil::Time, String> {
    let config::TimeOfDay { hour, minute, second } = time;
    civil::Time::new(hour.cast_signed(), minute.cast_signed(), second.cast_signed(), 0)
        .map_err(|error| format!("`window.at`: {error}"))
}

/// Looks up the time zone of this name. The system's database is asked first, since it is kept up to date; the
/// bundled one knows old names that some systems leave out.
fn zone(name: &str) -> Result<TimeZone, String> {
    let found = tz::db()
        .get(name)
        .or_else(|_| TimeZoneDatabase::bundled().get(name));
    found.map_err(|_| {
        let known: Vec<String> = tz::db().available().map(|known| known.to_string()).collect();
        let nearest = config::nearest_of(name, known.iter().map(String::as_str)).unwrap_or("UTC");
        format!("`window.tz`: there is no time zone {name:?}; the nearest known one is {nearest:?}")
    })
}

fn summary_spec(words: &config::Words, defaults: &RuleDefaults) -> service::SummarySpec {
    let config::Words {
        prompt,
        system,
        max_tokens,
        temperature,
        top_p,
        seed,
        stop,
        format,
        check_numbers,
        deadline,
        max_parts,
        max_prompt_tokens,
    } = words;
    let deadline = deadline.map_or(defaults.max_deadline, Duration::from);
    // Of what the rule and the limits say, the less.
    let prompt_bounds = [*max_prompt_tokens, defaults.max_prompt_tokens];
    service::SummarySpec {
        prompt: match prompt {
            config::Prompt::Text(text) => service::PromptSource::Text(text.clone()),
            config::Prompt::Template(name) => service::PromptSource::BuiltIn(name.clone()),
            config::Prompt::None => service::PromptSource::None,
        },
        system: system.clone(),
        max_tokens: (*max_tokens).min(defaults.max_tokens),
        temperature: *temperature,
        top_p: *top_p,
        seed: *seed,
        stop: stop.clone(),
        format: match format {
            config::TextFormat::Text => service::TextFormat::Text,
            config::TextFormat::Json => service::TextFormat::Json,
        },
        check_numbers: *check_numbers,
        deadline: deadline.min(defaults.max_deadline),
        max_parts: *max_parts,
        max_prompt_tokens: prompt_bounds.into_iter().flatten().min(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use config::{LoadOptions, load};

    use super::*;

    fn defaults() -> RuleDefaults {
        RuleDefaults {
            base: "b".to_owned(),
            node: "n".to_owned(),
            zone: TimeZone::UTC,
            max_deadline: Duration::from_mins(10),
            max_tokens: 300,
            max_prompt_tokens: Some(1_000),
        }
    }

    /// The rule with these keys, by way of a file.
    fn converted(keys: &str) -> Result<service::Rule, Fault> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r.toml");
        fs::write(
            &path,
            format!("[[rules]]\nname = \"r\"\ntopics = [\"t\"]\n{keys}"),
        )
        .unwrap();
        let loaded = load(LoadOptions {
            config: Some(path),
            ..LoadOptions::default()
        });
        convert(&loaded.unwrap().config.rules[0], &defaults())
    }

    #[test]
    fn what_is_not_said_comes_from_the_limits() {
        let rule = converted("prompt = \"p\"").unwrap();
        let expected = service::Rule {
            name: "r".to_owned(),
            topics: vec!["t".to_owned()],
            payload: service::PayloadFormat::Auto,
            fields: Vec::new(),
            group_by: None,
            dedupe: None,
            window: service::WindowSpec {
                kind: service::WindowKind::Tumbling {
                    every: Duration::from_mins(1),
                },
                time: service::TimeSource::Arrival,
                zone: TimeZone::UTC,
                empty: false,
                max_messages: None,
                max_bytes: None,
                early: None,
                early_rate: None,
                cool_down: Duration::ZERO,
                max_age: None,
                absence: None,
                max_groups: 1_000,
            },
            summary: service::SummarySpec {
                prompt: service::PromptSource::Text("p".to_owned()),
                system: None,
                max_tokens: 256,
                temperature: 0.0,
                top_p: 1.0,
                seed: 0,
                stop: Vec::new(),
                format: service::TextFormat::Text,
                check_numbers: false,
                deadline: Duration::from_mins(10),
                max_parts: 8,
                max_prompt_tokens: Some(1_000),
            },
            output: service::Output {
                topic: "b/event/r".to_owned(),
                qos: 1,
                expiry: None,
                retain: false,
            },
            limits: service::RuleLimits {
                keep_messages: 2_000,
                keep_bytes: 1 << 20,
                store_bytes: 64 << 20,
            },
        };
        assert_eq!(rule, expected);
    }

    #[test]
    fn what_is_said_stays() {
        let rule = converted(
            "template = \"digest\"\npayload = \"json\"\nfields = { v = \"/v\" }\ngroup_by = \"topic:1\"\n\
             dedupe = \"field:/n\"\nformat = \"json\"\ndeadline = \"2m\"\nmax_prompt_tokens = 900\n\
             output = { expiry = \"1h\", qos = 0 }\n\
             window = { kind = \"session\", gap = \"5s\", time = \"field:/t\", lateness = \"1s\", max_bytes = \"1KiB\", \
             early_rate = \"50/10s\", max_age = \"1h\" }",
        )
        .unwrap();
        assert_eq!(rule.payload, service::PayloadFormat::Json);
        assert_eq!(
            (rule.fields[0].name.as_str(), rule.fields[0].pointer.as_str()),
            ("v", "/v")
        );
        assert_eq!(rule.group_by, Some(service::Selector::Topic(1)));
        assert_eq!(rule.dedupe, Some(service::Selector::Field("/n".to_owned())));
        assert_eq!(
            rule.summary.prompt,
            service::PromptSource::BuiltIn("digest".to_owned())
        );
        assert_eq!(rule.summary.format, service::TextFormat::Json);
        assert_eq!(rule.summary.deadline, Duration::from_mins(2));
        assert_eq!(rule.summary.max_prompt_tokens, Some(900));
        assert_eq!(rule.output.expiry, Some(Duration::from_hours(1)));
        let window = rule.window;
        let gap = Duration::from_secs(5);
        assert_eq!(window.kind, service::WindowKind::Session { gap });
        assert_eq!(window.early_rate, Some((50, Duration::from_secs(10))));
        assert_eq!(
            (window.max_bytes, window.max_age),
            (Some(1_024), Some(Duration::from_hours(1)))
        );
        let time = service::TimeSource::Field {
            pointer: "/t".to_owned(),
            lateness: Duration::from_secs(1),
        };
        assert_eq!(window.time, time);
    }

    #[test]
    fn limits_bound_what_a_rule_asks() {
        let rule =
            converted("prompt = \"p\"\nmax_tokens = 4096\ndeadline = \"1h\"\nmax_prompt_tokens = 5000")
                .unwrap();
        assert_eq!(rule.summary.max_tokens, 300);
        assert_eq!(rule.summary.deadline, Duration::from_mins(10));
        assert_eq!(rule.summary.max_prompt_tokens, Some(1_000));
    }

    #[test]
    fn schedules_have_times_days_and_their_zone() {
        let rule = converted(
            "facts_only = true\nwindow = { kind = \"schedule\", at = [\"14:00\", \"06:00:30\"], days = [\"mon\", \"sun\"], tz = \
             \"Europe/Berlin\" }",
        )
        .unwrap();
        assert_eq!(rule.summary.prompt, service::PromptSource::None);
        assert_eq!(rule.window.zone.iana_name(), Some("Europe/Berlin"));
        let service::WindowKind::Schedule { at, days } = rule.window.kind else {
            panic!("{:?}", rule.window.kind);
        };
        assert_eq!(at, [civil::time(6, 0, 30, 0), civil::time(14, 0, 0, 0)]);
        assert!(days.contains(civil::Weekday::Monday) && days.contains(civil::Weekday::Sunday));
        assert!(!days.contains(civil::Weekday::Tuesday));
    }

    #[test]
    fn zones_of_old_names_are_known() {
        for name in ["UTC", "CET", "US/Eastern", "europe/berlin"] {
            assert!(zone(name).is_ok(), "{name}");
        }
    }

    #[test]
    fn an_unknown_zone_is_a_fault_with_the_nearest() {
        let fault = converted(
            "prompt = \"p\"\nwindow = { kind = \"tumbling\", every = \"1d\", tz = \"Europe/Berln\" }",
        )
        .unwrap_err();
        assert_eq!(fault.exit, Exit::Config);
        let (origin, problem) = fault.message.split_once(": rule ").unwrap();
        assert!(origin.ends_with("r.toml:1"), "{origin}");
        assert_eq!(
            problem,
            "\"r\": `window.tz`: there is no time zone \"Europe/Berln\"; the nearest known one is \"Europe/Berlin\""
        );
    }
}
