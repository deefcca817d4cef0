//! Publishing what the quarantine releases, and telling the quarantine the result.

use std::sync::Arc;
use std::time::Duration;

use phi_edge_service::Reply;
use phi_edge_wire::Status;
use rumqttc::{AsyncClient, PublishNotice, PublishOptions, PublishProperties, QoS};
use tokio::time::Instant;

use super::{Completion, Outbox, RequestSubscription};
use crate::link::ConnectionEvent;
use crate::link::counters::count;
use crate::link::outgoing::{Outgoing, OutgoingKind, destination};
use crate::link::quarantine::{ReconnectDelay, Shipment, Verdict};
use crate::topics::TopicError;

/// The first time for which no stats are published after they ended connections; it doubles each time.
const INITIAL_STATS_HOLD: Duration = Duration::from_mins(1);
/// The longest such time.
const MAX_STATS_HOLD: Duration = Duration::from_hours(1);
/// The most bytes of a user property that pads a control (MQTT 5, section 1.5.4).
const MAX_PADDING_BYTES: usize = u16::MAX as usize;

impl Outbox {
    /// Handles a change of the connection.
    pub(super) fn connection_event(&mut self, event: ConnectionEvent) {
        if let Some(service) = self.service.borrow().as_ref() {
            service.set_connected(matches!(event, ConnectionEvent::Up(..)));
        }
        match event {
            ConnectionEvent::Up(limits, epoch) => {
                self.conclude_connection();
                self.broker = Some(limits);
                self.epoch = epoch;
                self.rules_refused = None;
                self.routing.connected(limits.session_present);
                self.subscribe();
                self.advance_rules();
                self.stop_listening(limits.session_present);
                self.status_due = true;
                self.stats_due = true;
                let now = self.now();
                self.quarantine.up(now);
                for outgoing in self
                    .quarantine
                    .sift(|outgoing| outgoing.packet_size() <= limits.max_packet)
                {
                    self.too_large(&outgoing, outgoing.packet_size(), limits.max_packet);
                }
            }
            ConnectionEvent::Down { is_deliberate, wait } => {
                self.broker = None;
                self.fence = None;
                // Nothing arrives without a connection, and the next one leaves the pool again if it must.
                self.counters.in_pool.send_replace(false);
                self.conclude_connection();
                self.connection_end = Some((is_deliberate, wait));
                if self.publishes_in_flight == 0 {
                    self.conclude_connection();
                }
            }
        }
    }

    /// Concludes a connection that has ended, once all answers that came by it are known.
    pub(super) fn conclude_connection(&mut self) {
        let Some((is_deliberate, wait)) = self.connection_end.take() else {
            return;
        };
        let said = if is_deliberate {
            self.quarantine.closed();
            ReconnectDelay::Backoff
        } else {
            let now = self.now();
            let suspects = self.quarantine.suspects();
            let said = self.quarantine.died(now);
            let suspects = (suspects, self.quarantine.suspects());
            if suspects.1 > suspects.0 {
                tracing::warn!(
                    messages = suspects.1 - suspects.0,
                    "the connection ended while messages were under way; they are tried one by one"
                );
            }
            said
        };
        // An error: the poller has stopped waiting.
        let _ = wait.send(said);
    }

    /// Takes a reply of the service.
    pub(super) fn reply(&mut self, reply: &Reply) {
        let outgoing = Outgoing::reply(reply, &self.config.topics, &self.config.node);
        if matches!(outgoing.kind, OutgoingKind::DeadLetter(_)) {
            count(&self.counters.dead_letters);
        }
        if outgoing.kind == OutgoingKind::Chunk {
            return self.chunk(outgoing);
        }
        // The client library or the broker would end the connection at an invalid topic.
        let topics = &self.config.topics;
        let checked = if let OutgoingKind::Event { .. } = outgoing.kind {
            topics.check_event(&outgoing.topic)
        } else {
            topics.check_form(&outgoing.topic).map_err(TopicError::Invalid)
        };
        match checked {
            Ok(()) => self.enqueue(outgoing),
            Err(TopicError::Invalid(fault)) => self.undeliverable(&outgoing, &fault.to_string()),
            Err(other) => self.rejected(&outgoing, &other.to_string()),
        }
    }

    /// Hands a message to the quarantine, unless it is larger than the broker takes.
    pub(super) fn enqueue(&mut self, outgoing: Outgoing) {
        let size = outgoing.packet_size();
        match self.broker {
            Some(broker) if size > broker.max_packet => self.too_large(&outgoing, size, broker.max_packet),
            _ => self.quarantine.push(outgoing),
        }
    }

    /// Publishes a chunk at once or drops it: a late chunk is of no use, and the final reply has the whole text.
    fn chunk(&mut self, chunk: Outgoing) {
        let size = chunk.packet_size();
        let fits = self.config.topics.check_form(&chunk.topic).is_ok()
            && self.broker.is_some_and(|broker| size <= broker.max_packet)
            && self.quarantine.may_stream(destination(&chunk.topic), size);
        // The client library's queue has no bound: a broker that is slow to read must not fill it.
        let has_room = Arc::clone(&self.chunks).try_acquire_owned().ok().filter(|_| fits);
        let sent = has_room.and_then(|has_room| {
            let options = PublishOptions::at_most_once().properties(chunk.properties);
            let sent = self.gate.publish(self.epoch, |client| {
                client.try_publish_tracked(chunk.topic, chunk.payload, options)
            });
            Some((has_room, sent?.ok()?))
        });
        match sent {
            Some((has_room, notice)) => {
                tokio::spawn(async move {
                    let _ = notice.wait_async().await;
                    drop(has_room);
                });
            }
            None => count(&self.counters.chunks_dropped),
        }
    }

