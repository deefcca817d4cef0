//! The epoch gate: acknowledgements and publishes reach only the connection that they are meant for.

use parking_lot::Mutex;

use rumqttc::{AsyncClient, Publish};

/// The gate in front of the client library, open for the current connection alone. A packet id means nothing on the next
/// connection: the broker would take the acknowledgement for another message's, and the library for an error.
#[derive(Debug)]
pub(crate) struct EpochGate {
    client: AsyncClient,
    epoch: Mutex<Epoch>,
}

/// The number of a connection, and of the broker's session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Epoch {
    connection: u64,
    /// The broker's session, counted from the first that this process has seen.
    session: u64,
}

impl Epoch {
    /// The broker's session, counted from the first that this process has seen.
    pub(crate) fn session(self) -> u64 {
        self.session
    }
}

impl EpochGate {
    pub(crate) fn new(client: AsyncClient) -> Self {
        Self {
            client,
            epoch: Mutex::default(),
        }
    }

    /// Returns the current epoch.
    pub(crate) fn epoch(&self) -> Epoch {
        *self.lock()
    }

    /// Closes the gate for the current connection. What was queued before must be removed from the event loop after this.
    pub(crate) fn close(&self) {
        self.lock().connection += 1;
    }

    /// Begins a new session of the broker: messages that arrive from now on belong to it.
    pub(crate) fn begin_session(&self) {
        self.lock().session += 1;
    }

    /// Acknowledges a message if the connection that it came by is the current one.
    pub(crate) fn acknowledge(&self, epoch: Epoch, publish: &Publish) {
        let now = self.lock();
        if now.connection == epoch.connection {
            // The queue is unbounded: it fails only when the link has ended.
            let _ = self.client.try_ack(publish);
        } else {
            tracing::debug!("a message of an earlier connection is left to be delivered again");
        }
    }

    /// Publishes on the connection of this epoch; `None` if that connection is gone.
    pub(crate) fn publish<T>(&self, epoch: Epoch, publish: impl FnOnce(&AsyncClient) -> T) -> Option<T> {
        let now = self.lock();
        (*now == epoch).then(|| publish(&self.client))
    }

    fn lock(&self) -> parking_lot::MutexGuard<'_, Epoch> {
        self.epoch.lock()
    }
}
