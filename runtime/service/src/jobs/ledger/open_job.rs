//! A job that has no outcome yet.

use phi_edge_engine::Symbol;
use phi_edge_models::ImageInfo;
use tokio::sync::watch;
use tokio::time::Instant;

use super::job_queue::{Place, QueuedJob};
use super::running_jobs::Reservation;
use crate::jobs::journal::Journal;
use phi_edge_api::{NewJob, ReplyAddress};
use phi_edge_store::{JobRecord, Tries};

/// The most reply addresses of one job. A client that repeats a request has one; more are needed where it changes its
/// response topic when it reconnects.
pub(super) const MAX_ADDRESSES: usize = 4;

/// A job that gets a slot.
pub(crate) struct Start {
    pub(crate) job: NewJob,
    /// 1, and one more after each interruption.
    pub(crate) attempt: u32,
    pub(crate) prompt: Vec<Symbol>,
    /// The job's images, in its order; none where they are to be read again.
    pub(crate) images: Vec<ImageInfo>,
    pub(crate) accepted: Instant,
    pub(crate) expires: Instant,
    /// Becomes true when the job is to end.
    pub(crate) stop: watch::Receiver<bool>,
}

/// A job whose prompt is encoded.
pub(super) struct AcceptedJob {
    pub(super) job: NewJob,
    pub(super) prompt: Vec<Symbol>,
    /// The job's images, in its order; none in a job of an earlier process until they are read again.
    pub(super) images: Vec<ImageInfo>,
    /// The number of tokens of the conversation that the prompt does not have.
    pub(super) left_out_tokens: usize,
    pub(super) accepted: Instant,
    pub(super) expires: Instant,
}

/// A job from its admission to its outcome.
pub(super) struct OpenJob {
    place: Place,
    digest: [u8; 32],
    /// The addresses to which the outcome is sent.
    addresses: Vec<ReplyAddress>,
    /// The session that it has reserved.
    session: Option<String>,
    tries: Tries,
    /// `None` until the prompt is encoded.
    accepted: Option<Box<AcceptedJob>>,
    stage: Stage,
}

/// The stage that a job has reached.
enum Stage {
    /// It is being encoded and stored; no outcome is owed.
    Arriving {
        cancelled: bool,
        /// Dropped with the stage: repeats of the request wait for that.
        arrived: watch::Sender<()>,
    },
    /// It waits for a slot.
    Queued,
    Running {
        reservation: Reservation,
        stop: watch::Sender<bool>,
        /// Whether it was stopped by the end of the process, not by its client: then it goes on after a restart.
        paused: bool,
    },
}

/// The result of cancelling a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cancellation {
    /// The job ends by itself.
    Requested,
    /// The job has not started: its outcome is due.
    NotStarted,
}

/// [`MAX_ADDRESSES`] addresses wait for the outcome already.
#[derive(Debug)]
pub(super) struct TooManyAddresses;

impl OpenJob {
    /// A job that has reserved its place and is being encoded.
    pub(super) fn arriving(job: &NewJob, place: Place) -> Self {
        Self {
            place,
            digest: job.body_digest,
            addresses: vec![job.reply.clone()],
            session: job.session.clone(),
            tries: Tries::default(),
            accepted: None,
            stage: Stage::Arriving {
                cancelled: false,
                arrived: watch::Sender::new(()),
            },
        }
    }

    /// A job that an earlier process has accepted.
    pub(super) fn restored(
        record: JobRecord,
        addresses: Vec<ReplyAddress>,
        session: Option<String>,
        now: Instant,
        expires: Instant,
    ) -> Self {
        Self {
            place: Place::new(record.job.priority, record.place),
            digest: record.job.body_digest,
            addresses,
            session,
            tries: record.tries,
            accepted: Some(Box::new(AcceptedJob {
                job: record.job,
                prompt: record.prompt,
                images: Vec::new(),
                left_out_tokens: record.left_out_tokens,
                accepted: now,
                expires,
            })),
            stage: Stage::Queued,
        }
    }

    pub(super) fn place(&self) -> Place {
        self.place
    }

    /// The digest of the request's body.
    pub(super) fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// The addresses to which the outcome is sent.
    pub(super) fn addresses(&self) -> &[ReplyAddress] {
        &self.addresses
    }

    /// The session that it has reserved.
    pub(super) fn session(&self) -> Option<&str> {
        self.session.as_deref()
    }

    pub(super) fn tries(&self) -> Tries {
        self.tries
    }

    /// The job with its prompt, once it is encoded.
    pub(super) fn accepted(&self) -> Option<&AcceptedJob> {
        self.accepted.as_deref()
    }

    pub(super) fn is_arriving(&self) -> bool {
        matches!(self.stage, Stage::Arriving { .. })
    }

    pub(super) fn is_running(&self) -> bool {
        matches!(self.stage, Stage::Running { .. })
    }

