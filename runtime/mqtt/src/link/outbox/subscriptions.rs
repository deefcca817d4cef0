//! The subscriptions to requests, cancellations and the pool.

use rumqttc::{QoS, RetainForwardRule, SubAck, SubscribeFilterInput, SubscribeReasonCode};
use tokio::time::Instant;

use super::{Completion, Outbox, RESUBSCRIBE_INTERVAL, RequestSubscription};

impl Outbox {
    /// Subscribes on each connection, since the broker may have lost the session. Queued messages are not sent again for it.
    pub(super) fn subscribe(&mut self) {
        let filters = self.config.topics.subscriptions();
        self.subscription = RequestSubscription::Requested;
        match self
            .client
            .try_subscribe_many_tracked(filters.iter().map(|filter| subscription(filter)))
        {
            Ok(notice) => {
                self.in_flight
                    .spawn(async { Completion::Subscribed(notice.wait_async().await) });
            }
            Err(error) => tracing::error!(%error, "the subscription can't be asked for"),
        }
        // The broker may remember the node as a member of the pool, or not.
        self.in_pool = !*self.open.borrow();
        self.join_or_leave_pool();
    }

    /// Joins the pool or leaves it, as the node says: it leaves before it drains, while it is degraded or its queue is full.
    /// Requests that the broker has given the node by then are still answered.
    pub(super) fn join_or_leave_pool(&mut self) {
        let filters = self.config.topics.shared_subscriptions();
        let open = *self.open.borrow_and_update();
        if filters.is_empty() || self.broker.is_none() || open == self.in_pool {
            return;
        }
        self.in_pool = open;
        self.pool_refused = None;
        self.status_due = true;
        // Until the broker has answered the unsubscription, it may give the node requests.
        self.counters.in_pool.send_replace(true);
        tracing::info!(open, "pool");
        if open {
            match self
                .client
                .try_subscribe_many_tracked(filters.iter().map(|filter| subscription(filter)))
            {
                Ok(notice) => {
                    self.in_flight
                        .spawn(async { Completion::PoolJoined(notice.wait_async().await) });
                }
                Err(error) => tracing::error!(%error, "the pool can't be joined"),
            }
        } else {
            match self.client.try_unsubscribe_many_tracked(filters) {
                Ok(notice) => {
                    self.in_flight
                        .spawn(async { Completion::PoolLeft(notice.wait_async().await) });
                }
                Err(error) => tracing::error!(%error, "the pool can't be left"),
            }
        }
    }

    /// Handles the broker's answer to the subscription to requests.
    pub(super) fn subscribed(&mut self, suback: &SubAck) {
        self.counters.heartbeat.subscribed();
        let refused = suback
            .return_codes
            .iter()
            .zip(self.config.topics.subscriptions())
            .find(|(code, _)| !matches!(code, SubscribeReasonCode::Success(_)));
        self.subscription = match refused {
            None => RequestSubscription::Granted,
            Some((code, filter)) => {
                let reason = format!("the broker refuses the subscription to {filter}: {code:?}");
                tracing::error!(reason, "not subscribed");
                RequestSubscription::Refused {
                    reason,
                    retry_at: Instant::now() + RESUBSCRIBE_INTERVAL,
                }
            }
        };
        self.status_due = true;
    }
}

/// Returns a subscription with QoS 1 that brings no retained messages.
pub(super) fn subscription(filter: &str) -> SubscribeFilterInput {
    SubscribeFilterInput::new(filter, QoS::AtLeastOnce)
        .preserve_retain(true)
        .retain_forward_rule(RetainForwardRule::Never)
}
