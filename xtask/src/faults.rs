//! `cargo xtask faults`: the fault matrix at full count, and the table in docs/reliability.md.

use anyhow::{Context, Result};

use crate::bench::table;
use crate::process::{root, target};
use crate::test;

/// How often, and which.
#[derive(clap::Args)]
pub(crate) struct FaultsArgs {
    /// Rounds of each case.
    #[arg(long, default_value = "20", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Only cases whose test's name holds this.
    #[arg(long)]
    only: Option<String>,
}

pub(crate) fn faults(args: &FaultsArgs) -> Result<()> {
    let rows = target().join("faults.md");
    let _ = std::fs::remove_file(&rows);
    let mut arguments = vec![
        "-p",
        "phi-edge-tests",
        "--test",
        "faults",
        "--",
        "--test-threads=2",
        "--nocapture",
    ];
    arguments.extend(args.only.as_deref());
    let rounds = args.rounds.to_string();
    let path = rows.display().to_string();
    let environment = [
        ("PHI_EDGE_FAULT_ROUNDS", rounds.as_str()),
        ("PHI_EDGE_FAULT_TABLE", path.as_str()),
    ];
    let outcome = test::some(&arguments, &environment);
    let mut lines: Vec<String> = std::fs::read_to_string(&rows)
        .context("no case has ended well")?
        .lines()
        .map(str::to_owned)
        .collect();
    lines.sort();
    let report = format!(
        "| fault | rounds | requests | with an outcome | of these errors | with differing outcomes | copies |\n\
         |---|---|---|---|---|---|---|\n{}\n",
        lines.join("\n")
    );
    print!("{report}");
    if args.only.is_none() {
        let file = root().join("docs/reliability.md");
        let old = std::fs::read_to_string(&file).unwrap_or_default();
        std::fs::write(
            &file,
            table::between(&old, "cargo xtask faults", "end of faults", &report),
        )
        .with_context(|| format!("{} can't be written", file.display()))?;
    }
    outcome
}
