//! The subscriptions of rules, shared by inbox and outbox: the one judges copies in the order of their arrival, the other
//! asks the broker for what is wanted.

mod order;
#[cfg(test)]
mod tests;

use parking_lot::{Mutex, MutexGuard};

use phi_edge_service::{Observed, Service};
use rumqttc::Publish;
use tokio::sync::Notify;

use crate::rule_topics::RuleTopics;
pub(crate) use order::Action;
use order::Order;

/// The user property that makes a status message a fence.
pub(crate) const FENCE_PROPERTY: &str = "fence";

/// The state of the rules' subscriptions.
#[derive(Debug)]
pub(crate) struct Routing {
    state: Mutex<RoutingState>,
    /// Tells the outbox that something is to be asked for.
    advanced: Notify,
    /// Names the fences of this process; no one else can tell it beforehand.
    secret: u64,
}

#[derive(Debug, Default)]
struct RoutingState {
    order: Order,
    /// As it was kept last.
    kept: String,
    /// The broker's session in which the last message came.
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

    /// Resolves when [`Routing::advance`] may have something to do.
    pub(crate) async fn advanced(&self) {
        self.advanced.notified().await;
    }

    /// Takes over what an earlier process noted, before the first message is looked at.
    pub(crate) fn restore(&self, service: &Service) {
        let mut state = self.state();
        let note = service.link_note();
        state.order.restore(note.as_deref());
        state.kept = note.unwrap_or_default();
        state.keep(service);
        drop(state);
        self.advanced.notify_one();
    }

    /// The topics that rules have from now on; `former` are those that the broker may know from an earlier version of the
    /// program.
    pub(crate) fn want(&self, topics: &RuleTopics, service: Option<&Service>) {
        let mut state = self.state();
        state.order.want(topics);
        if let Some(service) = service {
            state.keep(service);
        }
    }

    /// As [`Routing::want`], for the first time: also what is noted as subscribed to by an earlier process.
    pub(crate) fn begin(&self, topics: &RuleTopics) {
        let mut state = self.state();
        state.order.remember(topics.former().map(str::to_owned));
        state.order.want(topics);
    }

    /// A connection is up.
    pub(crate) fn connected(&self, session_present: bool) {
        self.state().order.connected(session_present);
    }

    /// What is to be asked for now, while there is a connection.
    pub(crate) fn advance(&self) -> Vec<Action> {
        self.state().order.advance()
    }

    /// The broker has answered a subscription; true if the filter is wanted.
    pub(crate) fn answered(&self, filter: &str, granted: bool) -> bool {
        let mut state = self.state();
        state.order.answered(filter, granted);
        state.order.is_wanted(filter)
    }

    /// What the broker has refused is to be asked for once more.
    pub(crate) fn retry(&self) {
        self.state().order.retry();
    }

    /// The broker has answered that a filter is left.
    pub(crate) fn left(&self, filter: &str, service: Option<&Service>) {
        let mut state = self.state();
        state.order.left(filter);
        if let Some(service) = service {
            state.keep(service);
        }
    }

    /// Whether a fence is under way.
    pub(crate) fn is_fenced(&self) -> bool {
        self.state().order.is_fenced()
    }

    /// The value of the user property [`FENCE_PROPERTY`] of a fence.
    pub(crate) fn name(&self, fence: u64) -> String {
        format!("{:016x}-{fence}", self.secret)
    }

    /// The fence that a message to ourselves is, if it is one.
    pub(crate) fn fence(&self, publish: &Publish) -> Option<u64> {
        let properties = publish.properties.as_ref()?;
        let mut named = properties.user_properties.iter();
        let (_, name) = named.find(|(key, _)| key == FENCE_PROPERTY)?;
        let number = name.strip_prefix(&format!("{:016x}-", self.secret))?;
        number.parse().ok()
    }

    /// A fence has come back, or is given up. [`Routing::noted`] is to be called when what this returns has resolved.
    pub(crate) fn pass(&self, fence: u64, service: &Service) -> Option<Observed> {
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

    /// It is on the disk what decides: what is former may be left.
    pub(crate) fn noted(&self) {
        self.state().order.noted();
        self.advanced.notify_one();
    }

    /// A message of this session of the broker's is to be looked at; true if it is the first of a session that the broker
    /// began anew.
    pub(crate) fn enters(&self, session: u64) -> bool {
        std::mem::replace(&mut self.state().session, session) != session
    }

    /// Whether the copy of a publication counts that came by these subscriptions.
    pub(crate) fn counts(&self, topic: &str, ids: &[usize]) -> bool {
        self.state().order.counts(topic, ids)
    }

    fn state(&self) -> MutexGuard<'_, RoutingState> {
        self.state.lock()
    }
}

impl RoutingState {
    /// Keeps the list over a restart, where it has changed; under the lock, so that the order of notes is that of changes.
    fn keep(&mut self, service: &Service) -> Option<Observed> {
        let note = self.order.note();
        if note == self.kept {
            return None;
        }
        self.kept.clone_from(&note);
        service.note_link(note)
    }
}
