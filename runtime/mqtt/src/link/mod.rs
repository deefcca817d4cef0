//! The link to the broker: a poller, an inbox and an outbox, each a task.
//!
//! The poller waits for nothing but the network. Incoming messages go through a channel that is bounded in bytes (`flow.rs`);
//! outgoing messages are published without waiting. The outbox records what the broker has acknowledged. The client library
//! holds no more than a window of that and forgets it when a connection ends: the quarantine decides what is published again
//! and when (`quarantine`).

mod backoff;
mod counters;
mod epoch_gate;
pub(crate) mod failure;
mod flow;
mod inbox;
mod keep_alive;
mod liveness;
mod options;
mod outbox;
mod outgoing;
mod poller;
mod properties;
mod quarantine;
mod routing;
mod session;
mod takeover;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use phi_edge_service::{Reply, Service};
use phi_edge_wire::Status;
use rumqttc::{AsyncClient, Transport};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::rule_topics::RuleTopics;
use crate::tls::{TlsError, TlsFiles};
use crate::topics::Topics;
pub use counters::{CounterReader, LinkCounters};
pub use liveness::LinkLiveness;
pub(crate) use session::{INFLIGHT, MemorySession};

use counters::Counters;
use epoch_gate::{Epoch, EpochGate};
use flow::FlowControl;
use inbox::{Inbox, RuleInputs};
use keep_alive::KeepAliveMonitor;
use outbox::{Outbox, OutboxInputs};
use poller::Poller;
use quarantine::ReconnectDelay;
use routing::Routing;
use takeover::TakeoverDetector;

/// The most QoS 1 messages that the broker may have in flight to this node. All of them wait for one flush to the disk: on a
/// card that takes 40 ms for one, this many make 6,400 messages a second, and a quarter of it would be too few for 200
/// devices. Each may be as large as `mqtt.max_packet`. Brokers may have more in flight when they resume a session.
pub(crate) const RECEIVE_MAXIMUM: u16 = 256;
/// The most time that an orderly disconnect takes once everything is sent.
const DISCONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// The configuration of the link.
#[derive(Debug, Clone)]
pub struct LinkConfig {
    /// The broker's name or address.
    pub host: String,
    /// The broker's port.
    pub port: u16,
    /// The client id: the same over restarts and no other client's.
    pub client_id: String,
    /// The user and the password.
    pub credentials: Option<(String, String)>,
    /// The files of TLS, if the link uses it.
    pub tls: Option<TlsFiles>,
    /// MQTT's keep-alive: the silence after which either side pings.
    pub keep_alive: Duration,
    /// The time for which the broker keeps the session of a node that is away.
    pub session_expiry: Duration,
    /// The largest packet that is accepted, in bytes; the broker is told.
    pub max_packet: u32,
    /// The node's topics.
    pub topics: Topics,
    /// The node's name.
    pub node: String,
}

/// The limits on requests that are checked before the service sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestLimits {
    /// The largest request payload, in bytes.
    pub max_payload: usize,
    /// The largest `max_tokens`.
    pub max_tokens: usize,
    /// The most images of a request.
    pub images: usize,
}

/// The state of the link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkState {
    /// The first attempt is under way.
    Connecting,
    /// Connected.
    Up,
    /// Not connected; the link goes on trying.
    Down {
        /// The reason, in one line.
        reason: String,
    },
    /// The broker refuses the client; the link goes on trying slowly.
    Refused {
        /// The reason, in one line.
        reason: String,
    },
    /// Another client of the same id has the session; the link does not try again.
    TakenOver,
    /// Ended by [`Link::shutdown`].
    Closed,
}

/// A change of the connection, which the poller tells the outbox.
#[derive(Debug)]
pub(crate) enum ConnectionEvent {
    /// A connection is made.
    Up(BrokerLimits, Epoch),
    /// The connection has ended, and the client library has dropped what was in flight.
    Down {
        /// The node ended it: no message in flight is suspected.
        is_deliberate: bool,
        /// Receives how soon to connect again.
        wait: oneshot::Sender<ReconnectDelay>,
    },
}

/// The limits and capabilities in the broker's CONNACK.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BrokerLimits {
    pub(crate) max_packet: usize,
    pub(crate) receive_maximum: usize,
    /// The broker tells the subscription identifiers of messages.
    pub(crate) subscription_ids: bool,
    /// The broker keeps retained messages.
    pub(crate) retain: bool,
    /// The broker resumes the session of an earlier connection.
    pub(crate) session_present: bool,
}

/// The inputs of the link.
pub struct LinkInputs {
    /// The service that takes requests; they wait until it is there.
    pub service: watch::Receiver<Option<Service>>,
    /// The replies to publish.
    pub replies: mpsc::Receiver<Reply>,
    /// The status, published retained.
    pub status: watch::Receiver<Status>,
    /// The stats, published retained; null while there are none.
    pub stats: watch::Receiver<Value>,
    /// Whether the node takes requests of its pool, if it has one.
    pub open: watch::Receiver<bool>,
    /// The topic filters of rules.
    pub rules: watch::Receiver<RuleTopics>,
    /// The limits on requests.
    pub limits: watch::Receiver<RequestLimits>,
}

/// The running link. Dropping it cuts the connection, and the broker publishes the will.
pub struct Link {
    state: watch::Receiver<LinkState>,
    counters: Arc<Counters>,
    /// The files of TLS and the fingerprint of what they held when they were last read.
    tls: Option<parking_lot::Mutex<(TlsFiles, [u8; 32])>>,
    transports: mpsc::Sender<Transport>,
    close: mpsc::Sender<Duration>,
    inbox: JoinHandle<()>,
    outbox: JoinHandle<()>,
    poller: JoinHandle<()>,
}

