//! One job's time on the engine.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use phi_edge_engine::{Failure, Finish, Stop, Summary, Symbol, TokenId};
use phi_edge_models::ImageInfo;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::engine_thread::{Ask, EngineClient};
use crate::engine_thread::{Generation, Update};
use crate::jobs::chunks::Chunks;
use crate::jobs::known_images::{KnownImage, named_by};
use crate::jobs::ledger::Start;
use crate::jobs::pixels::ImageReader;
use phi_edge_api::Reply;
use phi_edge_job::{ErrorCode, FinishReason};
use phi_edge_prompts::Prompts;
use phi_edge_prompts::seen;

/// How long the engine may take to end what it was asked to end. A run of the graph is cut short within
/// milliseconds, so that an engine that takes longer hangs.
pub(crate) const END_WAIT: Duration = Duration::from_secs(10);

/// How a job ended.
#[allow(clippy::large_enum_variant, reason = "one for each job, moved once")]
#[derive(Debug, PartialEq)]
pub(crate) enum Ended {
    Answered {
        text: String,
        finish: FinishReason,
        /// From acceptance to the engine's start.
        queued: Duration,
        summary: Box<Summary>,
        /// The ids of `text` for a session to go on with, where they may be others than the summary's.
        seen: Option<Vec<TokenId>>,
        /// The job's images, in its order.
        images: Vec<ImageInfo>,
    },
    Failed {
        code: ErrorCode,
        message: String,
    },
    /// The engine is gone.
    Lost,
}

impl Ended {
    pub(crate) fn failed(code: ErrorCode, message: impl Into<String>) -> Self {
        Self::Failed {
            code,
            message: message.into(),
        }
    }
}

/// What all runners share.
#[derive(Clone)]
pub(crate) struct Runner {
    pub(crate) engine: EngineClient,
    pub(crate) prompts: Arc<dyn Prompts>,
    pub(crate) images: ImageReader,
    pub(crate) replies: mpsc::Sender<Reply>,
    pub(crate) chunk_interval: Duration,
}

impl Runner {
    /// Runs a job to its end: by itself, by its deadline, or by `start.stop`.
    pub(crate) async fn run(self, mut start: Start) -> Ended {
        let waited = start.accepted.elapsed();
        if let Err(ended) = self.complete_images(&mut start).await {
            return ended;
        }
        let images = KnownImage::all(&start.job.images, &start.images);
        // A session goes on from what its client saw, and a stop text is not part of that.
        let may_hide = start.job.session.is_some() && !start.job.stop.is_empty();
        let chunks = Chunks::of(&start, self.replies, self.chunk_interval);
        let ask = Ask {
            prompt: start.prompt,
            images: self.images.engine_images(&images),
            max_tokens: start.job.max_tokens,
            sampling: start.job.sampling,
            stop: Stop {
                ids: self.prompts.stop_ids(),
                strings: start.job.stop,
            },
            detokenizer: self.prompts.detokenizer(),
        };
        let Ok(generation) = self.engine.generate(ask).await else {
            return Ended::Lost;
        };
        let run = Run {
            generation,
            chunks,
            stop: start.stop,
            expires: start.expires,
            waited,
            images: start.images,
        };
        match follow(run).await {
            ended if may_hide => with_seen(ended, self.prompts).await,
            ended => ended,
        }
    }
}

impl Runner {
    /// Reads the images of a job of an earlier process again, whose identities are in no store.
    async fn complete_images(&self, start: &mut Start) -> Result<(), Ended> {
        let files = &start.job.images;
        if start.images.len() == files.len() {
            return Ok(());
        }
        let infos = self.images.infos(files);
        let infos = infos.await.map_err(|message| {
            Ended::failed(
                ErrorCode::Internal,
                format!("images: {message}; send the request again"),
            )
        })?;
        let known = named_by(&start.prompt, KnownImage::all(files, &infos));
        if known.len() < images_of(&start.prompt) {
            let message = "images: the model is configured to read them otherwise since the restart; send the request again";
            return Err(Ended::failed(ErrorCode::Internal, message));
        }
        start.images = infos;
        Ok(())
    }
}

