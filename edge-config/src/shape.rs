//! The shapes of values: which values a key accepts, how messages describe them, and how text of the environment is
//! converted.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;

use toml::Value;

use crate::entries::{wrong_option, wrong_pointer};
use crate::from_text::{list_from_text, table_from_text};
use crate::plain_text::is_text;
use crate::topic;
use crate::{ByteSize, TimeSpan};

/// The shape of a value.
#[derive(Clone, Copy)]
pub enum Shape {
    /// A text that a check accepts.
    Text(Wording),
    /// A list of texts that a check accepts each.
    List(Wording),
    /// The path of a file or folder, or `credential:NAME`.
    Path,
    /// An IP address and port.
    Address,
    /// `true` or `false`.
    Switch,
    /// A whole number within bounds.
    Number {
        /// The least value.
        min: u64,
        /// The greatest value.
        max: u64,
    },
    /// The word "auto", or a whole number within bounds.
    AutoOrNumber {
        /// The least value.
        min: u64,
        /// The greatest value.
        max: u64,
    },
    /// A duration within bounds, in milliseconds.
    Duration {
        /// The least value.
        min: u64,
        /// The greatest value.
        max: u64,
    },
    /// A size within bounds, in bytes.
    Size {
        /// The least value.
        min: u64,
        /// The greatest value.
        max: u64,
    },
    /// One of several words.
    Choice(&'static [&'static str]),
    /// A number that a check accepts, whole or not.
    Decimal(Range),
    /// A table of JSON pointers by the names of fields.
    Pointers,
    /// A table of texts by the names of options.
    Options,
}

/// A check of a text, with the description of what it expects.
#[derive(Clone, Copy)]
pub struct Wording {
    expected: &'static str,
    accepts: fn(&str) -> bool,
}

/// A check of a number, with the description of what it expects.
#[derive(Clone, Copy)]
pub struct Range {
    expected: &'static str,
    accepts: fn(f64) -> bool,
}

pub(crate) const fn number(min: u64, max: u64) -> Shape {
    Shape::Number { min, max }
}

pub(crate) const fn auto_or_number(min: u64, max: u64) -> Shape {
    Shape::AutoOrNumber { min, max }
}

pub(crate) const fn at_least(min: u64) -> Shape {
    Shape::Number {
        min,
        max: i64::MAX.unsigned_abs(),
    }
}

pub(crate) const fn duration(min: u64, max: u64) -> Shape {
    Shape::Duration { min, max }
}

pub(crate) const fn size(min: u64, max: u64) -> Shape {
    Shape::Size { min, max }
}

pub(crate) const fn choice(words: &'static [&'static str]) -> Shape {
    Shape::Choice(words)
}

pub(crate) const fn decimal(expected: &'static str, accepts: fn(f64) -> bool) -> Shape {
    Shape::Decimal(Range { expected, accepts })
}

pub(crate) const fn checked(expected: &'static str, accepts: fn(&str) -> bool) -> Shape {
    Shape::Text(Wording { expected, accepts })
}

pub(crate) const fn checked_list(expected: &'static str, accepts: fn(&str) -> bool) -> Shape {
    Shape::List(Wording { expected, accepts })
}

pub(crate) const fn text() -> Shape {
    Shape::Text(Wording {
        expected: "a text without control characters",
        accepts: is_text,
    })
}

pub(crate) const fn absolute_path() -> Shape {
    Shape::Text(Wording {
        expected: "the absolute path of a file, such as \"/usr/lib/phi-edge/provider.so\"",
        accepts: |text| is_text(text) && Path::new(text).is_absolute(),
    })
}

pub(crate) const fn host() -> Shape {
    Shape::Text(Wording {
        expected: "a host name or IP address without scheme and port, such as \"broker.local\"",
        accepts: is_host,
    })
}

pub(crate) const fn name() -> Shape {
    Shape::Text(Wording {
        expected: "1 to 64 of A-Z a-z 0-9 . _ -",
        accepts: topic::is_name,
    })
}

pub(crate) const fn topic_base() -> Shape {
    Shape::Text(Wording {
        expected: "a topic without wildcards (+ #), empty levels and leading $, such as \"phi-edge/v1/{node.name}\"",
        accepts: |text| topic::is_base(text) && only_placeholders(text, &["{node.name}"]),
    })
}

pub(crate) const fn pool_base() -> Shape {
    Shape::Text(Wording {
        expected: "a topic without wildcards (+ #), empty levels and leading $, such as \"phi-edge/v1/pool\"",
        accepts: |text| topic::is_base(text) && only_placeholders(text, &[]),
    })
}

