//! The poller: the one task that polls the network. It waits for nothing else.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rumqttc::{
    AckMode, ConnAck, Event, EventLoop, MqttState, NoticeFailureReason, Packet, Publish, QoS, Transport,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};

use super::backoff::{Backoff, QUICK_RECONNECT_DELAY};
use super::counters::{Counters, count, count_of};
use super::epoch_gate::{Epoch, EpochGate};
use super::failure::ConnectionFailure;
use super::flow::FlowControl;
use super::keep_alive::KeepAliveMonitor;
use super::quarantine::ReconnectDelay;
use super::session::INFLIGHT;
use super::takeover::TakeoverDetector;
use super::{BrokerLimits, ConnectionEvent, LinkState};

/// The most bytes of QoS 0 messages that wait for the inbox; the receive maximum does not bound them.
const MAX_QOS0_BYTES: u64 = 8 << 20;
/// The time for which the outbox is waited for when a connection has ended.
const OUTBOX_TIMEOUT: Duration = Duration::from_secs(1);
/// The bytes that a message counts for beside its payload.
const QOS0_OVERHEAD_BYTES: u64 = 512;

/// Returns the bytes that a QoS 0 message counts for while it waits.
pub(crate) fn qos0_size(publish: &Publish) -> u64 {
    QOS0_OVERHEAD_BYTES + publish.payload.len() as u64
}

/// A message and the epoch of the connection that it came by.
#[derive(Debug)]
pub(crate) struct IncomingPublish {
    pub(crate) epoch: Epoch,
    pub(crate) publish: Publish,
    /// The time of arrival, from which deadlines count.
    pub(crate) arrived: Instant,
}

/// The task that polls the network.
pub(crate) struct Poller {
    pub(crate) events: EventLoop,
    pub(crate) gate: Arc<EpochGate>,
    pub(crate) received: mpsc::UnboundedSender<IncomingPublish>,
    pub(crate) connection_events: mpsc::UnboundedSender<ConnectionEvent>,
    pub(crate) state: watch::Sender<LinkState>,
    pub(crate) counters: Arc<Counters>,
    /// Transports with renewed certificates.
    pub(crate) transports: mpsc::Receiver<Transport>,
    pub(crate) flow: FlowControl,
    pub(crate) keep_alive: KeepAliveMonitor,
    pub(crate) takeover: TakeoverDetector,
    /// The broker's address, for the log.
    pub(crate) broker: String,
}

impl Poller {
    /// Polls until the link is closed or taken over.
    pub(crate) async fn run(mut self) {
        let mut backoff = Backoff::default();
        let mut since: Option<Instant> = None;
        loop {
            let event = tokio::select! {
                event = self.events.poll() => event,
                Some(transport) = self.transports.recv() => {
                    self.clear();
                    self.connection_lost(true).await;
                    since = None;
                    self.events.options.set_transport(transport);
                    tracing::info!(broker = self.broker, "reconnecting with renewed certificates");
                    let reason = "the certificates were renewed".to_owned();
                    self.down(LinkState::Down { reason }, Duration::ZERO).await;
                    continue;
                }
                never = self.takeover.watch(since.unwrap_or_else(Instant::now)), if since.is_some() => match never {},
                () = self.flow.wait_for_room(), if self.flow.is_deferring() && since.is_some() => {
                    self.clear();
                    self.connection_lost(true).await;
                    since = None;
                    self.flow.reset();
                    tracing::info!(broker = self.broker, "reconnecting for what was left to the broker");
                    let reason = "what was left to the broker is fetched".to_owned();
                    self.down(LinkState::Down { reason }, Duration::ZERO).await;
                    continue;
                }
                () = self.keep_alive.expired(), if since.is_some() => {
                    self.clear();
                    let reason = "the broker has fallen silent".to_owned();
                    let lived = since.take().map(|since| since.elapsed());
                    let wait = backoff.after_loss(lived, self.connection_lost(false).await);
                    self.log_down(&reason, wait, backoff.failures());
                    self.down(LinkState::Down { reason }, wait).await;
                    continue;
                }
            };
            if matches!(event, Ok(Event::Incoming(_)) | Err(_)) {
                self.keep_alive.reset();
            }
            match event {
                Ok(Event::Incoming(Packet::ConnAck(connack))) => {
                    since = Some(Instant::now());
                    self.takeover.connected();
                    self.flow.reset();
                    self.up(&connack);
                }
                Ok(Event::Incoming(Packet::Publish(publish))) => self.hand_on(publish),
                Ok(_) => {}
                Err(error) => {
                    let lived = since.take().map(|since| since.elapsed());
                    self.clear();
                    let ended = self.connection_lost(false).await;
                    // A connection that a message is likely to have ended tells nothing of the path.
                    self.takeover
                        .ended(lived.filter(|_| ended == ReconnectDelay::Backoff));
                    match ConnectionFailure::classify(&error) {
                        ConnectionFailure::Closed => break self.end(LinkState::Closed),
                        ConnectionFailure::TakenOver => break self.taken_over(),
                        ConnectionFailure::Dropped | ConnectionFailure::Reset => {
                            let reason = "the broker closed the connection".to_owned();
                            let wait = backoff.after_loss(lived, ended);
                            self.log_down(&reason, wait, backoff.failures());
                            self.down(LinkState::Down { reason }, Duration::ZERO).await;
                            let in_trials = ended == ReconnectDelay::Short;
                            if self.takeover.is_taken_over(lived, wait, in_trials).await {
                                break self.taken_over();
                            }
                        }
                        ConnectionFailure::Refused(reason) => {
                            let wait = Backoff::refused();
                            tracing::error!(
                                broker = self.broker,
                                reason,
                                retry_s = wait.as_secs_f64(),
                                "refused"
                            );
                            self.down(LinkState::Refused { reason }, wait).await;
                        }
                        ConnectionFailure::Down(reason) => {
                            let wait = backoff.after_loss(lived, ended);
                            self.log_down(&reason, wait, backoff.failures());
                            self.down(LinkState::Down { reason }, wait).await;
                        }
                    }
                }
            }
        }
    }

