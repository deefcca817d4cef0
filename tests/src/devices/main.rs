//! 200 devices that say 25 messages a second each, and a daemon that is killed twice meanwhile.
//!
//! `phi-edge-devices SECONDS`; `cargo xtask devices --seconds N` sets everything up.

#![allow(clippy::print_stdout)]

use std::time::Duration;

use anyhow::{Context, Result};
use phi_edge_tests::{Load, devices};

fn main() -> Result<()> {
    let seconds: u64 = std::env::args().nth(1).context("how many seconds?")?.parse()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let report = runtime.block_on(devices(Load {
        devices: 200,
        rate: 25,
        time: Duration::from_secs(seconds),
        kills: 2,
        window: 5,
    }))?;
    println!("{report}");
    Ok(())
}
