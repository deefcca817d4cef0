//! The windows of a rule.

use super::parse::{day, early_rate, time_of_day, time_source};
use super::values::Values;
use super::{TimeOfDay, TimeSource, Weekdays, Window, WindowKind};
use crate::{ConfigError, TimeSpan};

/// The window kind of a rule that names none.
const DEFAULT_KIND: WindowKind = WindowKind::Tumbling {
    every: TimeSpan::from_secs(60),
};

/// The maximum number of overlapping windows of a hopping rule: each message is counted in every one of them.
const MAX_OVERLAP: u64 = 1_000;

const KINDS_EXCEPT_HOPPING: &[&str] = &["tumbling", "session", "count", "schedule"];

/// The window kinds that use a key; keys that are not listed are used by all kinds.
const KINDS_BY_KEY: [(&str, &[&str]); 13] = [
    ("window.every", &["tumbling", "hopping"]),
    ("window.length", &["hopping"]),
    ("window.gap", &["session"]),
    ("window.messages", &["count"]),
    ("window.at", &["schedule"]),
    ("window.days", &["schedule"]),
    // Session and count windows begin with a message, so none of them is without.
    ("window.empty", &["tumbling", "hopping", "schedule"]),
    // A message is in several hopping windows, which would all end with it.
    ("window.max_messages", KINDS_EXCEPT_HOPPING),
    ("window.max_bytes", KINDS_EXCEPT_HOPPING),
    ("window.early", KINDS_EXCEPT_HOPPING),
    ("window.early_rate", KINDS_EXCEPT_HOPPING),
    ("window.cool_down", KINDS_EXCEPT_HOPPING),
    // The others end by the clock as it is.
    ("window.max_age", &["session", "count"]),
];

/// Reads the window of a rule.
pub(super) fn read(values: &Values<'_>) -> Result<Window, ConfigError> {
    let kind = kind(values)?;
    if let Some((key, users)) = KINDS_BY_KEY
        .into_iter()
        .find(|(key, users)| values.has(key) && !users.contains(&kind.name()))
    {
        let problem = format!(
            "`{key}` is not used by windows of kind {:?}, only by {}; remove it or choose another kind",
            kind.name(),
            users.join(", ")
        );
        return Err(values.fault(key, problem));
    }
    let early: Option<String> = values.optional("window.early")?;
    let early_rate = values.parsed("window.early_rate", early_rate)?;
    if values.has("window.cool_down") && early.is_none() && early_rate.is_none() {
        let problem = "`window.cool_down` has no effect without `window.early` or `window.early_rate`; add one or remove it";
        return Err(values.fault("window.cool_down", problem));
    }
    Ok(Window {
        kind,
        time: time(values)?,
        tz: values.optional("window.tz")?,
        empty: values.value("window.empty")?,
        max_messages: values.optional("window.max_messages")?,
        max_bytes: values.optional("window.max_bytes")?,
        early,
        early_rate,
        cool_down: values.value("window.cool_down")?,
        max_age: values.optional("window.max_age")?,
        absence: values.optional("window.absence")?,
        max_groups: values.value("window.max_groups")?,
    })
}

/// Reads the kind, one of the names that `keys.rs` lists for `window.kind`.
fn kind(values: &Values<'_>) -> Result<WindowKind, ConfigError> {
    let Some(kind) = values.optional::<String>("window.kind")? else {
        if !values.has_table("window") {
            return Ok(DEFAULT_KIND);
        }
        let problem =
            "`window` has no `kind`; give \"tumbling\", \"hopping\", \"session\", \"count\" or \"schedule\"";
        return Err(values.fault("window", problem));
    };
    let needs = |key: &str, example: &str| {
        let problem = format!("`window.kind` {kind:?} needs `{key}`; add it, such as {example}");
        values.fault("window.kind", problem)
    };
    let span = |key: &str, example: &str| -> Result<TimeSpan, ConfigError> {
        values.optional(key)?.ok_or_else(|| needs(key, example))
    };
    Ok(match kind.as_str() {
        "hopping" => {
            let every = span("window.every", "every = \"1m\"")?;
            let length = span("window.length", "length = \"10m\"")?;
            overlap(values, every, length)?;
            WindowKind::Hopping { every, length }
        }
        "session" => WindowKind::Session {
            gap: span("window.gap", "gap = \"30s\"")?,
        },
        "count" => WindowKind::Count {
            messages: values
                .optional("window.messages")?
                .ok_or_else(|| needs("window.messages", "messages = 100"))?,
        },
        "schedule" => WindowKind::Schedule {
            at: at(values)?.ok_or_else(|| needs("window.at", "at = [\"06:00\", \"14:00\", \"22:00\"]"))?,
            days: days(values)?,
        },
        _ => WindowKind::Tumbling {
            every: span("window.every", "every = \"1m\"")?,
        },
    })
}

fn overlap(values: &Values<'_>, every: TimeSpan, length: TimeSpan) -> Result<(), ConfigError> {
    if length < every {
        let problem = format!(
            "`window.length` ({length}) must be at least `window.every` ({every}), or messages would fall between windows"
        );
        return Err(values.fault("window.length", problem));
    }
    if length.as_millis() > every.as_millis().saturating_mul(MAX_OVERLAP) {
        let problem = format!(
            "`window.length` ({length}) must be at most {MAX_OVERLAP} times `window.every` ({every}), since a message counts \
             in each window that overlaps"
        );
        return Err(values.fault("window.length", problem));
    }
    Ok(())
}

fn at(values: &Values<'_>) -> Result<Option<Vec<TimeOfDay>>, ConfigError> {
    let Some(texts) = values.optional::<Vec<String>>("window.at")? else {
        return Ok(None);
    };
    let mut times: Vec<TimeOfDay> = Vec::with_capacity(texts.len());
    for text in texts {
        let time =
            time_of_day(&text).ok_or_else(|| ConfigError::Internal(format!("`window.at` holds {text:?}")))?;
        if times.contains(&time) {
            let problem = format!("`window.at` has {text:?} twice; remove one");
            return Err(values.fault("window.at", problem));
        }
        times.push(time);
    }
    times.sort_unstable();
    Ok(Some(times))
}

fn days(values: &Values<'_>) -> Result<Weekdays, ConfigError> {
    let Some(texts) = values.optional::<Vec<String>>("window.days")? else {
        return Ok(Weekdays::ALL);
    };
    let mut days = 0;
    for text in texts {
        let day = day(&text).ok_or_else(|| ConfigError::Internal(format!("`window.days` holds {text:?}")))?;
        if days & (1 << day) != 0 {
            let problem = format!("`window.days` has {text:?} twice; remove one");
            return Err(values.fault("window.days", problem));
        }
        days |= 1 << day;
    }
    Ok(Weekdays(days))
}

fn time(values: &Values<'_>) -> Result<TimeSource, ConfigError> {
    let source = values.parsed("window.time", time_source)?;
    if let Some(TimeSource::Field { pointer, .. }) = source {
        let lateness = values.value("window.lateness")?;
        return Ok(TimeSource::Field { pointer, lateness });
    }
    if values.has("window.lateness") {
        let problem = "`window.lateness` has no effect unless `window.time` is a field, such as \"field:/time\", since \
                       messages arrive in order; add that or remove it";
        return Err(values.fault("window.lateness", problem));
    }
    Ok(TimeSource::Arrival)
}
