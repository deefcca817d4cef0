//! The recent values of a rule's `dedupe`.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::Time;

/// The time for which a value is remembered.
const DEDUPE_RETENTION: Duration = Duration::from_hours(24);
/// The most values that are remembered for a rule.
pub const MAX_DEDUPE_VALUES: usize = 100_000;

/// The prefix of a digest in the store. Values that earlier versions stored contain [`GROUP_SEPARATOR`], digests never do.
const DIGEST_PREFIX: char = '\u{1d}';
/// The separator of group and value in a digest's input.
const GROUP_SEPARATOR: char = '\u{1f}';

/// The digest of a value of a group. That two of 100,000 collide is less likely than one in 10^28.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct DedupeDigest(u128);

impl DedupeDigest {
    /// The digest of a value. Publishers number their messages independently, so the group is part of it.
    pub(super) fn of(group: &str, value: &str) -> Self {
        Self::of_key(&format!("{group}{GROUP_SEPARATOR}{value}"))
    }

    /// Parses a stored digest, or makes one of a value that an earlier version stored.
    pub(super) fn parse(text: &str) -> Self {
        let digest = text
            .strip_prefix(DIGEST_PREFIX)
            .filter(|digits| digits.len() == 32 && !digits.contains(GROUP_SEPARATOR))
            .and_then(|digits| u128::from_str_radix(digits, 16).ok());
        digest.map_or_else(|| Self::of_key(text), Self)
    }

    /// The text in the store.
    pub(super) fn to_text(self) -> String {
        format!("{DIGEST_PREFIX}{:032x}", self.0)
    }

    fn of_key(name: &str) -> Self {
        let digest = Sha256::digest(name.as_bytes());
        let first = digest.iter().take(16);
        Self(first.fold(0, |number, byte| number << 8 | u128::from(*byte)))
    }
}

/// The recent values of a rule's `dedupe`.
#[derive(Debug, Default)]
pub(super) struct DedupeValues {
    values: HashMap<DedupeDigest, Time>,
    /// Oldest first.
    order: VecDeque<DedupeDigest>,
}

impl DedupeValues {
    /// Whether the value was seen within the retention.
    pub(super) fn contains(&self, value: DedupeDigest, now: Time) -> bool {
        self.values
            .get(&value)
            .is_some_and(|at| now.since(*at) <= DEDUPE_RETENTION)
    }

    /// Adds a value. Returns those that are removed for it.
    pub(super) fn add(&mut self, value: DedupeDigest, at: Time) -> Vec<DedupeDigest> {
        let mut forgotten = Vec::new();
        while let Some(oldest) = self.order.front() {
            let expired = !self.contains(*oldest, at);
            if !expired && self.order.len() < MAX_DEDUPE_VALUES {
                break;
            }
            if let Some(oldest) = self.order.pop_front() {
                self.values.remove(&oldest);
                forgotten.push(oldest);
            }
        }
        if self.values.insert(value, at).is_none() {
            self.order.push_back(value);
        }
        forgotten
    }

    /// All values, oldest first, and when they were seen.
    pub(super) fn all(&self) -> impl Iterator<Item = (DedupeDigest, Time)> {
        let at = |value: &DedupeDigest| self.values.get(value).copied();
        self.order
            .iter()
            .filter_map(move |value| Some((*value, at(value)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> DedupeDigest {
        DedupeDigest::of("", text)
    }

    #[test]
    fn what_is_too_old_or_too_much_is_forgotten_and_told() {
        let mut seen = DedupeValues::default();
        assert_eq!(seen.add(value("a"), Time(0)), []);
        let day = Time(0).after(DEDUPE_RETENTION);
        assert!(seen.contains(value("a"), day) && !seen.contains(value("a"), Time(day.0 + 1)));
        assert_eq!(seen.add(value("b"), Time(day.0 + 1)), [value("a")]);
        for n in 1..MAX_DEDUPE_VALUES {
            assert_eq!(seen.add(value(&n.to_string()), Time(day.0 + 2)), []);
        }
        assert_eq!(seen.add(value("c"), Time(day.0 + 3)), [value("b")]);
        assert_eq!(seen.all().next(), Some((value("1"), Time(day.0 + 2))));
        assert_eq!(seen.all().count(), MAX_DEDUPE_VALUES);
    }

    #[test]
    fn a_value_takes_the_same_room_however_long_it_is() {
        assert_eq!(size_of::<DedupeDigest>(), 16);
        let long = "x".repeat(64 << 10);
        for value in [DedupeDigest::of("g", "1"), DedupeDigest::of("g", &long)] {
            assert_eq!(value.to_text().len(), 33);
            assert_eq!(DedupeDigest::parse(&value.to_text()), value);
        }
        assert_ne!(DedupeDigest::of("g", "1"), DedupeDigest::of("h", "1"));
    }

    #[test]
    fn what_earlier_versions_stored_is_known_again() {
        assert_eq!(DedupeDigest::parse("g\u{1f}42"), DedupeDigest::of("g", "42"));
        assert_eq!(DedupeDigest::parse("\u{1f}42"), DedupeDigest::of("", "42"));
        let told = format!("{DIGEST_PREFIX}{}", "0".repeat(32));
        assert_eq!(
            DedupeDigest::parse(&format!("{told}{GROUP_SEPARATOR}1")),
            DedupeDigest::of(&told, "1")
        );
    }
}
