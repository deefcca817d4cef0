//! Requests in: read, refused or handed to the service, then acknowledged, in order of arrival.

mod refuse;
mod request_ids;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use phi_edge_rules::RuleMessage;
use phi_edge_service::{JobKey, Observed, Receipt, ReplyAddress, ReplyBody, ReplyTarget, Service};
use phi_edge_wire::{Envelope, Payload, parse_cancel, parse_request};
use rumqttc::{Publish, QoS};
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::counters::{Counters, count};
use super::epoch_gate::EpochGate;
use super::flow;
use super::poller::{IncomingPublish, qos0_size};
use super::properties::{subscriptions, traceparent};
use super::routing::Routing;
use super::{LinkConfig, RECEIVE_MAXIMUM, RequestLimits};
use crate::rule_topics::RuleTopics;
use crate::topics::{Inbound, InboundKind, KnownClients, Scope, Topics};
use refuse::RequestRefusal;
use request_ids::{RequestIds, receipt};

/// Replies that may wait to be sent before further messages are looked at.
const MAX_REPLIES_WAITING: usize = 1024;

pub(crate) struct Inbox {
    topics: Topics,
    limits: watch::Receiver<RequestLimits>,
    service: watch::Receiver<Option<Service>>,
    rules: RuleInputs,
    gate: Arc<EpochGate>,
    counters: Arc<Counters>,
    ids: RequestIds,
    clients: KnownClients,
}

/// What tells which messages rules take.
pub(crate) struct RuleInputs {
    pub(crate) topics: watch::Receiver<RuleTopics>,
    pub(crate) routing: Arc<Routing>,
}

/// A message that has not been dealt with; it is acknowledged in its turn when it is.
struct PendingAck {
    received: IncomingPublish,
    /// What it counts for until then.
    size: u64,
    handling: Handling,
}

/// When a message is dealt with.
enum Handling {
    /// Already.
    Done,
    /// When a task has ended.
    Task(JoinHandle<()>),
    /// When it is stored.
    Stored(Observed),
    /// A fence: when it is stored what lies before it and what behind.
    FenceStored(Observed),
}

/// A request as far as MQTT tells.
struct IncomingRequest<'a> {
    client: Option<&'a str>,
    /// Why `client` names none, if so.
    misnamed: Option<String>,
    scope: Scope,
    publish: &'a Publish,
    arrived: Instant,
    topic: &'a str,
    response_topic: Option<&'a str>,
    correlation: Option<Vec<u8>>,
    receipt: Option<Receipt>,
}

impl Inbox {
    pub(crate) fn new(
        config: &LinkConfig,
        service: watch::Receiver<Option<Service>>,
        rules: RuleInputs,
        limits: watch::Receiver<RequestLimits>,
        gate: Arc<EpochGate>,
        counters: Arc<Counters>,
        boot_id: &str,
    ) -> Self {
        Self {
            topics: config.topics.clone(),
            limits,
            service,
            rules,
            gate,
            counters,
            ids: RequestIds::new(boot_id),
            clients: KnownClients::default(),
        }
    }

    /// Takes messages in their order. Many may wait for the disk together: one flush serves them all.
    pub(crate) async fn run(mut self, mut received: mpsc::UnboundedReceiver<IncomingPublish>) {
        // While the model loads, requests wait here and, beyond the receive maximum, in the broker.
        let service = match self.service.wait_for(Option::is_some).await {
            Ok(service) => service.clone(),
            Err(_) => return,
        };
        let Some(service) = service else { return };
        self.rules.routing.restore(&service);
        let mut stats = service.watch_stats();
        let mut pending: VecDeque<PendingAck> = VecDeque::new();
        loop {
            let has_room = pending.len() < usize::from(RECEIVE_MAXIMUM);
            tokio::select! {
                () = first_done(&mut pending) => {
                    if let Some(PendingAck { received, size, handling }) = pending.pop_front() {
                        if let Handling::FenceStored(_) = handling {
                            self.rules.routing.noted();
                        }
                        self.gate.acknowledge(received.epoch, &received.publish);
                        self.counters.held.send_modify(|held| *held = held.saturating_sub(size));
                        self.counters.dealt_with.send_modify(|messages| *messages += 1);
                    }
                }
                next = received.recv(), if has_room => {
                    let Some(mut received) = next else { break };
                    let mut size = flow::size(&received.publish);
                    if received.publish.qos == QoS::AtMostOnce {
                        size = 0;
                        let waited = qos0_size(&received.publish);
                        self.counters.qos0_waiting.fetch_sub(waited, Ordering::Relaxed);
                    }
                    // A flood of what is refused must not become a flood of replies in memory.
                    if stats.wait_for(|stats| stats.outcomes_waiting < MAX_REPLIES_WAITING).await.is_err() {
                        return;
                    }
                    if self.rules.routing.enters(received.epoch.session()) {
                        service.forget_receipts();
                    }
                    let handling = self.handle(&received.publish, received.arrived, &service);
                    // What is still needed of it is elsewhere: here it only waits to be acknowledged.
                    received.publish.payload = Bytes::new();
                    pending.push_back(PendingAck { received, size, handling });
                }
            }
        }
    }