pub(crate) const fn filters() -> Shape {
    Shape::List(Wording {
        expected: "a list of topic filters without leading $, such as [\"{base}/response/#\", \"plant/+/answer\"]",
        accepts: |text| topic::is_filter(text) && only_placeholders(text, &["{base}", "{node.name}"]),
    })
}

pub(crate) const fn http() -> Shape {
    Shape::Text(Wording {
        // It is printed and logged, so that it must hold no password.
        expected: "an address that begins with http:// or https://, without user and password, such as \
                   \"http://127.0.0.1:4318\"",
        accepts: |text| {
            let host = text.strip_prefix("http://").or(text.strip_prefix("https://"));
            host.is_some_and(|host| {
                !host.is_empty()
                    && !host.starts_with('/')
                    && host
                        .chars()
                        .all(|c| c.is_ascii_graphic() && !matches!(c, '?' | '#' | '@'))
            })
        },
    })
}

pub(crate) const fn texts() -> Shape {
    Shape::List(Wording {
        expected: "a list of texts, none of them blank",
        accepts: |text| !text.trim().is_empty(),
    })
}

pub(crate) const fn log_filter() -> Shape {
    Shape::Text(Wording {
        expected: "off, error, warn, info, debug or trace, also by module as in \"info,phi_edge_mqtt=debug\"",
        accepts: |text| text.split(',').all(is_log_directive),
    })
}

impl Shape {
    /// Returns the value in its normalised form, or none if it is not of this shape.
    pub(crate) fn accept(self, value: &Value) -> Option<Value> {
        match (self, value) {
            (Self::Text(check), Value::String(text)) => (check.accepts)(text).then(|| value.clone()),
            (Self::List(check), Value::Array(items)) => {
                let good = |item: &Value| item.as_str().is_some_and(check.accepts);
                (!items.is_empty() && items.iter().all(good)).then(|| value.clone())
            }
            (Self::Path, Value::String(text)) => is_path(text).then(|| value.clone()),
            (Self::Address, Value::String(text)) => text
                .parse::<SocketAddr>()
                .ok()
                .map(|address| Value::String(address.to_string())),
            (Self::Switch, Value::Boolean(_)) => Some(value.clone()),
            (Self::AutoOrNumber { .. }, Value::String(text)) => (text == AUTO).then(|| value.clone()),
            (Self::Number { min, max } | Self::AutoOrNumber { min, max }, Value::Integer(number)) => {
                u64::try_from(*number)
                    .is_ok_and(|number| (min..=max).contains(&number))
                    .then(|| value.clone())
            }
            (Self::Duration { min, max }, Value::String(text)) => {
                let span: TimeSpan = text.parse().ok()?;
                (min..=max)
                    .contains(&span.as_millis())
                    .then(|| Value::String(span.to_string()))
            }
            (Self::Size { min, max }, Value::String(text)) => {
                let size: ByteSize = text.parse().ok()?;
                (min..=max)
                    .contains(&size.bytes())
                    .then(|| Value::String(size.to_string()))
            }
            (Self::Size { .. }, Value::Integer(bytes)) => self.accept(&Value::String(bytes.to_string())),
            (Self::Choice(words), Value::String(text)) => {
                words.contains(&text.as_str()).then(|| value.clone())
            }
            (Self::Decimal(check), Value::Float(number)) => (check.accepts)(*number).then(|| value.clone()),
            (Self::Decimal(_), Value::Integer(number)) => {
                let number: i32 = (*number).try_into().ok()?;
                self.accept(&Value::Float(number.into()))
            }
            (Self::Pointers, Value::Table(table)) => table
                .iter()
                .all(|(name, pointer)| wrong_pointer(name, pointer).is_none())
                .then(|| value.clone()),
            (Self::Options, Value::Table(table)) => table
                .iter()
                .all(|(name, option)| wrong_option(name, option).is_none())
                .then(|| value.clone()),
            _ => None,
        }
    }

    /// Converts text of the environment or the command line to a TOML value; other text stays text, so that
    /// [`Self::accept`] refuses it.
    pub(crate) fn value_of_text(self, text: &str) -> Value {
        let typed = match self {
            Self::Switch => text.trim().parse().ok().map(Value::Boolean),
            Self::Number { .. } | Self::AutoOrNumber { .. } => text.trim().parse().ok().map(Value::Integer),
            Self::List(_) => Some(list_from_text(text)),
            Self::Options => table_from_text(text),
            _ => None,
        };
        typed.unwrap_or_else(|| Value::String(text.to_owned()))
    }

