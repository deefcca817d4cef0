//! Finds out whether another client has our session, at a broker that does not say so.
//!
//! mosquitto 2.0 closes the connection of a client whose session is taken over without the DISCONNECT of MQTT 5, section
//! 3.1.4. To connect again would take the session back, and the other would do the same. So a broker that closes our
//! connection and yet takes a new one of another name is asked first who publishes our status.

use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::LinkConfig;
use crate::client::{Client, ClientOptions};
use crate::wire::{State, Status};

/// How long the other node may take to publish its status: it subscribes first.
const STATUS: Duration = Duration::from_secs(3);
/// A connection that lived shorter than this, closed without a word, is suspicious.
const SHORT: Duration = Duration::from_secs(10);
/// So many in a row are a fight with a client that takes the session back each time.
const FIGHT: u32 = 5;

pub(crate) struct Suspicion {
    config: LinkConfig,
    boot_id: String,
    short_lives: u32,
}

impl Suspicion {
    pub(crate) fn new(config: &LinkConfig, boot_id: &str) -> Self {
        Self {
            config: config.clone(),
            boot_id: boot_id.to_owned(),
            short_lives: 0,
        }
    }

    /// Whether a connection that lived so long and was closed by the broker means that the session is another's.
    ///
    /// `closed`: by the broker for certain. What is only reset may be something on the way, which never makes a fight.
    pub(crate) async fn is_taken_over(&mut self, lived: Option<Duration>, closed: bool) -> bool {
        let Some(lived) = lived else { return false };
        let options = ClientOptions {
            host: self.config.host.clone(),
            port: self.config.port,
            client_id: format!("{}-probe", self.config.client_id),
            credentials: self.config.credentials.clone(),
            tls: self.config.tls.clone(),
            session: None,
        };
        let Ok(mut probe) = Client::connect(options).await else {
            // The broker is away for others too.
            self.short_lives = 0;
            return false;
        };
        if lived >= SHORT {
            self.short_lives = 0;
        } else if closed {
            self.short_lives += 1;
        }
        self.short_lives >= FIGHT || self.is_another_there(&mut probe).await
    }

    /// Whether a node of our name that is not this process says how it is.
    async fn is_another_there(&self, probe: &mut Client) -> bool {
        if probe.subscribe(&self.config.topics.status()).await.is_err() {
            return false;
        }
        let until = Instant::now() + STATUS;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match timeout(left, probe.receive(left)).await {
                Ok(Ok(Some(message))) => {
                    if let Ok(status) = serde_json::from_slice::<Status>(&message.payload)
                        && status.boot_id != self.boot_id
                        && status.state != State::Offline
                    {
                        return true;
                    }
                }
                _ => return false,
            }
        }
    }
}