    /// Publishes as much as may be in flight.
    pub(super) fn pump(&mut self) {
        while let Some(verdict) = self.quarantine.next_verdict() {
            self.apply_verdict(verdict);
        }
        let Some(broker) = self.broker else { return };
        // The status says that the node receives requests.
        if self.subscription == RequestSubscription::Requested {
            return;
        }
        if self.status_due {
            self.status_due = false;
            let status = self.visible_status();
            let (full, minimal) = controls(&self.config.topics.status(), &status);
            self.quarantine.set_status(full, minimal);
        }
        let held = self.stats_held.is_some_and(|(until, _)| until > Instant::now());
        if self.stats_due && !held {
            self.stats_due = false;
            let stats = self.stats.borrow_and_update().clone();
            if !stats.is_null() {
                let stats = phi_edge_wire::to_json(&stats);
                self.enqueue(Outgoing::retained(
                    self.config.topics.stats(),
                    stats,
                    OutgoingKind::Stats,
                ));
            }
        }
        while let Some(shipment) = self.quarantine.next(self.now(), broker.receive_maximum) {
            self.ship(shipment);
        }
        while let Some(verdict) = self.quarantine.next_verdict() {
            self.apply_verdict(verdict);
        }
    }

    /// Returns the number of packets that the broker has to answer: publishes and subscriptions.
    pub(super) fn answers_due(&self) -> usize {
        self.quarantine.unanswered() + self.in_flight.len().saturating_sub(self.publishes_in_flight)
    }

    /// Returns the time at which the quarantine may release a message by itself.
    pub(super) fn wake(&self) -> Option<Instant> {
        self.broker?;
        if self.subscription == RequestSubscription::Requested {
            return None;
        }
        Some(self.origin + self.quarantine.wake()?)
    }

    /// Returns the quarantine's time.
    pub(super) fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    fn ship(&mut self, shipment: Shipment<Outgoing>) {
        let Shipment {
            number,
            message,
            padding,
        } = shipment;
        let Some(broker) = self.broker else { return };
        if message.kind == OutgoingKind::Status && message.packet_size() > broker.max_packet {
            tracing::error!(
                bytes = message.packet_size(),
                limit = broker.max_packet,
                "the status is too large for the broker"
            );
            let now = self.now();
            return self.quarantine.is_too_large(number, now);
        }
        let padding = padding.min(broker.max_packet.saturating_sub(message.packet_size()));
        let Some(mut properties) = message.properties_now() else {
            if let Some(outgoing) = self.quarantine.withdraw(number) {
                self.expired(&outgoing);
            }
            return;
        };
        pad(&mut properties, padding);
        let retain = message.retain && broker.retain;
        let sent = self
            .gate
            .publish(self.epoch, |client| publish(client, &message, properties, retain));
        match sent {
            // The connection is gone: the quarantine learns what was in flight when that is told.
            None | Some(Ok(None)) => {}
            Some(Ok(Some(notice))) => {
                self.publishes_in_flight += 1;
                self.in_flight
                    .spawn(async move { Completion::Published(number, notice.wait_async().await) });
            }
            Some(Err(error)) => {
                if let Some(outgoing) = self.quarantine.withdraw(number) {
                    self.rejected(&outgoing, &error);
                }
            }
        }
    }

    fn apply_verdict(&mut self, verdict: Verdict<Outgoing>) {
        let (outgoing, deaths) = match verdict {
            Verdict::Confirmed(outgoing) => return self.acknowledged(&outgoing),
            Verdict::Convicted(outgoing, deaths) => (outgoing, deaths),
        };
        if outgoing.kind == OutgoingKind::Stats {
            let held = self
                .stats_held
                .map_or(INITIAL_STATS_HOLD, |(_, held)| held.saturating_mul(2));
            let held = held.min(MAX_STATS_HOLD);
            self.stats_held = Some((Instant::now() + held, held));
        }
        let reason =
            format!("{deaths} connections to the broker ended while it was under way, and none without it");
        self.undeliverable(&outgoing, &reason);
    }
}

/// Returns the status, and a minimal form of it that holds only texts of the node itself.
pub(super) fn controls(topic: &str, status: &Status) -> (Outgoing, Outgoing) {
    let minimal = Status::new(status.state, status.boot_id.as_str());
    let control =
        |status: &Status| Outgoing::retained(topic.to_owned(), status.encode(), OutgoingKind::Status);
    (control(status), control(&minimal))
}

/// Makes a packet longer by `bytes`.
fn pad(properties: &mut PublishProperties, bytes: usize) {
    let mut left = bytes;
    while left > 0 {
        let piece = left.min(MAX_PADDING_BYTES);
        properties
            .user_properties
            .push(("padding".into(), ".".repeat(piece)));
        left -= piece;
    }
}

/// Hands a message to the client library, which gives no notice for QoS 0.
fn publish(
    client: &AsyncClient,
    message: &Outgoing,
    properties: PublishProperties,
    // The library refuses a retained message that the broker would refuse.
    retain: bool,
) -> Result<Option<PublishNotice>, String> {
    let qos = if message.at_most_once {
        QoS::AtMostOnce
    } else {
        QoS::AtLeastOnce
    };
    let options = PublishOptions::new(qos).retain(retain).properties(properties);
    let (topic, payload) = (message.topic.clone(), message.payload.clone());
    let sent = if message.at_most_once {
        client.try_publish(topic, payload, options).map(|()| None)
    } else {
        client.try_publish_tracked(topic, payload, options).map(Some)
    };
    sent.map_err(|error| error.to_string())
}
