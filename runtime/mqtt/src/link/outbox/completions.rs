//! Completions: the broker's answers to what was sent.

use phi_edge_service::{DeadLetter, ErrorCode, JobKey, ReplyAddress, ReplyBody, TraceParent};
use rumqttc::{PubAckReason, PublishNoticeError, PublishResult, SubscribeReasonCode};
use tokio::time::Instant;

use super::{Completion, Outbox, RESUBSCRIBE_INTERVAL};
use crate::link::counters::count;
use crate::link::outgoing::{DeadLetterContent, Outgoing, OutgoingKind};
use crate::topics::brief;

impl Outbox {
    pub(super) fn complete(&mut self, completion: Completion) {
        match completion {
            Completion::Published(number, result) => {
                self.publishes_in_flight = self.publishes_in_flight.saturating_sub(1);
                self.published(number, result);
                if self.publishes_in_flight == 0 {
                    self.conclude_connection();
                }
            }
            Completion::Subscribed(Ok(suback)) => self.subscribed(&suback),
            Completion::PoolJoined(Ok(suback)) => {
                let refused = |code: &&SubscribeReasonCode| !matches!(code, SubscribeReasonCode::Success(_));
                if let Some(code) = suback.return_codes.iter().find(refused)
                    && self.in_pool
                {
                    let reason = format!("the broker refuses the shared subscription of mqtt.pool: {code:?}");
                    tracing::error!(reason, "not subscribed");
                    self.pool_refused = Some((reason, Instant::now() + RESUBSCRIBE_INTERVAL));
                    self.status_due = true;
                }
            }
            Completion::PoolJoined(Err(error)) => {
                tracing::debug!(%error, "joining the pool was not answered")
            }
            Completion::PoolLeft(Ok(_)) => {
                // The pool may have been joined again meanwhile.
                if !self.in_pool {
                    self.counters.in_pool.send_replace(false);
                }
            }
            Completion::PoolLeft(Err(error)) => tracing::debug!(%error, "leaving the pool was not answered"),
            Completion::RuleSubscribed(filter, Ok(suback)) => self.rule_subscribed(&filter, &suback),
            Completion::RuleUnsubscribed(filter, Ok(_)) => {
                self.routing.left(&filter, self.service.borrow().as_ref())
            }
            Completion::StatusSubscribed(fence, Ok(suback)) => self.status_subscribed(fence, &suback),
            Completion::FencePublished(fence, sent) => self.fence_published(fence, sent),
            Completion::RuleUnsubscribed(_, Err(error)) => {
                tracing::debug!(%error, "leaving a filter was not answered")
            }
            // The connection is gone: the next one subscribes again.
            Completion::RuleSubscribed(_, Err(error))
            | Completion::Subscribed(Err(error))
            | Completion::StatusSubscribed(_, Err(error)) => {
                tracing::debug!(%error, "the subscription was not answered")
            }
        }
    }

    fn published(&mut self, number: u64, result: Result<PublishResult, PublishNoticeError>) {
        let refused = match result {
            Ok(_) => None,
            Err(PublishNoticeError::V5PubAck(
                PubAckReason::Success | PubAckReason::NoMatchingSubscribers,
            )) => None,
            Err(PublishNoticeError::V5PubAck(reason)) => Some(format!("the broker refuses it: {reason:?}")),
            // The connection is gone; the quarantine still has the message.
            Err(PublishNoticeError::Recv | PublishNoticeError::SessionReset) => return,
            Err(error) => Some(error.to_string()),
        };
        let now = self.now();
        let Some(outgoing) = self.quarantine.answered(number, now) else {
            if let Some(reason) = refused {
                tracing::error!(reason, "the status can't be published");
            }
            return;
        };
        match refused {
            None => self.acknowledged(&outgoing),
            Some(reason) => self.rejected(&outgoing, &reason),
        }
    }

    /// Handles a message that the broker has acknowledged.
    pub(super) fn acknowledged(&mut self, outgoing: &Outgoing) {
        if let OutgoingKind::Outcome {
            id,
            reply_id,
            client,
            trace,
        } = &outgoing.kind
        {
            count(&self.counters.published);
            tracing::debug!(
                job.id = id,
                job.client = client,
                trace_id = trace.as_ref().map(TraceParent::trace_id),
                reply_id,
                "reply acknowledged"
            );
        }
        if let OutgoingKind::Event { id } = &outgoing.kind {
            count(&self.counters.events);
            tracing::debug!(event.id = id, "event acknowledged");
        }
        if outgoing.kind == OutgoingKind::Stats {
            self.stats_held = None;
        }
        self.settled(outgoing.delivery);
    }

    /// Tells the service that it need not keep the message any longer.
    pub(super) fn settled(&self, delivery: Option<u64>) {
        if let (Some(delivery), Some(service)) = (delivery, self.service.borrow().as_ref()) {
            service.delivered(delivery);
        }
    }

