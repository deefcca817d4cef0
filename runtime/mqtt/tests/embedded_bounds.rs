//! What the embedded broker holds for clients that do not read, and for those that are away.

#![allow(clippy::unwrap_used, reason = "test code")]

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use phi_edge_mqtt::{EmbeddedBroker, EmbeddedBrokerConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::timeout;

const MIB: u64 = 1 << 20;

/// A silence after which a burst is over.
const QUIET_PERIOD: Duration = Duration::from_millis(500);

/// Memory is that of the process: one test at a time.
static EXCLUSIVE_LOCK: Mutex<()> = Mutex::const_new(());

async fn broker(storage: Option<&Path>) -> EmbeddedBroker {
    EmbeddedBroker::start(EmbeddedBrokerConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        password_file: None,
        acl_file: None,
        storage: storage.map(Path::to_owned),
        max_packet: 2 << 20,
    })
    .await
    .unwrap()
}

/// A client that knows just enough of MQTT 5.
struct Raw(TcpStream);

impl Raw {
    async fn connect(address: SocketAddr, id: &str, session: u32) -> Self {
        let mut raw = Self(TcpStream::connect(address).await.unwrap());
        let mut body = b"\x00\x04MQTT\x05\x00\x00\x00\x05\x11".to_vec();
        body.extend(session.to_be_bytes());
        body.extend(text(id));
        raw.send(0x10, &body).await;
        assert_eq!(raw.packet().await.0, 0x20);
        raw
    }

    async fn subscribe(&mut self, filter: &str, qos: u8) {
        let mut body = vec![0, 1, 0];
        body.extend(text(filter));
        body.push(qos);
        self.send(0x82, &body).await;
        assert_eq!(self.packet().await.0, 0x90);
    }

    async fn publish(&mut self, topic: &str, id: Option<u16>, payload: &[u8]) {
        let mut body = text(topic);
        body.extend(id.into_iter().flat_map(u16::to_be_bytes));
        body.push(0);
        body.extend(payload);
        self.send(if id.is_some() { 0x32 } else { 0x30 }, &body).await;
    }

    async fn send(&mut self, kind: u8, body: &[u8]) {
        let mut packet = vec![kind];
        let mut length = body.len();
        loop {
            let byte = u8::try_from(length % 128).unwrap();
            length /= 128;
            packet.push(if length > 0 { byte | 128 } else { byte });
            if length == 0 {
                break;
            }
        }
        packet.extend(body);
        self.0.write_all(&packet).await.unwrap();
    }

    async fn packet(&mut self) -> (u8, Vec<u8>) {
        let kind = self.0.read_u8().await.unwrap();
        let (mut length, mut shift) = (0, 0);
        loop {
            let byte = self.0.read_u8().await.unwrap();
            length |= usize::from(byte & 127) << shift;
            shift += 7;
            if byte & 128 == 0 {
                break;
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).await.unwrap();
        (kind & 0xf0, body)
    }

    /// Waits until the broker has dealt with all that was sent.
    async fn ping(&mut self) {
        self.send(0xc0, &[]).await;
        while self.packet().await.0 != 0xd0 {}
    }
}

fn text(text: &str) -> Vec<u8> {
    let mut bytes = u16::try_from(text.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

/// Memory of this process; nothing where it is not told.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: Option<u64> = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse().ok());
    kib.unwrap_or(0) * 1024
}

fn size_of_folder(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(found) if found.is_dir() => size_of_folder(&entry.path()),
            Ok(found) => found.len(),
            Err(_) => 0,
        })
        .sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qos_0_is_dropped_for_a_reader_that_does_not_read() {
    let _alone = EXCLUSIVE_LOCK.lock().await;
    let broker = broker(None).await;
    let mut deaf = Raw::connect(broker.address(), "deaf", 0).await;
    deaf.subscribe("t/#", 0).await;
    let mut publisher = Raw::connect(broker.address(), "loud", 0).await;
    let before = resident();
    let payload = vec![b'x'; 64 << 10];
    for _ in 0..2400 {
        publisher.publish("t/x", None, &payload).await;
    }
    publisher.ping().await;
    let grown = resident().saturating_sub(before);
    println!("grown by {} MiB", grown / MIB);
    assert!(grown < 48 * MIB, "150 MiB of QoS 0 cost {} MiB", grown / MIB);
    // A client that reads gets a burst of small ones.
    let mut reader = Raw::connect(broker.address(), "reader", 0).await;
    reader.subscribe("burst", 0).await;
    for n in 0..1000_u32 {
        publisher.publish("burst", None, &n.to_be_bytes()).await;
    }
    drop(deaf);
    let mut got = 0;
    loop {
        let Ok((kind, body)) = timeout(QUIET_PERIOD, reader.packet()).await else {
            // All that was kept of the burst has come; a message that finds room is the end.
            publisher.publish("burst", None, b"last").await;
            continue;
        };
        assert_eq!(kind, 0x30);
        if body.ends_with(b"last") {
            break;
        }
        got += 1;
    }
    assert!(got >= 64, "{got} of 1000");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_kept_for_a_session_that_is_away_is_bounded() {
    let _alone = EXCLUSIVE_LOCK.lock().await;
    let folder = tempfile::tempdir().unwrap();
    let broker = broker(Some(folder.path())).await;
    let mut away = Raw::connect(broker.address(), "away", 3600).await;
    away.subscribe("t/#", 1).await;
    away.send(0xe0, &[]).await;
    drop(away);
    let mut publisher = Raw::connect(broker.address(), "loud", 0).await;
    let payload = vec![b'x'; 64 << 10];
    for id in 1..=640_u16 {
        publisher.publish("t/x", Some(id), &payload).await;
        assert_eq!(publisher.packet().await.0, 0x40);
    }
    let stored = size_of_folder(folder.path());
    println!("{} MiB are stored", stored / MIB);
    assert!(stored < 200 * MIB, "{} MiB are on the disk", stored / MIB);
    // 40 MiB, of which 16 are kept.
    let mut back = Raw::connect(broker.address(), "away", 3600).await;
    let mut got = 0;
    loop {
        let waiting = timeout(Duration::from_secs(5), back.packet()).await;
        let Ok((0x30, body)) = waiting else { break };
        got += 1;
        back.send(0x40, &body[5..7]).await;
    }
    assert!((200..=272).contains(&got), "{got} messages of 64 KiB were kept");
}
