//! What is subscribed to: requests, the pool, the topics of rules.

use rumqttc::mqttbytes::v5::SubscribeProperties;
use rumqttc::{QoS, RetainForwardRule, SubAck, SubscribeFilterInput, SubscribeReasonCode};
use tokio::time::Instant;

use super::{Landed, Outbox, SUBSCRIBE_AGAIN, Subscription};

impl Outbox {
    /// Always anew: the broker may have forgotten us. Messages that it kept are not sent again for it.
    pub(super) fn subscribe(&mut self) {
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
    pub(super) fn subscribe_rules(&mut self) {
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

    pub(super) fn ruled(&mut self, filter: &str, suback: &SubAck) {
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
    pub(super) fn join_or_leave_pool(&mut self) {
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

    pub(super) fn subscribed(&mut self, suback: &SubAck) {
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
}

fn subscription(filter: &str) -> SubscribeFilterInput {
    SubscribeFilterInput::new(filter, QoS::AtLeastOnce)
        .preserve_retain(true)
        .retain_forward_rule(RetainForwardRule::Never)
}
