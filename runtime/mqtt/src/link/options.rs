//! The options of the connection.

use std::time::Duration;

use phi_edge_wire::Status;
use rumqttc::{
    AckMode, Broker, IncomingPacketSizeLimit, LastWill, LastWillProperties, MqttOptions, NetworkOptions,
    PersistedAckMode, QoS,
};

use super::session::{INFLIGHT, MemorySession};
use super::{LinkConfig, RECEIVE_MAXIMUM};
use crate::tls::TlsError;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Returns the options of the link's connection; `offline` is the status that the broker publishes as the will.
pub(crate) fn options(config: &LinkConfig, offline: &Status) -> Result<MqttOptions, TlsError> {
    let mut options = MqttOptions::new(
        config.client_id.as_str(),
        Broker::tcp(config.host.as_str(), config.port),
    );
    let session_expiry = seconds(config.session_expiry);
    options
        .set_keep_alive(u16::try_from(seconds(config.keep_alive)).unwrap_or(u16::MAX))
        // The broker keeps requests while the node is away.
        .set_clean_start(false)
        .set_session_expiry_interval(Some(session_expiry))
        .set_session_store(MemorySession::new(session_expiry, PersistedAckMode::Manual))
        // A message is acknowledged when it is handled, not when it arrives.
        .set_ack_mode(AckMode::Manual)
        .set_receive_maximum(Some(RECEIVE_MAXIMUM))
        .set_outgoing_inflight_upper_limit(INFLIGHT)
        .set_max_packet_size(Some(config.max_packet))
        // The library's default would refuse packets over 10 KiB, which the broker would deliver again and again.
        .set_incoming_packet_size_limit(IncomingPacketSizeLimit::Bytes(config.max_packet))
        .set_connect_timeout(CONNECT_TIMEOUT)
        .set_last_will(LastWill::new(
            config.topics.status(),
            offline.encode(),
            QoS::AtLeastOnce,
            true,
            Some(LastWillProperties {
                delay_interval: None,
                payload_format_indicator: Some(1),
                message_expiry_interval: None,
                content_type: Some("application/json".into()),
                response_topic: None,
                correlation_data: None,
                user_properties: Vec::new(),
            }),
        ));
    if let Some((user, password)) = &config.credentials {
        options.set_credentials(user.as_str(), password.clone().into_bytes());
    }
    // Without it a reply waits 40 ms for the delayed acknowledgement of the packet before.
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    options.set_network_options(network);
    if let Some(tls) = &config.tls {
        options.set_transport(tls.transport()?);
    }
    Ok(options)
}

fn seconds(time: Duration) -> u32 {
    u32::try_from(time.as_secs()).unwrap_or(u32::MAX)
}
