//! The program for Windows under wine: its commands, a conversation over MQTT, its service, DirectML, and the crates'
//! unit tests.
//!
//! `phi-edge-windows ROOT PART…`: `cargo xtask windows-test` makes the Debian with wine in the folder ROOT and puts the programs
//! there. Parts: units, commands, conversation, service, directml.

#![allow(clippy::print_stdout)]

mod command_line;
mod conversation;
mod direct_ml;
mod service;
mod unit_tests;
mod wine;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use wine::Wine;

fn main() -> ExitCode {
    phi_edge_tests::exit_code(run())
}

fn run() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let root = arguments.next().map(PathBuf::from);
    let wine = Wine::new(&root.context("usage: phi-edge-windows ROOT PART…")?)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    for part in arguments {
        match part.to_str() {
            Some("units") => unit_tests::run(&wine)?,
            Some("commands") => command_line::run(&wine)?,
            Some("conversation") => runtime.block_on(conversation::run(&wine))?,
            Some("service") => runtime.block_on(service::run(&wine))?,
            Some("directml") => direct_ml::run(&wine)?,
            _ => bail!(
                "{} is no part: units, commands, conversation, service, directml",
                part.display()
            ),
        }
    }
    Ok(())
}
