//! The link to the broker: one task polls, one takes requests in, one brings replies out.
//!
//! The poller waits for nothing but the network. What arrives goes through an unbounded queue that is bounded
//! in bytes (`flow.rs`); what leaves is published without waiting. Our own outbox is the truth about what
//! the broker has acknowledged; the client library holds no more than a window of it, and forgets it when a connection ends:
//! what is published again, and when, is the quarantine's to decide (`quarantine`).

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

/// QoS 1 messages that the broker may have under way to us, unacknowledged. All of them wait for one flush to the disk: on
/// a card that takes 40 ms for one, this many make 6,400 messages a second, and a quarter of it would be too few for 200
/// devices. Each may be as large as `mqtt.max_packet`. Brokers may have more under way when they resume a session.
pub(crate) const RECEIVE_MAXIMUM: u16 = 256;
/// How long an orderly goodbye may take once everything is sent.
const DISCONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How a node is linked to its broker.
#[derive(Debug, Clone)]
pub struct LinkConfig {
    /// The broker's name or address.
    pub host: String,
    /// The broker's port.
    pub port: u16,
    /// Stable over restarts, unlike any other client's.
    pub client_id: String,
    /// User and password.
    pub credentials: Option<(String, String)>,
    /// TLS, if the link uses it.
    pub tls: Option<TlsFiles>,
    /// Silence after which either side asks for a sign of life.
    pub keep_alive: Duration,
    /// How long the broker keeps requests for a node that is away.
    pub session_expiry: Duration,
    /// The largest packet that is taken, in bytes; the broker is told.
    pub max_packet: u32,
    /// The node's topics.
    pub topics: Topics,
    /// The node's name.
    pub node: String,
}

/// Bounds that are checked at the edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestLimits {
    /// The largest request payload, in bytes.
    pub max_payload: usize,
    /// The largest `max_tokens`.
    pub max_tokens: usize,
}

/// How the link is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkState {
    /// The first attempt is under way.
    Connecting,
    /// Connected.
    Up,
    /// Not connected; attempts go on.
    Down {
        /// One line.
        reason: String,
    },
    /// The broker does not want us; attempts go on slowly.
    Refused {
        /// One line.
        reason: String,
    },
    /// Another client of the same id has the session: attempts would fight over it.
    TakenOver,
    /// Ended by [`Link::shutdown`].
    Closed,
}

/// What the poller tells the outbox.
#[derive(Debug)]
pub(crate) enum ConnectionEvent {
    /// A connection was made.
    Up(BrokerLimits, Epoch),
    /// It has ended, and the client library has dropped what was under way.
    Down {
        /// By the node's own will: nothing that was under way is to blame.
        is_deliberate: bool,
        /// Told how soon to connect again.
        wait: oneshot::Sender<ReconnectDelay>,
    },
}

/// What the broker said in its CONNACK.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BrokerLimits {
    pub(crate) max_packet: usize,
    pub(crate) receive_maximum: usize,
    /// It says by which subscription a message comes.
    pub(crate) subscription_ids: bool,
    /// It keeps retained messages.
    pub(crate) retain: bool,
    /// It goes on with the session of an earlier connection.
    pub(crate) session_present: bool,
}

/// What the link works with, from its start to its end.
pub struct LinkInputs {
    /// Who takes requests; they wait until it is there.
    pub service: watch::Receiver<Option<Service>>,
    /// What is to be published.
    pub replies: mpsc::Receiver<Reply>,
    /// The retained status.
    pub status: watch::Receiver<Status>,
    /// The retained stats; null while there are none.
    pub stats: watch::Receiver<Value>,
    /// While true, the node takes requests of its pool, if it has one.
    pub open: watch::Receiver<bool>,
    /// What is subscribed to for rules.
    pub rules: watch::Receiver<RuleTopics>,
    /// What requests may ask for.
    pub limits: watch::Receiver<RequestLimits>,
}

/// The daemon's end of the link. Dropping it cuts the connection, and the broker publishes the will.
pub struct Link {
    state: watch::Receiver<LinkState>,
    counters: Arc<Counters>,
    /// The files of TLS and what they held when they were last read.
    tls: Option<parking_lot::Mutex<(TlsFiles, [u8; 32])>>,
    transports: mpsc::Sender<Transport>,
    close: mpsc::Sender<Duration>,
    inbox: JoinHandle<()>,
    outbox: JoinHandle<()>,
    poller: JoinHandle<()>,
}

impl Link {
    /// Connects, and goes on doing so.
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
        let stamp = tls.as_ref().map(TlsFiles::stamp);
        let (transports_tx, transports) = mpsc::channel(1);
        let offline = status
            .borrow()
            .with(phi_edge_wire::State::Offline, Some("connection lost".into()));
        let options = options::options(&config, &offline)?;
        // Unbounded: the outbox bounds what is under way by itself, and acknowledgements must never fail.
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

    /// Reads the certificates again. If they have changed, the link connects anew with them, and nothing is lost; true then.
    ///
    /// # Errors
    /// A file can't be used: the link goes on with what it has.
    pub fn renew_certificates(&self) -> Result<bool, TlsError> {
        let Some(tls) = &self.tls else {
            return Ok(false);
        };
        let mut tls = tls.lock();
        let stamp = tls.0.stamp();
        if stamp == tls.1 {
            return Ok(false);
        }
        let transport = tls.0.transport()?;
        // Full: another renewal is on its way, and reads no older files than this.
        let sent = self.transports.try_send(transport).is_ok();
        if sent {
            tls.1 = stamp;
        }
        Ok(sent)
    }

    /// How the link is, and each change.
    pub fn state(&self) -> watch::Receiver<LinkState> {
        self.state.clone()
    }

    /// What the link has seen so far, now and later.
    pub fn watch_counters(&self) -> CounterReader {
        CounterReader(Arc::clone(&self.counters))
    }

    /// Whether the link lives, now and later.
    pub fn liveness(&self) -> LinkLiveness {
        LinkLiveness::new(
            Arc::clone(&self.counters.heartbeat),
            self.counters.short_connections.subscribe(),
        )
    }

    /// Waits until the broker gives this node no more requests of its pool, and those that it has given are dealt with. The
    /// pool is left when [`LinkInputs::open`] says so. Not longer than `limit`.
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

    /// Takes no more requests: those that come stay with the broker for the next start.
    pub fn stop_taking(&self) {
        self.inbox.abort();
    }

    /// Sends what there is to send, within `limit`, says `offline` and leaves. What the broker has not
    /// acknowledged by then is lost with this process (the log says how much).
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
