//! The audit: one JSON line for each job, in a file that is rotated by its size.
//!
//! A background worker writes them. A disk that is full, failing or slow costs lines, which are counted, and delays
//! no job.

mod line;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use phi_edge_models::ModelDir;
use phi_edge_rules::Event;
use phi_edge_service::{
    Detokenizer, JobEnd, JobKey, Observer, Outcome, Prompts, Refusal, ReplyAddress, Symbol,
};

use super::rotated_file::RotatedFile;
use super::worker::{Handed, LostCounter, Worker, WorkerThread};
use line::{EventLine, JobLine, Line, RefusedLine};

/// The number of lines in the queue to the thread: the ends of a full job queue, several times over.
const QUEUE_CAPACITY: usize = 1024;
/// The maximum size of the prompts and answers in the queue. A single line may be larger.
const MAX_QUEUED_TEXT_BYTES: usize = 16 << 20;
/// The time limit for the last lines, at the shutdown.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The audit's configuration.
pub(crate) struct AuditConfig {
    /// The file.
    pub(crate) path: PathBuf,
    /// Whether the lines have prompts, answers and reasons.
    pub(crate) texts: bool,
    /// The size at which the file is rotated, in bytes.
    pub(crate) max_size: u64,
    /// The number of rotated files that are kept.
    pub(crate) keep: usize,
    /// The node's name.
    pub(crate) node: String,
    /// The file that caches the digests of the model's files.
    pub(crate) digests: PathBuf,
}

/// The numbers of lines that were written and lost so far. Copies have the same numbers.
#[derive(Debug, Clone)]
pub(crate) struct AuditCounts {
    shared: Arc<Counts>,
    lost: LostCounter,
}

#[derive(Debug, Default)]
struct Counts {
    written: AtomicU64,
    /// The size of the texts in the queue, in bytes.
    texts: AtomicUsize,
}

impl AuditCounts {
    pub(crate) fn written(&self) -> u64 {
        self.shared.written.load(Ordering::Relaxed)
    }

    pub(crate) fn lost(&self) -> u64 {
        self.lost.get()
    }
}

/// The observer of the service that hands lines to the writer.
pub(crate) struct Audit {
    worker: Worker<Line>,
    counts: Arc<Counts>,
    texts: bool,
}

impl Audit {
    /// Opens the file and starts the thread.
    ///
    /// # Errors
    /// The file can't be opened or the thread can't be started.
    pub(crate) fn start(
        config: AuditConfig,
        model: ModelDir,
        prompts: Arc<dyn Prompts>,
    ) -> std::io::Result<Self> {
        let file = RotatedFile::open(config.path.clone(), config.max_size, config.keep)?;
        let counts = Arc::<Counts>::default();
        let texts = config.texts;
        let writer = Writer {
            file,
            counts: Arc::clone(&counts),
            failing: false,
            prompts,
            config,
        };
        let worker = Worker::start("audit", QUEUE_CAPACITY, move |thread| {
            writer.run(&model, thread);
        })?;
        Ok(Self {
            worker,
            counts,
            texts,
        })
    }

    pub(crate) fn counts(&self) -> AuditCounts {
        AuditCounts {
            shared: Arc::clone(&self.counts),
            lost: self.worker.lost(),
        }
    }

    /// Takes no more lines, and writes those in the queue within the time limit.
    pub(crate) fn close(&self) {
        if !self.worker.close(CLOSE_TIMEOUT) {
            tracing::warn!("the last lines of the audit were not written in time");
        }
    }

    fn send(&self, line: Line) {
        let bytes = line.text_bytes();
        let before = self.counts.texts.fetch_add(bytes, Ordering::Relaxed);
        let handed = if before > 0 && before + bytes > MAX_QUEUED_TEXT_BYTES {
            self.worker.lose()
        } else {
            self.worker.send(line)
        };
        if handed != Handed::Queued {
            self.counts.texts.fetch_sub(bytes, Ordering::Relaxed);
        }
        if handed == (Handed::Lost { first: true }) {
            tracing::error!(
                "the audit can't keep up; lines are lost (and counted, where metrics are served)"
            );
        }
    }
}

