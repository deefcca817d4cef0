//! The values of a rule's `dedupe` that were there lately.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use crate::rules::Time;

/// They are remembered for so long, and so many of a rule.
const FOR: Duration = Duration::from_hours(24);
pub(crate) const SEEN_AT_MOST: usize = 100_000;

#[derive(Debug, Default)]
pub(super) struct Seen {
    values: HashMap<String, Time>,
    /// Oldest first.
    order: VecDeque<String>,
}

impl Seen {
    /// Whether the value was there lately.
    pub(super) fn holds(&self, value: &str, now: Time) -> bool {
        self.values.get(value).is_some_and(|at| now.since(*at) <= FOR)
    }

    /// Remembers a value; gives those that are forgotten for it.
    pub(super) fn add(&mut self, value: String, at: Time) -> Vec<String> {
        let mut forgotten = Vec::new();
        while let Some(oldest) = self.order.front() {
            let expired = !self.holds(oldest, at);
            if !expired && self.order.len() < SEEN_AT_MOST {
                break;
            }
            if let Some(oldest) = self.order.pop_front() {
                self.values.remove(&oldest);
                forgotten.push(oldest);
            }
        }
        if self.values.insert(value.clone(), at).is_none() {
            self.order.push_back(value);
        }
        forgotten
    }

    /// All of them, oldest first, and when they were there.
    pub(super) fn all(&self) -> impl Iterator<Item = (&str, Time)> {
        let at = |value: &String| self.values.get(value).copied();
        self.order
            .iter()
            .filter_map(move |value| Some((value.as_str(), at(value)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_old_or_too_much_is_forgotten_and_told() {
        let mut seen = Seen::default();
        assert_eq!(seen.add("a".to_owned(), Time(0)), [""; 0]);
        let day = Time(0).after(FOR);
        assert!(seen.holds("a", day) && !seen.holds("a", Time(day.0 + 1)));
        assert_eq!(seen.add("b".to_owned(), Time(day.0 + 1)), ["a"]);
        for n in 1..SEEN_AT_MOST {
            assert_eq!(seen.add(n.to_string(), Time(day.0 + 2)), [""; 0]);
        }
        assert_eq!(seen.add("c".to_owned(), Time(day.0 + 3)), ["b"]);
        assert_eq!(seen.all().next(), Some(("1", Time(day.0 + 2))));
        assert_eq!(seen.all().count(), SEEN_AT_MOST);
    }
}