    /// Deals with a message: what must happen in order of arrival at once, the rest in a task that ends when the
    /// message may be acknowledged.
    fn handle(&mut self, publish: &Publish, arrived: Instant, service: &Service) -> Handling {
        let topics = self.topics.clone();
        let inbound = std::str::from_utf8(&publish.topic)
            .ok()
            .and_then(|topic| Some((topic, topics.inbound(topic)?)));
        let Some((topic, inbound)) = inbound else {
            return self.ingest(publish, service);
        };
        if self.rules.topics.borrow().is_second_copy(subscriptions(publish)) {
            return Handling::Done;
        }
        if let Some(client) = inbound.client
            && inbound.misnamed().is_none()
        {
            self.clients.note(client);
        }
        match inbound.kind {
            InboundKind::Request => {
                let properties = publish.properties.as_ref();
                let correlation = properties.and_then(|p| p.correlation_data.as_ref());
                let response_topic = properties.and_then(|p| p.response_topic.as_deref());
                let request = IncomingRequest {
                    client: inbound.client,
                    misnamed: inbound.misnamed(),
                    scope: inbound.scope,
                    publish,
                    arrived,
                    topic,
                    response_topic,
                    correlation: correlation.map(|data| data.to_vec()),
                    receipt: receipt(publish),
                };
                Handling::Task(self.request(&request, service))
            }
            InboundKind::Cancel => {
                self.cancel(&inbound, publish, service);
                Handling::Done
            }
        }
    }

    /// Hands a message to the rules that take it.
    fn ingest(&self, publish: &Publish, service: &Service) -> Handling {
        let Ok(topic) = std::str::from_utf8(&publish.topic) else {
            return Handling::Done;
        };
        if topic == self.topics.status()
            && let Some(fence) = self.rules.routing.fence(publish)
        {
            return self
                .rules
                .routing
                .pass(fence, service)
                .map_or(Handling::Done, Handling::FenceStored);
        }
        if self.topics.is_own(topic) {
            tracing::debug!(
                topic,
                "a message on a topic of our own is not taken for a machine's"
            );
            return Handling::Done;
        }
        if !self.rules.routing.counts(topic, subscriptions(publish)) {
            // Remembered: under other subscriptions it might count when it comes again.
            service.dismiss(receipt(publish));
            return Handling::Done;
        }
        let takers = self.rules.topics.borrow().takers(topic);
        if takers.is_empty() {
            tracing::debug!(topic, "a message that no rule takes is ignored");
            return Handling::Done;
        }
        let message = RuleMessage {
            topic: topic.to_owned(),
            payload: publish.payload.to_vec(),
            rules: takers,
            receipt: receipt(publish),
            redelivered: publish.dup,
        };
        service.observe(&message).map_or(Handling::Done, Handling::Stored)
    }

    fn cancel(&self, inbound: &Inbound<'_>, publish: &Publish, service: &Service) {
        if publish.retain || publish.payload.is_empty() {
            count(&self.counters.ignored);
            return;
        }
        let id = match inbound.misnamed() {
            Some(error) => Err(error),
            None => parse_cancel(&publish.payload),
        };
        match id {
            Ok(id) => {
                let key = JobKey {
                    client: inbound.client.map(str::to_owned),
                    id,
                };
                service.cancel(&key);
            }
            Err(error) => {
                count(&self.counters.unanswerable);
                tracing::warn!(error, "a cancellation can't be read");
            }
        }
    }

