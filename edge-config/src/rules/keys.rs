//! All keys of a rule: path within the rule, shape of the value, and default.

use super::parse::{day, early_rate, is_zone, selector, time_of_day, time_source};
use super::topics::{is_output, is_taken};
use crate::schema::key;
use crate::shape::{at_least, checked, checked_list, choice, decimal, duration, name, number, size};
use crate::{Key, Preset, Shape};

/// Every key of a rule, by its path within the rule (`window.every`), in the order of the default file.
pub fn rule_keys() -> &'static [Key] {
    &RULE_KEYS
}

/// The key of this path.
pub(super) fn find(path: &str) -> Option<&'static Key> {
    RULE_KEYS.iter().find(|key| key.path == path)
}

/// The tables within a rule that hold keys of their own.
pub(crate) const TABLES: [&str; 4] = ["picture", "output", "limits", "window"];

const KIB: u64 = 1 << 10;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

const SECOND: u64 = 1_000;
/// The maximum time of a rule, in milliseconds: a year and some days.
const MAX_TIME_MS: u64 = 370 * 86_400 * SECOND;
/// The minimum length of a window, in milliseconds; shorter ones would end faster than their events can be published.
const MIN_WINDOW_MS: u64 = 100;
/// The maximum of a rule's numbers of messages.
const MAX_MESSAGES: u64 = 1_000_000_000;
/// The maximum number of pictures of a contact sheet.
const MAX_SHEET: u64 = 16;
/// The maximum length of a stop string, in bytes, as of requests.
const MAX_STOP_BYTES: usize = 256;

const fn time() -> Shape {
    duration(1, MAX_TIME_MS)
}

/// A time that may be zero.
const fn time_or_zero() -> Shape {
    duration(0, MAX_TIME_MS)
}

const fn window_length() -> Shape {
    duration(MIN_WINDOW_MS, MAX_TIME_MS)
}

const fn messages() -> Shape {
    number(1, MAX_MESSAGES)
}

/// A text of any number of lines.
const fn non_blank_text() -> Shape {
    checked("a text that is not blank", |text| !text.trim().is_empty())
}

const fn part_of_message() -> Shape {
    checked(
        "\"topic:N\" with N counted from 0, or \"field:/json/pointer\"",
        |text| selector(text).is_some(),
    )
}

pub(super) static RULE_KEYS: [Key; 49] = [
    key("name", name(), Preset::Unset),
    key(
        "topics",
        checked_list(
            "a list of topic filters without leading $, such as [\"plant/+/alarm\"]",
            is_taken,
        ),
        Preset::Unset,
    ),
    key(
        "payload",
        choice(&["auto", "json", "text", "number", "image"]),
        Preset::Text("auto"),
    ),
    key("fields", Shape::Pointers, Preset::Unset),
    key("group_by", part_of_message(), Preset::Unset),
    key("dedupe", part_of_message(), Preset::Unset),
    key("prompt", non_blank_text(), Preset::Unset),
    key("template", name(), Preset::Unset),
    key("facts_only", Shape::Switch, Preset::Switch(false)),
    key("system", non_blank_text(), Preset::Unset),
    key("max_tokens", number(1, 1_048_576), Preset::Number(256)),
    key(
        "temperature",
        decimal("a number from 0 to 10", |value| (0.0..=10.0).contains(&value)),
        Preset::Number(0),
    ),
    key(
        "top_p",
        // What is above 0 must stay so in single precision.
        decimal("a number above 0, at most 1", |value| {
            value >= f64::from(f32::MIN_POSITIVE) && value <= 1.0
        }),
        Preset::Number(1),
    ),
    key("seed", at_least(0), Preset::Number(0)),
    key(
        "stop",
        checked_list("a list of texts of 1 to 256 bytes each", |text| {
            (1..=MAX_STOP_BYTES).contains(&text.len())
        }),
        Preset::Unset,
    ),
    key("format", choice(&["text", "json"]), Preset::Text("text")),
    key("check_numbers", Shape::Switch, Preset::Switch(false)),
    key("deadline", time(), Preset::Unset),
    key("max_parts", number(1, 64), Preset::Number(8)),
    key("max_prompt_tokens", at_least(1), Preset::Unset),
    key(
        "picture.which",
        choice(&["newest", "first", "sheet"]),
        Preset::Text("newest"),
    ),
    key("picture.sheet", number(2, MAX_SHEET), Preset::Number(4)),
    key(
        "picture.detail",
        choice(&["low", "auto", "high"]),
        Preset::Text("auto"),
    ),
    key(
        "output.topic",
        checked(
            "a topic without wildcards (+ #) and leading $, such as \"plant/{topic:1}/summary\"",
            is_output,
        ),
        Preset::Unset,
    ),
    key("output.qos", number(0, 1), Preset::Number(1)),
    key("output.expiry", duration(SECOND, MAX_TIME_MS), Preset::Unset),
    key("output.retain", Shape::Switch, Preset::Switch(false)),
    key(
        "limits.keep_messages",
        number(1, 1_000_000),
        Preset::Number(2_000),
    ),
    key("limits.keep_bytes", size(KIB, GIB), Preset::Text("1MiB")),
    key("limits.store", size(KIB, TIB), Preset::Text("64MiB")),
    key(
        "window.kind",
        choice(&["tumbling", "hopping", "session", "count", "schedule"]),
        Preset::Unset,
    ),
    key("window.every", window_length(), Preset::Unset),
    key("window.length", window_length(), Preset::Unset),
    key("window.gap", window_length(), Preset::Unset),
    key("window.messages", messages(), Preset::Unset),
    key(
        "window.at",
        checked_list(
            "a list of local times, such as [\"06:00\", \"14:00\", \"22:00\"]",
            |text| time_of_day(text).is_some(),
        ),
        Preset::Unset,
    ),
    key(
        "window.days",
        checked_list(
            "a list of \"mon\", \"tue\", \"wed\", \"thu\", \"fri\", \"sat\", \"sun\"",
            |text| day(text).is_some(),
        ),
        Preset::Unset,
    ),
    key(
        "window.tz",
        checked(
            "the name of a time zone, such as \"Europe/Berlin\" or \"UTC\"",
            is_zone,
        ),
        Preset::Unset,
    ),
    key(
        "window.time",
        checked("\"arrival\" or \"field:/json/pointer\"", |text| {
            time_source(text).is_some()
        }),
        Preset::Text("arrival"),
    ),
    key("window.lateness", time_or_zero(), Preset::Text("0s")),
    key("window.empty", Shape::Switch, Preset::Switch(false)),
    key("window.max_messages", messages(), Preset::Unset),
    key("window.max_bytes", size(1, TIB), Preset::Unset),
    key("window.early", non_blank_text(), Preset::Unset),
    key(
        "window.early_rate",
        checked(
            "a number of messages and a duration, such as \"50/10s\"",
            |text| early_rate(text).is_some_and(|rate| is_rate(rate.messages, rate.within.as_millis())),
        ),
        Preset::Unset,
    ),
    key("window.cool_down", time_or_zero(), Preset::Text("0s")),
    key("window.max_age", time(), Preset::Unset),
    key("window.absence", time(), Preset::Unset),
    key("window.max_groups", number(1, 100_000), Preset::Number(1_000)),
];

fn is_rate(messages: u64, millis: u64) -> bool {
    (1..=MAX_MESSAGES).contains(&messages) && (1..=MAX_TIME_MS).contains(&millis)
}