    /// Whether it runs and was stopped by [`OpenJob::pause`].
    pub(super) fn is_paused(&self) -> bool {
        matches!(self.stage, Stage::Running { paused: true, .. })
    }

    /// A receiver that closes when the job has arrived or is abandoned; `None` if it has arrived.
    pub(super) fn arrival(&self) -> Option<watch::Receiver<()>> {
        match &self.stage {
            Stage::Arriving { arrived, .. } => Some(arrived.subscribe()),
            Stage::Queued | Stage::Running { .. } => None,
        }
    }

    /// The entry of the job in the queue, once it is encoded.
    pub(super) fn queued(&self) -> Option<QueuedJob> {
        self.accepted().map(|accepted| QueuedJob {
            key: accepted.job.key.clone(),
            accepted: accepted.accepted,
            expires: accepted.expires,
            suspect: self.tries.suspect,
        })
    }

    /// The row of the job in the store, once it is encoded.
    pub(super) fn record(&self, journal: &Journal) -> Option<JobRecord> {
        self.accepted().map(|accepted| JobRecord {
            job: NewJob {
                messages: Vec::new(),
                ..accepted.job.clone()
            },
            prompt: accepted.prompt.clone(),
            left_out_tokens: accepted.left_out_tokens,
            place: self.place.number(),
            tries: self.tries,
            accepted: journal.moment(accepted.accepted),
            expires: journal.moment(accepted.expires),
        })
    }

    /// Adds an address for the outcome; returns whether it is new.
    ///
    /// # Errors
    /// There are [`MAX_ADDRESSES`] already.
    pub(super) fn add_address(&mut self, address: &ReplyAddress) -> Result<bool, TooManyAddresses> {
        if self.addresses.contains(address) {
            return Ok(false);
        }
        if self.addresses.len() >= MAX_ADDRESSES {
            return Err(TooManyAddresses);
        }
        self.addresses.push(address.clone());
        Ok(true)
    }

    /// Sets the encoded job; it arrives when it is stored.
    pub(super) fn accept(&mut self, accepted: AcceptedJob) {
        self.accepted = Some(Box::new(accepted));
    }

    /// Ends the arrival of an accepted job; returns whether it was cancelled meanwhile. `None`: it is not arriving, or not
    /// accepted.
    pub(super) fn arrive(&mut self) -> Option<bool> {
        let Stage::Arriving { cancelled, .. } = self.stage else {
            return None;
        };
        self.accepted.as_ref()?;
        self.stage = Stage::Queued;
        Some(cancelled)
    }

    /// Starts an encoded job with the resources of `reservation`.
    pub(super) fn start(&mut self, reservation: Reservation) -> Option<Start> {
        let accepted = self.accepted.as_deref()?;
        let (stop, stopped) = watch::channel(false);
        self.tries.attempts += 1;
        self.stage = Stage::Running {
            reservation,
            stop,
            paused: false,
        };
        Some(Start {
            job: accepted.job.clone(),
            attempt: self.tries.attempts,
            prompt: accepted.prompt.clone(),
            images: accepted.images.clone(),
            accepted: accepted.accepted,
            expires: accepted.expires,
            stop: stopped,
        })
    }

    /// Cancels the job.
    pub(super) fn cancel(&mut self) -> Cancellation {
        match &mut self.stage {
            Stage::Arriving { cancelled, .. } => *cancelled = true,
            Stage::Queued => return Cancellation::NotStarted,
            Stage::Running { stop, .. } => {
                stop.send_replace(true);
            }
        }
        Cancellation::Requested
    }

    /// Stops the job, if it runs, for the end of the process. A job that its client has cancelled is not paused.
    pub(super) fn pause(&mut self) {
        if let Stage::Running { stop, paused, .. } = &mut self.stage {
            *paused = !*stop.borrow();
            stop.send_replace(true);
        }
    }

    /// Ends a run of the job, which is queued again; returns the resources that the run had. `None`: it does not run.
    pub(super) fn end_run(&mut self) -> Option<Reservation> {
        if !self.is_running() {
            return None;
        }
        match std::mem::replace(&mut self.stage, Stage::Queued) {
            Stage::Running { reservation, .. } => Some(reservation),
            Stage::Arriving { .. } | Stage::Queued => None,
        }
    }

    /// Raises the number of its place by `by`.
    pub(super) fn shift_place(&mut self, by: u64) {
        self.place = self.place.shifted(by);
    }
}

impl AcceptedJob {
    /// The most tokens that the job holds in an engine of this context length.
    pub(super) fn max_tokens(&self, context: usize) -> usize {
        self.prompt.len().saturating_add(self.job.max_tokens).min(context)
    }

    /// The tokens that the client is charged until the job has used fewer.
    pub(super) fn charged_tokens(&self) -> i64 {
        i64::try_from(self.prompt.len() + self.job.max_tokens).unwrap_or(i64::MAX)
    }
}
