//! A client without a library: it sends what it is told, allowed or not.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::wire::{self, Connect, Packets, Publish};

/// How long a broker may take for an answer.
const ANSWER: Duration = Duration::from_secs(20);

pub(super) struct RawClient {
    stream: TcpStream,
    packets: Packets,
    last_id: u16,
}

impl RawClient {
    /// Connects, and waits until the broker agrees.
    pub(super) async fn connect(port: u16, connect: &Connect) -> Result<Self> {
        let stream = timeout(ANSWER, TcpStream::connect(("127.0.0.1", port))).await??;
        stream.set_nodelay(true)?;
        let mut client = Self {
            stream,
            packets: Packets::default(),
            last_id: 0,
        };
        client.send(&connect.packet()).await?;
        let answer = client.until(|packet| packet[0] == 0x20).await?;
        if wire::body(&answer).get(1) != Some(&0) {
            bail!("the broker refuses the connection: {answer:?}");
        }
        Ok(client)
    }

    /// Sends bytes, whatever they are.
    pub(super) async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        timeout(ANSWER, self.stream.write_all(bytes))
            .await
            .context("the broker takes nothing")??;
        Ok(())
    }

    /// Publishes; with QoS 1 the broker has agreed to it when this returns.
    ///
    /// # Errors
    /// The broker ended the connection, or refuses the message.
    pub(super) async fn publish(&mut self, publish: &Publish) -> Result<()> {
        let id = self.id();
        self.send(&publish.packet(id)).await?;
        if publish.qos != 1 {
            return Ok(());
        }
        let answer = self
            .until(|packet| packet[0] == 0x40 && wire::body(packet).starts_with(&id.to_be_bytes()))
            .await?;
        match wire::body(&answer).get(2) {
            Some(reason) if *reason >= 0x80 => bail!("the broker refuses the message: {reason:#x}"),
            _ => Ok(()),
        }
    }

    pub(super) async fn subscribe(&mut self, filter: &str) -> Result<()> {
        let id = self.id();
        self.send(&wire::subscribe(id, filter)).await?;
        self.until(|packet| packet[0] == 0x90).await?;
        Ok(())
    }

    /// Reads until a packet is as wanted; messages on the way to it are acknowledged and forgotten.
    async fn until(&mut self, wanted: impl Fn(&[u8]) -> bool) -> Result<Vec<u8>> {
        timeout(ANSWER, async {
            let mut buffer = vec![0; 16 << 10];
            loop {
                while let Some(packet) = self.packets.next() {
                    if wanted(&packet) {
                        return Ok(packet);
                    }
                    if let Some(id) = unacknowledged(&packet) {
                        self.stream.write_all(&wire::puback(id)).await?;
                    }
                }
                let count = self.stream.read(&mut buffer).await?;
                if count == 0 {
                    bail!("the broker ended the connection");
                }
                self.packets.push(&buffer[..count]);
            }
        })
        .await
        .context("the broker does not answer")?
    }

    fn id(&mut self) -> u16 {
        self.last_id = self.last_id.checked_add(1).unwrap_or(1);
        self.last_id
    }
}

/// The packet id of a message with QoS 1.
fn unacknowledged(packet: &[u8]) -> Option<u16> {
    if packet[0] & 0xf6 != 0x32 {
        return None;
    }
    let body = wire::body(packet);
    let topic = usize::from(u16::from_be_bytes([*body.first()?, *body.get(1)?]));
    Some(u16::from_be_bytes([*body.get(2 + topic)?, *body.get(3 + topic)?]))
}
