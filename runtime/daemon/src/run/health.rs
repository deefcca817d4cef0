//! What is wrong with the node's parts, told in its status.

use phi_edge_mqtt::wire::{State, Status};
use phi_edge_service::StoreHealth;
use tokio::sync::watch;

/// Holds the status to how the store is, while the node is in service.
pub(crate) async fn watch(status: watch::Sender<Status>, mut store: watch::Receiver<StoreHealth>) {
    loop {
        let fault = store.borrow_and_update().failing.clone();
        status.send_if_modified(|status| set(status, fault));
        if store.changed().await.is_err() {
            return;
        }
    }
}

/// True if that changes anything.
fn set(status: &mut Status, fault: Option<String>) -> bool {
    let (state, reason) = match fault {
        Some(fault) => (State::Degraded, Some(format!("the store fails: {fault}"))),
        None => (State::Ready, None),
    };
    if !matches!(status.state, State::Ready | State::Degraded)
        || (status.state, &status.reason) == (state, &reason)
    {
        return false;
    }
    tracing::info!(?state, reason, "state");
    status.state = state;
    status.reason = reason;
    true
}
