//! The orderly end of the daemon.

use std::time::Duration;

use phi_edge_mqtt::{Link, LinkState};
use phi_edge_service::Service;
use phi_edge_wire::State;
use tokio::task::JoinHandle;

use super::build::{Built, ServiceInputs};
use super::crash_marker::CrashMarker;
use super::load::EndWithoutModel;
use super::serve::{Serving, StopReason};
use super::signals::StopSignals;
use super::{App, served_model, takeover};
use crate::exit::Fault;

/// The time in which the broker is to have stopped giving this node the pool's requests.
const POOL_LEAVE_TIMEOUT: Duration = Duration::from_secs(2);
/// The time limit for the last replies to reach the broker.
const LAST_REPLIES_TIMEOUT: Duration = Duration::from_secs(5);

/// Ends a daemon that has not loaded its model.
pub(super) async fn without_model(
    app: &App<'_>,
    built: Built<'_>,
    inputs: ServiceInputs,
    end: EndWithoutModel,
) -> Result<(), Fault> {
    let outcome = match end {
        EndWithoutModel::Failed(fault) => {
            app.set_state(State::Degraded, Some(fault.message.clone()));
            built.link.shutdown(LAST_REPLIES_TIMEOUT).await;
            Err(fault)
        }
        EndWithoutModel::Stopped => {
            let reason = "stopped while the model was loading".into();
            app.set_state(State::Draining, Some(reason));
            built.link.shutdown(LAST_REPLIES_TIMEOUT).await;
            Ok(())
        }
        EndWithoutModel::TakenOver => {
            drop(built.link);
            Err(takeover::fault())
        }
    };
    built.marker.remove();
    drop(inputs);
    outcome
}

/// Ends a daemon in service. A second signal ends it at once.
pub(super) async fn shut_down(
    app: &App<'_>,
    serving: Serving<'_>,
    reason: StopReason,
    mut signals: StopSignals,
) -> Result<(), Fault> {
    let tasks = serving.tasks;
    tasks.health.abort();
    let built = serving.built;
    // On a connection that is up, an orderly disconnect comes after all subscription changes.
    let up = *built.link_state.borrow() == LinkState::Up;
    let outcome = outcome(app, reason, &built.marker);
    let drained = drain(app, reason, serving.service, built.link, tasks.helpers);
    tokio::select! {
        () = drained => tracing::info!("phi-edge ends"),
        () = signals.next() => {
            tracing::warn!("a second signal: ending at once");
            return Err(Fault::failed("ended at once by a second signal"));
        }
    }
    if reason != StopReason::EngineLost {
        built.marker.remove();
    }
    if up && outcome.is_ok() {
        built.rules.confirm();
    }
    outcome
}

/// The outcome of a daemon that ends for this reason, which its status tells from here on.
fn outcome(app: &App<'_>, reason: StopReason, marker: &CrashMarker) -> Result<(), Fault> {
    let (told, outcome) = match reason {
        StopReason::Signal => ("stopped".to_owned(), Ok(())),
        StopReason::TakenOver => ("taken over".to_owned(), Err(takeover::fault())),
        StopReason::EngineLost => {
            marker.note_crash();
            let fault = Fault::failed("the engine has failed; the log above says how");
            (fault.message.clone(), Err(fault))
        }
        StopReason::ModelReplaced => {
            let fault = served_model::replaced();
            (fault.message.clone(), Err(fault))
        }
    };
    app.set_state(State::Draining, Some(told));
    outcome
}

/// Drains the service, and closes the link before the store, which forgets each reply that the broker has
/// acknowledged.
async fn drain(
    app: &App<'_>,
    reason: StopReason,
    service: Service,
    link: Link,
    helpers: Vec<JoinHandle<()>>,
) {
    let grace = app.limits.borrow().drain_grace.get();
    // The broker hands no request of the pool to another member once it was given to this node: those are answered here.
    if reason == StopReason::Signal {
        link.left_pool(POOL_LEAVE_TIMEOUT).await;
    }
    link.stop_taking();
    service.drain(grace).await;
    helpers.iter().for_each(JoinHandle::abort);
    link.shutdown(LAST_REPLIES_TIMEOUT).await;
    service.close_store().await;
}
