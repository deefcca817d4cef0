use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use phi_edge_wire::{State, Status};
use rumqttc::AsyncClient;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::*;
use crate::link::epoch_gate::EpochGate;
use crate::link::keep_alive::KeepAliveMonitor;
use crate::link::poller::{IncomingPublish, Poller};
use crate::link::takeover::TakeoverDetector;
use crate::link::{LinkConfig, LinkState, options, tests};

const KEEP_ALIVE: Duration = Duration::from_secs(10);
const PAYLOAD_BYTES: usize = 1000;
const MESSAGE_BYTES: u64 = MESSAGE_OVERHEAD_BYTES + PAYLOAD_BYTES as u64;
const TEST_TIMEOUT: Duration = Duration::from_mins(5);

/// A broker with QoS 1 messages for its only client: each connection gets all that are not acknowledged, in order.
#[derive(Default)]
struct Broker {
    waiting: Mutex<BTreeMap<u16, Vec<u8>>>,
    connections: AtomicUsize,
}

impl Broker {
    fn with(messages: u16) -> Arc<Self> {
        let broker = Self::default();
        for id in 1..=messages {
            // Topic `t`, the packet id, no properties.
            let mut packet = vec![0x32];
            let length = 3 + 2 + 1 + PAYLOAD_BYTES;
            packet.push(u8::try_from(length % 128).expect("a byte") | 0x80);
            packet.push(u8::try_from(length / 128).expect("a short packet"));
            packet.extend([0, 1, b't']);
            packet.extend(id.to_be_bytes());
            packet.push(0);
            packet.extend(vec![b'x'; PAYLOAD_BYTES]);
            broker.waiting.lock().expect("no panic").insert(id, packet);
        }
        Arc::new(broker)
    }

    fn left(&self) -> usize {
        self.waiting.lock().expect("no panic").len()
    }

    async fn serve(self: Arc<Self>, stream: DuplexStream) {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let (answers, mut to_write) = mpsc::unbounded_channel::<Vec<u8>>();
        tokio::spawn(async move {
            while let Some(bytes) = to_write.recv().await {
                if writer.write_all(&bytes).await.is_err() {
                    return;
                }
            }
        });
        while let Some((kind, body)) = packet(&mut reader).await {
            match kind >> 4 {
                1 => {
                    let again = self.connections.fetch_add(1, Ordering::SeqCst) > 0;
                    let _ = answers.send(vec![0x20, 3, u8::from(again), 0, 0]);
                    for message in self.waiting.lock().expect("no panic").values() {
                        let _ = answers.send(message.clone());
                    }
                }
                4 => {
                    let id = u16::from_be_bytes([body[0], body[1]]);
                    self.waiting.lock().expect("no panic").remove(&id);
                }
                12 => {
                    let _ = answers.send(vec![0xD0, 0]);
                }
                _ => {}
            }
        }
    }
}

/// The next packet: its first byte, and what follows its length.
async fn packet(reader: &mut (impl tokio::io::AsyncRead + Unpin)) -> Option<(u8, Vec<u8>)> {
    let kind = reader.read_u8().await.ok()?;
    let (mut length, mut shift) = (0, 0);
    loop {
        let byte = reader.read_u8().await.ok()?;
        length |= usize::from(byte & 0x7F) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).await.ok()?;
    Some((kind, body))
}

struct Bench {
    broker: Arc<Broker>,
    counters: Arc<Counters>,
    gate: Arc<EpochGate>,
    received: mpsc::UnboundedReceiver<IncomingPublish>,
    state: watch::Receiver<LinkState>,
    _open: Box<dyn std::any::Any>,
}

