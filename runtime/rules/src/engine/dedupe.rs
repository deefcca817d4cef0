//! The values of a rule's `dedupe` that were there lately.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::Time;

/// They are remembered for so long.
const FOR: Duration = Duration::from_hours(24);
/// Values that are remembered of a rule.
pub const SEEN_AT_MOST: usize = 100_000;

/// What begins a digest in the store. Names that earlier versions stored hold [`PART`], digests never do.
const MARK: char = '\u{1d}';
/// Parts a group from the value.
const PART: char = '\u{1f}';

/// A value of a group, in so many bytes however long it is. That two of 100,000 are alike by chance is less likely than one
/// in 10^28.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Digest(u128);

impl Digest {
    /// Publishers count each for itself: values are those of a group.
    pub(super) fn of(group: &str, value: &str) -> Self {
        Self::of_name(&format!("{group}{PART}{value}"))
    }

    /// As the store has it: a digest, or the name of which an earlier version had none.
    pub(super) fn stored(text: &str) -> Self {
        let digest = text
            .strip_prefix(MARK)
            .filter(|digits| digits.len() == 32 && !digits.contains(PART))
            .and_then(|digits| u128::from_str_radix(digits, 16).ok());
        digest.map_or_else(|| Self::of_name(text), Self)
    }

    /// The text for the store.
    pub(super) fn text(self) -> String {
        format!("{MARK}{:032x}", self.0)
    }

    fn of_name(name: &str) -> Self {
        let digest = Sha256::digest(name.as_bytes());
        let first = digest.iter().take(16);
        Self(first.fold(0, |number, byte| number << 8 | u128::from(*byte)))
    }
}

#[derive(Debug, Default)]
pub(super) struct Seen {
    values: HashMap<Digest, Time>,
    /// Oldest first.
    order: VecDeque<Digest>,
}

impl Seen {
    /// Whether the value was there lately.
    pub(super) fn holds(&self, value: Digest, now: Time) -> bool {
        self.values.get(&value).is_some_and(|at| now.since(*at) <= FOR)
    }

    /// Remembers a value; gives those that are forgotten for it.
    pub(super) fn add(&mut self, value: Digest, at: Time) -> Vec<Digest> {
        let mut forgotten = Vec::new();
        while let Some(oldest) = self.order.front() {
            let expired = !self.holds(*oldest, at);
            if !expired && self.order.len() < SEEN_AT_MOST {
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

    /// All of them, oldest first, and when they were there.
    pub(super) fn all(&self) -> impl Iterator<Item = (Digest, Time)> {
        let at = |value: &Digest| self.values.get(value).copied();
        self.order
            .iter()
            .filter_map(move |value| Some((*value, at(value)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Digest {
        Digest::of("", text)
    }

    #[test]
    fn what_is_too_old_or_too_much_is_forgotten_and_told() {
        let mut seen = Seen::default();
        assert_eq!(seen.add(value("a"), Time(0)), []);
        let day = Time(0).after(FOR);
        assert!(seen.holds(value("a"), day) && !seen.holds(value("a"), Time(day.0 + 1)));
        assert_eq!(seen.add(value("b"), Time(day.0 + 1)), [value("a")]);
        for n in 1..SEEN_AT_MOST {
            assert_eq!(seen.add(value(&n.to_string()), Time(day.0 + 2)), []);
        }
        assert_eq!(seen.add(value("c"), Time(day.0 + 3)), [value("b")]);
        assert_eq!(seen.all().next(), Some((value("1"), Time(day.0 + 2))));
        assert_eq!(seen.all().count(), SEEN_AT_MOST);
    }

    #[test]
    fn a_value_takes_the_same_room_however_long_it_is() {
        assert_eq!(size_of::<Digest>(), 16);
        let long = "x".repeat(64 << 10);
        for value in [Digest::of("g", "1"), Digest::of("g", &long)] {
            assert_eq!(value.text().len(), 33);
            assert_eq!(Digest::stored(&value.text()), value);
        }
        assert_ne!(Digest::of("g", "1"), Digest::of("h", "1"));
    }

    #[test]
    fn what_earlier_versions_stored_is_known_again() {
        assert_eq!(Digest::stored("g\u{1f}42"), Digest::of("g", "42"));
        assert_eq!(Digest::stored("\u{1f}42"), Digest::of("", "42"));
        let told = format!("{MARK}{}", "0".repeat(32));
        assert_eq!(Digest::stored(&format!("{told}{PART}1")), Digest::of(&told, "1"));
    }
}
