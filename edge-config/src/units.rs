//! Lengths of time and amounts of memory as operators write them: `"10m"`, `"512MiB"`.
//!
//! The usual crates accept more than should be written in a configuration (years, fractions, a bare `M` of unclear
//! base) and print rounded values, while a value here must be printed exactly as it was read.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The reason why a text is not a length of time or a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// The text is empty, or does not begin with a whole number.
    #[error("no whole number")]
    NoNumber,
    /// A number without a unit where one is needed.
    #[error("no unit; use one of {units}")]
    NoUnit {
        /// The units that are known.
        units: &'static str,
    },
    /// A unit that is not known.
    #[error("unknown unit {unit:?}; use one of {units}")]
    UnknownUnit {
        /// What was written.
        unit: String,
        /// The units that are known.
        units: &'static str,
    },
    /// Units that repeat or grow from left to right.
    #[error("units must fall from left to right, as in \"1h30m\"")]
    Order,
    /// A value that is too large for 64 bits.
    #[error("too large")]
    TooLarge,
}

const TIME_UNITS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
];
const TIME_UNIT_NAMES: &str = "ms, s, m, h, d";

const SIZE_UNITS: [(&str, u64); 8] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];
const SIZE_UNIT_NAMES: &str = "B, KiB, MiB, GiB, TiB, kB, MB, GB";

/// A length of time in whole milliseconds, written as `"250ms"`, `"30s"`, `"10m"`, `"1h30m"` or `"7d"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimeSpan(u64);

impl TimeSpan {
    /// A time span of so many milliseconds.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// A time span of so many seconds; at the end of the range it stays there.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(seconds.saturating_mul(1_000))
    }

    /// The span in milliseconds.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// The span in whole seconds, rounded down.
    pub const fn as_secs(self) -> u64 {
        self.0 / 1_000
    }

    /// The span as the standard library's type.
    pub const fn get(self) -> Duration {
        Duration::from_millis(self.0)
    }
}

impl From<TimeSpan> for Duration {
    fn from(span: TimeSpan) -> Self {
        span.get()
    }
}

impl FromStr for TimeSpan {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let mut rest = text.trim();
        let mut total = 0_u64;
        let mut last = u64::MAX;
        loop {
            let (number, tail) = leading_number(rest)?;
            let end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(end);
            let millis = unit_of(unit.trim(), &TIME_UNITS, TIME_UNIT_NAMES)?;
            if millis >= last {
                return Err(UnitError::Order);
            }
            last = millis;
            total = number
                .checked_mul(millis)
                .and_then(|part| total.checked_add(part))
                .ok_or(UnitError::TooLarge)?;
            rest = tail;
            if rest.is_empty() {
                return Ok(Self(total));
            }
        }
    }
}

impl fmt::Display for TimeSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("0s");
        }
        let mut rest = self.0;
        for (unit, millis) in TIME_UNITS {
            if rest >= millis {
                write!(f, "{}{unit}", rest / millis)?;
                rest %= millis;
            }
        }
        Ok(())
    }
}

/// A number of bytes, written as `"512MiB"` (powers of 1024), `"500MB"` (powers of 1000) or a whole number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(u64);

impl ByteSize {
    /// A size of so many bytes.
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The size in bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// The size in bytes as a length in memory; on a 32-bit machine the largest length where it does not fit.
    pub fn get(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl FromStr for ByteSize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let (number, unit) = leading_number(text.trim())?;
        let unit = unit.trim();
        let factor = if unit.is_empty() {
            1
        } else {
            unit_of(unit, &SIZE_UNITS, SIZE_UNIT_NAMES)?
        };
        number.checked_mul(factor).map(Self).ok_or(UnitError::TooLarge)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The largest unit that divides the size evenly, so that nothing is rounded away.
        let even = SIZE_UNITS
            .iter()
            .find(|(_, factor)| self.0 != 0 && self.0.is_multiple_of(*factor));
        match even {
            Some((unit, factor)) => write!(f, "{}{unit}", self.0 / factor),
            None => write!(f, "{}B", self.0),
        }
    }
}