/// The number of images that a prompt names.
fn images_of(prompt: &[Symbol]) -> usize {
    let images: HashSet<_> = prompt.iter().filter_map(|symbol| symbol.image()).collect();
    images.len()
}

async fn with_seen(mut ended: Ended, prompts: Arc<dyn Prompts>) -> Ended {
    if let Ended::Answered {
        text,
        summary,
        seen: ids,
        ..
    } = &mut ended
        && summary.finish == Finish::Stop
    {
        let (text, tokens) = (text.clone(), summary.tokens.clone());
        // A long answer takes the tokenizer long: not on a thread that others wait for.
        let found = tokio::task::spawn_blocking(move || seen(&*prompts, &tokens, &text)).await;
        if let Err(error) = &found {
            tracing::error!(%error, "finding the ids of an answer panicked; its session goes on without them");
        }
        *ids = Some(found.unwrap_or_default());
    }
    ended
}

struct Run {
    generation: Generation,
    chunks: Option<Chunks>,
    stop: tokio::sync::watch::Receiver<bool>,
    expires: Instant,
    waited: Duration,
    images: Vec<ImageInfo>,
}

async fn follow(mut run: Run) -> Ended {
    let mut text = String::new();
    // Why the engine was asked to end, and until when it is waited for.
    let mut ending: Option<(FinishReason, Instant)> = None;
    loop {
        let chunk_due = run.chunks.as_ref().and_then(|c| c.due(Instant::now()));
        let end = tokio::select! {
            update = run.generation.next() => match update {
                Update::Text(delta) => {
                    if let Some(chunks) = &mut run.chunks {
                        chunks.push(&delta);
                    }
                    text.push_str(&delta);
                    None
                }
                Update::Progress(progress) => {
                    if let Some(chunks) = &mut run.chunks {
                        chunks.set_progress(progress);
                    }
                    None
                }
                end => Some(end),
            },
            // An error means that the ledger is gone, and with it everybody who would read the answer.
            _ = run.stop.wait_for(|stop| *stop), if ending.is_none() => {
                ending = Some((FinishReason::Cancelled, Instant::now() + END_WAIT));
                run.generation.cancel();
                None
            }
            () = sleep_until(run.expires), if ending.is_none() => {
                ending = Some((FinishReason::Deadline, Instant::now() + END_WAIT));
                run.generation.cancel();
                None
            }
            () = until(ending.map(|(_, until)| until)) => {
                return Ended::failed(
                    ErrorCode::Unavailable,
                    "the engine does not end the answer; send the request again later",
                );
            }
            () = until(chunk_due) => None,
        };
        if let Some(chunks) = &mut run.chunks {
            chunks.send_due(Instant::now());
        }
        match end {
            None => {}
            Some(Update::Finished(summary)) => {
                if let Some(chunks) = &mut run.chunks {
                    chunks.flush();
                }
                let finish = finish_reason(summary.finish, ending.map(|(reason, _)| reason));
                return Ended::Answered {
                    text,
                    finish,
                    queued: run.waited + summary.queued,
                    summary: Box::new(summary),
                    seen: None,
                    images: run.images,
                };
            }
            Some(Update::Failed(reason)) => return failed(reason),
            Some(_) => return Ended::Lost,
        }
    }
}

/// Waits for a moment, or for ever.
pub(crate) async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

fn finish_reason(finish: Finish, asked: Option<FinishReason>) -> FinishReason {
    match finish {
        Finish::Stop => FinishReason::Stop,
        Finish::Length | Finish::Repetition => FinishReason::Length,
        Finish::Cancelled => asked.unwrap_or(FinishReason::Cancelled),
        Finish::Deadline => FinishReason::Deadline,
    }
}

fn failed(reason: Failure) -> Ended {
    match reason {
        Failure::ContextOverflow { .. } | Failure::MemoryOverflow { .. } => {
            Ended::failed(ErrorCode::ContextOverflow, reason.to_string())
        }
        Failure::Invalid(message) | Failure::Image(message) => Ended::failed(ErrorCode::BadRequest, message),
        Failure::Decoder(message) => Ended::failed(
            ErrorCode::Internal,
            format!("the model could not answer: {message}"),
        ),
    }
}
