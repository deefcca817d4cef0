//! The ids and seeds of requests that give none.

use std::fmt::Write as _;

use phi_edge_service::Service;

use super::incoming::IncomingRequest;

/// The source of ids and seeds.
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

    /// Returns an id that this process gives only once.
    pub(super) fn next(&mut self) -> String {
        self.next += 1;
        format!("{}-{}", self.boot, self.next)
    }

    /// Returns the id of a request from its receipt: the same if the broker delivers the request again, even to another
    /// process. A message that only looks like an earlier one (packet ids come round) gets an id of its own.
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
        let known = |n: u32| service.knows(&request.key(name(n)));
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