    fn up(&self, connack: &ConnAck) {
        count(&self.counters.connections);
        let properties = connack.properties.as_ref();
        let limits = BrokerLimits {
            max_packet: properties
                .and_then(|p| p.max_packet_size)
                .map_or(usize::MAX, |n| n as usize),
            receive_maximum: properties.and_then(|p| p.receive_max).map_or(65_535, usize::from),
            subscription_ids: properties.and_then(|p| p.subscription_identifiers_available) != Some(0),
            retain: properties.and_then(|p| p.retain_available) != Some(0),
            session_present: connack.session_present,
        };
        if !connack.session_present {
            self.gate.begin_session();
        }
        if !limits.retain {
            tracing::warn!(
                broker = self.broker,
                "the broker keeps no retained messages: status, stats and events reach only who listens just then"
            );
        }
        tracing::info!(
            broker = self.broker,
            session_present = connack.session_present,
            "connected"
        );
        let _ = self
            .connection_events
            .send(ConnectionEvent::Up(limits, self.gate.epoch()));
        self.state.send_replace(LinkState::Up);
    }

    fn hand_on(&mut self, publish: Publish) {
        count(&self.counters.received);
        if !self.flow.accepts(&publish) {
            return;
        }
        if publish.qos == QoS::AtMostOnce {
            let size = qos0_size(&publish);
            let waiting = self.counters.qos0_waiting.fetch_add(size, Ordering::Relaxed);
            if waiting + size > MAX_QOS0_BYTES {
                self.counters.qos0_waiting.fetch_sub(size, Ordering::Relaxed);
                count(&self.counters.unanswerable);
                // One line for a thousand of them.
                if count_of(&self.counters.qos0_dropped).is_multiple_of(1000) {
                    tracing::warn!("QoS 0 messages are dropped: too many wait; clients should use QoS 1");
                }
                return;
            }
        }
        let epoch = self.gate.epoch();
        // A failed send: the inbox has ended, and the broker keeps the message for the next start.
        let received = IncomingPublish {
            epoch,
            publish,
            arrived: Instant::now(),
        };
        if self.received.send(received).is_ok() {
            count(&self.counters.handed_on);
        }
    }

    /// Makes the client library forget the connection and what was in flight on it: the library would publish that again by
    /// itself, and with it the message that ended the connection. At QoS 1 the broker keeps nothing of it.
    fn clear(&mut self) {
        // The gate is closed before the queue is emptied, so that nothing for this connection is added meanwhile.
        self.gate.close();
        self.events.clean();
        self.events
            .drain_pending_as_failed(NoticeFailureReason::SessionReset);
        // Without a new state the packet ids of drained packets would stay reserved.
        self.events.state = MqttState::builder(INFLIGHT).ack_mode(AckMode::Manual).build();
    }

