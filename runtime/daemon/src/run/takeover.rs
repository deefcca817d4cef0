//! The takeover of the MQTT session by another client.

use phi_edge_mqtt::LinkState;
use tokio::sync::watch;

use crate::exit::{Exit, Fault};

/// Waits until another client has the session.
pub(super) async fn taken_over(state: &mut watch::Receiver<LinkState>) {
    if state
        .wait_for(|state| *state == LinkState::TakenOver)
        .await
        .is_err()
    {
        // The link has ended without a takeover, and its end is handled elsewhere.
        std::future::pending::<()>().await;
    }
}

/// The fault of a daemon whose session another client took.
pub(super) fn fault() -> Fault {
    Fault::new(
        Exit::TakenOver,
        "another client with the same id took over the MQTT session: give each node its own node.name or \
         mqtt.client_id",
    )
}
