//! The changes that the ledger sends to the store.

use tokio::sync::oneshot;

use super::clock::Moment;
use super::record::JobRecord;
use crate::receipt::ReceiptRow;
use phi_edge_api::{JobKey, ReplyAddress};
use phi_edge_api::{Reply, ReplyBody};
use phi_edge_rules::changes::{PendingEvent, RuleChange};

/// A change of the stored state.
#[derive(Debug, Clone)]
pub enum Change {
    /// A request is accepted.
    Accept(Box<JobRecord>),
    /// The addresses that wait for a job's outcome have changed.
    Addresses {
        /// The job.
        key: JobKey,
        /// All addresses that wait for it.
        addresses: Vec<ReplyAddress>,
    },
    /// A job has got a slot.
    Start {
        /// The job.
        key: JobKey,
        /// 1, and one more after each interruption.
        attempt: u32,
    },
    /// A job has given its slot back without an outcome.
    Pause {
        /// The job.
        key: JobKey,
    },
    /// A job has got its outcome.
    Settle {
        /// The job.
        key: JobKey,
        /// Its outcome.
        body: Box<ReplyBody>,
        /// The time until which the outcome is kept for clients that ask again.
        until: Moment,
    },
    /// A message is to be published.
    Post(Box<Reply>),
    /// The broker has acknowledged the message of this delivery.
    Delivered(u64),
    /// The outcome of a job is not kept any longer.
    Forget(JobKey),
    /// A message was handled; its redelivery is to be ignored.
    Received(ReceiptRow),
    /// The broker has lost the session, and redelivers nothing.
    ForgetReceipts,
    /// The link has a new note.
    LinkNote(String),
    /// The state of the rules has changed.
    Rule(RuleChange),
}

impl Change {
    /// Whether the change must be flushed at once. The others are flushed with a later one: if a power cut loses them, the
    /// same is done once more, as the contract allows.
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
            // What waits for it has noted another change with it.
            | Self::Received(_)
            | Self::ForgetReceipts => false,
        }
    }
}

impl Change {
    /// Returns the approximate memory that it takes until it is written, in bytes.
    fn cost(&self) -> u64 {
        const CHANGE_OVERHEAD_BYTES: u64 = 256;
        let content = match self {
            Self::Accept(record) => {
                let files = record
                    .job
                    .images
                    .iter()
                    .map(|image| image.file.len())
                    .sum::<usize>();
                (std::mem::size_of_val(record.prompt.as_slice()) + files) as u64
            }
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
        CHANGE_OVERHEAD_BYTES + content
    }
}

impl Batch {
    /// Returns the approximate memory that it takes until it is written, in bytes.
    pub fn cost(&self) -> u64 {
        self.changes.iter().map(Change::cost).sum()
    }
}

/// A batch of changes that are committed together.
#[derive(Debug)]
pub struct Batch {
    /// Its number; numbers follow each other without a gap.
    pub number: u64,
    /// The changes, in order.
    pub changes: Vec<Change>,
    /// Whether the changes replace everything that the file holds.
    pub replaces: bool,
    /// The channel of the result, if a task waits for it.
    pub waiting: Option<oneshot::Sender<Result<(), Unstored>>>,
}

/// The reason why a batch was not stored, in one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unstored(pub String);
