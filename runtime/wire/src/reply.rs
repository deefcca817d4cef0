//! The JSON of replies: chunks, final replies and errors.

use phi_edge_api::{Answer, PromptProgress, Refusal, Reply, ReplyBody};
use serde::Serialize;

use crate::dead_letter::encode_dead_letter;
use crate::event::encode_event;
use crate::json::to_json;
use crate::outcome::{ErrorBody, Usage};

/// Returns the kind of a reply, which transports tell beside the payload.
pub fn reply_kind(reply: &ReplyBody) -> &'static str {
    match reply {
        ReplyBody::Chunk { .. } => "chunk",
        ReplyBody::Final(_) => "final",
        ReplyBody::Error(_) => "error",
        ReplyBody::DeadLetter(_) => "dead_letter",
        ReplyBody::Event(_) => "event",
    }
}

/// Returns the payload of a reply of the node `node`.
pub fn encode_reply(reply: &Reply, node: &str) -> Vec<u8> {
    let id = reply.key.id.as_str();
    match &reply.body {
        ReplyBody::Chunk {
            attempt,
            seq,
            delta,
            progress,
        } => to_json(&ChunkBody {
            id,
            attempt: *attempt,
            seq: *seq,
            delta,
            progress: progress.map(|PromptProgress { done, total }| ProgressBody { done, total }),
        }),
        ReplyBody::Final(answer) => to_json(&FinalBody::new(id, answer, node)),
        ReplyBody::Error(refusal) => to_json(&ErrorReplyBody {
            id,
            reply_id: &refusal.reply_id,
            error: error_body(refusal),
        }),
        ReplyBody::DeadLetter(letter) => encode_dead_letter(letter, node),
        ReplyBody::Event(published) => encode_event(&published.event, node),
    }
}

/// Returns the payload of the error that replaces an answer which is too large for the broker.
pub fn encode_too_large(id: &str, reply_id: &str, size: usize, limit: usize) -> Vec<u8> {
    to_json(&ErrorReplyBody {
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
struct ChunkBody<'a> {
    id: &'a str,
    attempt: u32,
    seq: u32,
    delta: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    progress: Option<ProgressBody>,
}

#[derive(Serialize)]
struct ProgressBody {
    done: usize,
    total: usize,
}

#[derive(Serialize)]
struct FinalBody<'a> {
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
struct Timing {
    queued_ms: u64,
    prefill_ms: u64,
    decode_ms: u64,
}

#[derive(Serialize)]
struct ErrorReplyBody<'a> {
    id: &'a str,
    reply_id: &'a str,
    error: ErrorBody<'a>,
}

impl<'a> FinalBody<'a> {
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
                left_out_tokens: (answer.left_out_tokens > 0).then_some(answer.left_out_tokens),
                image_tokens: (answer.image_tokens > 0).then_some(answer.image_tokens),
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

fn error_body(refusal: &Refusal) -> ErrorBody<'_> {
    ErrorBody {
        code: refusal.code.as_str(),
        message: &refusal.message,
        retry_after_ms: refusal.retry_after.map(millis),
    }
}

fn millis(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use phi_edge_api::{ErrorCode, FinishReason, JobKey, ReplyAddress};
    use serde_json::{Value, json};

    use super::*;

    fn encoded(body: ReplyBody) -> Value {
        let reply = Reply {
            key: JobKey {
                client: None,
                id: "a".into(),
            },
            address: ReplyAddress::nowhere(),
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
                delta: "hé".into(),
                progress: None,
            }),
            json!({"id":"a","attempt":1,"seq":0,"delta":"hé"})
        );
        assert_eq!(
            encoded(ReplyBody::Chunk {
                attempt: 1,
                seq: 2,
                delta: String::new(),
                progress: Some(PromptProgress {
                    done: 512,
                    total: 2000
                }),
            }),
            json!({"id":"a","attempt":1,"seq":2,"delta":"","progress":{"done":512,"total":2000}})
        );
        let answer = Answer {
            reply_id: "b.1".into(),
            text: "hi".into(),
            finish_reason: FinishReason::Length,
            prompt_tokens: 3,
            completion_tokens: 2,
            cached_tokens: 1,
            left_out_tokens: 0,
            image_tokens: 0,
            queued: Duration::from_millis(4),
            prefill: Duration::from_millis(5),
            decode: Duration::from_millis(6),
            model: "phi".into(),
        };
        assert_eq!(
            encoded(ReplyBody::Final(Answer {
                left_out_tokens: 7,
                image_tokens: 2,
                ..answer.clone()
            }))["usage"],
            json!({"prompt_tokens":3,"completion_tokens":2,"cached_tokens":1,"left_out_tokens":7,"image_tokens":2})
        );
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
