//! One request's two ends: the engine's thread writes to a [`Sink`], its job reads from a [`Generation`].
//!
//! Between them lie a growing text and an end, not a queue of events: the engine never waits for a reader,
//! a reader that lags gets the pieces joined, and what is held is one answer's text at most.

use phi_edge_engine::{Failure, GenerateRequest, Interrupt, RequestId, Summary};
use tokio::sync::watch;

/// What the engine's thread is asked.
pub enum EngineCommand {
    /// Generate an answer.
    Generate {
        /// The request; its id is unique in the process.
        request: GenerateRequest,
        /// Where its text and its end go.
        sink: Sink,
    },
    /// Have the model in memory: a request is to be expected.
    Wake,
}

#[derive(Default)]
struct Progress {
    text: String,
    end: Option<Result<Summary, Failure>>,
}

/// The engine's end. Dropped without [`Sink::finish`] or [`Sink::fail`] it says that the engine is gone.
pub struct Sink {
    progress: watch::Sender<Progress>,
    cancelled: watch::Receiver<bool>,
}

impl Sink {
    /// Appends text to the answer.
    pub fn text(&self, delta: &str) {
        self.progress
            .send_modify(|progress| progress.text.push_str(delta));
    }

    /// The answer is complete.
    pub fn finish(self, summary: Summary) {
        self.progress
            .send_modify(|progress| progress.end = Some(Ok(summary)));
    }

    /// There will be no answer.
    pub fn fail(self, reason: Failure) {
        self.progress
            .send_modify(|progress| progress.end = Some(Err(reason)));
    }

    /// True once the reader has cancelled or is gone.
    pub fn is_cancelled(&self) -> bool {
        *self.cancelled.borrow() || self.progress.is_closed()
    }

    /// Waits until [`Sink::is_cancelled`].
    pub async fn cancelled(&mut self) {
        // An error means that the reader is gone, which is as good as a cancellation.
        let _ = self.cancelled.wait_for(|cancelled| *cancelled).await;
    }
}

/// What [`Generation::next`] tells.
#[derive(Debug, Clone, PartialEq)]
pub enum Update {
    /// New text.
    Text(String),
    /// The end: the text is complete.
    Finished(Summary),
    /// The end: there is no answer.
    Failed(Failure),
    /// The end: the engine's thread is gone.
    Lost,
}

/// The reader's end. Dropping it cancels the request.
pub struct Generation {
    progress: watch::Receiver<Progress>,
    cancel: watch::Sender<bool>,
    interrupt: Interrupt,
    id: RequestId,
    /// Bytes of the text that were given out.
    taken: usize,
    ended: bool,
}

impl Generation {
    pub(crate) fn new(interrupt: Interrupt, id: RequestId) -> (Self, Sink) {
        let (progress_tx, progress) = watch::channel(Progress::default());
        let (cancel, cancelled) = watch::channel(false);
        let sink = Sink {
            progress: progress_tx,
            cancelled,
        };
        let generation = Self {
            progress,
            cancel,
            interrupt,
            id,
            taken: 0,
            ended: false,
        };
        (generation, sink)
    }

    /// Waits for what comes next. Nothing is lost if the wait is dropped; after an end it is told again.
    pub async fn next(&mut self) -> Update {
        loop {
            {
                let progress = self.progress.borrow_and_update();
                if let Some(delta) = progress.text.get(self.taken..).filter(|d| !d.is_empty()) {
                    let delta = delta.to_owned();
                    self.taken = progress.text.len();
                    return Update::Text(delta);
                }
                if let Some(end) = &progress.end {
                    self.ended = true;
                    return match end {
                        Ok(summary) => Update::Finished(summary.clone()),
                        Err(reason) => Update::Failed(reason.clone()),
                    };
                }
            }
            if self.progress.changed().await.is_err() {
                self.ended = true;
                return Update::Lost;
            }
        }
    }

    /// Asks for an end before the next token; [`Generation::next`] tells it. A run of the graph that serves
    /// this request alone is cut short: one that others share goes on, as they would pay for it twice.
    pub fn cancel(&self) {
        // Flag first: the engine's thread clears the interrupt before it looks at the flags.
        self.cancel.send_replace(true);
        self.interrupt.raise_for(self.id);
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        if !self.ended {
            self.cancel();
        }
    }
}
