//! Replies out: the truth about what the broker has acknowledged.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use phi_edge_service::{DeadLetter, ErrorCode, JobKey, Reply, ReplyAddress, ReplyBody, Service, TraceParent};
use rumqttc::mqttbytes::v5::SubscribeProperties;
use rumqttc::{
    AsyncClient, PubAckReason, PublishNoticeError, PublishOptions, PublishResult, QoS, RetainForwardRule,
    SubAck, SubscribeFilterInput, SubscribeNoticeError, SubscribeReasonCode, UnsubAck,
    UnsubscribeNoticeError,
};
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::counters::{Counters, count};
use super::outgoing::{Outgoing, What};
use super::{BrokerLimits, GOODBYE, LinkConfig, Note};
use crate::rule_topics::RuleTopics;
use crate::topics::is_topic;
use crate::wire::{self, State, Status};

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
        } = watched;
        Self {
            client,
            config,
            service,
            status,
            stats,
            rules,
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
                    Ok(()) => self.subscribe_rules(),
                    Err(_) => rules_open = false,
                },
                () = sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => self.subscribe(),
                () = sleep_until(rules_again.unwrap_or_else(Instant::now)), if rules_again.is_some() => {
                    self.subscribe_rules();
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
                self.subscribe();
                self.status_due = true;
                self.stats_due = true;
            }
            Note::Down => {
                self.broker = None;
                // Nothing comes by a connection that is gone; the next one sees to it that nothing does.
                self.counters.in_pool.send_replace(false);
            }
        }
    }

    /// Always anew: the broker may have forgotten us. Messages that it kept are not sent again for it.
    fn subscribe(&mut self) {
        let filters = self.config.topics.subscriptions();
        self.subscription = Subscription::Asked;
        match self
            .client
            .try_subscribe_many_tracked(filters.iter().map(|filter| subscription(filter)))
        {
            Ok(notice) => {
                self.flights
                    .spawn(async { Landed::Subscribed(notice.wait_async().await) });
            }
            Err(error) => tracing::error!(%error, "the subscription can't be asked for"),
        }
        self.subscribe_rules();
        // The broker may remember us as a member, or not.
        self.in_pool = !*self.open.borrow();
        self.join_or_leave_pool();
    }

    /// Each filter by itself, so that the broker says by which of them a message came.
    fn subscribe_rules(&mut self) {
        let rules = self.rules.borrow_and_update().clone();
        let Some(broker) = self.broker else { return };
        self.rules_refused = None;
        self.status_due = true;
        for former in rules.former() {
            if let Err(error) = self.client.try_unsubscribe(former) {
                tracing::error!(%error, filter = former, "a former subscription can't be left");
            }
        }
        for entry in rules.entries() {
            // What this node publishes is none of its rules' business.
            let wanted = [subscription(&entry.filter).no_local(true)];
            let properties = SubscribeProperties {
                id: Some(entry.id),
                user_properties: Vec::new(),
            };
            let asked = if broker.subscription_ids {
                self.client
                    .try_subscribe_many_with_properties_tracked(wanted, properties)
            } else {
                self.client.try_subscribe_many_tracked(wanted)
            };
            match asked {
                Ok(notice) => {
                    let filter = entry.filter.clone();
                    self.flights
                        .spawn(async move { Landed::Ruled(filter, notice.wait_async().await) });
                }
                Err(error) => {
                    tracing::error!(%error, filter = entry.filter, "a rule's subscription can't be asked for");
                }
            }
        }
    }

    fn ruled(&mut self, filter: &str, suback: &SubAck) {
        let refused = |code: &&SubscribeReasonCode| !matches!(code, SubscribeReasonCode::Success(_));
        if let Some(code) = suback.return_codes.iter().find(refused) {
            let reason = format!("the broker refuses the subscription of a rule to {filter}: {code:?}");
            tracing::error!(reason, "not subscribed");
            self.rules_refused = Some((reason, Instant::now() + SUBSCRIBE_AGAIN));
            self.status_due = true;
        }
    }

    /// Takes part in the pool's work, or leaves it to the others: before the node drains, while it is degraded or its
    /// queue is full. What the broker has given us by then is ours to answer.
    fn join_or_leave_pool(&mut self) {
        let filters = self.config.topics.shared_subscriptions();
        let open = *self.open.borrow_and_update();
        if filters.is_empty() || self.broker.is_none() || open == self.in_pool {
            return;
        }
        self.in_pool = open;
        self.pool_refused = None;
        self.status_due = true;
        // Until the broker has answered that we are out, it may give us some.
        self.counters.in_pool.send_replace(true);
        tracing::info!(open, "pool");
        if open {
            match self
                .client
                .try_subscribe_many_tracked(filters.iter().map(|filter| subscription(filter)))
            {
                Ok(notice) => {
                    self.flights
                        .spawn(async { Landed::Pooled(notice.wait_async().await) });
                }
                Err(error) => tracing::error!(%error, "the pool can't be joined"),
            }
        } else {
            match self.client.try_unsubscribe_many_tracked(filters) {
                Ok(notice) => {
                    self.flights
                        .spawn(async { Landed::LeftPool(notice.wait_async().await) });
                }
                Err(error) => tracing::error!(%error, "the pool can't be left"),
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
            let reason = error.to_string();
            return self.rejected(&outgoing, &reason);
        }
        if outgoing.what == What::Chunk {
            self.chunk(outgoing);
        } else {
            self.queue.push_back(outgoing);
        }
    }

    /// Chunks go now or never: a late one is of no use, and the final reply has the whole text.
    fn chunk(&mut self, chunk: Outgoing) {
        let fits = is_topic(&chunk.topic)
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
            let stats = self.stats.borrow_and_update().to_string().into_bytes();
            if stats != b"null" {
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
        // Checked here: the library would fail at it on every connection, and take what else is under way along.
        if !is_topic(&outgoing.topic) {
            return self.rejected(&outgoing, "its topic is none that can be published on");
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

    fn landed(&mut self, landed: Landed) {
        match landed {
            Landed::Published(outgoing, Ok(_)) => self.acknowledged(&outgoing),
            Landed::Published(outgoing, Err(PublishNoticeError::V5PubAck(reason))) => match reason {
                PubAckReason::Success | PubAckReason::NoMatchingSubscribers => self.acknowledged(&outgoing),
                reason => self.rejected(&outgoing, &format!("the broker refuses it: {reason:?}")),
            },
            Landed::Published(outgoing, Err(error)) => {
                tracing::debug!(topic = outgoing.topic, %error, "to be published again");
                match outgoing.what {
                    // The newest one is sent when the link is back.
                    What::Status => self.status_due = true,
                    What::Stats => self.stats_due = true,
                    _ => self.queue.push_front(*outgoing),
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
            // The connection went with it: the next one subscribes anew.
            Landed::Ruled(_, Err(error)) | Landed::Subscribed(Err(error)) => {
                tracing::debug!(%error, "the subscription was not answered")
            }
        }
    }

    fn acknowledged(&mut self, outgoing: &Outgoing) {
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
        self.settled(outgoing.delivery);
    }

    /// The service need not keep the message any longer.
    fn settled(&self, delivery: Option<u64>) {
        if let (Some(delivery), Some(service)) = (delivery, self.service.borrow().as_ref()) {
            service.delivered(delivery);
        }
    }

    fn subscribed(&mut self, suback: &SubAck) {
        self.counters.vitals.subscribed();
        let refused = suback
            .return_codes
            .iter()
            .zip(self.config.topics.subscriptions())
            .find(|(code, _)| !matches!(code, SubscribeReasonCode::Success(_)));
        self.subscription = match refused {
            None => Subscription::Done,
            Some((code, filter)) => {
                let reason = format!("the broker refuses the subscription to {filter}: {code:?}");
                tracing::error!(reason, "not subscribed");
                Subscription::Refused {
                    reason,
                    again: Instant::now() + SUBSCRIBE_AGAIN,
                }
            }
        };
        self.status_due = true;
    }

    /// An answer that the broker can't carry becomes an error that it can.
    fn too_large(&mut self, outgoing: &Outgoing, size: usize, limit: usize) {
        if let What::Outcome { id, reply_id, .. } = &outgoing.what {
            let payload = wire::too_large_reply(id, reply_id, size, limit);
            let mut error = Outgoing {
                payload: payload.into(),
                ..outgoing.clone()
            };
            error.properties.user_properties = vec![("kind".into(), "error".into())];
            if error.packet_size() <= limit {
                tracing::error!(topic = outgoing.topic, size, limit, "too large for the broker");
                self.queue.push_front(error);
                return;
            }
        }
        let reason = format!("it needs a packet of {size} bytes, the broker takes {limit}");
        // The letter must get through where its original does not: quoted it grows, seldom to three times its length.
        self.rejected_in_part(outgoing, &reason, limit / 3);
    }

    /// What the broker refuses is not tried again: it goes to the dead-letter topic, or to the log.
    fn rejected(&mut self, outgoing: &Outgoing, reason: &str) {
        self.rejected_in_part(outgoing, reason, DeadLetter::ORIGINAL);
    }

    /// As [`Outbox::rejected`], with so many bytes of the message at the most.
    fn rejected_in_part(&mut self, outgoing: &Outgoing, reason: &str, most: usize) {
        tracing::error!(topic = outgoing.topic, reason, "a message can't be published");
        if let (What::Outcome { id, .. } | What::Event { id }, Some(service)) =
            (&outgoing.what, self.service.borrow().as_ref())
        {
            let letter = DeadLetter {
                reason: ErrorCode::Internal.as_str().to_owned(),
                message: reason.to_owned(),
                topic: outgoing.topic.clone(),
                id: Some(id.clone()),
                payload: DeadLetter::beginning(outgoing.payload.get(..most).unwrap_or(&outgoing.payload)),
                bytes: outgoing.payload.len(),
            };
            let key = JobKey {
                client: None,
                id: id.clone(),
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

fn subscription(filter: &str) -> SubscribeFilterInput {
    SubscribeFilterInput::new(filter, QoS::AtLeastOnce)
        .preserve_retain(true)
        .retain_forward_rule(RetainForwardRule::Never)
}
