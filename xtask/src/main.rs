//! Developer commands. Each does its own set-up on a fresh checkout.

mod library;
mod process;
mod python;
mod test;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::library::Platform;

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "Developer commands of phi-edge; each does its own set-up."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Fetch the pinned ONNX Runtime library and print its path.
    Library {
        /// The platform to fetch it for; this machine's unless given.
        #[arg(long, value_enum)]
        platform: Option<Platform>,
    },
    /// Run every test.
    Test {
        /// Arguments for `cargo test`, after `--`.
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Formatting, lints and dependency rules: what CI runs before the tests.
    Lint,
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The whole chain in one line; a backtrace helps nobody here.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Library { platform } => {
            let platform = platform.map_or_else(Platform::of_this_machine, Ok)?;
            println!("{}", library::fetch(platform)?.display());
            Ok(())
        }
        Command::Test { arguments } => test::test(&arguments),
        Command::Lint => test::lint(),
    }
}
