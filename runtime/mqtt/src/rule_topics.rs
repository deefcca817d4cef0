//! The filters of rules: what is subscribed to for them, and who takes a message.

use std::collections::BTreeMap;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::topics::filter_matches;

/// The largest subscription identifier (MQTT 5, section 3.8.2.1.2).
const LARGEST_ID: u32 = 268_435_455;

/// The filters of rules, and which rules take what matches them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RuleTopics {
    filters: Vec<RuleFilter>,
    /// Filters that were subscribed to before and are no more.
    former: Vec<String>,
}

/// A filter that is subscribed to by itself, so that the broker says by which subscription a message came: where filters
/// overlap, brokers may send a message once for each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RuleFilter {
    pub(crate) filter: String,
    /// The same for the same filter in every process: the broker may keep messages over a restart.
    pub(crate) id: usize,
    pub(crate) rules: Vec<Arc<str>>,
}

impl RuleTopics {
    /// The filters of these rules, given by name.
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
        let mut taken = Vec::new();
        let filters = filters
            .into_iter()
            .map(|(filter, rules)| {
                let mut id = identifier(filter);
                while taken.contains(&id) {
                    id = id % LARGEST_ID + 1;
                }
                taken.push(id);
                RuleFilter {
                    filter: filter.to_owned(),
                    id: id as usize,
                    rules,
                }
            })
            .collect();
        Self {
            filters,
            former: Vec::new(),
        }
    }

    /// The same, in place of `former` ones: what is no longer wanted of them is unsubscribed from.
    #[must_use]
    pub fn in_place_of(mut self, former: impl IntoIterator<Item = String>) -> Self {
        self.former = former
            .into_iter()
            .filter(|former| self.filters.iter().all(|known| known.filter != *former))
            .collect();
        self
    }

    /// What is subscribed to.
    pub fn filters(&self) -> impl Iterator<Item = &str> {
        self.filters.iter().map(|filter| filter.filter.as_str())
    }

    pub(crate) fn entries(&self) -> &[RuleFilter] {
        &self.filters
    }

    /// What is unsubscribed from.
    pub fn former(&self) -> impl Iterator<Item = &str> {
        self.former.iter().map(String::as_str)
    }

    /// Who takes a message that came by these subscriptions.
    ///
    /// A broker may send a message once for each filter that matches it. So of a rule's filters only the first that matches
    /// counts. A broker that says nothing of subscriptions, or tells of one that is no more, leaves it to the topic.
    pub(crate) fn takers(&self, topic: &str, ids: &[usize]) -> Vec<Arc<str>> {
        let told = self.filters.iter().any(|filter| ids.contains(&filter.id));
        let mut seen: Vec<&Arc<str>> = Vec::new();
        let mut takers = Vec::new();
        for filter in self
            .filters
            .iter()
            .filter(|filter| filter_matches(&filter.filter, topic))
        {
            for rule in &filter.rules {
                if seen.contains(&rule) {
                    continue;
                }
                seen.push(rule);
                if !told || ids.contains(&filter.id) {
                    takers.push(Arc::clone(rule));
                }
            }
        }
        takers
    }
}

fn identifier(filter: &str) -> u32 {
    let digest = Sha256::digest(filter.as_bytes());
    let number = u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]);
    number % LARGEST_ID + 1
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

    fn takers(topic: &str, ids: &[usize]) -> Vec<String> {
        let takers = topics().takers(topic, ids);
        takers.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_copy_goes_to_those_whose_subscription_it_came_by() {
        let topics = topics();
        let id = |filter: &str| {
            let mut entries = topics.entries().iter();
            entries
                .find(|entry| entry.filter == filter)
                .map_or(0, |entry| entry.id)
        };
        // Of the two copies only one counts for the rule that both filters belong to.
        assert_eq!(takers("plant/3/alarm", &[id("plant/+/alarm")]), ["alarms"]);
        assert_eq!(takers("plant/3/alarm", &[id("plant/#")]), ["all", "twice"]);
        assert_eq!(
            takers("plant/3/alarm", &[id("plant/#"), id("plant/+/alarm")]),
            ["all", "twice", "alarms"]
        );
        // Nothing said, or something of an earlier configuration.
        assert_eq!(takers("plant/3/alarm", &[]), ["all", "twice", "alarms"]);
        assert_eq!(takers("hall/1", &[7]), ["alarms"]);
        assert_eq!(takers("elsewhere", &[]), Vec::<String>::new());
    }

    #[test]
    fn what_is_no_longer_wanted_is_left() {
        let topics = topics().in_place_of(["plant/#".to_owned(), "old/#".to_owned()]);
        assert_eq!(topics.former().collect::<Vec<_>>(), ["old/#"]);
    }
}
