//! Replies out: the truth about what the broker has acknowledged.

mod completions;
mod publish;
mod rule_subscriptions;
mod subscriptions;

use std::sync::Arc;
use std::time::Duration;

use phi_edge_service::{Reply, Service};
use phi_edge_wire::{State, Status};
use rumqttc::{
    AsyncClient, PublishNoticeError, PublishOptions, PublishResult, SubAck, SubscribeNoticeError, UnsubAck,
    UnsubscribeNoticeError,
};
use serde_json::Value;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::counters::Counters;
use super::epoch_gate::{Epoch, EpochGate};
use super::outgoing::{Outgoing, OutgoingKind};
use super::quarantine::{Quarantine, ReconnectDelay};
use super::routing::Routing;
use super::{BrokerLimits, ConnectionEvent, DISCONNECT_TIMEOUT, LinkConfig};
use crate::rule_topics::RuleTopics;
use rule_subscriptions::Fence;

/// Messages that may wait here; beyond them the service keeps its outcomes.
const MAX_QUEUED_MESSAGES: usize = 256;
/// Chunks that are handed to the library and not written to the connection.
const MAX_CHUNKS_IN_FLIGHT: usize = 256;
/// Between two attempts at a subscription that the broker refused.
const RESUBSCRIBE_INTERVAL: Duration = Duration::from_mins(1);

pub(super) struct Outbox {
    client: AsyncClient,
    gate: Arc<EpochGate>,
    config: LinkConfig,
    service: watch::Receiver<Option<Service>>,
    status: watch::Receiver<Status>,
    stats: watch::Receiver<Value>,
    /// What is subscribed to for rules.
    rules: watch::Receiver<RuleTopics>,
    routing: Arc<Routing>,
    /// The fence that is under way.
    fence: Option<Fence>,
    /// The broker refuses some of it: why, and when it is asked again.
    rules_refused: Option<(String, Instant)>,
    counters: Arc<Counters>,
    /// Everything that is to be published, and the say over what may be when.
    quarantine: Quarantine<Outgoing>,
    /// From which the quarantine's time is counted.
    origin: Instant,
    /// What the broker has not answered yet; it is answered, or fails, before the next connection is used.
    in_flight: JoinSet<Completion>,
    /// Messages among them.
    publishes_in_flight: usize,
    /// Who is to be told what the connection's end means, once everything that was under way has failed.
    connection_end: Option<(bool, oneshot::Sender<ReconnectDelay>)>,
    /// Room for chunks that are not written yet.
    chunks: Arc<Semaphore>,
    broker: Option<BrokerLimits>,
    epoch: Epoch,
    subscription: RequestSubscription,
    /// Whether the node may take requests of its pool.
    open: watch::Receiver<bool>,
    /// Whether the broker gives us some, as far as we have asked it to.
    in_pool: bool,
    /// The broker refuses to: why, and when it is asked again.
    pool_refused: Option<(String, Instant)>,
    status_due: bool,
    stats_due: bool,
    /// Stats are not published before: they ended connections.
    stats_held: Option<(Instant, Duration)>,
}

/// What the outbox keeps an eye on.
pub(super) struct OutboxInputs {
    pub(super) service: watch::Receiver<Option<Service>>,
    pub(super) status: watch::Receiver<Status>,
    pub(super) stats: watch::Receiver<Value>,
    pub(super) open: watch::Receiver<bool>,
    pub(super) rules: watch::Receiver<RuleTopics>,
    pub(super) routing: Arc<Routing>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum RequestSubscription {
    Requested,
    Granted,
    Refused { reason: String, retry_at: Instant },
}

enum Completion {
    Published(u64, Result<PublishResult, PublishNoticeError>),
    Subscribed(Result<SubAck, SubscribeNoticeError>),
    PoolJoined(Result<SubAck, SubscribeNoticeError>),
    PoolLeft(Result<UnsubAck, UnsubscribeNoticeError>),
    RuleSubscribed(String, Result<SubAck, SubscribeNoticeError>),
    RuleUnsubscribed(String, Result<UnsubAck, UnsubscribeNoticeError>),
    /// We are to hear ourselves.
    StatusSubscribed(u64, Result<SubAck, SubscribeNoticeError>),
    /// A fence is with the broker.
    FencePublished(u64, Result<PublishResult, PublishNoticeError>),
}

impl Outbox {
    pub(super) fn new(
        client: AsyncClient,
        gate: Arc<EpochGate>,
        config: LinkConfig,
        inputs: OutboxInputs,
        counters: Arc<Counters>,
    ) -> Self {
        let OutboxInputs {
            service,
            status,
            stats,
            open,
            rules,
            routing,
        } = inputs;
        routing.begin(&rules.borrow());
        let topic = config.topics.status();
        let (full, minimal) = publish::controls(&topic, &status.borrow());
        let epoch = gate.epoch();
        Self {
            client,
            gate,
            config,
            service,
            status,
            stats,
            rules,
            routing,
            fence: None,
            rules_refused: None,
            counters,
            quarantine: Quarantine::new(full, minimal),
            origin: Instant::now(),
            in_flight: JoinSet::new(),
            publishes_in_flight: 0,
            connection_end: None,
            chunks: Arc::new(Semaphore::new(MAX_CHUNKS_IN_FLIGHT)),
            broker: None,
            epoch,
            subscription: RequestSubscription::Requested,
            open,
            in_pool: false,
            pool_refused: None,
            status_due: true,
            stats_due: false,
            stats_held: None,
        }
    }

