//! The subscriptions of rules, and their changes without a loss (`link/routing`).

use std::time::Duration;

use rumqttc::mqttbytes::v5::SubscribeProperties;
use rumqttc::{PubAckReason, PublishNoticeError, PublishOptions, PublishResult, SubAck, SubscribeReasonCode};
use tokio::time::Instant;

use super::subscriptions::subscription;
use super::{Completion, Outbox, RESUBSCRIBE_INTERVAL};
use crate::link::outgoing::{Outgoing, OutgoingKind};
use crate::link::routing::{Action, FENCE_PROPERTY};

/// The time for which a fence is waited for while nothing arrives.
const FENCE_IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// The time for which a fence is waited for while messages arrive, behind which it is queued.
const FENCE_TIMEOUT: Duration = Duration::from_mins(10);

/// A fence in flight.
pub(super) struct Fence {
    number: u64,
    /// The time of the next check whether messages have arrived.
    pub(super) check: Instant,
    give_up: Instant,
    /// The number of messages that were handled at the last check.
    dealt_with: u64,
}

impl Outbox {
    /// Takes the changed topics of rules.
    pub(super) fn change_rules(&mut self) {
        let topics = self.rules.borrow_and_update().clone();
        self.routing.want(&topics, self.service.borrow().as_ref());
        self.rules_refused = None;
        self.status_due = true;
        self.routing.retry();
        self.advance_rules();
    }

    /// Asks again for refused filters.
    pub(super) fn retry_rules(&mut self) {
        self.rules_refused = None;
        self.status_due = true;
        self.routing.retry();
        self.advance_rules();
    }

    /// Sends the subscriptions, unsubscriptions and the fence that are due.
    pub(super) fn advance_rules(&mut self) {
        if self.broker.is_none() {
            return;
        }
        if self.fence.is_some() && !self.routing.is_fenced() {
            self.fence = None;
            self.stop_listening(true);
        }
        for action in self.routing.advance() {
            match action {
                Action::Subscribe { filter, id } => self.subscribe_rule(filter, id),
                Action::Unsubscribe { filter } => self.leave_rule(filter),
                Action::Fence(number) => self.raise_fence(number),
            }
        }
    }

    /// Subscribes to one filter by itself, so that the broker tells by which filter a message came.
    fn subscribe_rule(&mut self, filter: String, id: usize) {
        // The node's own messages are not for its rules.
        let wanted = [subscription(&filter).no_local(true)];
        let properties = SubscribeProperties {
            id: Some(id),
            user_properties: Vec::new(),
        };
        let asked = if self.broker.is_some_and(|broker| broker.subscription_ids) {
            self.client
                .try_subscribe_many_with_properties_tracked(wanted, properties)
        } else {
            self.client.try_subscribe_many_tracked(wanted)
        };
        match asked {
            Ok(notice) => {
                self.in_flight
                    .spawn(async move { Completion::RuleSubscribed(filter, notice.wait_async().await) });
            }
            Err(error) => {
                tracing::error!(%error, filter, "a rule's subscription can't be asked for");
                self.routing.answered(&filter, false);
            }
        }
    }

    fn leave_rule(&mut self, filter: String) {
        match self.client.try_unsubscribe_tracked(filter.as_str()) {
            Ok(notice) => {
                self.in_flight
                    .spawn(async move { Completion::RuleUnsubscribed(filter, notice.wait_async().await) });
            }
            Err(error) => tracing::error!(%error, filter, "a former subscription can't be left"),
        }
    }

    /// Begins a fence: subscribes to the node's own status, the one topic that it may both publish on and subscribe to.
    fn raise_fence(&mut self, number: u64) {
        let now = Instant::now();
        self.fence = Some(Fence {
            number,
            check: now + FENCE_IDLE_TIMEOUT,
            give_up: now + FENCE_TIMEOUT,
            dealt_with: *self.counters.dealt_with.borrow(),
        });
        let status = self.config.topics.status();
        match self.client.try_subscribe_many_tracked([subscription(&status)]) {
            Ok(notice) => {
                self.in_flight
                    .spawn(async move { Completion::StatusSubscribed(number, notice.wait_async().await) });
            }
            Err(error) => self.give_up_fence(number, &error.to_string()),
        }
    }

