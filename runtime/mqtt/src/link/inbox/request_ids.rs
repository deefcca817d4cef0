//! Names of messages: receipts, and ids for requests that have none.

use std::fmt::Write as _;

use phi_edge_service::{JobKey, Receipt, Service};
use rumqttc::{Publish, QoS};
use sha2::{Digest, Sha256};

use super::IncomingRequest;

/// Names for what came without one, and seeds.
pub(super) struct RequestIds {
    boot: String,
    next: u64,
}

impl RequestIds {
    pub(super) fn new(boot_id: &str) -> Self {
        Self {
            boot: boot_id.to_owned(),
            next: 0,
        }
    }

    pub(super) fn next(&mut self) -> String {
        self.next += 1;
        format!("{}-{}", self.boot, self.next)
    }

    /// The name of a request without an id, from its receipt: the same again if the broker delivers it again, even to
    /// another process. A message that only looks like an earlier one (packet ids come round) gets a name of its own.
    pub(super) fn of(&mut self, request: &IncomingRequest<'_>, service: &Service) -> String {
        let Some(receipt) = request.receipt else {
            return self.next();
        };
        let stem: String = receipt
            .digest
            .iter()
            .take(10)
            .fold(String::new(), |mut name, byte| {
                let _ = write!(name, "{byte:02x}");
                name
            });
        let name = |n: u32| {
            if n == 0 {
                stem.clone()
            } else {
                format!("{stem}.{n}")
            }
        };
        let known = |n: u32| {
            service.knows(&JobKey {
                client: request.client.map(str::to_owned),
                id: name(n),
            })
        };
        let mut free = 0;
        while known(free) {
            free += 1;
        }
        name(if request.publish.dup {
            free.saturating_sub(1)
        } else {
            free
        })
    }
}

/// A message's receipt, the same again if the broker delivers it again; `None` for one that it never does.
pub(super) fn receipt(publish: &Publish) -> Option<Receipt> {
    if publish.qos == QoS::AtMostOnce {
        return None;
    }
    let properties = publish.properties.as_ref();
    let mut digest = Sha256::new();
    let mut part = |bytes: &[u8]| {
        digest.update(bytes.len().to_le_bytes());
        digest.update(bytes);
    };
    part(&publish.pkid.to_le_bytes());
    part(&publish.topic);
    part(&publish.payload);
    part(
        properties
            .and_then(|p| p.correlation_data.as_deref())
            .unwrap_or_default(),
    );
    part(
        properties
            .and_then(|p| p.response_topic.as_deref())
            .unwrap_or_default()
            .as_bytes(),
    );
    Some(Receipt {
        packet_id: publish.pkid,
        digest: digest.finalize().into(),
    })
}
