//! The probe: a second connection to the broker that listens to the node's status.

use std::time::Duration;

use phi_edge_wire::{State, Status};
use rumqttc::{
    AsyncClient, Broker, Event, EventLoop, IncomingPacketSizeLimit, MqttOptions, NetworkOptions, Packet,
    Publish, QoS, RetainForwardRule, SubscribeFilterInput, SubscribeReasonCode,
};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::link::LinkConfig;
use crate::tls::TlsError;

/// The largest packet that is accepted; a status is far smaller.
const MAX_PACKET_BYTES: u32 = 64 << 10;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The wait before an attempt to reconnect; it doubles with each failure.
const RECONNECT_INTERVAL: Duration = Duration::from_secs(1);
/// The longest such wait.
const MAX_RECONNECT_INTERVAL: Duration = Duration::from_secs(30);
/// The most sightings that wait to be taken; further ones are dropped.
const MAX_QUEUED_SIGHTINGS: usize = 32;
/// The most bytes of a boot id; a status with a longer one is ignored.
const MAX_BOOT_ID_BYTES: usize = 64;

/// The probe's connection. It ends when this is dropped.
pub(super) struct Probe {
    statuses: mpsc::Receiver<Sighting>,
    subscribed: watch::Receiver<bool>,
    task: JoinHandle<()>,
}

/// A status that a node published just now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sighting {
    pub(super) boot_id: String,
    pub(super) at: Instant,
}

/// Returns the options of the probe's connection. Its client id holds the start's id, so that two nodes that contend for a
/// session can both listen.
pub(super) fn options(config: &LinkConfig, boot_id: &str) -> Result<MqttOptions, TlsError> {
    let start: String = boot_id.chars().take(8).collect();
    let mut options = MqttOptions::new(
        format!("{}-probe-{start}", config.client_id),
        Broker::tcp(config.host.as_str(), config.port),
    );
    options
        .set_clean_start(true)
        .set_keep_alive(30)
        .set_max_packet_size(Some(MAX_PACKET_BYTES))
        .set_incoming_packet_size_limit(IncomingPacketSizeLimit::Bytes(MAX_PACKET_BYTES))
        .set_connect_timeout(CONNECT_TIMEOUT);
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    options.set_network_options(network);
    if let Some((user, password)) = &config.credentials {
        options.set_credentials(user.as_str(), password.clone().into_bytes());
    }
    if let Some(tls) = &config.tls {
        options.set_transport(tls.transport()?);
    }
    Ok(options)
}

impl Probe {
    /// Connects in the background, again after each loss; `topic` is the status topic.
    pub(super) fn open(options: MqttOptions, topic: String) -> Self {
        let (client, events) = AsyncClient::builder(options).unbounded().build();
        let (statuses_tx, statuses) = mpsc::channel(MAX_QUEUED_SIGHTINGS);
        let (subscribed_tx, subscribed) = watch::channel(false);
        let task = tokio::spawn(listen(client, events, topic, statuses_tx, subscribed_tx));
        Self {
            statuses,
            subscribed,
            task,
        }
    }

    /// Whether every status published now is received.
    pub(super) fn is_subscribed(&self) -> bool {
        *self.subscribed.borrow()
    }

    /// Whether the probe has ended, because the broker refused the subscription.
    pub(super) fn has_ended(&self) -> bool {
        self.task.is_finished()
    }

    /// Waits until the broker has agreed to the subscription, at most for `limit`.
    pub(super) async fn subscribed(&mut self, limit: Duration) {
        // An error: the broker has refused the subscription.
        let _ = timeout(limit, self.subscribed.wait_for(|subscribed| *subscribed)).await;
    }

    /// Returns the next sighting; never resolves once the probe has ended. Cancel safe.
    pub(super) async fn next(&mut self) -> Sighting {
        match self.statuses.recv().await {
            Some(sighting) => sighting,
            None => std::future::pending().await,
        }
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn listen(
    client: AsyncClient,
    mut events: EventLoop,
    topic: String,
    statuses: mpsc::Sender<Sighting>,
    subscribed: watch::Sender<bool>,
) {
    let mut wait = RECONNECT_INTERVAL;
    loop {
        match events.poll().await {
            Ok(Event::Incoming(Packet::ConnAck(_))) => {
                // QoS 0, so that nothing is delivered twice, and without the retained status.
                let filter = SubscribeFilterInput::new(topic.as_str(), QoS::AtMostOnce)
                    .retain_forward_rule(RetainForwardRule::Never);
                if let Err(error) = client.try_subscribe_many([filter]) {
                    tracing::debug!(%error, "the probe can't subscribe");
                    return;
                }
            }
            Ok(Event::Incoming(Packet::SubAck(answer))) => {
                let agreed = |code: &SubscribeReasonCode| matches!(code, SubscribeReasonCode::Success(_));
                if !answer.return_codes.iter().all(agreed) {
                    tracing::debug!(
                        topic,
                        "the broker lets the probe not read the status; a takeover that it does not tell of stays unknown"
                    );
                    return;
                }
                subscribed.send_replace(true);
                wait = RECONNECT_INTERVAL;
            }
            Ok(Event::Incoming(Packet::Publish(publish))) => {
                if let Some(sighting) = sighting(&publish) {
                    // A full channel holds more sightings than are needed.
                    let _ = statuses.try_send(sighting);
                }
            }
            Ok(_) => {}
            Err(error) => {
                subscribed.send_replace(false);
                events.clean();
                tracing::debug!(%error, "the probe has no connection");
                sleep(wait).await;
                wait = (wait * 2).min(MAX_RECONNECT_INTERVAL);
            }
        }
    }
}

/// Returns the sighting that a message is, if it is a fresh status of a node that is not offline.
fn sighting(publish: &Publish) -> Option<Sighting> {
    if publish.retain {
        return None;
    }
    let status: Status = serde_json::from_slice(&publish.payload).ok()?;
    let is_there = status.state != State::Offline
        && !status.boot_id.is_empty()
        && status.boot_id.len() <= MAX_BOOT_ID_BYTES;
    is_there.then(|| Sighting {
        boot_id: status.boot_id,
        at: Instant::now(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_fresh_status_of_a_node_that_is_there_is_seen() {
        let publish = |payload: Vec<u8>, retain| Publish {
            retain,
            ..Publish::new("status", QoS::AtMostOnce, payload, None)
        };
        let of = |state, boot_id: &str| Status::new(state, boot_id).encode();
        let seen = |publish| sighting(&publish).map(|sighting| sighting.boot_id);
        assert_eq!(seen(publish(of(State::Ready, "a"), false)).as_deref(), Some("a"));
        assert_eq!(
            seen(publish(of(State::Starting, "a"), false)).as_deref(),
            Some("a")
        );
        assert_eq!(seen(publish(of(State::Ready, "a"), true)), None, "retained");
        assert_eq!(seen(publish(of(State::Offline, "a"), false)), None);
        assert_eq!(seen(publish(of(State::Ready, ""), false)), None);
        assert_eq!(seen(publish(of(State::Ready, &"a".repeat(1000)), false)), None);
        assert_eq!(seen(publish(b"{}".to_vec(), false)), None);
    }
}
