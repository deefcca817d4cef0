//! What is wrong with the node's parts, told in its status.

use std::time::{Duration, SystemTime};

use phi_edge_mqtt::TlsFiles;
use phi_edge_mqtt::wire::{State, Status};
use phi_edge_service::StoreHealth;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

/// Between two looks at the certificates.
const LOOK: Duration = Duration::from_hours(6);
/// A certificate that ends within this time is warned of.
const NEAR: Duration = Duration::from_hours(30 * 24);
const DAY: u64 = 24 * 3600;

/// Holds the status to how the store and the certificates are, while the node is in service.
pub(crate) async fn watch(
    status: watch::Sender<Status>,
    mut store: watch::Receiver<StoreHealth>,
    tls: Option<TlsFiles>,
) {
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut warning = None;
    loop {
        let fault = store.borrow_and_update().failing.clone();
        status.send_if_modified(|status| set(status, fault, warning.clone()));
        tokio::select! {
            changed = store.changed() => if changed.is_err() {
                return;
            },
            _ = looks.tick() => warning = tls.as_ref().and_then(|tls| near_end(tls, SystemTime::now())),
        }
    }
}

/// True if that changes anything.
fn set(status: &mut Status, fault: Option<String>, warning: Option<String>) -> bool {
    let (state, reason) = match fault {
        Some(fault) => (State::Degraded, Some(format!("the store fails: {fault}"))),
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

/// What to say of a certificate that ends soon, or has.
fn near_end(tls: &TlsFiles, now: SystemTime) -> Option<String> {
    // What can't be read is the link's fault, which says so.
    let (file, end) = tls.first_to_end().ok()??;
    let file = file.display();
    match end.duration_since(now) {
        Ok(left) if left > NEAR => None,
        Ok(left) => Some(format!(
            "{file}: the certificate ends in {} days",
            left.as_secs() / DAY
        )),
        Err(past) => Some(format!(
            "{file}: the certificate has ended {} days ago (or this machine's clock is wrong)",
            past.duration().as_secs() / DAY
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

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
        let days = |days: u64| Duration::from_secs(days * DAY);
        assert_eq!(near_end(&tls, end - days(31)), None);
        assert!(near_end(&tls, end - days(12)).is_some_and(|text| text.ends_with("ends in 12 days")));
        assert!(near_end(&tls, end + days(3)).is_some_and(|text| text.contains("ended 3 days ago")));
    }
}