    /// Handles an event whose expiry passed before it was published.
    pub(super) fn expired(&self, outgoing: &Outgoing) {
        tracing::debug!(
            topic = outgoing.topic,
            "an event has expired before it was published"
        );
        if let Some(service) = self.service.borrow().as_ref() {
            service.expired(outgoing.delivery);
        }
    }

    /// Replaces an answer that is too large for the broker by an error.
    pub(super) fn too_large(&mut self, outgoing: &Outgoing, size: usize, limit: usize) {
        if let OutgoingKind::Outcome { id, reply_id, .. } = &outgoing.kind {
            let payload = phi_edge_wire::encode_too_large(id, reply_id, size, limit);
            let mut error = Outgoing {
                payload: payload.into(),
                ..outgoing.clone()
            };
            error.properties.user_properties = vec![("kind".into(), "error".into())];
            if error.packet_size() <= limit {
                tracing::error!(
                    topic = brief(&outgoing.topic),
                    size,
                    limit,
                    "too large for the broker"
                );
                self.quarantine.push(error);
                return;
            }
        }
        let reason = format!("it needs a packet of {size} bytes, the broker takes {limit}");
        // The dead letter must be smaller than the original: quoting seldom makes a payload three times as long.
        self.rejected_in_part(outgoing, &reason, limit / 3);
    }

    /// Handles a message that the broker refuses: it is not tried again and goes to the dead-letter topic or the log.
    pub(super) fn rejected(&mut self, outgoing: &Outgoing, reason: &str) {
        self.rejected_in_part(outgoing, reason, DeadLetter::MAX_ORIGINAL_BYTES);
    }

    /// As [`Outbox::rejected`]; the dead letter quotes at most `quoted_bytes` of the message.
    fn rejected_in_part(&mut self, outgoing: &Outgoing, reason: &str, quoted_bytes: usize) {
        tracing::error!(
            topic = brief(&outgoing.topic),
            reason,
            "a message can't be published"
        );
        let letter = match &outgoing.kind {
            OutgoingKind::Outcome { id, .. } | OutgoingKind::Event { id } => Some(DeadLetter {
                reason: ErrorCode::Internal.as_str().to_owned(),
                message: reason.to_owned(),
                topic: outgoing.topic.clone(),
                id: Some(id.clone()),
                payload: DeadLetter::beginning(
                    outgoing.payload.get(..quoted_bytes).unwrap_or(&outgoing.payload),
                ),
                bytes: outgoing.payload.len(),
            }),
            _ => None,
        };
        self.post_letter(outgoing, letter);
    }

    /// Handles a message that can't be published at all. Its dead letter quotes nothing, since the text may be the cause.
    pub(super) fn undeliverable(&mut self, outgoing: &Outgoing, reason: &str) {
        count(&self.counters.undeliverable);
        let facts = outgoing.facts();
        tracing::error!(
            kind = outgoing.kind.label(),
            id = outgoing.kind.id(),
            topic = brief(&outgoing.topic),
            bytes = outgoing.payload.len(),
            reason,
            "a message can't be delivered"
        );
        // A dead letter that can't be delivered is followed by one with less content.
        let (id, message) = match &outgoing.kind {
            OutgoingKind::Outcome { id, .. } | OutgoingKind::Event { id } => {
                (Some(id.clone()), Some(format!("{facts}: {reason}")))
            }
            OutgoingKind::DeadLetter(DeadLetterContent::Quoting(id)) => {
                (id.clone(), Some(format!("{facts}: {reason}")))
            }
            OutgoingKind::DeadLetter(DeadLetterContent::Naming) => {
                let message =
                    format!("a dead letter can't be delivered, nor what it is about be named: {reason}");
                (None, Some(message))
            }
            _ => (None, None),
        };
        let letter = message.map(|message| DeadLetter {
            reason: DeadLetter::UNDELIVERABLE.to_owned(),
            message,
            topic: String::new(),
            id,
            payload: Vec::new(),
            bytes: outgoing.payload.len(),
        });
        self.post_letter(outgoing, letter);
    }

    /// Posts the dead letter of a message, if there is one. Then the service need not keep the message any longer.
    fn post_letter(&self, outgoing: &Outgoing, letter: Option<DeadLetter>) {
        if let (Some(letter), Some(service)) = (letter, self.service.borrow().as_ref()) {
            let key = JobKey {
                client: None,
                id: letter.id.clone().unwrap_or_default(),
            };
            let stored = service.post(key, ReplyAddress::nowhere(), ReplyBody::DeadLetter(letter), None);
            // The letter is stored before the message is forgotten.
            let (service, delivery) = (service.clone(), outgoing.delivery);
            tokio::spawn(async move {
                stored.await;
                if let Some(delivery) = delivery {
                    service.delivered(delivery);
                }
            });
        } else {
            self.settled(outgoing.delivery);
        }
    }
}
