//! What the ledger tells the store.

use tokio::sync::oneshot;

use super::clock::Moment;
use super::record::JobRecord;
use crate::receipt::ReceiptRow;
use phi_edge_api::{JobKey, ReplyAddress};
use phi_edge_api::{Reply, ReplyBody};
use phi_edge_rules::changes::{PendingEvent, RuleChange};

/// One change of what is kept.
#[derive(Debug, Clone)]
pub enum Change {
    /// A request is accepted.
    Accept(Box<JobRecord>),
    /// These wait for its outcome.
    Addresses {
        /// The job.
        key: JobKey,
        /// All addresses that wait for it.
        addresses: Vec<ReplyAddress>,
    },
    /// It has a slot.
    Start {
        /// The job.
        key: JobKey,
        /// 1, and one more after each interruption.
        attempt: u32,
    },
    /// It gave its slot back without an outcome.
    Pause {
        /// The job.
        key: JobKey,
    },
    /// It has its outcome.
    Settle {
        /// The job.
        key: JobKey,
        /// Its outcome.
        body: Box<ReplyBody>,
        /// How long the outcome is kept for those that ask again.
        until: Moment,
    },
    /// A message is to be published.
    Post(Box<Reply>),
    /// The broker has acknowledged that message.
    Delivered(u64),
    /// The outcome is kept no longer.
    Forget(JobKey),
    /// A message was dealt with; should the broker deliver it again, nothing more is to be done.
    Received(ReceiptRow),
    /// The broker has lost the session: no message comes again.
    ForgetReceipts,
    /// The link's note.
    LinkNote(String),
    /// Something of the rules.
    Rule(RuleChange),
}

impl Change {
    /// Whether somebody waits for the disk. The rest may go with what comes later: were it lost in a power cut, the
    /// same would be done once more, as the contract allows.
    pub fn is_urgent(&self) -> bool {
        match self {
            Self::Accept(_)
            | Self::Addresses { .. }
            | Self::Settle { .. }
            | Self::Post(_)
            | Self::LinkNote(_)
            | Self::Rule(_) => true,
            Self::Start { .. }
            | Self::Pause { .. }
            | Self::Delivered(_)
            | Self::Forget(_)
            // The waiter has noted something else with it.
            | Self::Received(_)
            | Self::ForgetReceipts => false,
        }
    }
}

impl Change {
    /// About what it takes in memory until it is written, in bytes.
    fn cost(&self) -> u64 {
        const CHANGE: u64 = 256;
        let content = match self {
            Self::Accept(record) => (record.prompt.len() * 4) as u64,
            Self::Settle { body, .. } => body.texts(),
            Self::Post(reply) => reply.body.texts(),
            Self::Rule(RuleChange::KeepMessage(message)) => message.cost(),
            Self::Rule(RuleChange::CloseWindow(ended)) => {
                let pending = ended.pending.as_ref().map_or(0, PendingEvent::cost);
                8 * ended.forget.len() as u64 + pending
            }
            Self::Rule(RuleChange::AddPendingEvent(pending)) => pending.cost(),
            _ => 0,
        };
        CHANGE + content
    }
}

impl Batch {
    /// About what it takes in memory until it is written, in bytes.
    pub fn cost(&self) -> u64 {
        self.changes.iter().map(Change::cost).sum()
    }
}

/// Changes that are made together.
#[derive(Debug)]
pub struct Batch {
    /// Numbers follow each other without a gap.
    pub number: u64,
    /// The changes, in order.
    pub changes: Vec<Change>,
    /// The changes are all there is: whatever the file holds is forgotten.
    pub replaces: bool,
    /// Who can be told that it was not stored.
    pub waiting: Option<oneshot::Sender<Result<(), Unstored>>>,
}

/// The disk does not take it; one line says why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unstored(pub String);
