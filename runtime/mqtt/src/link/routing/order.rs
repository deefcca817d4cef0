//! The order of the rules' filters while they change: which copy of a message counts, and what is subscribed to and
//! unsubscribed from.
//!
//! A broker may send a message once for each subscription that matches it. One copy counts: the first filter of an ordered
//! list that matches the topic decides, by the identifier of its subscription. New filters are added at the end of the list,
//! where they decide on nothing that an earlier filter decides on. A filter that is no longer wanted stays in the list, and
//! subscribed to, until all wanted ones are granted and a fence has come back: a message to the node itself that the broker
//! queues behind all that it routed before. The copies of one message are on the same side of the fence. Only then is the
//! filter unsubscribed from.
//!
//! The state machine knows no clock and no network: [`Order::advance`] returns what to ask the broker for.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::rule_topics::{RuleTopics, identifier};
use crate::topics::filter_matches;

/// The most identifiers of former filters that are remembered: a late copy that came by one does not count.
const MAX_LEFT_IDS: usize = 1024;

/// The filters of rules in the order in which they decide.
#[derive(Debug, Default)]
pub(crate) struct Order {
    filters: Vec<OrderedFilter>,
    wanted: Vec<String>,
    /// Filters that do not decide any more and are to be unsubscribed from.
    former: Vec<FormerFilter>,
    /// The identifiers of filters that were unsubscribed from, oldest first.
    left: VecDeque<usize>,
    /// Whether the list of an earlier process was restored; no copy is judged before.
    restored: bool,
    fence: Option<u64>,
    fences: u64,
}

/// A filter with a subscription of its own, so that the broker tells by which filter a copy came.
#[derive(Debug)]
struct OrderedFilter {
    filter: String,
    /// The subscription identifier: the same over a restart, as the broker queues copies with it.
    id: usize,
    grant: GrantState,
    /// Whether the broker has refused the filter and not granted it since.
    refused: bool,
    /// Whether an earlier process may have subscribed to it.
    remembered: bool,
}

/// The broker's answer to a subscription on the current connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum GrantState {
    NotRequested,
    Requested,
    Granted,
    Refused,
}

/// A filter that does not decide any more.
#[derive(Debug)]
struct FormerFilter {
    filter: String,
    id: usize,
    /// Whether the list without this filter is on the disk.
    noted: bool,
    /// Whether the unsubscription was sent on the current connection.
    asked: bool,
    /// Whether the broker has lost the subscription with the session.
    lost: bool,
}

/// A request to the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    Subscribe {
        filter: String,
        id: usize,
    },
    Unsubscribe {
        filter: String,
    },
    /// Publish a fence of this number.
    Fence(u64),
}

/// The list as it is stored.
#[derive(Debug, Serialize, Deserialize)]
struct SavedOrder {
    order: Vec<(String, usize)>,
    former: Vec<(String, usize)>,
    left: Vec<usize>,
}

impl Order {
    /// Restores the list of an earlier process, before the first copy is judged.
    pub(crate) fn restore(&mut self, note: Option<&str>) {
        self.restored = true;
        let note: Option<SavedOrder> = note.and_then(|note| {
            serde_json::from_str(note)
                .inspect_err(
                    |error| tracing::error!(%error, "the rules' earlier subscriptions can't be read"),
                )
                .ok()
        });
        let Some(note) = note else { return };
        let mut known = std::mem::take(&mut self.filters);
        for (filter, id) in note.order {
            let place = known.iter().position(|other| other.filter == filter);
            let asked = place.map(|place| known.remove(place));
            let mut entry = asked.unwrap_or_else(|| OrderedFilter::new(filter, id));
            if entry.id != id {
                (entry.id, entry.grant) = (id, GrantState::NotRequested);
            }
            self.filters.push(entry);
        }
        // A filter outside the stored list may be subscribed to or not: it must not decide before others.
        let mut unsure: Vec<OrderedFilter> = known.extract_if(.., |entry| entry.remembered).collect();
        self.filters.append(&mut known);
        self.filters.append(&mut unsure);
        self.left.extend(note.left);
        for (filter, id) in note.former {
            if self.filters.iter().all(|other| other.filter != filter) {
                let former = FormerFilter {
                    filter,
                    id,
                    noted: true,
                    asked: false,
                    lost: false,
                };
                self.former.push(former);
            }
        }
    }

