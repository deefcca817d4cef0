//! The lines of the audit.

use phi_edge_rules::{Event, Time};
use phi_edge_service::{JobEnd, JobKey, Outcome, Priority, Refusal, ReplyAddress, Symbol};
use serde::Serialize;
use serde_json::Value;

/// A line that is to be written.
pub(super) enum Line {
    /// With its prompt's ids and its answer where texts are wanted: the ids become text on the audit's thread.
    Job(Box<JobLine>, Option<(Vec<Symbol>, Option<String>)>),
    Refused(RefusedLine),
    Event(Box<EventLine>),
}

impl Line {
    /// The size of prompt and answer, in bytes.
    pub(super) fn text_bytes(&self) -> usize {
        match self {
            Self::Job(_, Some((prompt, answer))) => {
                size_of_val(prompt.as_slice()) + answer.as_ref().map_or(0, String::len)
            }
            Self::Job(_, None) | Self::Refused(_) | Self::Event(_) => 0,
        }
    }
}

/// The end of a job.
#[derive(Serialize)]
#[cfg_attr(test, derive(Default))]
pub(super) struct JobLine {
    #[serde(flatten)]
    request: RequestIdentity,
    priority: &'static str,
    /// `client` or `rule`.
    source: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<String>,
    max_tokens: usize,
    prompt_tokens: usize,
    completion_tokens: usize,
    cached_tokens: usize,
    /// Absent where the prompt has none, as are the two below.
    #[serde(skip_serializing_if = "is_zero")]
    images: usize,
    #[serde(skip_serializing_if = "is_zero")]
    image_bytes: usize,
    #[serde(skip_serializing_if = "is_zero")]
    image_tokens: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_bytes: Option<usize>,
    answer_bytes: usize,
    attempts: u32,
    took_ms: u64,
    queued_ms: Option<u64>,
    prefill_ms: Option<u64>,
    decode_ms: Option<u64>,
    #[serde(flatten)]
    outcome: OutcomeFields,
    #[serde(skip)]
    message: Option<String>,
}

/// The request that a line is about.
#[derive(Serialize)]
#[cfg_attr(test, derive(Default))]
struct RequestIdentity {
    time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    client: Option<String>,
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<String>,
}

#[derive(Serialize)]
#[cfg_attr(test, derive(Default))]
struct OutcomeFields {
    #[serde(skip_serializing_if = "Option::is_none")]
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reply_id: Option<String>,
}

