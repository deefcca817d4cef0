//! The command line.

use clap::{Parser, Subcommand};

use crate::commands::ask::{self, AskArgs};
use crate::commands::bench::BenchArgs;
use crate::commands::check::CheckArgs;
use crate::commands::completions::CompletionsArgs;
use crate::commands::manual::ManualArgs;
use crate::commands::models::ModelsArgs;
use crate::commands::pull::{self, PullArgs};
use crate::commands::rules::RulesArgs;
use crate::commands::store::StoreArgs;
use crate::commands::support::SupportArgs;
#[cfg(windows)]
use crate::commands::system_service::ServiceArgs;
use crate::commands::top::TopArgs;
use crate::run;
use crate::setup::args::ConfigArgs;

/// Answers prompts over MQTT with an exported Phi-3.5 model, on this machine.
#[derive(Parser)]
#[command(name = "phi-edge", version, about, long_about = None, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Run the daemon: take requests from the broker and publish the answers.
    #[command(after_help = run::EXAMPLES)]
    Run(ConfigArgs),
    /// Register, remove or run the Windows service.
    #[cfg(windows)]
    Service(ServiceArgs),
    /// Check configuration, model, library, provider and broker, and say what to do about each fault.
    Check(CheckArgs),
    /// Run one prompt, here or at a broker, and print the answer as it grows.
    #[command(after_help = ask::EXAMPLES)]
    Ask(Box<AskArgs>),
    /// Fetch a model, verified: by short name, from an address, or from a folder.
    #[command(after_help = pull::EXAMPLES)]
    Pull(Box<PullArgs>),
    /// List, verify, choose, remove, export and import models.
    Models(ModelsArgs),
    /// Look into the store of a stopped daemon, or empty it.
    Store(StoreArgs),
    /// Watch one node or a fleet: queue, slots, speed, errors.
    Top(TopArgs),
    /// Try rules out: replay recorded messages, record them, check the rules.
    Rules(RulesArgs),
    /// Measure loading, prefill, decoding and memory.
    Bench(BenchArgs),
    /// Write what a report of a fault needs into one file: versions, configuration, log, status; without passwords, prompts
    /// and answers.
    Support(SupportArgs),
    /// Print the effective configuration and where each value came from.
    Config(ConfigArgs),
    /// Note how the daemon ended, for its next start: for ExecStopPost= in the systemd unit.
    #[command(hide = true)]
    RecordExit(ConfigArgs),
    /// Write the manual pages into a folder: for packages.
    #[command(hide = true)]
    Manual(ManualArgs),
    /// Print the completions of a shell, to be loaded by it.
    Completions(CompletionsArgs),
}

impl Command {
    /// Whether this is the daemon, which sets up logging as its configuration says.
    pub(crate) fn is_daemon(&self) -> bool {
        match self {
            Self::Run(_) => true,
            #[cfg(windows)]
            Self::Service(args) => args.is_daemon(),
            _ => false,
        }
    }
}
