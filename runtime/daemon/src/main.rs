//! The phi-edge program: its command line, and the composition of the crates.

mod cli;
mod commands;
mod exit;
mod machine;
mod run;
mod setup;
mod telemetry;
mod terminal;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::cli::{Cli, Command};
use crate::commands::{
    ask, bench, check, completions, config, manual, models, pull, rules, store, support, top,
};
use crate::telemetry::logging;

/// The allocator of all that is Rust; ONNX Runtime has the C library's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    machine::allocator::return_memory_at_once();
    // Before any other thread is started.
    phi_edge_onnx::forbid_telemetry();
    let cli = Cli::parse();
    if !cli.command.is_daemon() {
        logging::quiet();
        terminal::end_on_closed_pipe();
    }
    let outcome = match &cli.command {
        Command::Run(args) => run::run(args),
        #[cfg(windows)]
        Command::Service(args) => commands::system_service::service(args),
        Command::Check(args) => check::check(args),
        Command::Config(args) => config::config(args),
        Command::RecordExit(args) => run::record_exit(args),
        Command::Ask(args) => ask::ask(args),
        Command::Pull(args) => pull::pull(args),
        Command::Models(args) => models::models(args),
        Command::Rules(args) => rules::rules(args),
        Command::Support(args) => support::support(args),
        Command::Store(args) => store::store(args),
        Command::Top(args) => top::top(args),
        Command::Bench(args) => bench::bench(args),
        Command::Manual(args) => manual::manual(args, Cli::command()),
        Command::Completions(args) => {
            completions::completions(args, &mut Cli::command());
            Ok(())
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("phi-edge: {}", terminal::text(&fault.to_string()));
            fault.exit.into()
        }
    }
}
