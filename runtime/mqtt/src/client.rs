//! A client of the daemon, which sends requests over MQTT and receives the replies.

use std::time::Duration;

use bytes::Bytes;
use rumqttc::{
    AckMode, AsyncClient, Broker, Event, IncomingPacketSizeLimit, MqttOptions, NetworkOptions, Packet,
    PersistedAckMode, Publish, PublishOptions, PublishProperties, QoS,
};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::link::failure::ConnectionFailure;
use crate::link::{INFLIGHT, MemorySession};
use crate::tls::{TlsError, TlsFiles};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The largest packet that is accepted.
const MAX_PACKET_BYTES: u32 = 16 << 20;

/// The options of a client.
#[derive(Debug, Clone, Default)]
pub struct ClientOptions {
    /// The broker's name or address.
    pub host: String,
    /// The broker's port.
    pub port: u16,
    /// The client id.
    pub client_id: String,
    /// The user and the password.
    pub credentials: Option<(String, String)>,
    /// The files of TLS, if the client uses it.
    pub tls: Option<TlsFiles>,
    /// The time for which the broker keeps the session of a client that is away; `None` for a clean start each time.
    pub session: Option<Duration>,
}

/// The reason why the client can't continue.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// A TLS file can't be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The broker can't be reached or refuses the client.
    #[error("no connection to the broker at {broker}: {reason}")]
    Broker {
        /// The broker's host and port.
        broker: String,
        /// The reason, in one line.
        reason: String,
    },
    /// The request can't be sent.
    #[error("the message can't be sent: {0}")]
    Send(String),
}

/// A received message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// Its topic.
    pub topic: String,
    /// Its bytes.
    pub payload: Bytes,
    /// Correlation data.
    pub correlation: Option<Bytes>,
    /// User properties.
    pub user_properties: Vec<(String, String)>,
    /// Whether the broker had retained it.
    pub retained: bool,
}

/// A client's connection. It ends when this is dropped, or when the broker ends it.
pub struct Client {
    mqtt: AsyncClient,
    received: mpsc::UnboundedReceiver<Publish>,
    poller: JoinHandle<()>,
    failure: mpsc::Receiver<String>,
    broker: String,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// A TLS file or the broker can't be used.
    pub async fn connect(options: ClientOptions) -> Result<Self, ClientError> {
        let broker = format!("{}:{}", options.host, options.port);
        let mut mqtt = MqttOptions::new(options.client_id, Broker::tcp(options.host, options.port));
        if let Some(session) = options.session {
            let seconds = u32::try_from(session.as_secs()).unwrap_or(u32::MAX);
            mqtt.set_outgoing_inflight_upper_limit(INFLIGHT)
                .set_session_expiry_interval(Some(seconds))
                .set_session_store(MemorySession::new(seconds, PersistedAckMode::Manual));
        }
        mqtt.set_ack_mode(AckMode::Manual)
            .set_clean_start(options.session.is_none())
            .set_keep_alive(30)
            .set_max_packet_size(Some(MAX_PACKET_BYTES))
            .set_incoming_packet_size_limit(IncomingPacketSizeLimit::Bytes(MAX_PACKET_BYTES))
            .set_connect_timeout(CONNECT_TIMEOUT);
        let mut network = NetworkOptions::new();
        network.set_tcp_nodelay(true);
        mqtt.set_network_options(network);
        if let Some((user, password)) = options.credentials {
            mqtt.set_credentials(user, password.into_bytes());
        }
        if let Some(tls) = options.tls {
            mqtt.set_transport(tls.transport()?);
        }
        let (client, mut events) = AsyncClient::builder(mqtt).unbounded().build();
        let (received_tx, received) = mpsc::unbounded_channel();
        let (failure_tx, failure) = mpsc::channel(1);
        let (up_tx, mut up) = mpsc::channel(1);
        let poller = tokio::spawn(async move {
            loop {
                match events.poll().await {
                    Ok(Event::Incoming(Packet::ConnAck(_))) => {
                        let _ = up_tx.try_send(());
                    }
                    Ok(Event::Incoming(Packet::Publish(publish))) => {
                        let _ = received_tx.send(publish);
                    }
                    Ok(_) => {}
                    Err(error) => {
                        let reason = match ConnectionFailure::classify(&error) {
                            ConnectionFailure::Refused(reason) | ConnectionFailure::Down(reason) => reason,
                            ConnectionFailure::TakenOver => "another client has the same id".into(),
                            ConnectionFailure::Dropped | ConnectionFailure::Reset => {
                                "the broker closed the connection".into()
                            }
                            ConnectionFailure::Closed => break,
                        };
                        let _ = failure_tx.try_send(reason);
                        break;
                    }
                }
            }
        });
        let mut connected = Self {
            mqtt: client,
            received,
            poller,
            failure,
            broker,
        };
        tokio::select! {
            Some(()) = up.recv() => Ok(connected),
            reason = connected.failure.recv() => Err(connected.lost(reason)),
        }
    }

