//! Replies out: the truth about what the broker has acknowledged.

mod landed;
mod rules;
mod subscriptions;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use phi_edge_service::{Reply, Service};
use rumqttc::{
    AsyncClient, PublishNoticeError, PublishOptions, PublishResult, QoS, SubAck, SubscribeNoticeError,
    UnsubAck, UnsubscribeNoticeError,
};
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::counters::{Counters, count};
use super::outgoing::{Outgoing, What};
use super::routing::Routing;
use super::{BrokerLimits, GOODBYE, LinkConfig, Note};
use crate::rule_topics::RuleTopics;
use crate::topics::TopicError;
use crate::wire::{self, State, Status};
use rules::Fence;

/// Messages that may wait here; beyond them the service keeps its outcomes.
const QUEUE: usize = 256;
/// Messages under way at once; fewer than the library takes, so that status and stats need not wait for them.
const WINDOW: usize = 48;
/// Between two attempts at a subscription that the broker refused.
const SUBSCRIBE_AGAIN: Duration = Duration::from_mins(1);

pub(super) struct Outbox {
    client: AsyncClient,
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
    queue: VecDeque<Outgoing>,
    /// Messages that the broker has not answered yet. They survive a reconnection: the library sends them
    /// again, or says that it can't, and then we do.
    flights: JoinSet<Landed>,
    broker: Option<BrokerLimits>,
    subscription: Subscription,
    /// Whether the node may take requests of its pool.
    open: watch::Receiver<bool>,
    /// Whether the broker gives us some, as far as we have asked it to.
    in_pool: bool,
    /// The broker refuses to: why, and when it is asked again.
    pool_refused: Option<(String, Instant)>,
    status_due: bool,
    stats_due: bool,
}

/// What the outbox keeps an eye on.
pub(super) struct Watched {
    pub(super) service: watch::Receiver<Option<Service>>,
    pub(super) status: watch::Receiver<Status>,
    pub(super) stats: watch::Receiver<Value>,
    pub(super) open: watch::Receiver<bool>,
    pub(super) rules: watch::Receiver<RuleTopics>,
    pub(super) routing: Arc<Routing>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Subscription {
    Asked,
    Done,
    Refused { reason: String, again: Instant },
}

enum Landed {
    Published(Box<Outgoing>, Result<PublishResult, PublishNoticeError>),
    Subscribed(Result<SubAck, SubscribeNoticeError>),
    Pooled(Result<SubAck, SubscribeNoticeError>),
    LeftPool(Result<UnsubAck, UnsubscribeNoticeError>),
    Ruled(String, Result<SubAck, SubscribeNoticeError>),
    Unruled(String, Result<UnsubAck, UnsubscribeNoticeError>),
    /// We are to hear ourselves.
    Listening(u64, Result<SubAck, SubscribeNoticeError>),
    /// A fence is with the broker.
    Fenced(u64, Result<PublishResult, PublishNoticeError>),
}

impl Outbox {
    pub(super) fn new(
        client: AsyncClient,
        config: LinkConfig,
        watched: Watched,
        counters: Arc<Counters>,
    ) -> Self {
        let Watched {
            service,
            status,
            stats,
            open,
            rules,
            routing,
        } = watched;
        routing.begin(&rules.borrow());
        Self {
            client,
            config,
            service,
            status,
            stats,
            rules,
            routing,
            fence: None,
            rules_refused: None,
            counters,
            queue: VecDeque::new(),
            flights: JoinSet::new(),
            broker: None,
            subscription: Subscription::Asked,
            open,
            in_pool: false,
            pool_refused: None,
            status_due: true,
            stats_due: false,
        }
    }

    pub(super) async fn run(
        mut self,
        mut replies: mpsc::Receiver<Reply>,
        mut notes: mpsc::UnboundedReceiver<Note>,
        mut closing: mpsc::Receiver<Duration>,
    ) {
        let mut close_by: Option<Instant> = None;
        let mut status_open = true;
        let mut stats_open = true;
        let mut pool_open = true;
        let mut rules_open = true;
        loop {
            self.pump();
            self.counters.answers_due(self.flights.len());
            if close_by.is_some() && self.idle() && replies.is_empty() {
                break;
            }
            let room = self.queue.len() < QUEUE;
            let again = match &self.subscription {
                Subscription::Refused { again, .. } if self.broker.is_some() => Some(*again),
                _ => None,
            };
            let rules_again = match &self.rules_refused {
                Some((_, again)) if self.broker.is_some() => Some(*again),
                _ => None,
            };
            let fence_check = self.fence.as_ref().map(|fence| fence.check);
            let pool_again = match &self.pool_refused {
                Some((_, again)) if self.broker.is_some() => Some(*again),
                _ => None,
            };
            tokio::select! {
                Some(note) = notes.recv() => self.note(&note),
                Some(landed) = self.flights.join_next() => match landed {
                    Ok(landed) => self.landed(landed),
                    Err(error) => tracing::error!(%error, "a publication's task failed"),
                },
                Some(reply) = replies.recv(), if room => self.reply(&reply),
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
                () = sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => self.subscribe(),
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
                Some(limit) = closing.recv(), if close_by.is_none() => close_by = Some(Instant::now() + limit),
                () = sleep_until(close_by.unwrap_or_else(Instant::now)), if close_by.is_some() => break,
            }
        }
        self.goodbye().await;
    }

