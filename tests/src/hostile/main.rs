//! Attacks from outside, in their long form.
//!
//! `phi-edge-hostile [--minutes N] [--only NAME] [--seed N] [--short] [--table FILE]`; `cargo xtask hostile` sets everything up.

#![allow(clippy::print_stdout)]

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use phi_edge_tests::hostile::{Plan, Report, Scenario};
use phi_edge_tests::random_seed;

/// What the command line says.
struct Arguments {
    plan: Plan,
    only: Option<String>,
    table: Option<PathBuf>,
}

fn main() -> ExitCode {
    phi_edge_tests::exit_code(run())
}

fn run() -> Result<()> {
    let arguments = arguments(std::env::args().skip(1))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let chosen: Vec<Scenario> = Scenario::ALL
        .into_iter()
        .filter(|scenario| {
            arguments
                .only
                .as_ref()
                .is_none_or(|only| scenario.name().contains(only))
        })
        .collect();
    if chosen.is_empty() {
        bail!(
            "no such scenario; there are {:?}",
            Scenario::ALL.map(Scenario::name)
        );
    }
    let mut reports = Vec::new();
    for scenario in chosen {
        if let Some(report) = runtime.block_on(scenario.run(arguments.plan)) {
            println!("{}", Report::table(std::slice::from_ref(&report)));
            reports.push(report);
        }
    }
    let table = Report::table(&reports);
    if reports.len() > 1 {
        println!("{table}");
    }
    if let Some(file) = &arguments.table {
        std::fs::write(file, &table).with_context(|| format!("{} can't be written", file.display()))?;
    }
    let broken = reports.iter().filter(|report| !report.broken.is_empty()).count();
    if broken > 0 {
        bail!("{broken} of {} scenarios break a bound", reports.len());
    }
    Ok(())
}

fn arguments(mut given: impl Iterator<Item = String>) -> Result<Arguments> {
    let mut arguments = Arguments {
        plan: Plan {
            seed: random_seed(),
            minutes: Some(10),
        },
        only: None,
        table: None,
    };
    let mut is_short = false;
    while let Some(name) = given.next() {
        if name == "--short" {
            is_short = true;
            continue;
        }
        let value = given.next().with_context(|| format!("{name} needs a value"))?;
        match name.as_str() {
            "--minutes" => arguments.plan.minutes = Some(value.parse().context("--minutes")?),
            "--seed" => arguments.plan.seed = value.parse().context("--seed")?,
            "--only" => arguments.only = Some(value),
            "--table" => arguments.table = Some(value.into()),
            _ => bail!("unknown argument {name}"),
        }
    }
    if is_short {
        arguments.plan.minutes = None;
    }
    Ok(arguments)
}
