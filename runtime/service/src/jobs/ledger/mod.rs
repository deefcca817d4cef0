//! Who asked for what, and what became of it.
//!
//! The ledger decides and does nothing: no clock, no tasks, no channels to wait on. Each job that it
//! accepts gets exactly one outcome, for each address that asked for it. What it decides is noted in the journal, in
//! order; outcomes leave once the journal is safe.

mod admit;
mod client_accounts;
mod job_stats;
mod kept_outcomes;
mod link_state;
mod outgoing;
mod reply_ids;
mod restore;
mod run;
mod settle;
mod shares;

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use phi_edge_engine::TokenId;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::jobs::journal::{Journal, Stored};
use crate::jobs::quota::Quota;
use crate::observers::Observers;
use crate::stats::Stats;
use client_accounts::ClientAccounts;
use job_stats::JobStats;
use kept_outcomes::KeptOutcomes;
use link_state::LinkState;
use outgoing::OutgoingQueue;
use phi_edge_api::{JobKey, NewJob, Priority, ReplyAddress};
use phi_edge_job::Receipt;
use phi_edge_rules::changes::RuleChange;
use phi_edge_store::{Change, Tries};
use reply_ids::ReplyIds;
use shares::Shares;

/// The most reply addresses of one job. A client that repeats a request has one; more are needed where it changes its
/// response topic when it reconnects.
const MAX_ADDRESSES: usize = 4;

/// The waiting time that counts as much as one step of priority.
const AGEING_INTERVAL: Duration = Duration::from_secs(30);

/// The number of crashes while a job ran alone, after which it is not tried again.
const MAX_CRASHES: u32 = 3;

/// The client name of jobs that this process submits itself. A topic level holds no slash, so no MQTT client has it.
pub(crate) const INTERNAL_CLIENT: &str = "/rules";

/// Bounds of the ledger.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    pub(crate) slots: usize,
    /// Tokens that one job can have.
    pub(crate) context: usize,
    /// Tokens that all that run can have together.
    pub(crate) memory: usize,
    pub(crate) queue: usize,
    pub(crate) max_deadline: Duration,
    pub(crate) keep_for: Duration,
    pub(crate) keep_outcomes: usize,
    pub(crate) keep_bytes: usize,
    /// What events that wait for the broker may cost, in bytes.
    pub(crate) event_bytes: u64,
    pub(crate) session_ttl: Duration,
    pub(crate) session_memory: usize,
    pub(crate) quota: Quota,
    pub(crate) model: std::sync::Arc<str>,
    pub(crate) observers: Observers,
}

/// What a request is to the ledger.
#[derive(Debug)]
pub(crate) enum Admission {
    /// Not seen before, and from here on arriving: encode it behind what its session has said so far, and call
    /// [`Ledger::accept`] or [`Ledger::abandon`].
    New { said: Vec<TokenId> },
    /// Its outcome was or will be sent, once this is stored.
    Known(Option<Stored>),
    /// The same request is just arriving: look again when this changes.
    Arriving(watch::Receiver<()>),
}

/// A job that gets a slot.
pub(crate) struct Start {
    pub(crate) job: NewJob,
    /// 1, and one more after each interruption.
    pub(crate) attempt: u32,
    pub(crate) prompt: Vec<TokenId>,
    pub(crate) accepted: Instant,
    pub(crate) expires: Instant,
    /// Becomes true when the job is to end.
    pub(crate) stop: watch::Receiver<bool>,
}

#[derive(Clone)]
struct Waiting {
    job: NewJob,
    prompt: Vec<TokenId>,
    accepted: Instant,
    expires: Instant,
}

impl Waiting {
    /// Tokens that it may come to hold in the engine.
    fn promised(&self, context: usize) -> usize {
        let asked = self.prompt.len().saturating_add(self.job.max_tokens);
        asked.min(context)
    }
}

/// A place in the queue: who came first within a priority. [`Ledger::next_place`] chooses among priorities.
type Place = (Reverse<Priority>, u64);

enum State {
    /// Not promised yet.
    Arriving {
        waiting: Option<Box<Waiting>>,
        cancelled: bool,
        /// Dropped when it has arrived or was abandoned.
        arrived: watch::Sender<()>,
    },
    Queued(Box<Waiting>),
    Running {
        stop: watch::Sender<bool>,
        waiting: Box<Waiting>,
        /// Stopped by us, not by its client: it goes on after a restart.
        paused: bool,
    },
}

struct Entry {
    place: Place,
    digest: [u8; 32],
    /// Who waits for the outcome.
    addresses: Vec<ReplyAddress>,
    /// The session that it has reserved.
    session: Option<String>,
    /// A suspect runs alone.
    tries: Tries,
    state: State,
}

impl Entry {
    fn waiting(&self) -> Option<&Waiting> {
        match &self.state {
            State::Arriving { waiting, .. } => waiting.as_deref(),
            State::Queued(waiting) | State::Running { waiting, .. } => Some(waiting),
        }
    }
}