    fn idle(&self) -> bool {
        self.queue.is_empty() && self.flights.is_empty() && (self.broker.is_none() || !self.status_due)
    }

    fn note(&mut self, note: &Note) {
        match note {
            Note::Up(limits) => {
                self.broker = Some(*limits);
                self.rules_refused = None;
                self.routing.connected(limits.session_present);
                self.subscribe();
                self.advance_rules();
                self.stop_listening(limits.session_present);
                self.status_due = true;
                self.stats_due = true;
            }
            Note::Down => {
                self.broker = None;
                self.fence = None;
                // Nothing comes by a connection that is gone; the next one sees to it that nothing does.
                self.counters.in_pool.send_replace(false);
            }
        }
    }

    fn reply(&mut self, reply: &Reply) {
        let outgoing = Outgoing::reply(reply, &self.config.topics, &self.config.node);
        if outgoing.what == What::DeadLetter {
            count(&self.counters.dead_letters);
        }
        if let What::Event { .. } = outgoing.what
            && let Err(error) = self.config.topics.check_event(&outgoing.topic)
        {
            return match error {
                TopicError::Invalid(fault) => self.undeliverable(&outgoing, &fault.to_string()),
                other => self.rejected(&outgoing, &other.to_string()),
            };
        }
        if outgoing.what == What::Chunk {
            self.chunk(outgoing);
        } else {
            self.queue.push_back(outgoing);
        }
    }

    /// Chunks go now or never: a late one is of no use, and the final reply has the whole text.
    fn chunk(&mut self, chunk: Outgoing) {
        let fits = self.config.topics.check_form(&chunk.topic).is_ok()
            && self
                .broker
                .is_some_and(|broker| chunk.packet_size() <= broker.max_packet);
        let options = PublishOptions::at_most_once().properties(chunk.properties);
        if !fits
            || self
                .client
                .try_publish(chunk.topic, chunk.payload, options)
                .is_err()
        {
            count(&self.counters.chunks_dropped);
        }
    }

    /// Publishes as much as may be under way.
    fn pump(&mut self) {
        let Some(broker) = self.broker else { return };
        if self.status_due && self.subscription != Subscription::Asked {
            self.status_due = false;
            let status = self.visible_status();
            self.publish(
                Outgoing::retained(self.config.topics.status(), status.encode(), What::Status),
                broker,
            );
        }
        if self.stats_due && self.subscription != Subscription::Asked {
            self.stats_due = false;
            let stats = self.stats.borrow_and_update().clone();
            if !stats.is_null() {
                let stats = wire::to_bytes(&stats);
                self.publish(
                    Outgoing::retained(self.config.topics.stats(), stats, What::Stats),
                    broker,
                );
            }
        }
        while self.flights.len() < WINDOW.min(broker.receive_maximum) {
            let Some(outgoing) = self.queue.pop_front() else {
                break;
            };
            self.publish(outgoing, broker);
        }
    }

    /// The node's status as far as the link lets it be true.
    fn visible_status(&mut self) -> Status {
        let status = self.status.borrow_and_update().clone();
        match &self.subscription {
            Subscription::Refused { reason, .. } if status.state == State::Ready => {
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

    fn publish(&mut self, outgoing: Outgoing, broker: BrokerLimits) {
        // Checked here: the library or the broker would end each connection at it.
        if let Err(fault) = self.config.topics.check_form(&outgoing.topic) {
            return self.undeliverable(&outgoing, &fault.to_string());
        }
        let size = outgoing.packet_size();
        // Checked here: the library would keep such a message under way for ever.
        if size > broker.max_packet {
            return self.too_large(&outgoing, size, broker.max_packet);
        }
        let qos = if outgoing.at_most_once {
            QoS::AtMostOnce
        } else {
            QoS::AtLeastOnce
        };
        let options = PublishOptions::new(qos)
            // The library refuses what the broker would.
            .retain(outgoing.retain && broker.retain)
            .properties(outgoing.properties.clone());
        let sent = self
            .client
            .try_publish_tracked(outgoing.topic.clone(), outgoing.payload.clone(), options);
        match sent {
            Ok(notice) => {
                self.flights
                    .spawn(async move { Landed::Published(Box::new(outgoing), notice.wait_async().await) });
            }
            Err(error) => self.rejected(&outgoing, &error.to_string()),
        }
    }

    async fn goodbye(mut self) {
        let lost = self.queue.len() + self.flights.len();
        if lost > 0 {
            tracing::warn!(
                messages = lost,
                "not everything could be sent; what is stored is sent after the next start"
            );
        }
        if let Some(broker) = self.broker {
            let until = Instant::now() + GOODBYE / 2;
            let status = self
                .status
                .borrow()
                .with(State::Offline, Some("shut down".into()));
            let offline = Outgoing::retained(self.config.topics.status(), status.encode(), What::Status);
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
        self.flights.abort_all();
        let _ = self.client.try_disconnect_with_timeout(GOODBYE / 2);
    }
}
