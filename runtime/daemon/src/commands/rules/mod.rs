//! `phi-edge rules`: tests, records for and checks rules.

mod lint;
mod record;
mod replay;

use clap::{Args, Subcommand};

use crate::exit::Fault;
use crate::setup::args::ConfigArgs;
use record::RecordArgs;
use replay::RuleTestArgs;

#[derive(Args)]
pub(crate) struct RulesArgs {
    #[command(subcommand)]
    action: RulesAction,
}

#[derive(Subcommand)]
enum RulesAction {
    /// Replay recorded messages through a rule: its windows, prompts and texts.
    Test(RuleTestArgs),
    /// Record what a broker sends, one JSON object a line.
    #[command(after_help = record::EXAMPLE)]
    Record(RecordArgs),
    /// Check every rule, and say what to do about each fault.
    Lint(ConfigArgs),
}

/// Runs the action that `args` name.
pub(crate) fn rules(args: &RulesArgs) -> Result<(), Fault> {
    match &args.action {
        RulesAction::Test(args) => replay::test(args),
        RulesAction::Record(args) => record::record(args),
        RulesAction::Lint(args) => lint::lint(args),
    }
}
