//! The outbox: publishes replies, status and stats, subscribes, and records what the broker has acknowledged.

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

/// The most messages in the outbox; beyond them the service keeps its outcomes.
const MAX_QUEUED_MESSAGES: usize = 256;
/// The most chunks that are handed to the client library and not written to the connection yet.
const MAX_CHUNKS_IN_FLIGHT: usize = 256;
/// The time between two attempts at a subscription that the broker refuses.
const RESUBSCRIBE_INTERVAL: Duration = Duration::from_mins(1);

/// The task that publishes and subscribes.
pub(super) struct Outbox {
    client: AsyncClient,
    gate: Arc<EpochGate>,
    config: LinkConfig,
    service: watch::Receiver<Option<Service>>,
    status: watch::Receiver<Status>,
    stats: watch::Receiver<Value>,
    /// The topic filters of rules.
    rules: watch::Receiver<RuleTopics>,
    routing: Arc<Routing>,
    /// The fence in flight.
    fence: Option<Fence>,
    /// Set while the broker refuses a filter of a rule: the reason, and the time of the next attempt.
    rules_refused: Option<(String, Instant)>,
    counters: Arc<Counters>,
    /// The messages to publish; it decides which may be published when.
    quarantine: Quarantine<Outgoing>,
    /// The origin of the quarantine's time.
    origin: Instant,
    /// The packets that the broker has not answered; each is answered or fails before the next connection is used.
    in_flight: JoinSet<Completion>,
    /// The number of publishes among them.
    publishes_in_flight: usize,
    /// The end of the connection and who is told how soon to reconnect, once all publishes in flight have failed.
    connection_end: Option<(bool, oneshot::Sender<ReconnectDelay>)>,
    /// The permits for chunks that are not written yet.
    chunks: Arc<Semaphore>,
    broker: Option<BrokerLimits>,
    epoch: Epoch,
    subscription: RequestSubscription,
    /// Whether the node is to take requests of its pool.
    open: watch::Receiver<bool>,
    /// Whether the node has asked the broker for requests of its pool.
    in_pool: bool,
    /// Set while the broker refuses the pool: the reason, and the time of the next attempt.
    pool_refused: Option<(String, Instant)>,
    status_due: bool,
    stats_due: bool,
    /// Set after stats ended connections: the time before which none are published, and the duration of the hold.
    stats_held: Option<(Instant, Duration)>,
}

/// The inputs of the outbox.
pub(super) struct OutboxInputs {
    pub(super) service: watch::Receiver<Option<Service>>,
    pub(super) status: watch::Receiver<Status>,
    pub(super) stats: watch::Receiver<Value>,
    pub(super) open: watch::Receiver<bool>,
    pub(super) rules: watch::Receiver<RuleTopics>,
    pub(super) routing: Arc<Routing>,
}

/// The state of the subscription to requests and cancellations.
#[derive(Debug, Clone, PartialEq, Eq)]
enum RequestSubscription {
    Requested,
    Granted,
    Refused { reason: String, retry_at: Instant },
}

/// The completion of a packet that was sent: the broker's answer, or the reason why there is none.
enum Completion {
    Published(u64, Result<PublishResult, PublishNoticeError>),
    Subscribed(Result<SubAck, SubscribeNoticeError>),
    PoolJoined(Result<SubAck, SubscribeNoticeError>),
    PoolLeft(Result<UnsubAck, UnsubscribeNoticeError>),
    RuleSubscribed(String, Result<SubAck, SubscribeNoticeError>),
    RuleUnsubscribed(String, Result<UnsubAck, UnsubscribeNoticeError>),
    /// The node subscribes to its own status, to receive a fence of this number.
    StatusSubscribed(u64, Result<SubAck, SubscribeNoticeError>),
    /// The fence of this number is published.
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

    /// Returns the node's status, degraded while the broker refuses a subscription.
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
            let status = farewell(&self.status.borrow());
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

/// The last status of a node that ends: with the fault that it ends for, if there is one.
fn farewell(status: &Status) -> Status {
    let reason = match (status.state, &status.reason) {
        (State::Degraded, Some(fault)) => format!("shut down: {fault}"),
        _ => "shut down".to_owned(),
    };
    status.with(State::Offline, Some(reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_status_has_the_fault_that_ended_the_node() {
        let last = |state, reason: Option<&str>| {
            let status = Status::new(state, "boot").with(state, reason.map(str::to_owned));
            farewell(&status).reason.unwrap_or_default()
        };
        assert_eq!(last(State::Draining, Some("stopped")), "shut down");
        assert_eq!(last(State::Ready, None), "shut down");
        assert_eq!(last(State::Degraded, Some("no model")), "shut down: no model");
    }
}