    pub(super) fn status_subscribed(&mut self, number: u64, suback: &SubAck) {
        if self.fence.as_ref().is_none_or(|fence| fence.number != number) {
            return;
        }
        let refused = |code: &&SubscribeReasonCode| !matches!(code, SubscribeReasonCode::Success(_));
        if let Some(code) = suback.return_codes.iter().find(refused) {
            return self.give_up_fence(number, &format!("the broker refuses the subscription: {code:?}"));
        }
        let status = self.visible_status();
        let status = Outgoing::retained(self.config.topics.status(), status.encode(), OutgoingKind::Status);
        let mut properties = status.properties;
        properties
            .user_properties
            .push((FENCE_PROPERTY.into(), self.routing.name(number)));
        // Not retained, so that the retained status stays without this property.
        let options = PublishOptions::at_least_once().properties(properties);
        match self
            .client
            .try_publish_tracked(status.topic, status.payload, options)
        {
            Ok(notice) => {
                self.in_flight
                    .spawn(async move { Completion::FencePublished(number, notice.wait_async().await) });
            }
            Err(error) => self.give_up_fence(number, &error.to_string()),
        }
    }

    pub(super) fn fence_published(&mut self, number: u64, sent: Result<PublishResult, PublishNoticeError>) {
        match sent {
            Ok(_) | Err(PublishNoticeError::V5PubAck(PubAckReason::Success)) => {}
            Err(PublishNoticeError::V5PubAck(reason)) => {
                self.give_up_fence(number, &format!("the broker does not deliver it: {reason:?}"));
            }
            // The next connection begins another fence.
            Err(error) => tracing::debug!(%error, "a fence was not answered"),
        }
    }

    /// Gives up the fence if it does not come back while nothing else arrives either.
    pub(super) fn check_fence(&mut self) {
        let Some(fence) = &mut self.fence else { return };
        let now = Instant::now();
        let dealt_with = *self.counters.dealt_with.borrow();
        if dealt_with != fence.dealt_with && now < fence.give_up {
            fence.dealt_with = dealt_with;
            fence.check = now + FENCE_IDLE_TIMEOUT;
            return;
        }
        let number = fence.number;
        self.give_up_fence(number, "it does not come back");
    }

    /// Continues without the fence: messages in flight may be missed or counted twice.
    fn give_up_fence(&mut self, number: u64, reason: &str) {
        tracing::warn!(
            reason,
            topic = self.config.topics.status(),
            "the node can't hear its own status; messages that come while the topics of rules change may be missed or \
             count twice"
        );
        let service = self.service.borrow().clone();
        let Some(service) = service else { return };
        if let Some(mut noted) = self.routing.pass(number, &service) {
            let routing = std::sync::Arc::clone(&self.routing);
            tokio::spawn(async move {
                noted.wait().await;
                routing.noted();
            });
        }
        self.fence = None;
        self.stop_listening(true);
    }

    /// Unsubscribes from the node's own status.
    pub(super) fn stop_listening(&self, session_present: bool) {
        if !session_present || self.fence.is_some() {
            return;
        }
        if let Err(error) = self.client.try_unsubscribe(self.config.topics.status()) {
            tracing::error!(%error, "the subscription to the node's own status can't be left");
        }
    }

    pub(super) fn rule_subscribed(&mut self, filter: &str, suback: &SubAck) {
        let refused = |code: &&SubscribeReasonCode| !matches!(code, SubscribeReasonCode::Success(_));
        let refused = suback.return_codes.iter().find(refused);
        let wanted = self.routing.answered(filter, refused.is_none());
        if let Some(code) = refused
            && wanted
        {
            let reason = format!("the broker refuses the subscription of a rule to {filter}: {code:?}");
            tracing::error!(reason, "not subscribed");
            self.rules_refused = Some((reason, Instant::now() + RESUBSCRIBE_INTERVAL));
            self.status_due = true;
        }
        self.advance_rules();
    }
}
