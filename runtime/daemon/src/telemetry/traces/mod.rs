//! Traces: the export of each job's spans to a collector, by OTLP over HTTP.
//!
//! A background worker sends them. A collector that is away or slow costs spans, and delays no job.

mod span;

use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use phi_edge_service::{JobEnd, Observer};
use serde_json::Value;

use super::worker::Worker;

/// The number of jobs in the queue to the thread.
const QUEUE_CAPACITY: usize = 1024;
/// The maximum number of spans of one export, and the time that the first of them waits for others.
const MAX_EXPORT_SPANS: usize = 512;
const EXPORT_DELAY: Duration = Duration::from_secs(2);
/// The time limit of an export.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// The time limit of the last export, at the shutdown.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The observer of the service that hands spans to the exporter.
pub(crate) struct Traces {
    /// Takes the spans of one job at a time.
    worker: Worker<Vec<Value>>,
    model: String,
}

impl Traces {
    /// Starts the thread. `endpoint`: the collector's, without the path `/v1/traces`.
    ///
    /// # Errors
    /// The thread can't be started.
    pub(crate) fn start(endpoint: &str, node: &str, model: &str) -> std::io::Result<Self> {
        let exporter = Exporter {
            address: format!("{}/v1/traces", endpoint.trim_end_matches('/')),
            node: node.to_owned(),
            agent: ureq::Agent::config_builder()
                .timeout_global(Some(EXPORT_TIMEOUT))
                .build()
                .into(),
            failing: false,
        };
        let worker = Worker::start("traces", QUEUE_CAPACITY, move |thread| {
            exporter.run(&thread.items)
        })?;
        Ok(Self {
            worker,
            model: model.to_owned(),
        })
    }

    /// Takes no more spans, and sends those in the queue within the time limit.
    pub(crate) fn close(&self) {
        if !self.worker.close(CLOSE_TIMEOUT) {
            tracing::warn!("the last traces were not sent in time");
        }
    }
}

impl Observer for Traces {
    fn ended(&self, end: &JobEnd<'_>) {
        if !span::is_sampled(end.job.reply.traceparent.as_ref()) {
            return;
        }
        // A full queue is counted as lost; the exporter has logged why.
        self.worker.send(span::spans(end, &self.model));
    }
}

struct Exporter {
    address: String,
    node: String,
    agent: ureq::Agent,
    failing: bool,
}

impl Exporter {
    /// Exports spans until their queue is disconnected.
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

    /// Logs the first failure in a row, and its end.
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
