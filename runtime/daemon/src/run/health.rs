//! The health of the store, the link and the certificates, reported in the node's status.

use std::time::{Duration, SystemTime};

use phi_edge_mqtt::{LinkState, TlsFiles};
use phi_edge_service::StoreHealth;
use phi_edge_wire::{State, Status};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

/// The time between two checks of the certificates.
const CERTIFICATE_CHECK_INTERVAL: Duration = Duration::from_hours(6);
/// The time before the end of a certificate in which the status warns of it.
const CERTIFICATE_WARNING_PERIOD: Duration = Duration::from_hours(30 * 24);
/// The number of short connections in a row that makes the node degraded.
const SHORT_CONNECTION_LIMIT: u32 = 5;
const SECONDS_PER_DAY: u64 = 24 * 3600;

/// The parts whose health the status reports.
pub(crate) struct HealthInputs {
    pub(crate) store: watch::Receiver<StoreHealth>,
    pub(crate) link: watch::Receiver<LinkState>,
    pub(crate) short_connections: watch::Receiver<u32>,
    pub(crate) tls: Option<TlsFiles>,
    /// Changes when the certificates may have.
    pub(crate) reloaded: watch::Receiver<()>,
}

/// Keeps the status up to date with the health of its inputs, while the node is in service.
pub(crate) async fn watch(status: watch::Sender<Status>, inputs: HealthInputs) {
    let HealthInputs {
        mut store,
        mut link,
        mut short_connections,
        tls,
        mut reloaded,
    } = inputs;
    let mut certificate_checks = interval(CERTIFICATE_CHECK_INTERVAL);
    certificate_checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut warning = None;
    loop {
        let fault = fault(
            &store.borrow_and_update(),
            &link.borrow_and_update(),
            *short_connections.borrow_and_update(),
        );
        status.send_if_modified(|status| update_status(status, fault, warning.clone()));
        let check_certificates = tokio::select! {
            changed = store.changed() => match changed {
                Ok(()) => false,
                Err(_) => return,
            },
            // An error: the link has ended, and stays as it was.
            Ok(()) = link.changed() => false,
            Ok(()) = short_connections.changed() => false,
            Ok(()) = reloaded.changed() => true,
            _ = certificate_checks.tick() => true,
        };
        if check_certificates {
            warning = tls
                .as_ref()
                .and_then(|tls| certificate_warning(tls, SystemTime::now()));
        }
    }
}

/// The reason why the node is degraded, if it is.
fn fault(store: &StoreHealth, link: &LinkState, short_connections: u32) -> Option<String> {
    if let Some(fault) = &store.failing {
        return Some(format!("the store fails: {fault}"));
    }
    // A broker that is away comes back by itself; one that refuses the node needs the operator.
    match link {
        LinkState::Refused { reason } => Some(refusal(reason)),
        _ if short_connections >= SHORT_CONNECTION_LIMIT => Some(format!(
            "connections to the broker end again and again after a short time ({short_connections} in a row); something on \
             the way closes them, or another client uses this node's client id"
        )),
        _ => None,
    }
}

/// The message about a broker that refuses the node.
pub(crate) fn refusal(reason: &str) -> String {
    format!("the broker refuses the connection: {reason}")
}

/// Sets the state and the reason, and returns whether that changed anything.
fn update_status(status: &mut Status, fault: Option<String>, warning: Option<String>) -> bool {
    let (state, reason) = match fault {
        Some(fault) => (State::Degraded, Some(fault)),
        None => (State::Ready, warning),
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

/// The warning about a certificate that ends soon or has ended.
fn certificate_warning(tls: &TlsFiles, now: SystemTime) -> Option<String> {
    // What can't be read is the link's fault, which says so.
    let (file, end) = tls.first_to_end().ok()??;
    let file = file.display();
    match end.duration_since(now) {
        Ok(left) if left > CERTIFICATE_WARNING_PERIOD => None,
        Ok(left) => Some(format!(
            "{file}: the certificate ends in {} days",
            left.as_secs() / SECONDS_PER_DAY
        )),
        Err(past) => Some(format!(
            "{file}: the certificate has ended {} days ago (or this machine's clock is wrong)",
            past.duration().as_secs() / SECONDS_PER_DAY
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[tokio::test]
    async fn a_broker_that_refuses_the_node_degrades_it() {
        let (status, mut seen) = watch::channel(Status::new(State::Ready, ""));
        let (_store, store) = watch::channel(StoreHealth::default());
        let (link_tx, link) = watch::channel(LinkState::Connecting);
        let (_short, short) = watch::channel(0);
        let (_reloaded, reloaded) = watch::channel(());
        let watching = tokio::spawn(watch(
            status,
            HealthInputs {
                store,
                link,
                short_connections: short,
                tls: None,
                reloaded,
            },
        ));
        link_tx.send_replace(LinkState::Refused {
            reason: "no such user".into(),
        });
        let told = seen.wait_for(|status| status.state == State::Degraded).await;
        let reason = told.expect("a status").reason.clone();
        assert!(
            reason
                .as_deref()
                .is_some_and(|reason| reason.ends_with("no such user")),
            "{reason:?}"
        );
        link_tx.send_replace(LinkState::Up);
        let told = seen.wait_for(|status| status.state == State::Ready).await;
        assert_eq!(told.expect("a status").reason, None);
        watching.abort();
    }

    #[tokio::test]
    async fn connections_that_end_again_and_again_degrade_it() {
        let (status, mut seen) = watch::channel(Status::new(State::Ready, ""));
        let (_store, store) = watch::channel(StoreHealth::default());
        let (_link, link) = watch::channel(LinkState::Up);
        let (short_tx, short) = watch::channel(SHORT_CONNECTION_LIMIT - 1);
        let (_reloaded, reloaded) = watch::channel(());
        let watching = tokio::spawn(watch(
            status,
            HealthInputs {
                store,
                link,
                short_connections: short,
                tls: None,
                reloaded,
            },
        ));
        short_tx.send_replace(SHORT_CONNECTION_LIMIT);
        let told = seen.wait_for(|status| status.state == State::Degraded).await;
        let reason = told.expect("a status").reason.clone().unwrap_or_default();
        assert!(reason.contains("after a short time (5 in a row)"), "{reason}");
        short_tx.send_replace(0);
        let told = seen.wait_for(|status| status.state == State::Ready).await;
        assert_eq!(told.expect("a status").reason, None);
        watching.abort();
    }

    #[test]
    fn a_certificate_is_warned_of_in_time() {
        let folder = tempfile::tempdir().expect("a folder");
        let file: PathBuf = folder.path().join("ca.pem");
        let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).expect("parameters");
        params.not_after = rcgen::date_time_ymd(2031, 1, 1);
        let key = rcgen::KeyPair::generate().expect("a key");
        std::fs::write(&file, params.self_signed(&key).expect("a certificate").pem()).expect("a file");
        let tls = TlsFiles {
            ca: file,
            identity: None,
        };
        let (_, end) = tls.first_to_end().expect("readable").expect("an end");
        let days = |days: u64| Duration::from_secs(days * SECONDS_PER_DAY);
        assert_eq!(certificate_warning(&tls, end - days(31)), None);
        assert!(
            certificate_warning(&tls, end - days(12)).is_some_and(|text| text.ends_with("ends in 12 days"))
        );
        assert!(
            certificate_warning(&tls, end + days(3)).is_some_and(|text| text.contains("ended 3 days ago"))
        );
    }
}
