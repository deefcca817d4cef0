//! The observers of the service: metrics and the audit.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use phi_edge_engine::Symbol;

use phi_edge_api::{Answer, Refusal};
use phi_edge_api::{JobKey, NewJob, ReplyAddress};
use phi_edge_rules::Event;

/// An observer of the service. It is called where the service decides, sometimes under its locks: it must be quick, must not
/// block, and must not call the service.
pub trait Observer: Send + Sync {
    /// Called when an accepted job has its outcome.
    fn ended(&self, _end: &JobEnd<'_>) {}
    /// Called when a request is refused. The address is that of the refusal.
    fn refused(&self, _key: &JobKey, _address: &ReplyAddress, _refusal: &Refusal) {}
    /// Called when an event of a rule is published.
    fn event(&self, _event: &Event) {}
    /// Called when the store has flushed to the disk, with the time that the flush took.
    fn flushed(&self, _took: Duration) {}
}

/// The end of a job.
#[derive(Debug)]
pub struct JobEnd<'a> {
    /// The request, without its messages.
    pub job: &'a NewJob,
    /// The ids of its prompt.
    pub prompt: &'a [Symbol],
    /// Whether a rule of this node asked for it, and not a client.
    pub internal: bool,
    /// The number of its starts: more than one after a restart, 0 if it never started.
    pub attempts: u32,
    /// The time from acceptance to the outcome, in this process.
    pub took: Duration,
    /// Its outcome.
    pub outcome: Outcome<'a>,
}

/// The outcome of a job.
#[derive(Debug, Clone, Copy)]
pub enum Outcome<'a> {
    /// It was answered.
    Answered {
        /// The answer.
        answer: &'a Answer,
        /// The number of drafted tokens that were verified.
        guessed: usize,
        /// The number of drafted tokens that were accepted.
        guessed_right: usize,
    },
    /// It failed.
    Failed(&'a Refusal),
}

/// A list of observers.
#[derive(Clone, Default)]
pub struct Observers(Vec<Arc<dyn Observer>>);

impl Observers {
    /// Returns the list of these observers, which are called in this order.
    pub fn new(observers: Vec<Arc<dyn Observer>>) -> Self {
        Self(observers)
    }

    /// Reports a flush of the store to the disk, and the time that it took.
    pub fn flushed(&self, took: Duration) {
        self.notify(|observer| observer.flushed(took));
    }

    pub(crate) fn notify(&self, mut what: impl FnMut(&dyn Observer)) {
        for observer in &self.0 {
            what(observer.as_ref());
        }
    }
}

impl fmt::Debug for Observers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Observers({})", self.0.len())
    }
}

impl PartialEq for Observers {
    /// Compares the observers by identity.
    fn eq(&self, other: &Self) -> bool {
        self.0.len() == other.0.len() && self.0.iter().zip(&other.0).all(|(a, b)| Arc::ptr_eq(a, b))
    }
}

impl Eq for Observers {}
