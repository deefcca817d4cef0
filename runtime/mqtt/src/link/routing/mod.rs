//! The subscriptions of rules, shared by inbox and outbox: the inbox decides in order of arrival which copy of a message
//! counts, the outbox subscribes to what is wanted.

mod order;
#[cfg(test)]
mod tests;

use parking_lot::{Mutex, MutexGuard};

use phi_edge_service::{Ingested, Service};
use rumqttc::Publish;
use tokio::sync::Notify;

use crate::rule_topics::RuleTopics;
pub(crate) use order::Action;
use order::Order;

/// The user property that marks a status message as a fence.
pub(crate) const FENCE_PROPERTY: &str = "fence";

/// The subscriptions of rules.
#[derive(Debug)]
pub(crate) struct Routing {
    state: Mutex<RoutingState>,
    /// Wakes the outbox when a subscription may be due.
    advanced: Notify,
    /// The unpredictable part of the names of this process's fences.
    secret: u64,
}

/// The state under the lock.
#[derive(Debug, Default)]
struct RoutingState {
    order: Order,
    /// The list as it was stored last.
    kept: String,
    /// The broker's session in which the last message arrived.
    session: u64,
}

impl Routing {
    pub(crate) fn new() -> Self {
        Self {
            state: Mutex::default(),
            advanced: Notify::new(),
            secret: rand::random(),
        }
    }

    /// Resolves when [`Routing::advance`] may return something.
    pub(crate) async fn advanced(&self) {
        self.advanced.notified().await;
    }

    /// Restores the list that an earlier process stored, before the first message is handled.
    pub(crate) fn restore(&self, service: &Service) {
        let mut state = self.state();
        let note = service.link_note();
        state.order.restore(note.as_deref());
        state.kept = note.unwrap_or_default();
        state.keep(service);
        drop(state);
        self.advanced.notify_one();
    }

    /// Sets the topics that rules have from now on.
    pub(crate) fn want(&self, topics: &RuleTopics, service: Option<&Service>) {
        let mut state = self.state();
        state.order.want(topics);
        if let Some(service) = service {
            state.keep(service);
        }
    }

    /// As [`Routing::want`], for the first time: with the filters that an earlier process may have subscribed to.
    pub(crate) fn begin(&self, topics: &RuleTopics) {
        let mut state = self.state();
        state.order.remember(topics.former().map(str::to_owned));
        state.order.want(topics);
    }

    /// Notes that a connection is made.
    pub(crate) fn connected(&self, session_present: bool) {
        self.state().order.connected(session_present);
    }

    /// Returns the requests to the broker that are due, while there is a connection.
    pub(crate) fn advance(&self) -> Vec<Action> {
        self.state().order.advance()
    }

    /// Notes the broker's answer to a subscription; true if the filter is wanted.
    pub(crate) fn answered(&self, filter: &str, granted: bool) -> bool {
        let mut state = self.state();
        state.order.answered(filter, granted);
        state.order.is_wanted(filter)
    }

    /// Makes refused subscriptions due again.
    pub(crate) fn retry(&self) {
        self.state().order.retry();
    }

    /// Notes the broker's answer to an unsubscription.
    pub(crate) fn left(&self, filter: &str, service: Option<&Service>) {
        let mut state = self.state();
        state.order.left(filter);
        if let Some(service) = service {
            state.keep(service);
        }
    }

    /// Whether a fence is in flight.
    pub(crate) fn is_fenced(&self) -> bool {
        self.state().order.is_fenced()
    }

    /// Returns the name of a fence, the value of its user property [`FENCE_PROPERTY`].
    pub(crate) fn name(&self, fence: u64) -> String {
        format!("{:016x}-{fence}", self.secret)
    }

    /// Returns the number of the fence that a message is, if it is one of this process.
    pub(crate) fn fence(&self, publish: &Publish) -> Option<u64> {
        let properties = publish.properties.as_ref()?;
        let mut named = properties.user_properties.iter();
        let (_, name) = named.find(|(key, _)| key == FENCE_PROPERTY)?;
        let number = name.strip_prefix(&format!("{:016x}-", self.secret))?;
        number.parse().ok()
    }

    /// Notes that a fence has come back or is given up. [`Routing::noted`] must be called when the returned future has resolved.
    pub(crate) fn pass(&self, fence: u64, service: &Service) -> Option<Ingested> {
        let mut state = self.state();
        if !state.order.pass(fence) {
            return None;
        }
        let noted = state.keep(service);
        if noted.is_none() {
            state.order.noted();
            drop(state);
            self.advanced.notify_one();
        }
        noted
    }

    /// Notes that the list is on the disk: former filters may be unsubscribed from.
    pub(crate) fn noted(&self) {
        self.state().order.noted();
        self.advanced.notify_one();
    }

    /// Notes the broker's session of a message; true if it is the first message of a new session.
    pub(crate) fn enters(&self, session: u64) -> bool {
        std::mem::replace(&mut self.state().session, session) != session
    }

    /// Whether the copy of a message that came by these subscriptions counts.
    pub(crate) fn counts(&self, topic: &str, ids: &[usize]) -> bool {
        self.state().order.counts(topic, ids)
    }

    fn state(&self) -> MutexGuard<'_, RoutingState> {
        self.state.lock()
    }
}

impl RoutingState {
    /// Stores the list for a restart, if it has changed. Under the lock, so that lists are stored in the order of changes.
    fn keep(&mut self, service: &Service) -> Option<Ingested> {
        let note = self.order.note();
        if note == self.kept {
            return None;
        }
        self.kept.clone_from(&note);
        service.note_link(note)
    }
}