    pub(super) async fn run(
        mut self,
        mut replies: mpsc::Receiver<Reply>,
        mut events: mpsc::UnboundedReceiver<ConnectionEvent>,
        mut closing: mpsc::Receiver<Duration>,
    ) {
        let mut close_by: Option<Instant> = None;
        let mut status_open = true;
        let mut stats_open = true;
        let mut pool_open = true;
        let mut rules_open = true;
        loop {
            self.pump();
            self.counters.answers_due(self.answers_due());
            if close_by.is_some() && self.idle() && replies.is_empty() {
                break;
            }
            let has_room = self.quarantine.len() < MAX_QUEUED_MESSAGES;
            let wake = self.wake();
            let retry_at = match &self.subscription {
                RequestSubscription::Refused { retry_at, .. } if self.broker.is_some() => Some(*retry_at),
                _ => None,
            };
            let rules_again = match &self.rules_refused {
                Some((_, retry_at)) if self.broker.is_some() => Some(*retry_at),
                _ => None,
            };
            let fence_check = self.fence.as_ref().map(|fence| fence.check);
            let pool_again = match &self.pool_refused {
                Some((_, retry_at)) if self.broker.is_some() => Some(*retry_at),
                _ => None,
            };
            tokio::select! {
                Some(event) = events.recv() => self.connection_event(event),
                Some(completion) = self.in_flight.join_next() => match completion {
                    Ok(completion) => self.complete(completion),
                    Err(error) => tracing::error!(%error, "a publication's task failed"),
                },
                Some(reply) = replies.recv(), if has_room => self.reply(&reply),
                changed = self.status.changed(), if status_open => match changed {
                    Ok(()) => self.status_due = true,
                    Err(_) => status_open = false,
                },
                changed = self.stats.changed(), if stats_open => match changed {
                    Ok(()) => self.stats_due = true,
                    Err(_) => stats_open = false,
                },
                changed = self.open.changed(), if pool_open => match changed {
                    Ok(()) => self.join_or_leave_pool(),
                    Err(_) => pool_open = false,
                },
                changed = self.rules.changed(), if rules_open => match changed {
                    Ok(()) => self.change_rules(),
                    Err(_) => rules_open = false,
                },
                () = sleep_until(retry_at.unwrap_or_else(Instant::now)), if retry_at.is_some() => self.subscribe(),
                () = sleep_until(rules_again.unwrap_or_else(Instant::now)), if rules_again.is_some() => {
                    self.retry_rules();
                }
                () = self.routing.advanced() => self.advance_rules(),
                () = sleep_until(fence_check.unwrap_or_else(Instant::now)), if fence_check.is_some() => {
                    self.check_fence();
                }
                () = sleep_until(pool_again.unwrap_or_else(Instant::now)), if pool_again.is_some() => {
                    self.in_pool = false;
                    self.pool_refused = None;
                    self.join_or_leave_pool();
                }
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
                Some(limit) = closing.recv(), if close_by.is_none() => {
                    close_by = Some(Instant::now() + limit);
                    self.quarantine.close();
                }
                () = sleep_until(close_by.unwrap_or_else(Instant::now)), if close_by.is_some() => break,
            }
        }
        self.goodbye().await;
    }

    fn idle(&self) -> bool {
        self.quarantine.is_idle() && self.in_flight.is_empty() && (self.broker.is_none() || !self.status_due)
    }

    /// The node's status as far as the link lets it be true.
    fn visible_status(&mut self) -> Status {
        let status = self.status.borrow_and_update().clone();
        match &self.subscription {
            RequestSubscription::Refused { reason, .. } if status.state == State::Ready => {
                status.with(State::Degraded, Some(reason.clone()))
            }
            _ => match self.rules_refused.as_ref().or(self.pool_refused.as_ref()) {
                Some((reason, _)) if status.state == State::Ready => {
                    status.with(State::Degraded, Some(reason.clone()))
                }
                _ => status,
            },
        }
    }

    async fn goodbye(mut self) {
        let lost = self.quarantine.len();
        if lost > 0 {
            tracing::warn!(
                messages = lost,
                "not everything could be sent; what is stored is sent after the next start"
            );
        }
        if let Some(broker) = self.broker {
            let until = Instant::now() + DISCONNECT_TIMEOUT / 2;
            let status = self
                .status
                .borrow()
                .with(State::Offline, Some("shut down".into()));
            let offline =
                Outgoing::retained(self.config.topics.status(), status.encode(), OutgoingKind::Status);
            let options = PublishOptions::at_least_once()
                .retain(broker.retain)
                .properties(offline.properties);
            if let Ok(notice) = self
                .client
                .try_publish_tracked(offline.topic, offline.payload, options)
            {
                let _ = timeout_at(until, notice.wait_async()).await;
            }
        }
        self.in_flight.abort_all();
        let _ = self.client.try_disconnect_with_timeout(DISCONNECT_TIMEOUT / 2);
    }
}