fn leading_number(text: &str) -> Result<(u64, &str), UnitError> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, tail) = text.split_at(end);
    if digits.is_empty() {
        return Err(UnitError::NoNumber);
    }
    let number = digits.parse().map_err(|_| UnitError::TooLarge)?;
    Ok((number, tail))
}

fn unit_of(unit: &str, known: &[(&str, u64)], names: &'static str) -> Result<u64, UnitError> {
    if unit.is_empty() {
        return Err(UnitError::NoUnit { units: names });
    }
    known
        .iter()
        .find(|(name, _)| *name == unit)
        .map(|(_, factor)| *factor)
        .ok_or_else(|| UnitError::UnknownUnit {
            unit: unit.to_owned(),
            units: names,
        })
}

impl Serialize for TimeSpan {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TimeSpan {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn time_spans_are_read_as_written() {
        let check = |text: &str, millis| assert_eq!(text.parse(), Ok(TimeSpan(millis)), "{text}");
        check("0s", 0);
        check("250ms", 250);
        check("30s", 30_000);
        check("10m", 600_000);
        check("1h30m", 5_400_000);
        check(" 2d ", 172_800_000);
        check("1 m", 60_000);
    }

    #[test]
    fn wrong_time_spans_say_why() {
        let check =
            |text: &str, fault: UnitError| assert_eq!(text.parse::<TimeSpan>(), Err(fault), "{text:?}");
        check("", UnitError::NoNumber);
        check("m", UnitError::NoNumber);
        check("-5s", UnitError::NoNumber);
        check(
            "30",
            UnitError::NoUnit {
                units: TIME_UNIT_NAMES,
            },
        );
        check(
            "1h30",
            UnitError::NoUnit {
                units: TIME_UNIT_NAMES,
            },
        );
        check(
            "1.5h",
            UnitError::UnknownUnit {
                unit: ".".to_owned(),
                units: TIME_UNIT_NAMES,
            },
        );
        check(
            "10min",
            UnitError::UnknownUnit {
                unit: "min".to_owned(),
                units: TIME_UNIT_NAMES,
            },
        );
        check("5s1m", UnitError::Order);
        check("1m1m", UnitError::Order);
        check("999999999999999999999s", UnitError::TooLarge);
        check("18446744073709551615d", UnitError::TooLarge);
    }

    #[test]
    fn sizes_are_read_as_written() {
        let check = |text: &str, bytes| assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        check("0", 0);
        check("1024", 1024);
        check("512MiB", 512 << 20);
        check("2 GiB", 2 << 30);
        check("500MB", 500_000_000);
        check("7B", 7);
    }

    #[test]
    fn wrong_sizes_say_why() {
        let check =
            |text: &str, fault: UnitError| assert_eq!(text.parse::<ByteSize>(), Err(fault), "{text:?}");
        check("", UnitError::NoNumber);
        check(
            "512M",
            UnitError::UnknownUnit {
                unit: "M".to_owned(),
                units: SIZE_UNIT_NAMES,
            },
        );
        check(
            "1.5GiB",
            UnitError::UnknownUnit {
                unit: ".5GiB".to_owned(),
                units: SIZE_UNIT_NAMES,
            },
        );
        check("99999999TiB", UnitError::TooLarge);
    }

    proptest! {
        #[test]
        fn time_spans_come_back_exactly(millis in any::<u64>()) {
            prop_assert_eq!(TimeSpan(millis).to_string().parse(), Ok(TimeSpan(millis)));
        }

        #[test]
        fn sizes_come_back_exactly(bytes in prop_oneof![any::<u64>(), (0_u64..4096).prop_map(|n| n << 20)]) {
            prop_assert_eq!(ByteSize(bytes).to_string().parse(), Ok(ByteSize(bytes)));
        }

        #[test]
        fn no_text_makes_the_parsers_panic(text in ".*") {
            let _ = text.parse::<TimeSpan>();
            let _ = text.parse::<ByteSize>();
        }

        #[test]
        fn near_misses_do_not_panic(text in "[0-9]{0,25} ?(ms|s|m|h|d|K|KiB|MiB|TiB|B)?[0-9]{0,4}(ms|s)?") {
            let _ = text.parse::<TimeSpan>();
            let _ = text.parse::<ByteSize>();
        }
    }
}
