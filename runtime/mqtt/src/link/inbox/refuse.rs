//! The refusal of requests: its log line, its reply and its dead letter.

use phi_edge_service::{DeadLetter, ErrorCode, ReplyAddress, ReplyBody, Service, TraceParent};
use phi_edge_wire::{RequestError, original_without_images};
use tokio::task::JoinHandle;

use super::Inbox;
use super::incoming::IncomingRequest;
use crate::link::counters::count;
use crate::link::properties::{payload, traceparent};

/// The reason why a request is refused.
pub(super) struct RequestRefusal {
    id: Option<String>,
    code: ErrorCode,
    /// One line for the sender.
    message: String,
    /// Stands for the message in the log where the message quotes what the sender wrote.
    logged: Option<&'static str>,
}

impl Inbox {
    /// Tells the sender of a refusal if there is a way to, else the dead-letter topic. The task ends when that is stored.
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
        let is_usable = self.usable_response_topic(request).is_some();
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
        // A sender that named a topic which it may not use waits there in vain: the operator is told.
        let is_misdirected = request.response_topic.is_some() && !is_usable;
        let is_unanswerable = id.is_none() && !is_usable;
        let letter = (is_misdirected || is_unanswerable).then(|| {
            let letter = DeadLetter {
                reason: code.as_str().to_owned(),
                message: message.clone(),
                topic: request.topic.to_owned(),
                id: id.clone(),
                payload: original_without_images(payload(request.publish)),
                bytes: request.publish.payload.len(),
            };
            service.post(
                request.key(id.clone().unwrap_or_default()),
                ReplyAddress::nowhere(),
                ReplyBody::DeadLetter(letter),
                // The receipt is stored with the last message about the request.
                request.receipt.filter(|_| is_unanswerable),
            )
        });
        if is_unanswerable {
            count(&self.counters.unanswerable);
        }
        let refusal = (!is_unanswerable).then(|| {
            let id = id.unwrap_or_else(|| self.ids.next());
            let address = self.address(request, &id);
            let refusal = ReplyBody::Error(service.refusal(code, message));
            service.post(request.key(id), address, refusal, request.receipt)
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

/// Returns the beginning of a topic or of one of its levels, for the log.
pub(super) fn cut_for_log(topic: &str) -> &str {
    const MAX_LOGGED_CHARS: usize = 512;
    let end = topic.char_indices().map(|(at, _)| at).nth(MAX_LOGGED_CHARS);
    end.and_then(|end| topic.get(..end)).unwrap_or(topic)
}
