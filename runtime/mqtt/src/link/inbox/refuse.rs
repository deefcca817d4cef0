//! Requests that are not taken: who is told, and what the log says.

use phi_edge_service::{DeadLetter, ErrorCode, JobKey, ReplyAddress, ReplyBody, Service, TraceParent};
use phi_edge_wire::RequestError;
use tokio::task::JoinHandle;

use super::{Inbox, IncomingRequest};
use crate::link::counters::count;
use crate::link::properties::traceparent;

/// Why a request is not taken.
pub(super) struct RequestRefusal {
    id: Option<String>,
    code: ErrorCode,
    /// For the sender.
    message: String,
    /// For the log in its place, where the message quotes what the sender wrote.
    logged: Option<&'static str>,
}

impl Inbox {
    /// Tells the sender if there is a way to, and the dead-letter topic if there is none.
    pub(super) fn refuse(
        &mut self,
        request: &IncomingRequest<'_>,
        service: &Service,
        refused: RequestRefusal,
    ) -> JoinHandle<()> {
        let RequestRefusal {
            id,
            code,
            message,
            logged,
        } = refused;
        count(&self.counters.refused);
        let usable = request.response_topic.is_some_and(|topic| {
            self.topics
                .check_response(topic, request.scope, request.client, &self.clients)
                .is_ok()
        });
        tracing::info!(
            topic = cut_for_log(request.topic),
            job.id = id,
            job.client = request.client.map(cut_for_log),
            code = code.as_str(),
            error = logged.unwrap_or(&message),
            trace_id = traceparent(request.publish).as_ref().map(TraceParent::trace_id),
            "request refused"
        );
        tracing::trace!(error = message, "and its sender is told");
        let key = |id: &str| JobKey {
            client: request.client.map(str::to_owned),
            id: id.to_owned(),
        };
        // A sender that named a topic which it may not use waits there: somebody should know.
        let misdirected = request.response_topic.is_some() && !usable;
        let unanswerable = id.is_none() && !usable;
        let letter = (misdirected || unanswerable).then(|| {
            let letter = DeadLetter {
                reason: code.as_str().to_owned(),
                message: message.clone(),
                topic: request.topic.to_owned(),
                id: id.clone(),
                payload: DeadLetter::beginning(&request.publish.payload),
                bytes: request.publish.payload.len(),
            };
            let key = key(id.as_deref().unwrap_or_default());
            service.post(
                key,
                ReplyAddress::nowhere(),
                ReplyBody::DeadLetter(letter),
                // Remembered with what is stored last: then nothing is missing.
                request.receipt.filter(|_| unanswerable),
            )
        });
        if unanswerable {
            count(&self.counters.unanswerable);
        }
        let refusal = (!unanswerable).then(|| {
            let id = id.unwrap_or_else(|| self.ids.next());
            let refusal = ReplyBody::Error(service.refusal(code, message));
            service.post(key(&id), self.address(request, &id), refusal, request.receipt)
        });
        tokio::spawn(async move {
            if let Some(letter) = letter {
                letter.await;
            }
            if let Some(refusal) = refusal {
                refusal.await;
            }
        })
    }
}

impl RequestRefusal {
    pub(super) fn for_form(id: Option<String>, message: String) -> Self {
        Self {
            id,
            code: ErrorCode::BadRequest,
            message,
            logged: None,
        }
    }

    pub(super) fn for_size(message: String) -> Self {
        Self {
            code: ErrorCode::TooLarge,
            ..Self::for_form(None, message)
        }
    }
}

impl From<RequestError> for RequestRefusal {
    fn from(error: RequestError) -> Self {
        Self {
            logged: Some(error.field()),
            id: error.id,
            code: error.code,
            message: error.message,
        }
    }
}

/// As much of a topic, or of a level of it, as the log needs.
pub(super) fn cut_for_log(topic: &str) -> &str {
    const MAX_LOGGED_CHARS: usize = 512;
    let end = topic.char_indices().map(|(at, _)| at).nth(MAX_LOGGED_CHARS);
    end.and_then(|end| topic.get(..end)).unwrap_or(topic)
}
