//! What has become of what was sent.

use phi_edge_service::{DeadLetter, ErrorCode, JobKey, ReplyAddress, ReplyBody, TraceParent};
use rumqttc::{PubAckReason, PublishNoticeError, PublishResult, SubscribeReasonCode};
use tokio::time::Instant;

use super::{Landed, Outbox, SUBSCRIBE_AGAIN};
use crate::link::counters::count;
use crate::link::outgoing::{Letter, Outgoing, What};
use crate::topics::brief;

impl Outbox {
    pub(super) fn landed(&mut self, landed: Landed) {
        match landed {
            Landed::Published(number, result) => {
                self.under_way = self.under_way.saturating_sub(1);
                self.published(number, result);
                if self.under_way == 0 {
                    self.bury();
                }
            }
            Landed::Subscribed(Ok(suback)) => self.subscribed(&suback),
            Landed::Pooled(Ok(suback)) => {
                let refused = |code: &&SubscribeReasonCode| !matches!(code, SubscribeReasonCode::Success(_));
                if let Some(code) = suback.return_codes.iter().find(refused)
                    && self.in_pool
                {
                    let reason = format!("the broker refuses the shared subscription of mqtt.pool: {code:?}");
                    tracing::error!(reason, "not subscribed");
                    self.pool_refused = Some((reason, Instant::now() + SUBSCRIBE_AGAIN));
                    self.status_due = true;
                }
            }
            Landed::Pooled(Err(error)) => tracing::debug!(%error, "joining the pool was not answered"),
            Landed::LeftPool(Ok(_)) => {
                // It may have been joined again meanwhile.
                if !self.in_pool {
                    self.counters.in_pool.send_replace(false);
                }
            }
            Landed::LeftPool(Err(error)) => tracing::debug!(%error, "leaving the pool was not answered"),
            Landed::Ruled(filter, Ok(suback)) => self.ruled(&filter, &suback),
            Landed::Unruled(filter, Ok(_)) => self.routing.left(&filter, self.service.borrow().as_ref()),
            Landed::Listening(fence, Ok(suback)) => self.listening(fence, &suback),
            Landed::Fenced(fence, sent) => self.fenced(fence, sent),
            Landed::Unruled(_, Err(error)) => tracing::debug!(%error, "leaving a filter was not answered"),
            // The connection went with it: the next one subscribes anew.
            Landed::Ruled(_, Err(error))
            | Landed::Subscribed(Err(error))
            | Landed::Listening(_, Err(error)) => {
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
            // The connection is gone; the quarantine has the message still.
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

    pub(super) fn acknowledged(&mut self, outgoing: &Outgoing) {
        if let What::Outcome {
            id,
            reply_id,
            client,
            trace,
        } = &outgoing.what
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
        if let What::Event { id } = &outgoing.what {
            count(&self.counters.events);
            tracing::debug!(event.id = id, "event acknowledged");
        }
        if outgoing.what == What::Stats {
            self.stats_held = None;
        }
        self.settled(outgoing.delivery);
    }

    /// The service need not keep the message any longer.
    pub(super) fn settled(&self, delivery: Option<u64>) {
        if let (Some(delivery), Some(service)) = (delivery, self.service.borrow().as_ref()) {
            service.delivered(delivery);
        }
    }

    /// It has waited for the broker until its expiry had passed.
    pub(super) fn expired(&self, outgoing: &Outgoing) {
        tracing::debug!(
            topic = outgoing.topic,
            "an event has expired before it was published"
        );
        if let Some(service) = self.service.borrow().as_ref() {
            service.expired(outgoing.delivery);
        }
    }

    /// An answer that the broker can't carry becomes an error that it can.
    pub(super) fn too_large(&mut self, outgoing: &Outgoing, size: usize, limit: usize) {
        if let What::Outcome { id, reply_id, .. } = &outgoing.what {
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
        // The letter must get through where its original does not: quoted it grows, seldom to three times its length.
        self.rejected_in_part(outgoing, &reason, limit / 3);
    }

    /// What the broker refuses is not tried again: it goes to the dead-letter topic, or to the log.
    pub(super) fn rejected(&mut self, outgoing: &Outgoing, reason: &str) {
        self.rejected_in_part(outgoing, reason, DeadLetter::ORIGINAL);
    }

    /// As [`Outbox::rejected`], with so many bytes of the message at the most.
    fn rejected_in_part(&mut self, outgoing: &Outgoing, reason: &str, most: usize) {
        tracing::error!(
            topic = brief(&outgoing.topic),
            reason,
            "a message can't be published"
        );
        let letter = match &outgoing.what {
            What::Outcome { id, .. } | What::Event { id } => Some(DeadLetter {
                reason: ErrorCode::Internal.as_str().to_owned(),
                message: reason.to_owned(),
                topic: outgoing.topic.clone(),
                id: Some(id.clone()),
                payload: DeadLetter::beginning(outgoing.payload.get(..most).unwrap_or(&outgoing.payload)),
                bytes: outgoing.payload.len(),
            }),
            _ => None,
        };
        self.post_letter(outgoing, letter);
    }

    /// What can't be published for certain: its dead letter has facts only, for what it quoted might be the cause.
    pub(super) fn undeliverable(&mut self, outgoing: &Outgoing, reason: &str) {
        count(&self.counters.undeliverable);
        let facts = outgoing.facts();
        tracing::error!(
            kind = outgoing.what.kind(),
            id = outgoing.what.id(),
            topic = brief(&outgoing.topic),
            bytes = outgoing.payload.len(),
            reason,
            "a message can't be delivered"
        );
        // Of a dead letter that can't be delivered the operator is to know, too, by one that holds less.
        let (id, message) = match &outgoing.what {
            What::Outcome { id, .. } | What::Event { id } => {
                (Some(id.clone()), Some(format!("{facts}: {reason}")))
            }
            What::DeadLetter(Letter::Quoting(id)) => (id.clone(), Some(format!("{facts}: {reason}"))),
            What::DeadLetter(Letter::Naming) => {
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

    /// Posts a message's dead letter, if there is to be one. Then the message is kept no longer.
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