/// A poller with room for `most` bytes, connected to a broker with so many messages for it.
fn bench(messages: u16, limit: u64) -> Bench {
    let broker = Broker::with(messages);
    let config = LinkConfig {
        keep_alive: KEEP_ALIVE,
        ..tests::config(1883)
    };
    let mut options = options::options(&config, &Status::new(State::Offline, "boot")).expect("options");
    let served = Arc::clone(&broker);
    options.set_socket_connector(move |_, _| {
        let served = Arc::clone(&served);
        async move {
            let (near, far) = tokio::io::duplex(1 << 16);
            tokio::spawn(served.serve(far));
            Ok(near)
        }
    });
    let (client, events) = AsyncClient::builder(options).unbounded().build();
    let counters = Arc::new(Counters::default());
    let (received_tx, received) = mpsc::unbounded_channel();
    let (connection_events, open_notes) = mpsc::unbounded_channel();
    let (state_tx, state) = watch::channel(LinkState::Connecting);
    let (transports_tx, transports) = mpsc::channel(1);
    let gate = Arc::new(EpochGate::new(client.clone()));
    let poller = Poller {
        events,
        gate: Arc::clone(&gate),
        received: received_tx,
        connection_events,
        state: state_tx,
        counters: Arc::clone(&counters),
        transports,
        flow: FlowControl::bounded(Arc::clone(&counters), limit),
        keep_alive: KeepAliveMonitor::new(Arc::clone(&counters), KEEP_ALIVE),
        takeover: TakeoverDetector::new(&config, "boot", Arc::clone(&counters)),
        broker: "localhost:1883".into(),
    };
    let poller = tokio::spawn(poller.run());
    Bench {
        broker,
        counters,
        gate,
        received,
        state,
        _open: Box::new((client, open_notes, transports_tx, poller)),
    }
}

impl Bench {
    /// Deals with the next message as the inbox does.
    async fn deal(&mut self) -> u16 {
        let received = timeout(TEST_TIMEOUT, self.received.recv()).await;
        let received = received.expect("in time").expect("a message");
        self.gate.acknowledge(received.epoch, &received.publish);
        let size = size(&received.publish);
        self.counters.held.send_modify(|held| *held -= size);
        received.publish.pkid
    }

    fn held(&self) -> u64 {
        *self.counters.held.borrow()
    }
}

#[tokio::test(start_paused = true)]
async fn what_waits_is_bounded_and_all_of_it_comes_in_the_end() {
    for (messages, room) in [(40, 8), (40, 1), (9, 40)] {
        let limit = room * MESSAGE_BYTES;
        let mut bench = bench(messages, limit);
        let mut first = Vec::new();
        while bench.broker.left() > 0 {
            assert!(bench.held() <= limit, "{} of {limit}", bench.held());
            if let Ok(received) = timeout(Duration::from_secs(1), bench.deal()).await
                && first.last().is_none_or(|last| *last < received)
            {
                first.push(received);
            }
        }
        // Each for the first time in its order, whatever came again.
        assert_eq!(first, (1..=messages).collect::<Vec<_>>());
        let deferred = bench.counters.deferred.load(Ordering::SeqCst);
        assert_eq!(deferred > 0, u64::from(messages) > room, "{deferred}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_connection_lives_while_nothing_is_dealt_with() {
    let mut bench = bench(40, 8 * MESSAGE_BYTES);
    bench
        .state
        .wait_for(|state| *state == LinkState::Up)
        .await
        .expect("a link");
    // As while a model loads.
    sleep(KEEP_ALIVE * 30).await;
    assert_eq!(bench.broker.connections.load(Ordering::SeqCst), 1);
    assert_eq!(*bench.state.borrow(), LinkState::Up);
    assert_eq!(bench.held(), 8 * MESSAGE_BYTES);
    while bench.broker.left() > 0 {
        bench.deal().await;
        sleep(Duration::from_millis(1)).await;
    }
    assert!(bench.broker.connections.load(Ordering::SeqCst) > 1);
}

#[tokio::test(start_paused = true)]
async fn a_message_beyond_the_bound_is_taken_alone() {
    let mut bench = bench(3, MESSAGE_BYTES / 2);
    while bench.broker.left() > 0 {
        bench.deal().await;
        sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(bench.held(), 0);
}