    /// Subscribes, and waits until the broker has agreed.
    ///
    /// # Errors
    /// The broker is gone or refuses.
    pub async fn subscribe(&mut self, filter: &str) -> Result<(), ClientError> {
        let notice = self
            .mqtt
            .try_subscribe_tracked(filter, QoS::AtLeastOnce)
            .map_err(|error| ClientError::Send(error.to_string()))?;
        tokio::select! {
            done = notice.wait_async() => done.map(drop).map_err(|error| ClientError::Send(error.to_string())),
            reason = self.failure.recv() => Err(self.lost(reason)),
        }
    }

    /// Publishes with QoS 1 and waits for the broker's acknowledgement. `response` is MQTT 5's response topic
    /// and correlation data.
    ///
    /// # Errors
    /// The broker is gone or refuses.
    pub async fn publish(
        &mut self,
        topic: &str,
        payload: impl Into<Bytes>,
        response: Option<(&str, &[u8])>,
    ) -> Result<(), ClientError> {
        let properties = PublishProperties {
            response_topic: response.map(|(topic, _)| topic.to_owned()),
            correlation_data: response.map(|(_, data)| Bytes::copy_from_slice(data)),
            ..PublishProperties::default()
        };
        let options = PublishOptions::at_least_once().properties(properties);
        let notice = self
            .mqtt
            .try_publish_tracked(topic, payload.into(), options)
            .map_err(|error| ClientError::Send(error.to_string()))?;
        tokio::select! {
            done = notice.wait_async() => done.map(drop).map_err(|error| ClientError::Send(error.to_string())),
            reason = self.failure.recv() => Err(self.lost(reason)),
        }
    }

    /// Publishes with QoS 1 and does not wait for the broker's acknowledgement.
    ///
    /// # Errors
    /// The client has ended.
    pub fn publish_later(&mut self, topic: &str, payload: impl Into<Bytes>) -> Result<(), ClientError> {
        self.mqtt
            .try_publish(topic, payload.into(), PublishOptions::at_least_once())
            .map_err(|error| ClientError::Send(error.to_string()))
    }

    /// Returns the next message; `None` if none comes within `limit`.
    ///
    /// # Errors
    /// The broker is gone.
    pub async fn receive(&mut self, limit: Duration) -> Result<Option<Received>, ClientError> {
        match timeout(limit, self.received.recv()).await {
            Ok(Some(publish)) => {
                // Acknowledged only now, so that the broker delivers again what was not received. An error: the connection is
                // gone, and the broker will.
                let _ = self.mqtt.try_ack(&publish);
                Ok(Some(Received::from(publish)))
            }
            Ok(None) => {
                let reason = self.failure.recv().await;
                Err(self.lost(reason))
            }
            Err(_) => Ok(None),
        }
    }

    /// Disconnects.
    pub async fn close(mut self) {
        let _ = self.mqtt.try_disconnect();
        let _ = timeout(CONNECT_TIMEOUT, &mut self.poller).await;
    }

    fn lost(&self, reason: Option<String>) -> ClientError {
        ClientError::Broker {
            broker: self.broker.clone(),
            reason: reason.unwrap_or_else(|| "the connection ended".into()),
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.poller.abort();
    }
}

impl Received {
    /// Returns the value of a user property.
    pub fn property(&self, name: &str) -> Option<&str> {
        self.user_properties
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }
}

impl From<Publish> for Received {
    fn from(publish: Publish) -> Self {
        let properties = publish.properties.unwrap_or_default();
        Self {
            topic: String::from_utf8_lossy(&publish.topic).into_owned(),
            payload: publish.payload,
            correlation: properties.correlation_data,
            user_properties: properties.user_properties,
            retained: publish.retain,
        }
    }
}
