//! The long forms: `cargo xtask fleet`, `flood`, `devices` and `soak`.

use anyhow::Result;

use crate::library;
use crate::process::{cargo, run, target};
use crate::test;

/// A pool of three, one of them killed, in many rounds.
pub(crate) fn fleet(rounds: u32, requests: u32) -> Result<()> {
    let (rounds, requests) = (rounds.to_string(), requests.to_string());
    test::some(
        &[
            "-p",
            "phi-edge-tests",
            "--test",
            "fleet",
            "--",
            "--nocapture",
            "--test-threads=1",
        ],
        &[
            ("PHI_EDGE_FLEET_ROUNDS", &rounds),
            ("PHI_EDGE_FLEET_REQUESTS", &requests),
        ],
    )
}

/// Small requests through broker, link, store and service.
pub(crate) fn flood(requests: u32) -> Result<()> {
    program("phi-edge-flood", requests, &[])
}

/// Devices that talk while the daemon is killed.
pub(crate) fn devices(seconds: u32) -> Result<()> {
    program("phi-edge-devices", seconds, &[])
}

/// Requests without end while things break, and hostile clients beside them if asked for.
pub(crate) fn soak(minutes: u32, hostile: bool) -> Result<()> {
    let flags: &[&str] = if hostile { &["--hostile"] } else { &[] };
    program("phi-edge-soak", minutes, flags)
}

fn program(name: &str, argument: u32, flags: &[&str]) -> Result<()> {
    test::packages()?;
    let library = library::for_this_machine()?;
    run(cargo().args([
        "build",
        "--release",
        "--locked",
        "-p",
        "phi-edge",
        "-p",
        "phi-edge-tests",
    ]))?;
    run(std::process::Command::new(target().join("release").join(name))
        .arg(argument.to_string())
        .args(flags)
        .current_dir(target())
        .env("ORT_DYLIB_PATH", library))
}
