//! A job as OpenTelemetry spans: one for the whole job, with a child each for the queue, the prefill and the
//! decoding.
//!
//! Names are those of the semantic conventions for generative AI; the form is OTLP's JSON
//! (<https://opentelemetry.io/docs/specs/otlp/>), in which numbers of 64 bits are texts.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use phi_edge_service::{Answer, JobEnd, Outcome, TraceParent};
use serde_json::{Value, json};

/// The kinds of a span in OTLP.
const SPAN_KIND_INTERNAL: u32 = 1;
const SPAN_KIND_SERVER: u32 = 2;
/// The status code of a span that failed.
const STATUS_CODE_ERROR: u32 = 2;

/// Whether the trace is sampled, as its flags say. A request without a trace begins one, which is sampled.
pub(super) fn is_sampled(trace: Option<&TraceParent>) -> bool {
    // The lowest bit of the flags, the last of the four parts.
    let flags = |trace: &TraceParent| u8::from_str_radix(trace.as_str().get(53..55)?, 16).ok();
    trace.is_none_or(|trace| flags(trace).is_some_and(|flags| flags & 1 == 1))
}

/// The spans of a job that has just ended.
pub(super) fn spans(end: &JobEnd<'_>, model: &str) -> Vec<Value> {
    let trace = end.job.reply.traceparent.as_ref();
    let trace_id = trace.map_or_else(
        || format!("{:016x}{:016x}", random(), random()),
        |trace| trace.trace_id().to_owned(),
    );
    let parent = trace
        .and_then(|trace| trace.as_str().get(36..52))
        .unwrap_or_default();
    let id = format!("{:016x}", random());
    let ended = SystemTime::now();
    let begun = ended.checked_sub(end.took).unwrap_or(UNIX_EPOCH);
    let mut attributes = request_attributes(end, model);
    let mut status = json!({});
    let mut children = Vec::new();
    match end.outcome {
        Outcome::Answered { answer, .. } => {
            attributes.extend(answer_attributes(answer));
            let mut from = begun;
            for (name, took) in [
                ("queue", answer.queued),
                ("prefill", answer.prefill),
                ("decode", answer.decode),
            ] {
                let to = (from + took).min(ended);
                children.push(json!({
                    "traceId": trace_id,
                    "spanId": format!("{:016x}", random()),
                    "parentSpanId": id,
                    "name": name,
                    "kind": SPAN_KIND_INTERNAL,
                    "startTimeUnixNano": nanos(from),
                    "endTimeUnixNano": nanos(to),
                }));
                from = to;
            }
        }
        Outcome::Failed(refusal) => {
            attributes.push(text("error.type", refusal.code.as_str()));
            // The reason may quote what was asked: it stays in the log.
            status = json!({"code": STATUS_CODE_ERROR, "message": refusal.code.as_str()});
        }
    }
    let mut root = json!({
        "traceId": trace_id,
        "spanId": id,
        "name": format!("chat {model}"),
        "kind": SPAN_KIND_SERVER,
        "startTimeUnixNano": nanos(begun),
        "endTimeUnixNano": nanos(ended),
        "attributes": attributes,
        "status": status,
    });
    if !parent.is_empty() {
        root["parentSpanId"] = parent.into();
    }
    children.insert(0, root);
    children
}

fn request_attributes(end: &JobEnd<'_>, model: &str) -> Vec<Value> {
    let job = end.job;
    let mut attributes = vec![
        text("gen_ai.operation.name", "chat"),
        text("gen_ai.provider.name", "phi-edge"),
        text("gen_ai.request.model", model),
        whole("gen_ai.request.max_tokens", job.max_tokens),
        whole("gen_ai.usage.input_tokens", end.prompt.len()),
        text("phi_edge.job.id", &job.key.id),
        text(
            "phi_edge.job.source",
            if end.internal { "rule" } else { "client" },
        ),
        whole("phi_edge.job.attempts", end.attempts as usize),
    ];
    if let Some(client) = job.key.client.as_deref().filter(|_| !end.internal) {
        attributes.push(text("phi_edge.job.client", client));
    }
    attributes
}

fn answer_attributes(answer: &Answer) -> [Value; 3] {
    [
        whole("gen_ai.usage.output_tokens", answer.completion_tokens),
        whole("phi_edge.usage.cached_tokens", answer.cached_tokens),
        json!({
            "key": "gen_ai.response.finish_reasons",
            "value": {"arrayValue": {"values": [{"stringValue": answer.finish_reason.as_str()}]}},
        }),
    ]
}

/// The body of one export.
pub(super) fn request(spans: &[Value], node: &str) -> Value {
    json!({"resourceSpans": [{
        "resource": {"attributes": [
            text("service.name", "phi-edge"),
            text("service.version", env!("CARGO_PKG_VERSION")),
            text("service.instance.id", node),
        ]},
        "scopeSpans": [{
            "scope": {"name": "phi-edge", "version": env!("CARGO_PKG_VERSION")},
            "spans": spans,
        }],
    }]})
}

fn text(key: &str, value: &str) -> Value {
    json!({"key": key, "value": {"stringValue": value}})
}

fn whole(key: &str, value: usize) -> Value {
    json!({"key": key, "value": {"intValue": value.to_string()}})
}

fn nanos(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    since.as_nanos().to_string()
}

/// A random id; not zero, which no id may be.
fn random() -> u64 {
    rand::random::<u64>() | 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_say_whether_a_trace_is_kept() {
        let with = |flags: &str| {
            TraceParent::parse(&format!(
                "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-{flags}"
            ))
        };
        assert!(is_sampled(None));
        assert!(is_sampled(with("01").as_ref()) && is_sampled(with("03").as_ref()));
        assert!(!is_sampled(with("00").as_ref()) && !is_sampled(with("02").as_ref()));
    }
}
