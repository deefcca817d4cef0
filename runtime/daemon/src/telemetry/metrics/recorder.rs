//! The recorder of the metrics that are updated as things happen.

use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder as _};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use phi_edge_rules::Event;
use phi_edge_service::{
    Answer, ErrorCode, FinishReason, JobEnd, JobKey, Observer, Outcome, Refusal, ReplyAddress,
};

use super::catalogue::{self as c, Metric, MetricKind};
use crate::exit::Fault;

const METADATA: Metadata<'_> = Metadata::new("phi_edge", Level::INFO, None);

/// The metrics of this process.
pub(crate) struct Recorder {
    inner: PrometheusRecorder,
    handle: PrometheusHandle,
    model: String,
}

impl Recorder {
    /// A recorder for answers of `model`.
    pub(crate) fn new(model: &str) -> Result<Self, Fault> {
        let mut builder = PrometheusBuilder::new();
        for metric in c::ALL {
            if let MetricKind::Histogram(bounds) = metric.kind {
                builder = builder
                    .set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), bounds)
                    .map_err(Fault::failed)?;
            }
        }
        let inner = builder.build_recorder();
        for metric in c::ALL {
            let (name, unit, help) = (metric.name.into(), Some(metric.unit), metric.help.into());
            match metric.kind {
                MetricKind::Counter => inner.describe_counter(name, unit, help),
                MetricKind::Gauge => inner.describe_gauge(name, unit, help),
                MetricKind::Histogram(_) => inner.describe_histogram(name, unit, help),
            }
        }
        let handle = inner.handle();
        let this = Self {
            inner,
            handle,
            model: model.to_owned(),
        };
        this.register_counters();
        Ok(this)
    }

    /// Registers the event counters with the value 0: a rate needs the value before the first event.
    fn register_counters(&self) {
        for source in ["client", "rule"] {
            for reason in FinishReason::ALL {
                self.jobs(reason.as_str(), source).absolute(0);
            }
            for code in ErrorCode::ALL {
                self.jobs(code.as_str(), source).absolute(0);
            }
        }
        for code in ErrorCode::ALL {
            self.counter(&c::REFUSED, &[("code", code.as_str())]).absolute(0);
        }
        self.counter(&c::CACHED_TOKENS, &[]).absolute(0);
        for right in ["true", "false"] {
            self.counter(&c::GUESSED_TOKENS, &[("right", right)]).absolute(0);
        }
    }

    pub(crate) fn counter(&self, metric: &Metric, labels: &[(&'static str, &str)]) -> Counter {
        self.inner.register_counter(&key(metric, labels), &METADATA)
    }

    pub(crate) fn gauge(&self, metric: &Metric, labels: &[(&'static str, &str)]) -> Gauge {
        self.inner.register_gauge(&key(metric, labels), &METADATA)
    }

    fn histogram(&self, metric: &Metric, labels: &[(&'static str, &str)]) -> Histogram {
        self.inner.register_histogram(&key(metric, labels), &METADATA)
    }

    /// Sorts recorded values into the histograms' buckets; until then each of them takes memory.
    pub(crate) fn upkeep(&self) {
        self.handle.run_upkeep();
    }

    /// All metrics in Prometheus' text format.
    pub(crate) fn render(&self) -> String {
        self.handle.render()
    }

    pub(crate) fn model(&self) -> &str {
        &self.model
    }

    fn jobs(&self, outcome: &str, source: &str) -> Counter {
        self.counter(&c::JOBS, &[("outcome", outcome), ("source", source)])
    }

    fn gen_ai<'a>(&'a self, error: Option<&'a str>) -> Vec<(&'static str, &'a str)> {
        let mut labels = vec![
            ("gen_ai_operation_name", "chat"),
            ("gen_ai_request_model", self.model.as_str()),
            ("gen_ai_provider_name", "phi-edge"),
        ];
        labels.extend(error.map(|error| ("error_type", error)));
        labels
    }

    fn answered(&self, answer: &Answer) {
        let labels = self.gen_ai(None);
        self.histogram(&c::QUEUE_WAIT, &[]).record(answer.queued);
        // An answer that was cut short before its first token has no time of one.
        if answer.completion_tokens > 0 {
            self.histogram(&c::FIRST_TOKEN_TIME, &labels)
                .record(answer.queued + answer.prefill);
        }
        if let Some(further) = answer.completion_tokens.checked_sub(1).filter(|n| *n > 0) {
            self.histogram(&c::PER_TOKEN_TIME, &labels)
                .record(answer.decode.as_secs_f64() / float(further));
        }
        for (kind, tokens) in [
            ("input", answer.prompt_tokens),
            ("output", answer.completion_tokens),
        ] {
            let mut labels = labels.clone();
            labels.push(("gen_ai_token_type", kind));
            self.histogram(&c::TOKEN_USAGE, &labels).record(float(tokens));
        }
        self.counter(&c::CACHED_TOKENS, &[])
            .increment(answer.cached_tokens as u64);
    }
}

impl Observer for Recorder {
    fn ended(&self, end: &JobEnd<'_>) {
        let source = if end.internal { "rule" } else { "client" };
        let error = match end.outcome {
            Outcome::Answered {
                answer,
                guessed,
                guessed_right,
            } => {
                self.jobs(answer.finish_reason.as_str(), source).increment(1);
                self.answered(answer);
                for (right, tokens) in [
                    ("true", guessed_right),
                    ("false", guessed.saturating_sub(guessed_right)),
                ] {
                    self.counter(&c::GUESSED_TOKENS, &[("right", right)])
                        .increment(tokens as u64);
                }
                None
            }
            Outcome::Failed(refusal) => {
                self.jobs(refusal.code.as_str(), source).increment(1);
                Some(refusal.code.as_str())
            }
        };
        self.histogram(&c::REQUEST_TIME, &self.gen_ai(error))
            .record(end.took);
    }

    fn refused(&self, _key: &JobKey, _address: &ReplyAddress, refusal: &Refusal) {
        self.counter(&c::REFUSED, &[("code", refusal.code.as_str())])
            .increment(1);
    }

    fn event(&self, event: &Event) {
        let outcome = event.error.as_ref().map_or("ok", |error| error.code.as_str());
        self.counter(&c::RULE_EVENTS, &[("rule", &event.rule), ("outcome", outcome)])
            .increment(1);
    }

    fn flushed(&self, took: Duration) {
        self.histogram(&c::STORE_FLUSH, &[]).record(took);
    }
}

fn key(metric: &Metric, labels: &[(&'static str, &str)]) -> Key {
    let labels: Vec<Label> = labels
        .iter()
        .map(|(name, value)| Label::new(*name, (*value).to_owned()))
        .collect();
    Key::from_parts(metric.name, labels)
}

/// A count as a measurement; above 2^53 it is rounded.
#[allow(clippy::cast_precision_loss)]
pub(crate) fn float(number: usize) -> f64 {
    number as f64
}

/// As [`float`].
#[allow(clippy::cast_precision_loss)]
pub(crate) fn float64(number: u64) -> f64 {
    number as f64
}
