//! The participation of the node in its pool's work.

use phi_edge_config::Limits;
use phi_edge_service::Service;
use phi_edge_wire::{State, Status};
use tokio::sync::watch;

/// Keeps `open` up to date with the node's state and its queue: false while the node is not ready or its queue is
/// full, true again when half of the queue is worked off, so that the node does not leave and join with each request.
pub(crate) async fn watch(
    service: Service,
    mut status: watch::Receiver<Status>,
    mut limits: watch::Receiver<Limits>,
    open: watch::Sender<bool>,
) {
    let mut stats = service.watch_stats();
    loop {
        let ready = status.borrow_and_update().state == State::Ready;
        let queued = stats.borrow_and_update().queued;
        let queue = limits.borrow_and_update().queue;
        open.send_if_modified(|open| {
            let new = ready
                && if *open {
                    queued < queue
                } else {
                    queued <= queue / 2
                };
            std::mem::replace(open, new) != new
        });
        let changed = tokio::select! {
            changed = status.changed() => changed,
            changed = stats.changed() => changed,
            changed = limits.changed() => changed,
        };
        if changed.is_err() {
            open.send_replace(false);
            return;
        }
    }
}
