//! Logging to standard error, to a file or to systemd's journal.

mod log_file;
mod rate_limit;

use phi_edge_config::{Log, LogFormat};
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

use crate::exit::{Exit, Fault};
use log_file::LogFile;
pub(crate) use rate_limit::LogRateLimit;

/// Sets up logging for a command whose output is its result: warnings only, unless `RUST_LOG` says otherwise.
pub(crate) fn quiet() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(is_on_terminal())
        .with_env_filter(filter)
        .init();
}

/// The levels of libraries that log too much. Later directives for them win.
const LIBRARY_DIRECTIVES: &str = "ort=warn,mqtt5=warn,rumqttc=error";

/// A function that changes the level of the running daemon.
pub(crate) type SetLevel = Box<dyn Fn(&Log) -> Result<(), String> + Send + Sync>;

/// A layer that writes log lines.
type LogLayer = Box<dyn Layer<Registry> + Send + Sync>;

/// Sets up logging for the daemon, as the configuration says unless `RUST_LOG` says otherwise. Returns the function
/// that changes the level, and the rate limit.
///
/// # Errors
/// The file of `log.path` can't be opened.
pub(crate) fn daemon(log: &Log) -> Result<(SetLevel, LogRateLimit), Fault> {
    let Some(path) = &log.path else {
        return Ok(match log.format {
            LogFormat::Text => install(log, text_to_standard_error()),
            LogFormat::Json => install(log, json(BoxMakeWriter::new(std::io::stderr))),
            LogFormat::Journald => journald(log),
        });
    };
    let file = LogFile::open(path).map_err(|error| {
        let message = format!(
            "log.path: {} can't be opened: {error}; its folder must exist, and the daemon must be allowed to write there",
            path.display()
        );
        Fault::new(Exit::Config, message)
    })?;
    let writer = BoxMakeWriter::new(move || file.clone());
    Ok(match log.format {
        LogFormat::Json => install(log, json(writer)),
        LogFormat::Text | LogFormat::Journald => install(log, text(writer, false)),
    })
}

/// Logs to systemd's journal, each field as a journal field. Where there is no journal, logs text.
#[cfg(target_os = "linux")]
fn journald(log: &Log) -> (SetLevel, LogRateLimit) {
    match tracing_journald::layer() {
        Ok(journal) => {
            // Without a prefix: `job.id` becomes JOB_ID.
            let journal = journal
                .with_field_prefix(None)
                .with_syslog_identifier("phi-edge".into());
            install(log, Box::new(journal))
        }
        Err(error) => {
            let installed = install(log, text_to_standard_error());
            tracing::warn!(%error, "systemd's journal can't be reached (log.format); logging text instead");
            installed
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn journald(log: &Log) -> (SetLevel, LogRateLimit) {
    let installed = install(log, text_to_standard_error());
    tracing::warn!("there is no systemd journal on this system (log.format); logging text instead");
    installed
}

fn text_to_standard_error() -> LogLayer {
    text(BoxMakeWriter::new(std::io::stderr), is_on_terminal())
}

/// Whether standard error is read by people, who get colours.
fn is_on_terminal() -> bool {
    std::io::IsTerminal::is_terminal(&std::io::stderr())
}

fn text(writer: BoxMakeWriter, colours: bool) -> LogLayer {
    Box::new(fmt::layer().with_writer(writer).with_ansi(colours))
}

fn json(writer: BoxMakeWriter) -> LogLayer {
    Box::new(fmt::layer().with_writer(writer).json().flatten_event(true))
}

fn install(log: &Log, output: LogLayer) -> (SetLevel, LogRateLimit) {
    let limits = LogRateLimit::default();
    let (level, handle) = reload::Layer::new(filter(log));
    // The limits are asked last: only what the level lets through counts.
    tracing_subscriber::registry()
        .with(output)
        .with(level)
        .with(limits.clone())
        .init();
    let set_level = move |log: &Log| handle.reload(filter(log)).map_err(|error| error.to_string());
    (Box::new(set_level), limits)
}

fn filter(log: &Log) -> EnvFilter {
    EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new(format!("{LIBRARY_DIRECTIVES},{}", log.level)))
}
