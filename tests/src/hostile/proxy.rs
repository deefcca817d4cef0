//! A path between a node and its broker that ends connections: at random, or when a message of the node holds a marker.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use super::wire::Packets;

/// When a connection ends; never where all is `None`.
#[derive(Debug, Clone, Default)]
pub(super) struct Fate {
    /// So long after it was made.
    pub(super) after: Option<Duration>,
    /// After so many bytes from the node.
    pub(super) up: Option<usize>,
    /// After so many bytes from the broker.
    pub(super) down: Option<usize>,
    /// Before a PUBLISH of the node that holds these bytes.
    pub(super) marker: Option<Arc<[u8]>>,
}

type Fates = Box<dyn FnMut() -> Fate + Send>;

/// The path. Gone with this value.
pub(super) struct Proxy {
    pub(super) port: u16,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

struct Shared {
    fates: Mutex<Fates>,
    deaths: AtomicU64,
}

impl Proxy {
    /// A path to the broker on `target`, each of whose connections ends as `fates` says.
    pub(super) async fn start(target: u16, fates: impl FnMut() -> Fate + Send + 'static) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            fates: Mutex::new(Box::new(fates)),
            deaths: AtomicU64::new(0),
        });
        let accepting = tokio::spawn(accept(listener, target, Arc::clone(&shared)));
        Ok(Self {
            port,
            shared,
            accepting,
        })
    }

    /// From the next connection on they end otherwise.
    pub(super) fn change(&self, fates: impl FnMut() -> Fate + Send + 'static) {
        *self.shared.fates.lock().unwrap_or_else(PoisonError::into_inner) = Box::new(fates);
    }

    /// Connections that have ended, by whichever side.
    pub(super) fn deaths(&self) -> u64 {
        self.shared.deaths.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, target: u16, shared: Arc<Shared>) {
    // Dropped with this task, and the connections with it.
    let mut carrying = JoinSet::new();
    loop {
        while carrying.try_join_next().is_some() {}
        let Ok((node, _)) = listener.accept().await else {
            continue;
        };
        let Ok(broker) = TcpStream::connect(("127.0.0.1", target)).await else {
            continue;
        };
        let fate = (shared.fates.lock().unwrap_or_else(PoisonError::into_inner))();
        let shared = Arc::clone(&shared);
        carrying.spawn(async move {
            carry(node, broker, fate).await;
            shared.deaths.fetch_add(1, Ordering::SeqCst);
        });
    }
}

/// Carries both ways until one of them ends, or the time is over.
async fn carry(node: TcpStream, broker: TcpStream, fate: Fate) {
    let _ = node.set_nodelay(true);
    let _ = broker.set_nodelay(true);
    let (from_node, to_node) = node.into_split();
    let (from_broker, to_broker) = broker.into_split();
    let over = async {
        match fate.after {
            Some(after) => tokio::time::sleep(after).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = forward(from_node, to_broker, fate.up, fate.marker) => {}
        _ = forward(from_broker, to_node, fate.down, None) => {}
        () = over => {}
    }
}

async fn forward(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut most: Option<usize>,
    marker: Option<Arc<[u8]>>,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    let mut packets = Packets::default();
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        let mut bytes = &buffer[..count];
        if let Some(most) = &mut most {
            bytes = &bytes[..bytes.len().min(*most)];
            *most -= bytes.len();
        }
        match &marker {
            None => to.write_all(bytes).await?,
            Some(marker) => {
                packets.push(bytes);
                while let Some(packet) = packets.next() {
                    if packet[0] & 0xf0 == 0x30 && holds(&packet, marker) {
                        return Ok(());
                    }
                    to.write_all(&packet).await?;
                }
            }
        }
        if most == Some(0) {
            return Ok(());
        }
    }
}

fn holds(packet: &[u8], marker: &[u8]) -> bool {
    packet.windows(marker.len()).any(|window| window == marker)
}

#[cfg(test)]
mod tests {
    use super::super::wire::Publish;
    use super::*;

    #[tokio::test]
    async fn a_marker_ends_the_connection_and_nothing_else_does() {
        let broker = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = broker.local_addr().unwrap().port();
        let proxy = Proxy::start(port, || Fate {
            marker: Some(b"bad".as_slice().into()),
            ..Fate::default()
        })
        .await
        .unwrap();
        let mut node = TcpStream::connect(("127.0.0.1", proxy.port)).await.unwrap();
        let (mut heard, _) = broker.accept().await.unwrap();
        let message = |payload: &str| {
            Publish {
                topic: "a".into(),
                payload: payload.into(),
                ..Publish::default()
            }
            .packet(1)
        };
        // An acknowledgement may hold anything.
        let mut said = super::super::wire::packet(0x40, b"bad");
        said.extend(message("good"));
        node.write_all(&said).await.unwrap();
        node.write_all(&message("so bad")).await.unwrap();
        let mut bytes = Vec::new();
        heard.read_to_end(&mut bytes).await.unwrap();
        assert_eq!(bytes, said);
        assert_eq!(node.read(&mut [0]).await.unwrap_or(0), 0);
        while proxy.deaths() == 0 {
            tokio::task::yield_now().await;
        }
    }
}