    /// Adds the filters that the broker may know from an earlier process, before any is wanted. They decide first, unless that
    /// process has stored a list.
    pub(crate) fn remember(&mut self, filters: impl IntoIterator<Item = String>) {
        for filter in filters {
            self.append(filter);
        }
        for entry in &mut self.filters {
            entry.remembered = true;
        }
    }

    /// Sets the wanted filters.
    pub(crate) fn want(&mut self, topics: &RuleTopics) {
        self.wanted = topics.filters().map(str::to_owned).collect();
        for filter in self.wanted.clone() {
            self.append(filter);
        }
        // The fence in flight is about an earlier list.
        self.fence = None;
    }

    /// Notes that a connection is made. Without a session the broker knows none of the filters.
    pub(crate) fn connected(&mut self, session_present: bool) {
        for entry in &mut self.filters {
            entry.grant = GrantState::NotRequested;
        }
        for former in &mut self.former {
            former.asked = false;
        }
        if !session_present {
            // The stored list still has those that are not noted: a process started now would let them decide.
            let gone: Vec<FormerFilter> = self.former.extract_if(.., |former| former.noted).collect();
            for former in gone {
                self.forget_id(former.id);
            }
            for former in &mut self.former {
                former.lost = true;
            }
        }
        self.fence = None;
    }

    /// Returns the requests that are due while there is a connection. On each connection all filters are subscribed to in their
    /// order, since the broker may have lost the session: of those that it knows again the first ones decide.
    pub(crate) fn advance(&mut self) -> Vec<Action> {
        let mut actions = Vec::new();
        for former in self.former.iter_mut().filter(|former| former.lost) {
            former.lost = false;
            let (filter, id) = (former.filter.clone(), former.id);
            actions.push(Action::Subscribe { filter, id });
        }
        let former = self.former.iter_mut();
        for former in former.filter(|former| former.noted && !former.asked) {
            former.asked = true;
            let filter = former.filter.clone();
            actions.push(Action::Unsubscribe { filter });
        }
        let mut settled = true;
        for entry in &mut self.filters {
            if entry.grant == GrantState::NotRequested {
                entry.grant = GrantState::Requested;
                let (filter, id) = (entry.filter.clone(), entry.id);
                actions.push(Action::Subscribe { filter, id });
            }
            settled &= entry.grant == GrantState::Granted || !self.wanted.contains(&entry.filter);
        }
        if settled && self.restored && self.fence.is_none() && self.filters.len() > self.wanted.len() {
            self.fences += 1;
            self.fence = Some(self.fences);
            actions.push(Action::Fence(self.fences));
        }
        actions
    }

    /// Whether a filter is wanted, and not kept only until it may be unsubscribed from.
    pub(crate) fn is_wanted(&self, filter: &str) -> bool {
        self.wanted.iter().any(|wanted| wanted == filter)
    }

    /// Notes the broker's answer to a subscription.
    pub(crate) fn answered(&mut self, filter: &str, granted: bool) {
        let place = self.filters.iter().position(|entry| entry.filter == filter);
        let Some(entry) = place.and_then(|place| self.filters.get_mut(place)) else {
            return;
        };
        if !granted {
            (entry.grant, entry.refused) = (GrantState::Refused, true);
            return;
        }
        entry.grant = GrantState::Granted;
        if std::mem::take(&mut entry.refused)
            && let Some(place) = place
        {
            // Others have decided in its place, and continue to.
            let entry = self.filters.remove(place);
            self.filters.push(entry);
        }
    }

