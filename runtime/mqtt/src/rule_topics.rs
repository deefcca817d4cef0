//! The topic filters of rules, and which rules take a message.

use std::collections::BTreeMap;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::topics::filter_matches;

/// The largest subscription identifier (MQTT 5, section 3.8.2.1.2).
const MAX_SUBSCRIPTION_ID: u32 = 268_435_455;

/// The topic filters of rules, each with the rules that take what matches it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RuleTopics {
    filters: Vec<RuleFilter>,
    /// Filters that were subscribed to before and are not any more.
    former: Vec<String>,
    /// Whether one subscription brings all topics.
    in_one: bool,
}

/// The filter of all topics.
const ALL_TOPICS: &str = "#";

/// A filter and the rules that it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
struct RuleFilter {
    filter: String,
    rules: Vec<Arc<str>>,
}

impl RuleTopics {
    /// Creates the filters of these rules, given by name.
    pub fn new<'a>(rules: impl IntoIterator<Item = (&'a str, &'a [String])>) -> Self {
        let mut filters: BTreeMap<&str, Vec<Arc<str>>> = BTreeMap::new();
        for (name, topics) in rules {
            let name: Arc<str> = name.into();
            for filter in topics {
                let takers = filters.entry(filter.as_str()).or_default();
                if !takers.contains(&name) {
                    takers.push(Arc::clone(&name));
                }
            }
        }
        let filters = filters
            .into_iter()
            .map(|(filter, rules)| RuleFilter {
                filter: filter.to_owned(),
                rules,
            })
            .collect();
        Self {
            filters,
            former: Vec::new(),
            in_one: false,
        }
    }

    /// Replaces the subscriptions by one to all topics, which a change of rules does not touch. For a broker in this process: it
    /// routes the messages of several clients at the same time, so that no message can mark where a change takes effect.
    #[must_use]
    pub fn in_one(self) -> Self {
        Self { in_one: true, ..self }
    }

    /// Whether a message to the node itself that came by these subscriptions is a second copy: it also comes by the node's own
    /// subscriptions, which have no identifiers.
    pub(crate) fn is_second_copy(&self, ids: &[usize]) -> bool {
        self.in_one && !ids.is_empty()
    }

    /// Sets the earlier filters, which are unsubscribed from where they are not wanted any more.
    #[must_use]
    pub fn in_place_of(mut self, former: impl IntoIterator<Item = String>) -> Self {
        let former = former.into_iter();
        self.former = former
            .filter(|former| self.filters().all(|known| known != former))
            .collect();
        self
    }

    /// Returns the filters to subscribe to.
    pub fn filters(&self) -> impl Iterator<Item = &str> {
        let in_one = self.in_one && !self.filters.is_empty();
        let each = self.filters.iter().filter(move |_| !in_one);
        in_one
            .then_some(ALL_TOPICS)
            .into_iter()
            .chain(each.map(|filter| filter.filter.as_str()))
    }

    /// Returns the filters to unsubscribe from.
    pub fn former(&self) -> impl Iterator<Item = &str> {
        self.former.iter().map(String::as_str)
    }

    /// Returns the rules that take the messages of a topic.
    pub(crate) fn takers(&self, topic: &str) -> Vec<Arc<str>> {
        let mut takers: Vec<Arc<str>> = Vec::new();
        let matching = self.filters.iter();
        for filter in matching.filter(|filter| filter_matches(&filter.filter, topic)) {
            for rule in &filter.rules {
                if !takers.contains(rule) {
                    takers.push(Arc::clone(rule));
                }
            }
        }
        takers
    }
}

/// Returns subscription identifiers for a filter, the preferred one first: the same for the same filter in every process, as
/// the broker may queue messages with them.
pub(crate) fn identifier(filter: &str) -> impl Iterator<Item = usize> {
    let digest = Sha256::digest(filter.as_bytes());
    let number = u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]);
    let first = number % MAX_SUBSCRIPTION_ID + 1;
    std::iter::successors(Some(first), |id| Some(id % MAX_SUBSCRIPTION_ID + 1)).map(|id| id as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topics() -> RuleTopics {
        let alarms = ["plant/+/alarm".to_owned(), "hall/#".to_owned()];
        let all = ["plant/#".to_owned()];
        let twice = ["plant/#".to_owned(), "plant/+/alarm".to_owned()];
        RuleTopics::new([("alarms", &alarms[..]), ("all", &all[..]), ("twice", &twice[..])])
    }

    fn takers(topic: &str) -> Vec<String> {
        let takers = topics().takers(topic);
        takers.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_rule_takes_a_message_once_however_many_of_its_filters_match() {
        assert_eq!(takers("plant/3/alarm"), ["all", "twice", "alarms"]);
        assert_eq!(takers("plant/3"), ["all", "twice"]);
        assert_eq!(takers("hall/1"), ["alarms"]);
        assert_eq!(takers("elsewhere"), Vec::<String>::new());
    }

    #[test]
    fn identifiers_are_the_same_for_the_same_filter_and_never_out_of_bounds() {
        let first = |filter| identifier(filter).next();
        assert_eq!(first("plant/#"), first("plant/#"));
        assert_ne!(first("plant/#"), first("plant/+"));
        let few: Vec<usize> = identifier("plant/#").take(3).collect();
        assert!(
            few.iter()
                .all(|id| (1..=MAX_SUBSCRIPTION_ID as usize).contains(id))
        );
        assert!(few[0] != few[1] && few[1] != few[2]);
    }

    #[test]
    fn in_one_subscription_rules_take_what_is_theirs() {
        let topics = topics()
            .in_one()
            .in_place_of(["plant/#".to_owned(), "#".to_owned()]);
        assert_eq!(topics.filters().collect::<Vec<_>>(), ["#"]);
        assert_eq!(topics.former().collect::<Vec<_>>(), ["plant/#"]);
        assert_eq!(topics.takers("hall/1").len(), 1);
        assert_eq!(topics.takers("elsewhere").len(), 0);
        assert!(topics.is_second_copy(&[7]) && !topics.is_second_copy(&[]));
        assert_eq!(RuleTopics::default().in_one().filters().count(), 0);
    }

    #[test]
    fn what_is_no_longer_wanted_is_left() {
        let topics = topics().in_place_of(["plant/#".to_owned(), "old/#".to_owned()]);
        assert_eq!(topics.former().collect::<Vec<_>>(), ["old/#"]);
    }
}
