//! The channel of one request: the engine's thread writes to a [`Sink`], the job reads from a [`Generation`].
//!
//! It holds a growing text and an end instead of a queue of events: the engine never waits for a reader, a slow reader
//! gets the pieces joined, and its memory is bounded by the text of one answer.

use phi_edge_engine::{Failure, GenerateRequest, Interrupt, RequestId, Summary};
use tokio::sync::{mpsc, watch};

use phi_edge_api::PromptProgress;

/// A command to the engine's thread.
pub enum EngineCommand {
    /// Generate an answer.
    Generate {
        /// The request; its id is unique in the process.
        request: GenerateRequest,
        /// The writing end of its generation.
        sink: Sink,
    },
    /// Load the model if it is unloaded: a request is expected, or the pixels of an image are ready.
    Wake,
}

/// A handle that wakes the engine's thread, for which something that it waits for is ready. It does not keep the thread alive.
#[derive(Clone)]
pub(crate) struct EngineWaker(mpsc::WeakSender<EngineCommand>);

impl EngineWaker {
    /// The handle of the thread that takes these commands.
    pub(super) fn new(commands: &mpsc::Sender<EngineCommand>) -> Self {
        Self(commands.downgrade())
    }

    /// Has the engine look again at what it waits for.
    pub(crate) fn wake(&self) {
        if let Some(commands) = self.0.upgrade() {
            // A full channel holds commands that wake it, too.
            let _ = commands.try_send(EngineCommand::Wake);
        }
    }
}

#[derive(Default)]
struct Progress {
    text: String,
    /// The part of the prompt that is computed.
    prompt: Option<PromptProgress>,
    end: Option<Result<Summary, Failure>>,
}

/// The writing end of a generation. Dropping it without [`Sink::finish`] or [`Sink::fail`] reports that the engine is
/// gone.
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

    /// Sets the part of the prompt that is computed.
    pub fn prompt(&self, computed: PromptProgress) {
        self.progress
            .send_modify(|progress| progress.prompt = Some(computed));
    }

    /// Ends the generation with a complete answer.
    pub fn finish(self, summary: Summary) {
        self.progress
            .send_modify(|progress| progress.end = Some(Ok(summary)));
    }

    /// Ends the generation without an answer.
    pub fn fail(self, reason: Failure) {
        self.progress
            .send_modify(|progress| progress.end = Some(Err(reason)));
    }

    /// Whether the reader has cancelled or is gone.
    pub fn is_cancelled(&self) -> bool {
        *self.cancelled.borrow() || self.progress.is_closed()
    }

    /// Waits until [`Sink::is_cancelled`] is true.
    pub async fn cancelled(&mut self) {
        // An error means that the reader is gone, which is as good as a cancellation.
        let _ = self.cancelled.wait_for(|cancelled| *cancelled).await;
    }
}

/// An update of a generation.
#[derive(Debug, Clone, PartialEq)]
pub enum Update {
    /// A part of the prompt is computed.
    Progress(PromptProgress),
    /// New text.
    Text(String),
    /// The end: the text is complete.
    Finished(Summary),
    /// The end: there is no answer.
    Failed(Failure),
    /// The end: the engine's thread is gone.
    Lost,
}

/// The reading end of a generation. Dropping it cancels the request.
pub struct Generation {
    progress: watch::Receiver<Progress>,
    cancel: watch::Sender<bool>,
    interrupt: Interrupt,
    /// Wakes the thread for a cancellation where it may wait for something else.
    waker: Option<EngineWaker>,
    id: RequestId,
    /// The number of bytes of the text that were returned.
    taken: usize,
    /// The progress of the prompt that was returned last.
    prompt: Option<PromptProgress>,
    ended: bool,
}

impl Generation {
    pub(crate) fn new(interrupt: Interrupt, id: RequestId, waker: Option<EngineWaker>) -> (Self, Sink) {
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
            waker,
            id,
            taken: 0,
            prompt: None,
            ended: false,
        };
        (generation, sink)
    }

    /// Waits for the next update. Cancel safe; after the end it returns the end again.
    pub async fn next(&mut self) -> Update {
        loop {
            {
                let progress = self.progress.borrow_and_update();
                if let Some(computed) = progress.prompt.filter(|computed| self.prompt != Some(*computed)) {
                    self.prompt = Some(computed);
                    return Update::Progress(computed);
                }
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

    /// Requests an end before the next token, which [`Generation::next`] then returns. A run of the graph for this
    /// request alone is interrupted; one that it shares with others goes on, since they would have to run it twice.
    pub fn cancel(&self) {
        // Flag first: the engine's thread clears the interrupt before it looks at the flags.
        self.cancel.send_replace(true);
        self.interrupt.raise_for(self.id);
        if let Some(waker) = &self.waker {
            waker.wake();
        }
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        if !self.ended {
            self.cancel();
        }
    }
}
