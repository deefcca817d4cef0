//! Replies: chunks, the final one, errors.

use phi_edge_service::{Answer, Refusal, Reply, ReplyBody};
use serde::Serialize;

/// The value of a reply's user property `kind`.
pub fn kind(reply: &ReplyBody) -> &'static str {
    match reply {
        ReplyBody::Chunk { .. } => "chunk",
        ReplyBody::Final(_) => "final",
        ReplyBody::Error(_) => "error",
        ReplyBody::DeadLetter(_) => "dead_letter",
        ReplyBody::Event(_) => "event",
    }
}

/// The payload of a reply. `node` names who answered.
pub fn encode_reply(reply: &Reply, node: &str) -> Vec<u8> {
    let id = reply.key.id.as_str();
    match &reply.body {
        ReplyBody::Chunk { attempt, seq, delta } => bytes(&Chunk {
            id,
            attempt: *attempt,
            seq: *seq,
            delta,
        }),
        ReplyBody::Final(answer) => bytes(&Final::new(id, answer, node)),
        ReplyBody::Error(refusal) => bytes(&ErrorReply {
            id,
            reply_id: &refusal.reply_id,
            error: ErrorBody::new(refusal),
        }),
        ReplyBody::DeadLetter(letter) => crate::dead_letter(letter, node),
        ReplyBody::Event(published) => crate::event(&published.event, node),
    }
}

/// What is sent in place of an answer that the broker would not carry.
pub fn too_large_reply(id: &str, reply_id: &str, size: usize, limit: usize) -> Vec<u8> {
    bytes(&ErrorReply {
        id,
        reply_id,
        error: ErrorBody {
            code: "too_large",
            message: &format!(
                "the answer needs a packet of {size} bytes, the broker takes {limit}: ask for fewer max_tokens"
            ),
            retry_after_ms: None,
        },
    })
}

#[derive(Serialize)]
struct Chunk<'a> {
    id: &'a str,
    attempt: u32,
    seq: u32,
    delta: &'a str,
}

#[derive(Serialize)]
struct Final<'a> {
    id: &'a str,
    reply_id: &'a str,
    text: &'a str,
    finish_reason: &'static str,
    usage: Usage,
    timing: Timing,
    model: &'a str,
    node: &'a str,
}

#[derive(Serialize)]
#[expect(clippy::struct_field_names, reason = "the contract's names")]
struct Usage {
    prompt_tokens: usize,
    completion_tokens: usize,
    cached_tokens: usize,
}

#[derive(Serialize)]
#[expect(clippy::struct_field_names, reason = "the contract's names")]
struct Timing {
    queued_ms: u64,
    prefill_ms: u64,
    decode_ms: u64,
}

#[derive(Serialize)]
struct ErrorReply<'a> {
    id: &'a str,
    reply_id: &'a str,
    error: ErrorBody<'a>,
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    code: &'static str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
}

impl<'a> Final<'a> {
    fn new(id: &'a str, answer: &'a Answer, node: &'a str) -> Self {
        Self {
            id,
            reply_id: &answer.reply_id,
            text: &answer.text,
            finish_reason: answer.finish_reason.as_str(),
            usage: Usage {
                prompt_tokens: answer.prompt_tokens,
                completion_tokens: answer.completion_tokens,
                cached_tokens: answer.cached_tokens,
            },
            timing: Timing {
                queued_ms: millis(answer.queued),
                prefill_ms: millis(answer.prefill),
                decode_ms: millis(answer.decode),
            },
            model: &answer.model,
            node,
        }
    }
}

impl<'a> ErrorBody<'a> {
    fn new(refusal: &'a Refusal) -> Self {
        Self {
            code: refusal.code.as_str(),
            message: &refusal.message,
            retry_after_ms: refusal.retry_after.map(millis),
        }
    }
}

fn millis(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn bytes(message: &impl Serialize) -> Vec<u8> {
    crate::to_bytes(message)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use phi_edge_service::{ErrorCode, FinishReason, JobKey, ReplyAddress};
    use serde_json::{Value, json};

    use super::*;

    fn encoded(body: ReplyBody) -> Value {
        let reply = Reply {
            key: JobKey {
                client: None,
                id: "a".into(),
            },
            address: ReplyAddress {
                topic: "t".into(),
                correlation: None,
                traceparent: None,
            },
            body,
            delivery: None,
        };
        serde_json::from_slice(&encode_reply(&reply, "box")).expect("JSON")
    }

    #[test]
    fn replies_have_the_contracts_shape() {
        assert_eq!(
            encoded(ReplyBody::Chunk {
                attempt: 1,
                seq: 0,
                delta: "hé".into()
            }),
            json!({"id":"a","attempt":1,"seq":0,"delta":"hé"})
        );
        let answer = Answer {
            reply_id: "b.1".into(),
            text: "hi".into(),
            finish_reason: FinishReason::Length,
            prompt_tokens: 3,
            completion_tokens: 2,
            cached_tokens: 1,
            queued: Duration::from_millis(4),
            prefill: Duration::from_millis(5),
            decode: Duration::from_millis(6),
            model: "phi".into(),
        };
        assert_eq!(
            encoded(ReplyBody::Final(answer)),
            json!({"id":"a","reply_id":"b.1","text":"hi","finish_reason":"length",
                "usage":{"prompt_tokens":3,"completion_tokens":2,"cached_tokens":1},
                "timing":{"queued_ms":4,"prefill_ms":5,"decode_ms":6},"model":"phi","node":"box"})
        );
        let refusal = Refusal {
            reply_id: "b.2".into(),
            code: ErrorCode::Busy,
            message: "full".into(),
            retry_after: Some(Duration::from_secs(2)),
        };
        assert_eq!(
            encoded(ReplyBody::Error(refusal)),
            json!({"id":"a","reply_id":"b.2","error":{"code":"busy","message":"full","retry_after_ms":2000}})
        );
    }
}
