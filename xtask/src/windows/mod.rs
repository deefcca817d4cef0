//! `cargo xtask windows …` and `cargo xtask windows-test`: the program for Windows, built on Linux with MinGW.

mod build;
mod under_wine;
mod zip;

use anyhow::Result;
use clap::Subcommand;

pub(crate) use under_wine::{WindowsTestArgs, test};

#[derive(Debug, Subcommand)]
pub(crate) enum WindowsCommand {
    /// Build phi-edge.exe, and the standard library for Windows where the toolchain has none.
    Build {
        /// Optimised, as the zip has it.
        #[arg(long)]
        release: bool,
    },
    /// Check that the program compiles; what CI runs.
    Check,
    /// Make the zip with program, ONNX Runtime, documents and the script that installs them.
    Zip,
}

/// Runs the command.
pub(crate) fn windows(command: &WindowsCommand) -> Result<()> {
    match command {
        WindowsCommand::Build { release } => {
            println!("{}", build::program(*release)?.display());
            Ok(())
        }
        WindowsCommand::Check => build::check(),
        WindowsCommand::Zip => {
            println!("{}", zip::zip()?.display());
            Ok(())
        }
    }
}