    /// A hint for the error: what is wrong with the text of a duration or size, or with one of several pointers.
    pub(crate) fn hint(self, value: &Value) -> Option<String> {
        match self {
            Self::Duration { .. } => value
                .as_str()?
                .parse::<TimeSpan>()
                .err()
                .map(|fault| fault.to_string()),
            Self::Size { .. } => value
                .as_str()?
                .parse::<ByteSize>()
                .err()
                .map(|fault| fault.to_string()),
            Self::Pointers => value
                .as_table()?
                .iter()
                .find_map(|(name, pointer)| wrong_pointer(name, pointer)),
            Self::Options => value
                .as_table()?
                .iter()
                .find_map(|(name, option)| wrong_option(name, option)),
            _ => None,
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(check) | Self::List(check) => f.write_str(check.expected),
            Self::Path => f.write_str("the path of a file or folder, or \"credential:NAME\""),
            Self::Address => f.write_str("an IP address and port, such as \"127.0.0.1:9464\""),
            Self::Switch => f.write_str("true or false"),
            Self::Number { min, max } if *max == i64::MAX.unsigned_abs() => {
                write!(f, "a whole number of at least {min}")
            }
            Self::Number { min, max } => write!(f, "a whole number from {min} to {max}"),
            Self::AutoOrNumber { min, max } => {
                write!(f, "\"{AUTO}\" or a whole number from {min} to {max}")
            }
            Self::Duration { min, max } => {
                let (min, max) = (TimeSpan::from_millis(*min), TimeSpan::from_millis(*max));
                write!(f, "a duration from {min} to {max}, such as \"30s\" or \"10m\"")
            }
            Self::Size { min, max } => {
                let (min, max) = (ByteSize::from_bytes(*min), ByteSize::from_bytes(*max));
                write!(f, "a size from {min} to {max}, such as \"512MiB\"")
            }
            Self::Decimal(check) => f.write_str(check.expected),
            Self::Pointers => {
                f.write_str("a table of JSON pointers by names, such as { value = \"/value\" }")
            }
            Self::Options => f.write_str("a table of texts by names, such as { name = \"value\" }"),
            Self::Choice(words) => {
                f.write_str("one of ")?;
                for (place, word) in words.iter().enumerate() {
                    write!(f, "{}\"{word}\"", if place == 0 { "" } else { ", " })?;
                }
                Ok(())
            }
        }
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn is_path(text: &str) -> bool {
    let named = text
        .strip_prefix(CREDENTIAL_PREFIX)
        .is_none_or(is_credential_name);
    named && (1..=4096).contains(&text.len()) && !text.chars().any(char::is_control)
}

/// The word for a number that the program chooses.
const AUTO: &str = "auto";

/// The prefix of the name of a systemd credential.
pub(crate) const CREDENTIAL_PREFIX: &str = "credential:";

/// The name of the systemd credential that a path of the configuration stands for, if systemd has not given it to
/// this process; such a path is no file.
pub fn missing_credential(path: &Path) -> Option<&str> {
    path.to_str()?.strip_prefix(CREDENTIAL_PREFIX)
}

fn is_credential_name(name: &str) -> bool {
    topic::is_name(name) && name != "." && name != ".."
}

fn is_host(text: &str) -> bool {
    // A colon is in no host name; IPv6 addresses are the only texts that may hold one.
    let plain = text
        .chars()
        .all(|c| c.is_alphanumeric() || matches!(c, '.' | '-' | '_'));
    (1..=253).contains(&text.len()) && (plain || text.parse::<std::net::Ipv6Addr>().is_ok())
}

fn is_log_directive(text: &str) -> bool {
    let is_level = |level: &str| {
        ["off", "error", "warn", "info", "debug", "trace"]
            .iter()
            .any(|known| known.eq_ignore_ascii_case(level))
    };
    let is_module = |module: &str| {
        !module.is_empty()
            && module
                .chars()
                .all(|c| c.is_alphanumeric() || matches!(c, '_' | ':'))
    };
    match text.trim().split_once('=') {
        Some((module, level)) => is_module(module) && is_level(level),
        None => is_level(text.trim()),
    }
}

/// Whether braces occur only as these placeholders, so that a typo in one is not taken for a topic.
pub(crate) fn only_placeholders(text: &str, known: &[&str]) -> bool {
    let mut rest = text.to_owned();
    for placeholder in known {
        rest = rest.replace(placeholder, "");
    }
    !rest.contains(['{', '}'])
}