impl Link {
    /// Starts the link's tasks, which connect and reconnect until the end.
    ///
    /// # Errors
    /// A TLS file can't be used.
    pub fn start(config: LinkConfig, inputs: LinkInputs) -> Result<Self, TlsError> {
        let LinkInputs {
            service,
            replies,
            status,
            stats,
            open,
            rules,
            limits,
        } = inputs;
        let tls = config.tls.clone();
        let stamp = tls.as_ref().map(TlsFiles::fingerprint);
        let (transports_tx, transports) = mpsc::channel(1);
        let offline = status
            .borrow()
            .with(phi_edge_wire::State::Offline, Some("connection lost".into()));
        let options = options::options(&config, &offline)?;
        // Unbounded: the outbox bounds what is in flight, and acknowledgements must never fail.
        let (client, events) = AsyncClient::builder(options).unbounded().build();
        let gate = Arc::new(EpochGate::new(client.clone()));
        let counters = Arc::new(Counters::default());
        let (received_tx, received) = mpsc::unbounded_channel();
        let (connection_events_tx, connection_events) = mpsc::unbounded_channel();
        let (close, closing) = mpsc::channel(1);
        let (state_tx, state) = watch::channel(LinkState::Connecting);
        let broker = format!("{}:{}", config.host, config.port);
        let poller = Poller {
            events,
            gate: Arc::clone(&gate),
            received: received_tx,
            connection_events: connection_events_tx,
            state: state_tx,
            counters: Arc::clone(&counters),
            transports,
            flow: FlowControl::new(Arc::clone(&counters), config.max_packet),
            keep_alive: KeepAliveMonitor::new(Arc::clone(&counters), config.keep_alive),
            takeover: TakeoverDetector::new(&config, &status.borrow().boot_id, Arc::clone(&counters)),
            broker,
        };
        let routing = Arc::new(Routing::new());
        let inbox = Inbox::new(
            &config,
            service.clone(),
            RuleInputs {
                topics: rules.clone(),
                routing: Arc::clone(&routing),
            },
            limits,
            Arc::clone(&gate),
            Arc::clone(&counters),
            &status.borrow().boot_id,
        );
        let outbox_inputs = OutboxInputs {
            service,
            status,
            stats,
            open,
            rules,
            routing,
        };
        let outbox = Outbox::new(client, gate, config, outbox_inputs, Arc::clone(&counters));
        let seen = Arc::clone(&counters);
        Ok(Self {
            tls: tls.zip(stamp).map(parking_lot::Mutex::new),
            transports: transports_tx,
            state,
            counters,
            close,
            inbox: tokio::spawn(inbox.run(received)),
            outbox: tokio::spawn(outbox.run(replies, connection_events, closing)),
            poller: tokio::spawn(async move { seen.heartbeat.during(Box::pin(poller.run())).await }),
        })
    }

    /// Reads the certificates again and, if they have changed, reconnects with them; nothing is lost. True if they have changed.
    ///
    /// # Errors
    /// A file can't be used: the link goes on with the earlier ones.
    pub fn renew_certificates(&self) -> Result<bool, TlsError> {
        let Some(tls) = &self.tls else {
            return Ok(false);
        };
        let mut tls = tls.lock();
        let stamp = tls.0.fingerprint();
        if stamp == tls.1 {
            return Ok(false);
        }
        let transport = tls.0.transport()?;
        // The channel is full: an earlier renewal is pending, and the next call tries again.
        let sent = self.transports.try_send(transport).is_ok();
        if sent {
            tls.1 = stamp;
        }
        Ok(sent)
    }

    /// The state of the link and its changes.
    pub fn state(&self) -> watch::Receiver<LinkState> {
        self.state.clone()
    }

    /// A reader of the link's counters.
    pub fn watch_counters(&self) -> CounterReader {
        CounterReader(Arc::clone(&self.counters))
    }

    /// A reader of the link's heartbeat.
    pub fn liveness(&self) -> LinkLiveness {
        LinkLiveness::new(
            Arc::clone(&self.counters.heartbeat),
            self.counters.short_connections.subscribe(),
        )
    }

    /// Waits, at most for `limit`, until the broker gives this node no more requests of its pool and those given are handled.
    /// [`LinkInputs::open`] makes the node leave the pool.
    pub async fn left_pool(&self, limit: Duration) {
        let mut in_pool = self.counters.in_pool.subscribe();
        let mut dealt_with = self.counters.dealt_with.subscribe();
        let left = async {
            // The senders live in `self`: no error can come.
            if !*in_pool.borrow() {
                return;
            }
            let _ = in_pool.wait_for(|in_pool| !in_pool).await;
            let given = self.counters.handed_on.load(Ordering::Relaxed);
            let _ = dealt_with.wait_for(|messages| *messages >= given).await;
        };
        if timeout(limit, left).await.is_err() {
            tracing::warn!("the pool was not left in time; what it gave this node waits for its next start");
        }
    }

    /// Stops taking requests: later ones stay with the broker for the next start.
    pub fn stop_taking(&self) {
        self.inbox.abort();
    }

    /// Sends what is queued, within `limit`, publishes the status `offline` and disconnects. The log tells how many messages
    /// the broker has not acknowledged by then; stored ones are sent after the next start.
    pub async fn shutdown(self, limit: Duration) {
        self.inbox.abort();
        let _ = self.close.send(limit).await;
        if timeout(limit + DISCONNECT_TIMEOUT, self.outbox).await.is_err() {
            tracing::warn!("the link did not close in time");
        }
        let abort = self.poller.abort_handle();
        if timeout(DISCONNECT_TIMEOUT, self.poller).await.is_err() {
            abort.abort();
        }
    }
}
