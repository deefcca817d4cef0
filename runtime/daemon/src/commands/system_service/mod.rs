//! `phi-edge service`: the Windows service.

mod registration;
mod service_process;

use clap::{Args, Subcommand};

use crate::exit::Fault;
use crate::setup::args::ConfigArgs;

/// The service's name, which is also that of its account: `NT SERVICE\phi-edge`.
const SERVICE_NAME: &str = "phi-edge";

/// The key of the log's file: a service has no standard error.
const LOG_PATH_KEY: &str = "log.path";

#[derive(Args)]
pub(crate) struct ServiceArgs {
    #[command(subcommand)]
    command: ServiceCommand,
}

#[derive(Subcommand)]
enum ServiceCommand {
    /// Register the service: it starts with the system, runs as NT SERVICE\phi-edge, and is restarted after failures.
    Install(ConfigArgs),
    /// Stop the service and remove its registration. Configuration, state and log stay.
    Uninstall,
    /// Run as the service: only the service manager can start this.
    Run(ConfigArgs),
}

impl ServiceArgs {
    /// Whether this is the daemon itself, which sets up logging as its configuration says.
    pub(crate) fn is_daemon(&self) -> bool {
        matches!(self.command, ServiceCommand::Run(_))
    }
}

/// Runs the action that `args` name.
pub(crate) fn service(args: &ServiceArgs) -> Result<(), Fault> {
    match &args.command {
        ServiceCommand::Install(args) => registration::install(args),
        ServiceCommand::Uninstall => registration::uninstall(),
        ServiceCommand::Run(args) => service_process::run(args),
    }
}
