//! The subscriptions of rules while they change: which copy of a publication counts, and what is subscribed to and left.
//!
//! A broker may send a publication once for each subscription that matches it. One copy of it counts: the first filter of
//! an ordered list that matches the topic decides, by the identifier of its subscription. New filters go to the list's
//! end, where they decide on nothing that another one decides on, so that they need no care. A filter that is no longer
//! wanted stays in the list, and subscribed to, until all that are wanted are granted and a fence has come back: a message
//! to ourselves that the broker queues behind all that it routed before. The copies of one publication are on the same
//! side of it. Only then is the filter left.
//!
//! No clock, no network: what is to be done is said by [`Order::advance`].

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::rule_topics::{RuleTopics, identifier};
use crate::topics::filter_matches;

/// Identifiers of filters that were left and are remembered: a copy of theirs that comes late counts no more.
const MAX_LEFT_IDS: usize = 1024;

/// The filters of rules in the order in which they decide.
#[derive(Debug, Default)]
pub(crate) struct Order {
    filters: Vec<OrderedFilter>,
    wanted: Vec<String>,
    /// Filters that decide no more and are to be left.
    former: Vec<FormerFilter>,
    /// Identifiers of filters that were left, oldest first.
    left: VecDeque<usize>,
    /// Whether the list of an earlier process was looked at: no copy is judged before.
    restored: bool,
    fence: Option<u64>,
    fences: u64,
}

/// A filter that is subscribed to by itself, so that the broker says by which subscription a copy came.
#[derive(Debug)]
struct OrderedFilter {
    filter: String,
    /// The same over a restart, as the broker keeps copies with it.
    id: usize,
    grant: GrantState,
    /// The broker has refused it, and has not granted it since.
    refused: bool,
    /// An earlier process may have asked for it.
    remembered: bool,
}

/// What the broker has said on the present connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum GrantState {
    NotRequested,
    Requested,
    Granted,
    Refused,
}

#[derive(Debug)]
struct FormerFilter {
    filter: String,
    id: usize,
    /// It is on the disk that it decides no more.
    noted: bool,
    /// The broker was asked to forget it on the present connection.
    asked: bool,
    /// The broker has lost it with the session.
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
    /// A message to ourselves that names this number.
    Fence(u64),
}

/// The list as it is kept over a restart.
#[derive(Debug, Serialize, Deserialize)]
struct SavedOrder {
    order: Vec<(String, usize)>,
    former: Vec<(String, usize)>,
    left: Vec<usize>,
}

impl Order {
    /// Takes over the list of an earlier process, before the first copy is judged.
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
        // What the list does not know may be subscribed to or not: it must not decide in the place of another.
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

    /// Filters that the broker may know from an earlier process, before any is wanted. They decide first, unless that process
    /// has left a list.
    pub(crate) fn remember(&mut self, filters: impl IntoIterator<Item = String>) {
        for filter in filters {
            self.append(filter);
        }
        for entry in &mut self.filters {
            entry.remembered = true;
        }
    }

    /// These filters are wanted from now on.
    pub(crate) fn want(&mut self, topics: &RuleTopics) {
        self.wanted = topics.filters().map(str::to_owned).collect();
        for filter in self.wanted.clone() {
            self.append(filter);
        }
        // What it would end has changed.
        self.fence = None;
    }

    /// A connection is up. Without a session the broker knows none of the filters.
    pub(crate) fn connected(&mut self, session_present: bool) {
        for entry in &mut self.filters {
            entry.grant = GrantState::NotRequested;
        }
        for former in &mut self.former {
            former.asked = false;
        }
        if !session_present {
            // The disk has still those that are not noted: a process that is started now would let them decide.
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

    /// What is to be asked for now, while there is a connection: on each one all filters in their order, since the broker may
    /// have lost the session. Then of those that it knows again the first ones decide, as ever.
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

    /// Whether a filter is wanted, and not only to be left in good order.
    pub(crate) fn is_wanted(&self, filter: &str) -> bool {
        self.wanted.iter().any(|wanted| wanted == filter)
    }

    /// The broker has answered a subscription.
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
            // Others have decided in its place, and go on.
            let entry = self.filters.remove(place);
            self.filters.push(entry);
        }
    }

    /// What the broker has refused is to be asked for once more.
    pub(crate) fn retry(&mut self) {
        for entry in &mut self.filters {
            if entry.grant == GrantState::Refused {
                entry.grant = GrantState::NotRequested;
            }
        }
    }

    /// The broker has answered that a filter is left.
    pub(crate) fn left(&mut self, filter: &str) {
        let place = self.former.iter().position(|former| former.filter == filter);
        if let Some(former) = place.map(|place| self.former.remove(place)) {
            self.forget_id(former.id);
        }
    }

    /// Whether a fence is under way.
    pub(crate) fn is_fenced(&self) -> bool {
        self.fence.is_some()
    }

    /// A fence has come back, or is given up: what is not wanted decides no more from here on. True if it was the fence
    /// that is waited for; then [`Order::noted`] is to be called when [`Order::note`] is on the disk.
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

    /// It is on the disk what decides: what is former may be left.
    pub(crate) fn noted(&mut self) {
        for former in &mut self.former {
            former.noted = true;
        }
    }

    /// Whether the copy of a publication counts that came by these subscriptions. A broker that says nothing of
    /// subscriptions, or tells of one that was never known here, leaves it to the topic.
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

    /// What is to be kept over a restart.
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
        // Of texts and numbers: nothing that can't be written.
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
