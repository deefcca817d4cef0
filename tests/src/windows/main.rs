//! The program for Windows under wine: its commands, a conversation over MQTT, and its service.
//!
//! `phi-edge-windows ROOT`: `cargo xtask windows-test` makes the Debian with wine in the folder ROOT and puts the program there.

#![allow(clippy::print_stdout)]

mod command_line;
mod conversation;
mod service;
mod wine;

use std::path::PathBuf;

use anyhow::{Context, Result};

use wine::Wine;

fn main() -> Result<()> {
    let root = std::env::args_os()
        .nth(1)
        .map(PathBuf::from)
        .context("usage: phi-edge-windows ROOT")?;
    let wine = Wine::new(&root)?;
    command_line::run(&wine)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(conversation::run(&wine))?;
    runtime.block_on(service::run(&wine))
}
