//! The embedded broker, for machines without one.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use mqtt5::broker::config::{AuthConfig, AuthMethod, StorageBackend, StorageConfig};
use mqtt5::broker::{BrokerConfig, MqttBroker};
use tokio::task::JoinHandle;

/// The most bytes that wait in memory for a client that is slow to read, if every message is of the largest size. Beyond them
/// QoS 0 messages are dropped, and QoS 1 messages go to the client's queue.
const MAX_UNREAD_BYTES: usize = 128 << 20;
/// The bounds of their number. A burst of small messages must not be lost before the client had a chance to read it.
const UNREAD_MESSAGES: RangeInclusive<usize> = 16..=1024;
/// The most bytes that are queued for a client that is away or behind; beyond them the oldest messages are dropped. On the
/// disk they take up to ten times as much.
const MAX_QUEUED_BYTES: usize = 16 << 20;
/// The most messages in such a queue.
const MAX_QUEUED_MESSAGES: usize = 10_000;
/// The most retained messages; further ones are refused.
const MAX_RETAINED_MESSAGES: usize = 10_000;
/// The most bytes of a retained message; a longer one is refused.
const MAX_RETAINED_BYTES: usize = 64 << 10;
/// The most topic filters of one client.
const MAX_SUBSCRIPTIONS: usize = 1000;

/// The configuration of the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmbeddedBrokerConfig {
    /// The address to listen on; port 0 is any free one.
    pub listen: SocketAddr,
    /// The file of users and password hashes; without it any client may connect.
    pub password_file: Option<PathBuf>,
    /// The file of access rules.
    pub acl_file: Option<PathBuf>,
    /// The folder of sessions and retained messages; without it they are kept in memory.
    pub storage: Option<PathBuf>,
    /// The largest packet, in bytes.
    pub max_packet: usize,
}

/// The reason why the broker does not run.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedBrokerError {
    /// It would be open to everyone on a network.
    #[error(
        "mqtt.embedded_listen is {0}, which others can reach: set mqtt.embedded_password_file, or listen on 127.0.0.1"
    )]
    Open(SocketAddr),
    /// It can't start.
    #[error("the embedded broker can't start on {listen}: {reason}")]
    Start {
        /// The address to listen on.
        listen: SocketAddr,
        /// The reason, in one line.
        reason: String,
    },
}

/// A running broker. It ends when this is dropped.
pub struct EmbeddedBroker {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl EmbeddedBroker {
    /// Starts the broker and waits until it accepts connections.
    ///
    /// # Errors
    /// It would be open to the network, or can't listen.
    pub async fn start(config: EmbeddedBrokerConfig) -> Result<Self, EmbeddedBrokerError> {
        let listen = config.listen;
        if config.password_file.is_none() && !listen.ip().is_loopback() {
            return Err(EmbeddedBrokerError::Open(listen));
        }
        let fault = |reason: String| EmbeddedBrokerError::Start { listen, reason };
        let auth = AuthConfig {
            allow_anonymous: config.password_file.is_none(),
            auth_method: if config.password_file.is_some() {
                AuthMethod::Password
            } else {
                AuthMethod::None
            },
            password_file: config.password_file,
            acl_file: config.acl_file,
            ..AuthConfig::default()
        };
        let storage = match config.storage {
            Some(base_dir) => StorageConfig {
                base_dir,
                ..StorageConfig::default()
            },
            None => StorageConfig {
                backend: StorageBackend::Memory,
                enable_persistence: false,
                ..StorageConfig::default()
            },
        };
        let storage = storage
            .with_max_queued_messages_per_client(MAX_QUEUED_MESSAGES)
            .with_max_queued_bytes_per_client(MAX_QUEUED_BYTES);
        let lane = MAX_UNREAD_BYTES / config.max_packet.max(1);
        let broker = BrokerConfig::default()
            .with_bind_address(listen)
            .with_max_packet_size(config.max_packet)
            .with_session_expiry(Duration::from_hours(24))
            .with_client_channel_capacity(lane.clamp(*UNREAD_MESSAGES.start(), *UNREAD_MESSAGES.end()))
            .with_max_retained_messages(MAX_RETAINED_MESSAGES)
            .with_max_retained_message_size(MAX_RETAINED_BYTES)
            .with_max_subscriptions_per_client(MAX_SUBSCRIPTIONS)
            .with_sys_topics_enabled(false)
            .with_auth(auth)
            .with_storage(storage);
        let mut broker = MqttBroker::with_config(broker)
            .await
            .map_err(|error| fault(error.to_string()))?;
        let address = broker.local_addr().unwrap_or(listen);
        let mut ready = broker.ready_receiver();
        let task = tokio::spawn(async move {
            if let Err(error) = broker.run().await {
                tracing::error!(%error, "the embedded broker failed");
            }
        });
        let started = Self { address, task };
        match ready.wait_for(|ready| *ready).await {
            Ok(_) => Ok(started),
            Err(_) => Err(fault("it ended at once".into())),
        }
    }

    /// Returns the address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for EmbeddedBroker {
    fn drop(&mut self) {
        self.task.abort();
    }
}
