//! The phi-edge command: puts the crates together, and is all that users see of them.

mod ask;
mod bench;
mod cli;
mod exit;
mod local;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use tracing_subscriber::EnvFilter;

use crate::cli::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    log_to_stderr();
    let outcome = match &cli.command {
        Command::Ask(args) => ask::ask(args),
        Command::Bench(args) => bench::bench(args),
        Command::Completions { shell } => {
            clap_complete::generate(*shell, &mut Cli::command(), "phi-edge", &mut std::io::stdout());
            Ok(())
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("phi-edge: {fault}");
            fault.exit.into()
        }
    }
}

/// Warnings only, unless `RUST_LOG` says otherwise: the answer is what these commands are run for.
fn log_to_stderr() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(filter)
        .init();
}
