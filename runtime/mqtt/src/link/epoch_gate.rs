//! Acknowledgements reach only the connection that their message came by.

use parking_lot::Mutex;

use rumqttc::{AsyncClient, Publish};

/// Knows which connection lives. A packet id means nothing on the next one: the broker would take the
/// acknowledgement for another message's, and the library for a fault.
#[derive(Debug)]
pub(crate) struct EpochGate {
    client: AsyncClient,
    epoch: Mutex<Epoch>,
}

/// Names a connection.
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

    pub(crate) fn epoch(&self) -> Epoch {
        *self.lock()
    }

    /// From now on nothing of the old connection is acknowledged. What was queued before must be cleaned
    /// out of the event loop after this.
    pub(crate) fn close(&self) {
        self.lock().connection += 1;
    }

    /// The broker has begun a new session: what it sends from now on belongs to that.
    pub(crate) fn begin_session(&self) {
        self.lock().session += 1;
    }

    pub(crate) fn acknowledge(&self, epoch: Epoch, publish: &Publish) {
        let now = self.lock();
        if now.connection == epoch.connection {
            // The queue is unbounded: it fails only when the link has ended.
            let _ = self.client.try_ack(publish);
        } else {
            tracing::debug!("a message of an earlier connection is left to be delivered again");
        }
    }

    /// Has something published on the connection of this epoch; `None` if it is gone. So nothing that was meant for one
    /// connection reaches the next.
    pub(crate) fn publish<T>(&self, epoch: Epoch, publish: impl FnOnce(&AsyncClient) -> T) -> Option<T> {
        let now = self.lock();
        (*now == epoch).then(|| publish(&self.client))
    }

    fn lock(&self) -> parking_lot::MutexGuard<'_, Epoch> {
        self.epoch.lock()
    }
}
