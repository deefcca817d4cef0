//! A series of closed connections, with and without another node behind it.

use std::sync::atomic::{AtomicU32, Ordering};

use phi_edge_wire::{State, Status};
use rumqttc::AsyncClient;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

use super::*;
use crate::client::{Client, ClientOptions};
use crate::embedded::EmbeddedBroker;
use crate::link::epoch_gate::EpochGate;
use crate::link::flow::FlowControl;
use crate::link::keep_alive::KeepAliveMonitor;
use crate::link::poller::Poller;
use crate::link::{LinkState, options, tests};

/// CONNACK without properties.
const CONNACK: [u8; 5] = [0x20, 3, 0, 0, 0];

/// A node's takeover detector at a broker that any client may publish at.
struct Node {
    takeover: TakeoverDetector,
    client: Client,
    topic: String,
    _broker: EmbeddedBroker,
}

impl Node {
    /// Its connection has died once, so that the probe listens.
    async fn suspicious() -> Self {
        let broker = tests::embedded_broker().await;
        let port = broker.address().port();
        let config = tests::config(port);
        let client = Client::connect(ClientOptions {
            host: "127.0.0.1".into(),
            port,
            client_id: "someone".into(),
            ..ClientOptions::default()
        });
        let mut node = Self {
            takeover: TakeoverDetector::new(&config, "own", Arc::default()),
            client: client.await.expect("a client"),
            topic: config.topics.status(),
            _broker: broker,
        };
        assert!(!node.dies(&[]).await);
        let listens = node.takeover.probe.as_ref().is_some_and(Probe::is_subscribed);
        assert!(listens, "the probe listens before the node connects again");
        node
    }

    /// Whether a death of its connection, which these statuses follow, is a takeover.
    async fn dies(&mut self, statuses: &[(State, &str)]) -> bool {
        self.takeover.connected();
        let verdict =
            self.takeover
                .is_taken_over(Some(Duration::from_secs(3)), Duration::from_millis(300), false);
        let published = async {
            for (state, boot_id) in statuses {
                let status = Status::new(*state, *boot_id).encode();
                self.client
                    .publish(&self.topic, status, None)
                    .await
                    .expect("a broker");
            }
        };
        // The death comes first: the first of the two is asked first.
        tokio::join!(biased; verdict, published).0
    }
}

#[tokio::test]
async fn a_node_that_comes_back_each_time_takes_the_session_over() {
    let mut node = Node::suspicious().await;
    assert!(!node.dies(&[(State::Ready, "other")]).await);
    assert!(node.dies(&[(State::Starting, "other")]).await);
}

#[tokio::test]
async fn a_forged_status_is_not_enough() {
    let mut node = Node::suspicious().await;
    assert!(!node.dies(&[(State::Ready, "a"), (State::Ready, "a")]).await);
    assert!(!node.dies(&[(State::Ready, "own"), (State::Ready, "b")]).await);
    assert!(!node.dies(&[(State::Offline, "a"), (State::Ready, "c")]).await);
    assert!(!node.dies(&[(State::Ready, "d")]).await);
}

#[tokio::test]
async fn a_broker_that_forbids_reading_the_status_confirms_nothing() {
    let mut node = Node::suspicious().await;
    // As good as a refusal: the probe ends.
    node.takeover.probe = Some(Probe::open(unreachable_broker(), node.topic.clone()));
    for _ in 0..2 {
        assert!(!node.dies(&[(State::Ready, "other")]).await);
    }
}

fn unreachable_broker() -> MqttOptions {
    let mut options = MqttOptions::new("probe", ("localhost", 1));
    options.set_socket_connector(|_, _| async {
        Err::<tokio::io::DuplexStream, _>(std::io::ErrorKind::ConnectionRefused.into())
    });
    options
}

/// A path that ends the first `short` connections after `life`, and leaves the others alone.
fn path(short: u32, life: Duration, options: &mut MqttOptions) {
    let made = Arc::new(AtomicU32::new(0));
    options.set_socket_connector(move |_, _| {
        let made = Arc::clone(&made);
        async move {
            let (near, mut far) = tokio::io::duplex(4096);
            let is_short = made.fetch_add(1, Ordering::SeqCst) < short;
            tokio::spawn(async move {
                let talk = async {
                    let mut heard = [0; 4096];
                    let mut greeted = false;
                    while far.read(&mut heard).await.is_ok_and(|n| n > 0) {
                        if !std::mem::replace(&mut greeted, true) {
                            far.write_all(&CONNACK).await.expect("a connection");
                        }
                    }
                };
                if is_short {
                    let _ = timeout(life, talk).await;
                } else {
                    talk.await;
                }
            });
            Ok(near)
        }
    });
}

#[tokio::test(start_paused = true)]
async fn a_path_that_ends_connections_is_no_takeover_and_is_told() {
    for life in [0, 1, 4, 9].map(|seconds| Duration::from_millis(seconds * 1000 + 100)) {
        const SHORT_CONNECTIONS: u32 = 20;
        let config = tests::config(1883);
        let mut options = options::options(&config, &Status::new(State::Offline, "boot")).expect("options");
        path(SHORT_CONNECTIONS, life, &mut options);
        let (client, events) = AsyncClient::builder(options).unbounded().build();
        let counters = Arc::new(Counters::default());
        let mut short_connections = counters.short_connections.subscribe();
        let mut takeover = TakeoverDetector::new(&config, "boot", Arc::clone(&counters));
        takeover.probe_options = Box::new(|| Ok(unreachable_broker()));
        let (received, _messages) = mpsc::unbounded_channel();
        let (connection_events, _connection_events) = mpsc::unbounded_channel();
        let (state_tx, state) = watch::channel(LinkState::Connecting);
        let (_transports, transports) = mpsc::channel(1);
        let poller = Poller {
            events,
            gate: Arc::new(EpochGate::new(client)),
            received,
            connection_events,
            state: state_tx,
            counters: Arc::clone(&counters),
            transports,
            flow: FlowControl::new(Arc::clone(&counters), config.max_packet),
            keep_alive: KeepAliveMonitor::new(Arc::clone(&counters), config.keep_alive),
            takeover,
            broker: "localhost:1883".into(),
        };
        let begun = Instant::now();
        let poller = tokio::spawn(poller.run());
        let all = short_connections.wait_for(|short| *short == SHORT_CONNECTIONS);
        assert!(
            timeout(Duration::from_hours(1), all).await.is_ok(),
            "{life:?}: {:?}",
            state.borrow()
        );
        let waited = begun.elapsed().saturating_sub(life * SHORT_CONNECTIONS);
        assert!(
            waited > Duration::from_mins(2),
            "{life:?}: it does not back off: {waited:?}"
        );
        let reset_short_connections = short_connections.wait_for(|short| *short == 0);
        assert!(
            timeout(Duration::from_mins(2), reset_short_connections)
                .await
                .is_ok(),
            "{life:?}"
        );
        assert_eq!(*state.borrow(), LinkState::Up);
        sleep(SERIES_END_AGE).await;
        assert_eq!(*state.borrow(), LinkState::Up, "{life:?}");
        poller.abort();
    }
}
