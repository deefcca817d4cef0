//! `cargo xtask hostile`: attacks from outside, and their table in docs/reliability.md.

use std::process::Command;

use anyhow::{Context, Result};

use crate::bench::table;
use crate::library;
use crate::process::{cargo, root, run, target};
use crate::test;

/// How long, and which.
#[derive(clap::Args)]
pub(crate) struct HostileArgs {
    /// The length of scenarios that are a matter of time; others are a matter of counts, and take what they take.
    #[arg(long, default_value = "10", value_parser = clap::value_parser!(u32).range(1..))]
    minutes: u32,
    /// Only scenarios whose name holds this: poisons, flapping, crash-loop, memory, clients, reloads, fights, pictures.
    #[arg(long)]
    only: Option<String>,
    /// Repeats a run; random unless given.
    #[arg(long)]
    seed: Option<u64>,
    /// The short form that the tests run, of seconds, with the debug build.
    #[arg(long)]
    short: bool,
}

pub(crate) fn hostile(args: &HostileArgs) -> Result<()> {
    test::packages()?;
    let library = library::for_this_machine()?;
    let (profile, flags): (_, &[&str]) = if args.short {
        ("debug", &[])
    } else {
        ("release", &["--release"])
    };
    run(cargo()
        .args(["build", "--locked", "-p", "phi-edge", "-p", "phi-edge-tests"])
        .args(flags))?;
    let rows = target().join("hostile.md");
    let _ = std::fs::remove_file(&rows);
    let mut program = Command::new(target().join(profile).join("phi-edge-hostile"));
    program
        .current_dir(target())
        .env("ORT_DYLIB_PATH", library)
        .args(["--minutes", &args.minutes.to_string()])
        .arg("--table")
        .arg(&rows);
    if let Some(only) = &args.only {
        program.args(["--only", only]);
    }
    if let Some(seed) = args.seed {
        program.args(["--seed", &seed.to_string()]);
    }
    if args.short {
        program.arg("--short");
    }
    let outcome = run(&mut program);
    if !args.short && args.only.is_none() {
        // What broke a bound belongs into the table too.
        let report = std::fs::read_to_string(&rows).context("no scenario has ended")?;
        let file = root().join("docs/reliability.md");
        let old = std::fs::read_to_string(&file).unwrap_or_default();
        std::fs::write(
            &file,
            table::between(&old, "cargo xtask hostile", "end of hostile", &report),
        )
        .with_context(|| format!("{} can't be written", file.display()))?;
    }
    outcome
}
