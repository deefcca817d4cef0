//! The ledger: the open jobs of the service, their outcomes, and the messages on their way to the broker.
//!
//! The ledger decides, and its callers act: it has no clock, no tasks, and no channels to wait on. Each job that it accepts
//! gets exactly one outcome, which is sent to each address that asked for it. Each decision is a change in the journal, in
//! order; an outcome leaves once its change is stored.
//!
//! The fields of [`Ledger`] keep their own invariants. The files `admit`, `run`, `settle`, `restore` and `outgoing` hold the
//! transitions that span several of them, in the order of a job's life.

mod admit;
mod client_accounts;
mod deadline_check;
mod job_queue;
mod job_stats;
mod kept_outcomes;
mod link_state;
mod open_job;
mod outgoing;
mod reply_ids;
mod restore;
mod run;
mod running_jobs;
mod settle;
mod shares;

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::watch;

use crate::jobs::journal::{Journal, Stored};
use crate::jobs::quota::Quota;
use crate::jobs::sessions::SessionSoFar;
use crate::observers::Observers;
use crate::stats::Stats;
use client_accounts::ClientAccounts;
use deadline_check::DeadlineCheck;
use job_queue::JobQueue;
use job_stats::JobStats;
use kept_outcomes::KeptOutcomes;
use link_state::LinkState;
use open_job::OpenJob;
use outgoing::OutgoingQueue;
use phi_edge_api::JobKey;
use phi_edge_job::Receipt;
use phi_edge_rules::changes::RuleChange;
use phi_edge_store::Change;
use reply_ids::ReplyIds;
use running_jobs::RunningJobs;

pub(crate) use deadline_check::EngineOutlook;
pub(crate) use open_job::Start;

/// The client name of jobs that this process submits itself. A topic level holds no slash, so no MQTT client has it.
pub(crate) const INTERNAL_CLIENT: &str = "/rules";

/// The bounds of the ledger.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    pub(crate) slots: usize,
    /// The most tokens of one job.
    pub(crate) context: usize,
    /// The most tokens of all running jobs together.
    pub(crate) memory: usize,
    pub(crate) queue: usize,
    pub(crate) max_deadline: Duration,
    pub(crate) keep_for: Duration,
    pub(crate) keep_outcomes: usize,
    pub(crate) keep_bytes: usize,
    /// The most memory of events that wait for the broker, in bytes.
    pub(crate) event_bytes: u64,
    pub(crate) session_ttl: Duration,
    pub(crate) session_memory: usize,
    pub(crate) quota: Quota,
    pub(crate) model: std::sync::Arc<str>,
    pub(crate) observers: Observers,
}

/// The admission of a request that is not refused.
#[derive(Debug)]
pub(crate) enum Admission {
    /// A new request, which is arriving from now on: it is to be encoded behind the symbols of its session, and then
    /// [`Ledger::accept`] or [`Ledger::abandon`] is to be called.
    New { session: SessionSoFar },
    /// A repeat or a redelivery, whose outcome was or will be sent. It is processed once this is stored.
    Duplicate(Option<Stored>),
    /// A repeat of a request that is arriving: it is to be admitted again when this channel closes.
    Arriving(watch::Receiver<()>),
}

/// The reason for which all requests are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Closed {
    Draining,
    EngineLost,
}

impl Closed {
    fn message(self) -> &'static str {
        match self {
            Self::Draining => "the service is shutting down; send the request again later",
            Self::EngineLost => "the engine has stopped; send the request again later",
        }
    }
}

/// The state of all jobs, sessions and messages, and the journal of its changes.
pub(crate) struct Ledger {
    limits: Limits,
    /// The jobs without an outcome.
    jobs: HashMap<JobKey, OpenJob>,
    queue: JobQueue,
    running: RunningJobs,
    outcomes: KeptOutcomes,
    outgoing: OutgoingQueue,
    link: LinkState,
    accounts: ClientAccounts,
    stats: JobStats,
    deadlines: DeadlineCheck,
    reply_ids: ReplyIds,
    closed: Option<Closed>,
    journal: Journal,
}