    /// Tells the outbox that the connection has ended, and returns how soon to reconnect.
    async fn connection_lost(&self, is_deliberate: bool) -> ReconnectDelay {
        let (wait, answer) = oneshot::channel();
        let _ = self
            .connection_events
            .send(ConnectionEvent::Down { is_deliberate, wait });
        // No answer: the link is being closed.
        let answer = timeout(OUTBOX_TIMEOUT, answer).await;
        answer
            .ok()
            .and_then(Result::ok)
            .unwrap_or(ReconnectDelay::Backoff)
    }

    async fn down(&self, state: LinkState, wait: Duration) {
        self.state.send_replace(state);
        tokio::time::sleep(wait).await;
    }

    fn taken_over(&self) {
        tracing::error!(broker = self.broker, "another client took over the session");
        self.end(LinkState::TakenOver);
    }

    fn end(&self, state: LinkState) {
        self.state.send_replace(state);
    }

    /// Logs the first failure and every tenth, since a broker that is away for a week must not fill the log. A failure that a
    /// message is likely to blame for is logged by the outbox.
    fn log_down(&self, reason: &str, wait: Duration, failures: u32) {
        let retry_s = wait.as_secs_f64();
        if failures % 10 == 1 && wait > QUICK_RECONNECT_DELAY {
            tracing::warn!(broker = self.broker, reason, retry_s, failures, "no connection");
        } else {
            tracing::debug!(broker = self.broker, reason, retry_s, failures, "no connection");
        }
    }
}

#[cfg(test)]
mod tests {
    use phi_edge_wire::{State, Status};
    use rumqttc::{AsyncClient, PublishOptions};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::time::{sleep, timeout};

    use super::*;
    use crate::link::{LinkConfig, options, tests};

    const KEEP_ALIVE: Duration = Duration::from_secs(10);
    /// CONNACK without properties.
    const CONNACK: [u8; 5] = [0x20, 3, 0, 0, 0];

    #[tokio::test(start_paused = true)]
    async fn a_broker_that_answers_nothing_is_missed_while_something_is_sent() {
        let config = LinkConfig {
            keep_alive: KEEP_ALIVE,
            ..tests::config(1883)
        };
        let mut options = options::options(&config, &Status::new(State::Offline, "boot")).expect("options");
        // It takes whatever comes and says nothing but its CONNACK.
        options.set_socket_connector(|_, _| async {
            let (near, mut far) = tokio::io::duplex(4096);
            tokio::spawn(async move {
                let mut heard = [0; 4096];
                let mut greeted = false;
                while far.read(&mut heard).await.is_ok_and(|n| n > 0) {
                    if !std::mem::replace(&mut greeted, true) {
                        far.write_all(&CONNACK).await.expect("a connection");
                    }
                }
            });
            Ok(near)
        });
        let (client, events) = AsyncClient::builder(options).unbounded().build();
        let counters = Arc::new(Counters::default());
        let (received, _messages) = mpsc::unbounded_channel();
        let (connection_events, _connection_events) = mpsc::unbounded_channel();
        let (state_tx, mut state) = watch::channel(LinkState::Connecting);
        let (_transports, transports) = mpsc::channel(1);
        let poller = Poller {
            events,
            gate: Arc::new(EpochGate::new(client.clone())),
            received,
            connection_events,
            state: state_tx,
            counters: Arc::clone(&counters),
            transports,
            flow: FlowControl::new(Arc::clone(&counters), config.max_packet),
            keep_alive: KeepAliveMonitor::new(Arc::clone(&counters), KEEP_ALIVE),
            takeover: TakeoverDetector::new(&config, "boot", Arc::clone(&counters)),
            broker: "localhost:1883".into(),
        };
        let poller = tokio::spawn(poller.run());
        state
            .wait_for(|state| *state == LinkState::Up)
            .await
            .expect("a link");
        counters.answers_due(1);
        let streams = tokio::spawn(async move {
            while client
                .try_publish("t", "chunk", PublishOptions::at_most_once())
                .is_ok()
            {
                sleep(KEEP_ALIVE / 5).await;
            }
        });
        let missed = state.wait_for(|state| matches!(state, LinkState::Down { .. }));
        let missed = timeout(KEEP_ALIVE * 2, missed).await;
        assert!(missed.is_ok(), "the loss is not noticed");
        streams.abort();
        poller.abort();
    }
}