    fn request(&mut self, request: &IncomingRequest<'_>, service: &Service) -> JoinHandle<()> {
        let publish = request.publish;
        if publish.payload.is_empty() {
            // Also how retained messages are cleared.
            count(&self.counters.ignored);
            tracing::debug!("an empty request is ignored");
            return nothing();
        }
        if publish.dup
            && request
                .receipt
                .is_some_and(|receipt| service.has_dealt_with(&receipt))
        {
            tracing::debug!("a request that was dealt with came again");
            return nothing();
        }
        if let Some(message) = request.misnamed.clone() {
            return self.refuse(request, service, RequestRefusal::for_form(None, message));
        }
        let limits = *self.limits.borrow();
        if publish.payload.len() > limits.max_payload {
            let message = format!(
                "the request has {} bytes, limits.max_payload is {}",
                publish.payload.len(),
                limits.max_payload
            );
            return self.refuse(request, service, RequestRefusal::for_size(message));
        }
        let payload = Payload {
            bytes: &publish.payload,
            content_type: publish
                .properties
                .as_ref()
                .and_then(|p| p.content_type.as_deref()),
        };
        let parsed = match parse_request(payload, limits.max_tokens) {
            Ok(Some(parsed)) => parsed,
            Ok(None) => return nothing(),
            Err(error) => return self.refuse(request, service, error.into()),
        };
        if publish.retain {
            let message = "retained requests are refused: they would be asked again at every start";
            return self.refuse(
                request,
                service,
                RequestRefusal::for_form(parsed.id, message.into()),
            );
        }
        if let Some(topic) = request.response_topic
            && let Err(error) =
                self.topics
                    .check_response(topic, request.scope, request.client, &self.clients)
        {
            return self.refuse(
                request,
                service,
                RequestRefusal::for_form(parsed.id, error.to_string()),
            );
        }
        let id = match parsed.id.clone() {
            Some(id) => id,
            None => self.ids.of(request, service),
        };
        let job = parsed.into_job(self.envelope(request, id));
        let (key, address, receipt) = (job.key.clone(), job.reply.clone(), job.receipt);
        let taken = service.receive(job, publish.dup, request.arrived);
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

    fn envelope(&mut self, request: &IncomingRequest<'_>, id: String) -> Envelope {
        let publish = request.publish;
        let expiry = publish
            .properties
            .as_ref()
            .and_then(|p| p.message_expiry_interval);
        Envelope {
            reply: self.address(request, &id),
            key: JobKey {
                client: request.client.map(str::to_owned),
                id,
            },
            body_digest: Sha256::digest(&publish.payload).into(),
            payload_bytes: publish.payload.len(),
            expiry: expiry.map(|seconds| Duration::from_secs(u64::from(seconds))),
            seed: rand::random(),
            receipt: request.receipt,
        }
    }

    /// The response topic of the request where it may be used, else our own.
    fn address(&self, request: &IncomingRequest<'_>, id: &str) -> ReplyAddress {
        let topic = request
            .response_topic
            .filter(|topic| {
                self.topics
                    .check_response(topic, request.scope, request.client, &self.clients)
                    .is_ok()
            })
            .map_or_else(
                || self.topics.response_in(request.scope, request.client, id),
                str::to_owned,
            );
        ReplyAddress {
            target: ReplyTarget::Topic(topic),
            correlation: request.correlation.clone(),
            traceparent: traceparent(request.publish),
        }
    }
}

/// Waits until the oldest message is dealt with.
async fn first_done(pending: &mut VecDeque<PendingAck>) {
    match pending.front_mut() {
        Some(PendingAck { handling, .. }) => match handling {
            Handling::Done => {}
            // An error is a panic in its task: the message would come again for ever.
            Handling::Task(task) => {
                if let Err(error) = task.await {
                    tracing::error!(%error, "dealing with a message failed");
                }
            }
            Handling::Stored(observed) | Handling::FenceStored(observed) => observed.wait().await,
        },
        None => std::future::pending().await,
    }
}

/// Nothing is left to be done.
fn nothing() -> JoinHandle<()> {
    tokio::spawn(async {})
}
