//! The phi-edge command: puts the crates together, and is all that users see of them.

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

use crate::cli::{Cli, Command, RulesAction};
use crate::commands::{ask, bench, check, models, pull, rules, store, support, top};
use crate::exit::Fault;
use crate::setup::settings;
use crate::telemetry::logging;

fn main() -> ExitCode {
    // Before there is any other thread.
    phi_edge_onnx::forbid_telemetry();
    let cli = Cli::parse();
    if !matches!(cli.command, Command::Run(_)) {
        logging::quiet();
    }
    let outcome = match &cli.command {
        Command::Run(args) => run::run(args),
        Command::Check(args) => check::check(args),
        Command::Config(args) => {
            settings::load(args).map(|loaded| print!("{}", phi_edge_config::render(&loaded)))
        }
        Command::RecordExit(args) => run::record_exit(args),
        Command::Ask(args) => ask::ask(args),
        Command::Pull(args) => pull::pull(args),
        Command::Models(args) => models::models(args),
        Command::Rules(args) => match &args.action {
            RulesAction::Test(args) => rules::test(args),
            RulesAction::Record(args) => rules::record(args),
            RulesAction::Lint(args) => rules::lint(args),
        },
        Command::Support(args) => support::support(args),
        Command::Store(args) => store::store(args),
        Command::Top(args) => top::top(args),
        Command::Bench(args) => bench::bench(args),
        Command::Manual { dir } => clap_mangen::generate_to(Cli::command(), dir)
            .map_err(|error| Fault::failed(format!("{}: {error}", dir.display()))),
        Command::Completions { shell } => {
            clap_complete::generate(*shell, &mut Cli::command(), "phi-edge", &mut std::io::stdout());
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
