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
        picture,
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
            config::PayloadFormat::Image => service::PayloadFormat::Image,
        },
        fields: fields.iter().map(field).collect(),
        group_by: group_by.as_ref().map(selector),
        dedupe: dedupe.as_ref().map(selector),
        window,
        picture: picture_spec(*picture),
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

fn picture_spec(picture: config::Picture) -> service::PictureSpec {
    let config::Picture { which, detail } = picture;
    service::PictureSpec {
        choice: match which {
            config::PictureChoice::Newest => service::PictureChoice::Newest,
            config::PictureChoice::First => service::PictureChoice::First,
            config::PictureChoice::Sheet(pictures) => service::PictureChoice::Sheet(pictures),
        },
        detail: match detail {
            config::PictureDetail::Low => service::PictureDetail::Low,
            config::PictureDetail::Auto => service::PictureDetail::Auto,
            config::PictureDetail::High => service::PictureDetail::High,
        },
    }
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
mod tests;
