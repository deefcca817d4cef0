//! Known vulnerabilities of dependencies, where the database of advisories can be reached: docs/decisions/0004.

use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::process::{root, run};

/// How long the database may take to come. Where a firewall drops packets, nothing ever does.
const FETCH_TIMEOUT: Duration = Duration::from_mins(1);
/// How often it is looked whether it has come.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Fails where a dependency has an advisory; says so where that can't be told.
pub(crate) fn check(deny: &Path) -> Result<()> {
    let mut fetch = Command::new(deny);
    fetch
        .current_dir(root())
        .args(["--log-level", "off", "fetch", "db"])
        // What it says of the network is said below, in one line.
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let fetched = within(
        fetch.spawn().context("cargo-deny can't be started")?,
        FETCH_TIMEOUT,
    )?;
    if !fetched.is_some_and(|status| status.success()) {
        eprintln!(
            "Advisories were not checked: their database can't be fetched from here. Run `cargo deny check advisories` \
             where github.com can be reached."
        );
        return Ok(());
    }
    run(Command::new(deny).current_dir(root()).args([
        "--log-level",
        "warn",
        "--offline",
        "check",
        "advisories",
    ]))
}

/// The end of a process, or nothing if it was ended because the time was over.
fn within(mut child: Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let begun = Instant::now();
    while begun.elapsed() < limit {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    child.kill()?;
    child.wait()?;
    Ok(None)
}