    /// Makes refused subscriptions due again.
    pub(crate) fn retry(&mut self) {
        for entry in &mut self.filters {
            if entry.grant == GrantState::Refused {
                entry.grant = GrantState::NotRequested;
            }
        }
    }

    /// Notes the broker's answer to an unsubscription.
    pub(crate) fn left(&mut self, filter: &str) {
        let place = self.former.iter().position(|former| former.filter == filter);
        if let Some(former) = place.map(|place| self.former.remove(place)) {
            self.forget_id(former.id);
        }
    }

    /// Whether a fence is in flight.
    pub(crate) fn is_fenced(&self) -> bool {
        self.fence.is_some()
    }

    /// Notes that a fence has come back or is given up: filters that are not wanted do not decide from here on. True if it was
    /// the fence in flight; then [`Order::noted`] must be called when [`Order::note`] is on the disk.
    pub(crate) fn pass(&mut self, fence: u64) -> bool {
        if self.fence != Some(fence) {
            return false;
        }
        self.fence = None;
        let wanted = &self.wanted;
        for entry in self
            .filters
            .extract_if(.., |entry| !wanted.contains(&entry.filter))
        {
            self.former.push(FormerFilter {
                filter: entry.filter,
                id: entry.id,
                noted: false,
                asked: false,
                lost: false,
            });
        }
        true
    }

    /// Notes that the list is on the disk: former filters may be unsubscribed from.
    pub(crate) fn noted(&mut self) {
        for former in &mut self.former {
            former.noted = true;
        }
    }

    /// Whether the copy of a message that came by these subscriptions counts. It does if the broker tells no subscriptions, or
    /// only unknown ones.
    pub(crate) fn counts(&self, topic: &str, ids: &[usize]) -> bool {
        let known = |id: &usize| {
            self.filters.iter().any(|entry| entry.id == *id)
                || self.former.iter().any(|former| former.id == *id)
                || self.left.contains(id)
        };
        if !ids.iter().any(known) {
            return true;
        }
        let mut matching = self
            .filters
            .iter()
            .filter(|entry| filter_matches(&entry.filter, topic));
        let granted = matching.clone().find(|entry| !entry.refused);
        let decides = granted.or_else(|| matching.next());
        decides.is_some_and(|entry| ids.contains(&entry.id))
    }

    /// Returns the list to store for a restart.
    pub(crate) fn note(&self) -> String {
        let note = SavedOrder {
            order: self
                .filters
                .iter()
                .map(|entry| (entry.filter.clone(), entry.id))
                .collect(),
            former: self
                .former
                .iter()
                .map(|former| (former.filter.clone(), former.id))
                .collect(),
            left: self.left.iter().copied().collect(),
        };
        // Texts and numbers can always be written.
        serde_json::to_string(&note).unwrap_or_default()
    }

    fn append(&mut self, filter: String) {
        if self.filters.iter().any(|entry| entry.filter == filter) {
            return;
        }
        let former = self.former.iter().position(|former| former.filter == filter);
        let id = match former.map(|place| self.former.remove(place)) {
            Some(former) => former.id,
            None => self.free_id(&filter),
        };
        self.filters.push(OrderedFilter::new(filter, id));
    }

    fn free_id(&self, filter: &str) -> usize {
        let used = |id: usize| {
            self.filters.iter().any(|entry| entry.id == id)
                || self.former.iter().any(|former| former.id == id)
        };
        identifier(filter).find(|id| !used(*id)).unwrap_or(1)
    }

    fn forget_id(&mut self, id: usize) {
        if self.left.len() >= MAX_LEFT_IDS {
            self.left.pop_front();
        }
        self.left.push_back(id);
    }
}

impl OrderedFilter {
    fn new(filter: String, id: usize) -> Self {
        Self {
            filter,
            id,
            grant: GrantState::NotRequested,
            refused: false,
            remembered: false,
        }
    }
}