impl Ledger {
    pub(crate) fn new(limits: Limits, boot: u64, journal: Journal) -> Self {
        Self {
            accounts: ClientAccounts::new(&limits),
            limits,
            jobs: HashMap::new(),
            queue: JobQueue::default(),
            running: RunningJobs::default(),
            outcomes: KeptOutcomes::default(),
            outgoing: OutgoingQueue::default(),
            link: LinkState::default(),
            stats: JobStats::default(),
            deadlines: DeadlineCheck::default(),
            reply_ids: ReplyIds::new(boot),
            closed: None,
            journal,
        }
    }

    /// Replaces the bounds; they apply to what is decided from now on.
    pub(crate) fn set_limits(&mut self, limits: Limits) {
        self.accounts.set_limits(&limits);
        self.limits = limits;
    }

    /// Whether a message that the broker delivers again was processed before.
    pub(crate) fn is_redelivery(&self, receipt: &Receipt) -> bool {
        self.link.is_redelivery(receipt)
    }

    /// Records in the current batch that a message is processed: it is stored with the other changes of the batch or not at
    /// all.
    pub(crate) fn record_receipt(&mut self, receipt: Option<Receipt>) {
        if let Some(receipt) = receipt {
            self.journal.note(self.link.record_receipt(&receipt));
        }
    }

    /// Records that a message is processed of which nothing else is kept. The caller does not wait for a commit: the receipt
    /// may be stored with a later batch.
    pub(crate) fn dismiss(&mut self, receipt: Option<Receipt>) {
        self.record_receipt(receipt);
        self.journal.send();
    }

    /// Forgets all receipts: the broker has lost the session, and its packet ids name other messages from now on.
    pub(crate) fn forget_receipts(&mut self) {
        self.journal.note(self.link.forget_receipts());
        self.journal.send();
    }

    /// Replaces the link's note, in the order of the other changes.
    pub(crate) fn note_link(&mut self, note: String) -> Option<Stored> {
        self.journal.note(self.link.set_note(note));
        self.journal.send_and_wait()
    }

    /// The link's last note.
    pub(crate) fn link_note(&self) -> Option<String> {
        self.link.note().map(str::to_owned)
    }

    /// Records the changes of the rules' state that a message has caused.
    pub(crate) fn note_ingested(
        &mut self,
        receipt: Option<Receipt>,
        changes: Vec<RuleChange>,
    ) -> Option<Stored> {
        self.record_receipt(receipt);
        self.note_rules(changes)
    }

    /// Records changes of the rules' state.
    pub(crate) fn note_rules(&mut self, changes: Vec<RuleChange>) -> Option<Stored> {
        for change in changes {
            self.journal.note(Change::Rule(change));
        }
        self.journal.send_and_wait()
    }

    /// The reason for which changes can't be stored, if there is one.
    pub(crate) fn store_failing(&self) -> Option<String> {
        self.journal.failing()
    }

    /// Whether the store is so far behind that messages which wait for no acknowledgement are not stored.
    pub(crate) fn store_behind(&self) -> bool {
        self.journal.is_behind()
    }

    /// Takes the store out: later changes are not kept.
    pub(crate) fn close_store(&mut self) -> Journal {
        std::mem::replace(&mut self.journal, Journal::new(None))
    }

    /// The trace id of an open job, for logs.
    pub(crate) fn trace_id(&self, key: &JobKey) -> Option<&str> {
        self.jobs.get(key)?.accepted()?.job.trace_id()
    }

    /// A snapshot of the counters.
    pub(crate) fn stats(&self) -> Stats {
        Stats {
            queued: self.queue.len(),
            running: self.running.len(),
            slots: self.limits.slots,
            outcomes_waiting: self.outgoing.len(),
            undelivered: self.outgoing.undelivered_len(),
            replies_dropped: self.outgoing.dropped(),
            ..self.stats.snapshot()
        }
    }
}

/// Whether a job was submitted by this process itself.
fn is_internal(key: &JobKey) -> bool {
    key.client.as_deref() == Some(INTERNAL_CLIENT)
}