impl Observer for Audit {
    fn ended(&self, end: &JobEnd<'_>) {
        let answer = match end.outcome {
            Outcome::Answered { answer, .. } => Some(answer.text.clone()),
            Outcome::Failed(_) => None,
        };
        // Only what is wanted is copied: a prompt may be long.
        let texts = self.texts.then(|| (end.prompt.to_vec(), answer));
        self.send(Line::Job(Box::new(JobLine::of(end)), texts));
    }

    fn refused(&self, key: &JobKey, address: &ReplyAddress, refusal: &Refusal) {
        self.send(Line::Refused(RefusedLine::of(key, address, refusal, self.texts)));
    }

    fn event(&self, event: &Event) {
        self.send(Line::Event(Box::new(EventLine::of(event, self.texts))));
    }
}

struct Writer {
    file: RotatedFile,
    counts: Arc<Counts>,
    failing: bool,
    prompts: Arc<dyn Prompts>,
    config: AuditConfig,
}

impl Writer {
    /// Writes lines until their queue is disconnected.
    fn run(mut self, model: &ModelDir, thread: &WorkerThread<Line>) {
        // Here and not before: at a model's first start it reads gigabytes.
        let digest = model
            .fingerprint(Some(&self.config.digests))
            .inspect_err(|error| tracing::warn!(%error, "the audit is written without the model's digest"))
            .ok();
        let (name, node) = (model.name(), self.config.node.clone());
        while let Ok(line) = thread.items.recv() {
            self.counts.texts.fetch_sub(line.text_bytes(), Ordering::Relaxed);
            let texts = |prompt: &[Symbol]| text_of(prompt, self.prompts.detokenizer());
            let line = line.render(&node, &name, digest.as_deref(), &texts);
            let written = self.file.append(&line);
            self.note(written, &thread.lost);
        }
    }

    fn note(&mut self, written: std::io::Result<()>, lost: &LostCounter) {
        match written {
            Ok(()) => {
                self.counts.written.fetch_add(1, Ordering::Relaxed);
                if std::mem::take(&mut self.failing) {
                    tracing::info!("the audit takes lines again");
                }
            }
            Err(error) => {
                lost.add();
                if !std::mem::replace(&mut self.failing, true) {
                    let file = self.config.path.display();
                    tracing::error!(%error, %file, "the audit can't be written; its lines are lost until it can");
                }
            }
        }
    }
}

fn text_of(prompt: &[Symbol], mut detokenizer: Box<dyn Detokenizer>) -> String {
    let ids = prompt.iter().filter_map(|symbol| symbol.token());
    let mut text: String = ids.map(|id| detokenizer.push(id)).collect();
    text.push_str(&detokenizer.finish());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_that_wait_for_a_slow_disk_are_bounded_in_bytes() {
        // No thread takes a line.
        let (worker, thread) = Worker::pair(QUEUE_CAPACITY);
        let audit = Audit {
            worker,
            counts: Arc::default(),
            texts: true,
        };
        let line = |bytes: usize| Line::Job(Box::default(), Some((Vec::new(), Some("x".repeat(bytes)))));
        audit.send(line(2 * MAX_QUEUED_TEXT_BYTES));
        assert_eq!(audit.counts().lost(), 0, "a single one may be larger");
        audit.send(line(1));
        assert_eq!(audit.counts().lost(), 1);
        let first = thread.items.try_recv().map(|line| line.text_bytes());
        assert_eq!(first, Ok(2 * MAX_QUEUED_TEXT_BYTES));
        audit.counts.texts.store(0, Ordering::Relaxed);
        for _ in 0..20 {
            audit.send(line(1 << 20));
        }
        assert_eq!(audit.counts().lost(), 5);
        assert_eq!(audit.counts.texts.load(Ordering::Relaxed), MAX_QUEUED_TEXT_BYTES);
    }
}
