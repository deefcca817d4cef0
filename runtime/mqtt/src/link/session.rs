//! The client library's session record, in memory.
//!
//! Without a record the library refuses to resume a session that the broker kept over a restart of this process, or resumes it
//! and then refuses to publish. The content is not needed: the outbox publishes unacknowledged replies again
//! ([`super::quarantine`]), and at QoS 1 the broker keeps nothing of what was sent. So the first record is an empty one.

use parking_lot::{Mutex, MutexGuard};
use std::pin::Pin;

use rumqttc::{PersistedAckMode, PersistedSession, SessionStore, SessionStoreError, SessionStoreKey};

/// The future of the library's trait, which exports no name for it.
type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, SessionStoreError>> + Send + 'a>>;

/// The most QoS 1 messages that the library has in flight. It visits each slot at each change of its record, so that the
/// protocol's limit of 65,535 would take all its time.
pub(crate) const INFLIGHT: u16 = 64;

/// The version of the library's record.
const RECORD_FORMAT: u16 = 1;

/// A session store in memory.
#[derive(Debug)]
pub(crate) struct MemorySession {
    session_expiry: u32,
    ack_mode: PersistedAckMode,
    record: Mutex<Option<PersistedSession>>,
}

impl MemorySession {
    pub(crate) fn new(session_expiry: u32, ack_mode: PersistedAckMode) -> Self {
        Self {
            session_expiry,
            ack_mode,
            record: Mutex::new(None),
        }
    }

    fn empty(&self, client_id: &str) -> PersistedSession {
        PersistedSession {
            format_version: RECORD_FORMAT,
            client_id: client_id.to_owned(),
            clean_start: false,
            session_expiry_interval: Some(self.session_expiry),
            outgoing_inflight_upper_limit: Some(INFLIGHT),
            ack_mode: self.ack_mode,
            last_pkid: 0,
            last_puback: 0,
            replay: Vec::new(),
            incoming_qos2: Vec::new(),
        }
    }

    fn record(&self) -> MutexGuard<'_, Option<PersistedSession>> {
        self.record.lock()
    }
}

impl SessionStore for MemorySession {
    fn load<'a>(&'a self, key: &'a SessionStoreKey) -> StoreFuture<'a, Option<PersistedSession>> {
        Box::pin(async {
            let record = self.record().clone();
            Ok(Some(record.unwrap_or_else(|| self.empty(key.client_id()))))
        })
    }

    fn save<'a>(&'a self, _: &'a SessionStoreKey, session: &'a PersistedSession) -> StoreFuture<'a, ()> {
        Box::pin(async {
            *self.record() = Some(session.clone());
            Ok(())
        })
    }

    fn clear<'a>(&'a self, _: &'a SessionStoreKey) -> StoreFuture<'a, ()> {
        Box::pin(async {
            *self.record() = None;
            Ok(())
        })
    }
}
