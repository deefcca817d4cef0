//! `phi-edge rules lint`: a check of every rule.

use phi_edge_config::Rule;

use crate::exit::{Exit, Fault};
use crate::setup::args::ConfigArgs;
use crate::setup::settings;

use crate::setup::rule_conversion::{self, RuleDefaults};

/// Prints for each rule whether it can be used, and why not.
pub(super) fn lint(args: &ConfigArgs) -> Result<(), Fault> {
    let loaded = settings::load(args)?;
    for warning in &loaded.warnings {
        println!("warn   {warning}");
    }
    if loaded.config.rules.is_empty() {
        println!("There are no rules: see [[rules]] in the configuration, and node.rules_dir.");
        return Ok(());
    }
    let defaults = RuleDefaults::from_config(&loaded.config);
    let mut faults = 0;
    for rule in &loaded.config.rules {
        match rule_conversion::convert_checked(rule, &defaults) {
            Ok(_) => println!("ok     {}", describe(rule)),
            Err(fault) => {
                faults += 1;
                println!("fault  {fault}");
            }
        }
        for hint in hints(rule) {
            println!("hint   {}: {hint}", rule.name);
        }
    }
    if faults > 0 {
        return Err(Fault::new(
            Exit::Config,
            format!(
                "{faults} of {} rules can't be used, listed above",
                loaded.config.rules.len()
            ),
        ));
    }
    Ok(())
}

fn describe(rule: &Rule) -> String {
    format!(
        "{}: {} windows over {} ({})",
        rule.name,
        rule.window.kind.name(),
        rule.topics.join(", "),
        rule.origin
    )
}

/// Hints on settings that are allowed and rarely intended.
fn hints(rule: &Rule) -> Vec<&'static str> {
    let mut hints = Vec::new();
    if rule.topics.iter().any(|topic| topic == "#") {
        hints.push("`#` takes every message of the broker; name the topics that are meant");
    }
    if rule.output.retain
        && rule
            .output
            .topic
            .as_deref()
            .is_none_or(|topic| !topic.contains("{group}"))
        && rule.group_by.is_some()
    {
        hints.push("with `retain`, all groups overwrite each other's event: put {group} into output.topic");
    }
    if rule.fields.is_empty() {
        hints.push("without `fields` no facts are computed beyond the number of messages");
    }
    hints
}