/// A request that was not accepted.
#[derive(Serialize)]
pub(super) struct RefusedLine {
    #[serde(flatten)]
    request: RequestIdentity,
    #[serde(flatten)]
    outcome: OutcomeFields,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

/// An event of a rule.
#[derive(Serialize)]
pub(super) struct EventLine {
    time: String,
    id: String,
    rule: String,
    group: String,
    start: String,
    end: String,
    messages: u64,
    prompt_tokens: usize,
    completion_tokens: usize,
    cached_tokens: usize,
    #[serde(flatten)]
    outcome: OutcomeFields,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
}

impl JobLine {
    pub(super) fn of(end: &JobEnd<'_>) -> Self {
        let job = end.job;
        let (answer, refusal) = match end.outcome {
            Outcome::Answered { answer, .. } => (Some(answer), None),
            Outcome::Failed(refusal) => (None, Some(refusal)),
        };
        Self {
            request: RequestIdentity {
                time: now(),
                client: job.key.client.clone().filter(|_| !end.internal),
                id: job.key.id.clone(),
                traceparent: traceparent(&job.reply),
            },
            priority: match job.priority {
                Priority::Background => "background",
                Priority::Normal => "normal",
                Priority::Interactive => "interactive",
            },
            source: if end.internal { "rule" } else { "client" },
            session: job.session.clone(),
            max_tokens: job.max_tokens,
            prompt_tokens: end.prompt.len(),
            completion_tokens: answer.map_or(0, |answer| answer.completion_tokens),
            cached_tokens: answer.map_or(0, |answer| answer.cached_tokens),
            images: job.images.len(),
            image_bytes: job.images.iter().map(|image| image.file.len()).sum(),
            image_tokens: end
                .prompt
                .iter()
                .filter(|symbol| symbol.image().is_some())
                .count(),
            request_bytes: job.payload_bytes,
            answer_bytes: answer.map_or(0, |answer| answer.text.len()),
            attempts: end.attempts,
            took_ms: millis(end.took),
            queued_ms: answer.map(|answer| millis(answer.queued)),
            prefill_ms: answer.map(|answer| millis(answer.prefill)),
            decode_ms: answer.map(|answer| millis(answer.decode)),
            outcome: OutcomeFields {
                finish_reason: answer.map(|answer| answer.finish_reason.as_str()),
                error: refusal.map(|refusal| refusal.code.as_str()),
                reply_id: answer
                    .map(|answer| &answer.reply_id)
                    .or(refusal.map(|refusal| &refusal.reply_id))
                    .cloned(),
            },
            message: refusal.map(|refusal| refusal.message.clone()),
        }
    }
}

impl RefusedLine {
    pub(super) fn of(key: &JobKey, address: &ReplyAddress, refusal: &Refusal, texts: bool) -> Self {
        Self {
            request: RequestIdentity {
                time: now(),
                client: key.client.clone(),
                id: key.id.clone(),
                traceparent: traceparent(address),
            },
            outcome: OutcomeFields {
                finish_reason: None,
                error: Some(refusal.code.as_str()),
                reply_id: Some(refusal.reply_id.clone()),
            },
            // A message may quote what it refuses.
            message: texts.then(|| refusal.message.clone()),
        }
    }
}

impl EventLine {
    pub(super) fn of(event: &Event, texts: bool) -> Self {
        Self {
            time: now(),
            id: event.event_id.clone(),
            rule: event.rule.clone(),
            group: event.group.clone(),
            start: rfc3339(event.window.start),
            end: rfc3339(event.window.end),
            messages: event.window.messages,
            prompt_tokens: event.prompt_tokens,
            completion_tokens: event.completion_tokens,
            cached_tokens: event.cached_tokens,
            outcome: OutcomeFields {
                finish_reason: event.finish_reason.map(phi_edge_service::FinishReason::as_str),
                error: event.error.as_ref().map(|error| error.code.as_str()),
                reply_id: None,
            },
            message: event
                .error
                .as_ref()
                .filter(|_| texts)
                .map(|error| error.message.clone()),
            text: event.text.clone().filter(|_| texts),
        }
    }
}

impl Line {
    /// Renders the line with its line feed. `texts` decodes token ids.
    pub(super) fn render(
        self,
        node: &str,
        model: &str,
        digest: Option<&str>,
        texts: &dyn Fn(&[Symbol]) -> String,
    ) -> String {
        let (kind, mut value) = match self {
            Self::Job(mut line, wanted) => {
                let message = line.message.take();
                let mut value = value(&line);
                if let Some((prompt, answer)) = wanted {
                    value["prompt"] = texts(&prompt).into();
                    value["answer"] = answer.into();
                    value["message"] = message.into();
                }
                ("job", value)
            }
            Self::Refused(line) => ("refused", value(&line)),
            Self::Event(line) => ("event", value(&line)),
        };
        value["kind"] = kind.into();
        value["node"] = node.into();
        value["model"] = model.into();
        value["model_digest"] = digest.into();
        format!("{value}\n")
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
fn is_zero(count: &usize) -> bool {
    *count == 0
}

fn traceparent(address: &ReplyAddress) -> Option<String> {
    address
        .traceparent
        .as_ref()
        .map(|trace| trace.as_str().to_owned())
}

fn value(line: &impl Serialize) -> Value {
    // Of strings, numbers and names: nothing that can't be written.
    serde_json::to_value(line).unwrap_or_default()
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn now() -> String {
    format!("{:.3}", jiff::Timestamp::now())
}

fn rfc3339(time: Time) -> String {
    jiff::Timestamp::from_millisecond(time.0).map_or_else(|_| String::new(), |time| format!("{time:.3}"))
}