/// Why nothing new is accepted.
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

pub(crate) struct Ledger {
    limits: Limits,
    jobs: HashMap<JobKey, Entry>,
    queue: BTreeMap<Place, JobKey>,
    running: usize,
    /// Tokens promised to what runs.
    promised: usize,
    outcomes: KeptOutcomes,
    /// Messages on their way to the broker.
    outgoing: OutgoingQueue,
    link: LinkState,
    arriving: usize,
    /// Queued jobs that ran when the process crashed.
    suspects: usize,
    /// The one that runs is such a job.
    suspect_running: bool,
    closed: Option<Closed>,
    accounts: ClientAccounts,
    /// What each client has in the queue or on its way there.
    shares: Shares,
    stats: JobStats,
    reply_ids: ReplyIds,
    journal: Journal,
    places: u64,
}

impl Ledger {
    pub(crate) fn new(limits: Limits, boot: u64, journal: Journal) -> Self {
        Self {
            accounts: ClientAccounts::new(&limits),
            shares: Shares::default(),
            limits,
            jobs: HashMap::new(),
            queue: BTreeMap::new(),
            running: 0,
            promised: 0,
            outcomes: KeptOutcomes::default(),
            outgoing: OutgoingQueue::default(),
            link: LinkState::default(),
            arriving: 0,
            suspects: 0,
            suspect_running: false,
            closed: None,
            stats: JobStats::default(),
            reply_ids: ReplyIds::new(boot),
            journal,
            places: 0,
        }
    }

    /// Replaces the bounds; they apply to what is decided from now on.
    pub(crate) fn set_limits(&mut self, limits: Limits) {
        self.accounts.set_limits(&limits);
        self.limits = limits;
    }

    /// Whether a message that the broker delivers again was dealt with before.
    pub(crate) fn is_redelivery(&self, receipt: &Receipt) -> bool {
        self.link.is_redelivery(receipt)
    }

    /// Notes that a message is dealt with, in the batch that is being collected: both are stored or neither.
    pub(crate) fn record_receipt(&mut self, receipt: Option<Receipt>) {
        if let Some(receipt) = receipt {
            self.journal.note(self.link.record_receipt(&receipt));
        }
    }

    /// Notes that a message is dealt with of which nothing else is kept. No commit is hurried for it: it is stored with what
    /// is decided later, or before.
    pub(crate) fn dismiss(&mut self, receipt: Option<Receipt>) {
        self.record_receipt(receipt);
        self.journal.send();
    }

    /// The broker has lost the session: its packet ids mean other messages now.
    pub(crate) fn forget_receipts(&mut self) {
        self.journal.note(self.link.forget_receipts());
        self.journal.send();
    }

    /// Keeps a note for the link, in the order of what is decided.
    pub(crate) fn note_link(&mut self, note: String) -> Option<Stored> {
        self.journal.note(self.link.set_note(note));
        self.journal.send_and_wait()
    }

    /// The link's last note.
    pub(crate) fn link_note(&self) -> Option<String> {
        self.link.note().map(str::to_owned)
    }

    /// Writes down what the rules have decided about a message.
    pub(crate) fn note_ingested(
        &mut self,
        receipt: Option<Receipt>,
        changes: Vec<RuleChange>,
    ) -> Option<Stored> {
        self.record_receipt(receipt);
        self.note_rules(changes)
    }

    /// Writes down what the rules have decided.
    pub(crate) fn note_rules(&mut self, changes: Vec<RuleChange>) -> Option<Stored> {
        for change in changes {
            self.journal.note(Change::Rule(change));
        }
        self.journal.send_and_wait()
    }

    /// Why nothing new can be stored, if so.
    pub(crate) fn store_failing(&self) -> Option<String> {
        self.journal.failing()
    }

    /// Whether the store is too slow to take more of what waits for no answer.
    pub(crate) fn store_behind(&self) -> bool {
        self.journal.is_behind()
    }

    /// Takes the store out: what is decided from here on is not kept.
    pub(crate) fn close_store(&mut self) -> Journal {
        std::mem::replace(&mut self.journal, Journal::new(None))
    }

    /// The trace that an open job is part of, for logs.
    pub(crate) fn trace_id(&self, key: &JobKey) -> Option<&str> {
        self.jobs.get(key)?.waiting()?.job.trace_id()
    }

    pub(crate) fn stats(&self) -> Stats {
        Stats {
            queued: self.queue.len(),
            running: self.running,
            slots: self.limits.slots,
            outcomes_waiting: self.outgoing.len(),
            undelivered: self.outgoing.undelivered_len(),
            replies_dropped: self.outgoing.dropped(),
            ..self.stats.snapshot()
        }
    }
}

/// Whether a job was asked for within this process: no client's name holds a slash.
fn is_internal(key: &JobKey) -> bool {
    key.client.as_deref() == Some(INTERNAL_CLIENT)
}
