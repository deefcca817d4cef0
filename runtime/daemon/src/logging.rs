//! Logging: to standard error, where systemd's journal takes it from.

use phi_edge_config::{Log, LogFormat};
use tracing_subscriber::EnvFilter;

/// For commands whose output is the answer: warnings only, unless `RUST_LOG` says otherwise.
pub(crate) fn quiet() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(filter)
        .init();
}

/// Libraries that say too much at a level that is right for us. Later directives for them win.
const LIBRARIES: &str = "ort=warn,mqtt5=warn,rumqttc=warn";

/// For the daemon: as the configuration says, unless `RUST_LOG` says otherwise.
pub(crate) fn daemon(log: &Log) {
    let filter = || {
        EnvFilter::try_from_default_env()
            .unwrap_or_else(|_| EnvFilter::new(format!("{LIBRARIES},{}", log.level)))
    };
    match log.format {
        LogFormat::Text => text(filter()),
        LogFormat::Json => tracing_subscriber::fmt()
            .with_writer(std::io::stderr)
            .with_env_filter(filter())
            .json()
            .flatten_event(true)
            .init(),
        LogFormat::Journald => journald(filter()),
    }
}

/// As entries of systemd's journal: a field a field of theirs. Where there is no journal, as text.
#[cfg(target_os = "linux")]
fn journald(filter: EnvFilter) {
    use tracing_subscriber::layer::SubscriberExt as _;
    use tracing_subscriber::util::SubscriberInitExt as _;
    match tracing_journald::layer() {
        Ok(journal) => {
            // Without a prefix: `job.id` becomes JOB_ID.
            let journal = journal
                .with_field_prefix(None)
                .with_syslog_identifier("phi-edge".into());
            tracing_subscriber::registry().with(journal).with(filter).init();
        }
        Err(error) => {
            text(filter);
            tracing::warn!(%error, "systemd's journal can't be reached (log.format); this is text");
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn journald(filter: EnvFilter) {
    text(filter);
    tracing::warn!("there is no systemd journal on this system (log.format); this is text");
}

fn text(filter: EnvFilter) {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(filter)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
}
