//! A request as far as MQTT tells.

use phi_edge_service::{JobKey, Receipt};
use rumqttc::Publish;
use tokio::time::Instant;

use crate::link::properties::receipt;
use crate::topics::{Inbound, Scope};

/// A request that arrived, before its payload is read.
pub(super) struct IncomingRequest<'a> {
    /// The client that the topic names.
    pub(super) client: Option<&'a str>,
    /// The reason why the topic's last level names no client, if so.
    pub(super) misnamed: Option<String>,
    pub(super) scope: Scope,
    pub(super) publish: &'a Publish,
    pub(super) arrived: Instant,
    pub(super) topic: &'a str,
    pub(super) response_topic: Option<&'a str>,
    pub(super) correlation: Option<Vec<u8>>,
    pub(super) receipt: Option<Receipt>,
}

impl<'a> IncomingRequest<'a> {
    pub(super) fn new(publish: &'a Publish, arrived: Instant, topic: &'a str, inbound: &Inbound<'a>) -> Self {
        let properties = publish.properties.as_ref();
        let correlation = properties.and_then(|p| p.correlation_data.as_ref());
        Self {
            client: inbound.client,
            misnamed: inbound.misnamed(),
            scope: inbound.scope,
            publish,
            arrived,
            topic,
            response_topic: properties.and_then(|p| p.response_topic.as_deref()),
            correlation: correlation.map(|data| data.to_vec()),
            receipt: receipt(publish),
        }
    }

    /// Returns the key of the job that has this id.
    pub(super) fn key(&self, id: String) -> JobKey {
        JobKey {
            client: self.client.map(str::to_owned),
            id,
        }
    }
}
