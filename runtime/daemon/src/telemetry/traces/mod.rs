//! Traces: the spans of each job, to a collector by OTLP over HTTP.
//!
//! A thread of its own sends. It is fed by a bounded channel that nobody waits at: a collector that is away, or slow, costs
//! spans, and no job.

mod span;

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use phi_edge_service::{JobEnd, Witness};
use serde_json::Value;

/// Jobs under way to the thread.
const QUEUE_CAPACITY: usize = 1024;
/// Spans of one export, at most, and how long the first of them waits.
const MAX_EXPORT_SPANS: usize = 512;
const EXPORT_DELAY: Duration = Duration::from_secs(2);
/// How long an export may take.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the last one may take, at the end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Sends the spans of what happens.
pub(crate) struct Traces {
    jobs: Mutex<Option<SyncSender<Vec<Value>>>>,
    model: String,
    /// Disconnected when the thread is done.
    done: Mutex<Receiver<()>>,
}

impl Traces {
    /// Starts the thread. `endpoint`: the collector's, without the path `/v1/traces`.
    ///
    /// # Errors
    /// The thread can't be started.
    pub(crate) fn start(endpoint: &str, node: &str, model: &str) -> std::io::Result<Self> {
        let (jobs, inbox) = sync_channel(QUEUE_CAPACITY);
        let (done_tx, done) = sync_channel(0);
        let exporter = Exporter {
            address: format!("{}/v1/traces", endpoint.trim_end_matches('/')),
            node: node.to_owned(),
            agent: ureq::Agent::config_builder()
                .timeout_global(Some(EXPORT_TIMEOUT))
                .build()
                .into(),
            failing: false,
        };
        std::thread::Builder::new().name("traces".into()).spawn(move || {
            exporter.run(&inbox);
            drop(done_tx);
        })?;
        Ok(Self {
            jobs: Mutex::new(Some(jobs)),
            model: model.to_owned(),
            done: Mutex::new(done),
        })
    }

    /// Sends what is under way, if the collector lets it in time; takes no more.
    pub(crate) fn close(&self) {
        drop(self.jobs.lock().unwrap_or_else(PoisonError::into_inner).take());
        let done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        if done.recv_timeout(CLOSE_TIMEOUT) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("the last traces were not sent in time");
        }
    }
}

impl Witness for Traces {
    fn ended(&self, end: &JobEnd<'_>) {
        if !span::is_sampled(end.job.reply.traceparent.as_ref()) {
            return;
        }
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(jobs) = jobs.as_ref() {
            // Full: the exporter has said why.
            let _ = jobs.try_send(span::spans(end, &self.model));
        }
    }
}

struct Exporter {
    address: String,
    node: String,
    agent: ureq::Agent,
    failing: bool,
}

impl Exporter {
    /// Works until the other end is dropped.
    fn run(mut self, inbox: &Receiver<Vec<Value>>) {
        while let Ok(first) = inbox.recv() {
            let mut spans = first;
            let until = Instant::now() + EXPORT_DELAY;
            while spans.len() < MAX_EXPORT_SPANS {
                let left = until.saturating_duration_since(Instant::now());
                match inbox.recv_timeout(left) {
                    Ok(more) => spans.extend(more),
                    Err(_) => break,
                }
            }
            let sent = self.send(&spans);
            self.note(sent, spans.len());
        }
    }

    fn send(&self, spans: &[Value]) -> Result<(), String> {
        let body = span::request(spans, &self.node).to_string();
        let request = self
            .agent
            .post(&self.address)
            .header("content-type", "application/json");
        request.send(body).map(drop).map_err(|error| error.to_string())
    }

    /// The first failure of a row is told, and its end.
    fn note(&mut self, sent: Result<(), String>, spans: usize) {
        let collector = &self.address;
        match sent {
            Ok(()) => {
                if std::mem::take(&mut self.failing) {
                    tracing::info!(collector, "the collector takes traces again");
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!(
                        collector,
                        error,
                        spans,
                        "traces can't be sent, and are lost until they can (traces.endpoint)"
                    );
                }
            }
        }
    }
}
