//! The way of a request from its arrival to the service.

use std::sync::Arc;
use std::time::Duration;

use phi_edge_service::{ReplyAddress, ReplyBody, ReplyTarget, Service};
use phi_edge_wire::{Envelope, ParseLimits, Request, parse_request};
use rumqttc::Publish;
use sha2::{Digest, Sha256};
use tokio::task::JoinHandle;

use super::Inbox;
use super::incoming::IncomingRequest;
use super::refuse::RequestRefusal;
use crate::link::counters::count;
use crate::link::properties::{payload, question, traceparent};

impl Inbox {
    /// Reads a request and hands it to the service or refuses it. The task ends when the message may be acknowledged.
    pub(super) fn request(&mut self, request: &IncomingRequest<'_>, service: &Service) -> JoinHandle<()> {
        if self.is_ignored(request, service) {
            return completed();
        }
        let parsed = match self.read(request) {
            Ok(Some(parsed)) => parsed,
            Ok(None) => return completed(),
            Err(refusal) => return self.refuse(request, service, refusal),
        };
        let id = match parsed.id.clone() {
            Some(id) => id,
            None => self.ids.of(request, service),
        };
        let job = parsed.into_job(self.envelope(request, id));
        let (key, address, receipt) = (job.key.clone(), job.reply.clone(), job.receipt);
        let taken = service.receive(job, request.publish.dup, request.arrived);
        let (service, counters) = (service.clone(), Arc::clone(&self.counters));
        tokio::spawn(async move {
            if let Err(refusal) = taken.await {
                count(&counters.refused);
                service
                    .post(key, address, ReplyBody::Error(refusal), receipt)
                    .await;
            }
        })
    }

    /// Returns the response topic of the request if replies may go there.
    pub(super) fn usable_response_topic<'a>(&self, request: &IncomingRequest<'a>) -> Option<&'a str> {
        request.response_topic.filter(|topic| {
            self.topics
                .check_response(topic, request.scope, request.client, &self.clients)
                .is_ok()
        })
    }

    /// Returns the address of the replies: the response topic of the request if it may be used, else the node's.
    pub(super) fn address(&self, request: &IncomingRequest<'_>, id: &str) -> ReplyAddress {
        let topic = self.usable_response_topic(request).map_or_else(
            || self.topics.response_in(request.scope, request.client, id),
            str::to_owned,
        );
        ReplyAddress {
            target: ReplyTarget::Topic(topic),
            correlation: request.correlation.clone(),
            traceparent: traceparent(request.publish),
        }
    }

    fn is_ignored(&self, request: &IncomingRequest<'_>, service: &Service) -> bool {
        let publish = request.publish;
        if publish.payload.is_empty() {
            // Retained messages are cleared so, too.
            count(&self.counters.ignored);
            tracing::debug!("an empty request is ignored");
            return true;
        }
        let is_known = |receipt| service.is_redelivery(&receipt);
        if publish.dup && request.receipt.is_some_and(is_known) {
            tracing::debug!("a request that was dealt with came again");
            return true;
        }
        false
    }

    /// Reads a request as far as it can be judged without the service.
    fn read(&self, request: &IncomingRequest<'_>) -> Result<Option<Request>, RequestRefusal> {
        let publish = request.publish;
        if let Some(message) = request.misnamed.clone() {
            return Err(RequestRefusal::for_form(None, message));
        }
        let limits = *self.limits.borrow();
        if publish.payload.len() > limits.max_payload {
            return Err(RequestRefusal::for_size(format!(
                "the request has {} bytes, limits.max_payload is {}",
                publish.payload.len(),
                limits.max_payload
            )));
        }
        let bounds = ParseLimits {
            max_tokens: limits.max_tokens,
            images: limits.images,
        };
        let Some(parsed) = parse_request(payload(publish), bounds)? else {
            return Ok(None);
        };
        if publish.retain {
            let message = "retained requests are refused: they would be asked again at every start";
            return Err(RequestRefusal::for_form(parsed.id, message.into()));
        }
        if let Some(topic) = request.response_topic
            && let Err(error) =
                self.topics
                    .check_response(topic, request.scope, request.client, &self.clients)
        {
            return Err(RequestRefusal::for_form(parsed.id, error.to_string()));
        }
        Ok(Some(parsed))
    }

    fn envelope(&mut self, request: &IncomingRequest<'_>, id: String) -> Envelope {
        let publish = request.publish;
        let properties = publish.properties.as_ref();
        let expiry = properties.and_then(|p| p.message_expiry_interval);
        Envelope {
            reply: self.address(request, &id),
            key: request.key(id),
            body_digest: body_digest(publish),
            payload_bytes: publish.payload.len(),
            expiry: expiry.map(|seconds| Duration::from_secs(u64::from(seconds))),
            seed: rand::random(),
            receipt: request.receipt,
        }
    }
}

/// Returns the digest of a request's body. To an image belongs the question beside it.
fn body_digest(publish: &Publish) -> [u8; 32] {
    let mut digest = Sha256::new();
    digest.update(&publish.payload);
    if let Some(question) = question(publish) {
        digest.update([0]);
        digest.update(question);
    }
    digest.finalize().into()
}

/// A task with nothing left to do.
fn completed() -> JoinHandle<()> {
    tokio::spawn(async {})
}
