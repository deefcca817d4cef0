//! Who is told of what happens, as it happens: metrics and the audit.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use phi_edge_engine::TokenId;

use phi_edge_api::{Answer, Refusal};
use phi_edge_api::{JobKey, NewJob, ReplyAddress};
use phi_edge_rules::Event;

/// Is told of what happens. It is called where the service decides, some of it under its locks: it must be quick, wait for
/// nothing, and not call the service.
pub trait Observer: Send + Sync {
    /// A job that was accepted has its outcome.
    fn ended(&self, _end: &JobEnd<'_>) {}
    /// A request was not accepted. The address is where it is told so.
    fn refused(&self, _key: &JobKey, _address: &ReplyAddress, _refusal: &Refusal) {}
    /// An event of a rule was handed on.
    fn event(&self, _event: &Event) {}
    /// The store has waited for the disk.
    fn flushed(&self, _took: Duration) {}
}

/// The end of a job.
#[derive(Debug)]
pub struct JobEnd<'a> {
    /// What was asked, without its messages.
    pub job: &'a NewJob,
    /// What the model was given.
    pub prompt: &'a [TokenId],
    /// Asked for by a rule of this node, not by a client.
    pub internal: bool,
    /// Its starts: more than one after a restart, none if its turn never came.
    pub attempts: u32,
    /// From acceptance to the outcome, in this process.
    pub took: Duration,
    /// What became of it.
    pub outcome: Outcome<'a>,
}

/// What became of a job.
#[derive(Debug, Clone, Copy)]
pub enum Outcome<'a> {
    /// It was answered.
    Answered {
        /// The answer.
        answer: &'a Answer,
        /// Tokens that were guessed and verified.
        guessed: usize,
        /// Guesses that were right.
        guessed_right: usize,
    },
    /// It was not.
    Failed(&'a Refusal),
}

/// All who are told.
#[derive(Clone, Default)]
pub struct Observers(Vec<Arc<dyn Observer>>);

impl Observers {
    /// These, told in this order.
    pub fn new(observers: Vec<Arc<dyn Observer>>) -> Self {
        Self(observers)
    }

    /// Tells them of a flush of the store to the disk, and how long it took.
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
    /// The very same ones.
    fn eq(&self, other: &Self) -> bool {
        self.0.len() == other.0.len() && self.0.iter().zip(&other.0).all(|(a, b)| Arc::ptr_eq(a, b))
    }
}

impl Eq for Observers {}
