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
    let builder = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(filter(log))
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    match log.format {
        LogFormat::Text => {
            let builder = builder.with_filter_reloading();
            let handle = builder.reload_handle();
            builder.init();
            Box::new(move |log| handle.reload(filter(log)).map_err(|error| error.to_string()))
        }
        LogFormat::Json => {
            let builder = builder.json().flatten_event(true).with_filter_reloading();
            let handle = builder.reload_handle();
            builder.init();
            Box::new(move |log| handle.reload(filter(log)).map_err(|error| error.to_string()))
        }
    }
}

fn filter(log: &Log) -> EnvFilter {
    EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(format!("{LIBRARIES},{}", log.level)))
}
