//! The inbox: messages are read, refused or handed to the service, and then acknowledged in order of arrival.

mod incoming;
mod refuse;
mod request_ids;
mod requests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use phi_edge_rules::RuleMessage;
use phi_edge_service::{Ingested, JobKey, Service};
use phi_edge_wire::parse_cancel;
use rumqttc::{Publish, QoS};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::counters::{Counters, count};
use super::epoch_gate::EpochGate;
use super::flow;
use super::poller::{IncomingPublish, qos0_size};
use super::properties::{receipt, subscriptions};
use super::routing::Routing;
use super::{LinkConfig, RECEIVE_MAXIMUM, RequestLimits};
use crate::rule_topics::RuleTopics;
use crate::topics::{Inbound, InboundKind, KnownClients, Topics};
use incoming::IncomingRequest;
use request_ids::RequestIds;

/// The most replies that wait to be sent while further messages are handled.
const MAX_REPLIES_WAITING: usize = 1024;

/// The task that handles incoming messages.
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

/// What decides which messages rules take.
pub(crate) struct RuleInputs {
    pub(crate) topics: watch::Receiver<RuleTopics>,
    pub(crate) routing: Arc<Routing>,
}

/// A message that is not acknowledged yet. Messages are acknowledged in order, each when it is handled.
struct PendingAck {
    received: IncomingPublish,
    /// The bytes that the message counts for until then.
    size: u64,
    handling: Handling,
}

/// The progress of a message.
enum Handling {
    /// It is handled.
    Done,
    /// It is handled when this task has ended.
    Task(JoinHandle<()>),
    /// It is handled when it is stored.
    Stored(Ingested),
    /// A fence, handled when the change of subscriptions that it marks is stored.
    FenceStored(Ingested),
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

    /// Handles messages in order. Many may wait for the disk together: one flush serves them all.
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
                    // The payload is elsewhere by now: here the message only waits to be acknowledged.
                    received.publish.payload = Bytes::new();
                    pending.push_back(PendingAck { received, size, handling });
                }
            }
        }
    }

    /// Handles a message: at once what must happen in order of arrival, the rest in a task that ends when the message may be
    /// acknowledged.
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
                let request = IncomingRequest::new(publish, arrived, topic, &inbound);
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
                "a message on one of the node's topics is not taken for a device's"
            );
            return Handling::Done;
        }
        if !self.rules.routing.counts(topic, subscriptions(publish)) {
            // The receipt is kept: under other subscriptions the message might count when it is delivered again.
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
        service.ingest(&message).map_or(Handling::Done, Handling::Stored)
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
}

/// Waits until the oldest message is handled.
async fn first_done(pending: &mut VecDeque<PendingAck>) {
    match pending.front_mut() {
        Some(PendingAck { handling, .. }) => match handling {
            Handling::Done => {}
            // An error is a panic in the task. The message is acknowledged: it would be delivered again without end.
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
