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

/// Sets what the running daemon logs.
pub(crate) type SetLevel = Box<dyn Fn(&Log) -> Result<(), String> + Send + Sync>;

/// For the daemon: as the configuration says, unless `RUST_LOG` says otherwise. What is given back changes the level.
pub(crate) fn daemon(log: &Log) -> SetLevel {
    match log.format {
        LogFormat::Text => text(log),
        LogFormat::Json => {
            let builder = tracing_subscriber::fmt()
                .with_writer(std::io::stderr)
                .with_env_filter(filter(log))
                .json()
                .flatten_event(true)
                .with_filter_reloading();
            let handle = builder.reload_handle();
            builder.init();
            Box::new(move |log| handle.reload(filter(log)).map_err(|error| error.to_string()))
        }
        LogFormat::Journald => journald(log),
    }
}

/// As entries of systemd's journal: a field a field of theirs. Where there is no journal, as text.
#[cfg(target_os = "linux")]
fn journald(log: &Log) -> SetLevel {
    use tracing_subscriber::layer::SubscriberExt as _;
    use tracing_subscriber::util::SubscriberInitExt as _;
    match tracing_journald::layer() {
        Ok(journal) => {
            // Without a prefix: `job.id` becomes JOB_ID.
            let journal = journal
                .with_field_prefix(None)
                .with_syslog_identifier("phi-edge".into());
            let (level, handle) = tracing_subscriber::reload::Layer::new(filter(log));
            tracing_subscriber::registry().with(journal).with(level).init();
            Box::new(move |log| handle.reload(filter(log)).map_err(|error| error.to_string()))
        }
        Err(error) => {
            let set_level = text(log);
            tracing::warn!(%error, "systemd's journal can't be reached (log.format); this is text");
            set_level
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn journald(log: &Log) -> SetLevel {
    let set_level = text(log);
    tracing::warn!("there is no systemd journal on this system (log.format); this is text");
    set_level
}

fn text(log: &Log) -> SetLevel {
    let builder = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(filter(log))
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_filter_reloading();
    let handle = builder.reload_handle();
    builder.init();
    Box::new(move |log| handle.reload(filter(log)).map_err(|error| error.to_string()))
}

fn filter(log: &Log) -> EnvFilter {
    EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(format!("{LIBRARIES},{}", log.level)))
}
