//! `cargo xtask kv-loss`: what 8-bit keys and values cost in accuracy, on the demonstration model and at long contexts.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::bench::table::{between, processor};
use crate::process::{cargo, root, run, target};
use crate::{library, model, python};

/// The past lengths at which the model for long contexts is reported: the ends of ranges of `phi-edge bench --kv-loss`.
const LONG_PAST: [u64; 3] = [4096, 16_384, 131_072];

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct KvLossArgs {
    /// Only the demonstration model.
    #[arg(long)]
    without_long: bool,
    /// Tokens of the long row.
    #[arg(long, value_name = "N", default_value = "131072", value_parser = clap::value_parser!(u32).range(1..=131_072))]
    long_tokens: u32,
}

/// The number of held-out prompts that the demonstration model answers.
const PROMPTS: &str = "500";
/// The seed of their generator: that of `models/export/evaluate.py`.
const PROMPTS_SEED: &str = "20000";
/// The most tokens of an answer; the longest ones have some 80.
const ANSWER_TOKENS: &str = "200";

/// Measures and writes the tables of docs/benchmarks.md, each as soon as it is there.
pub(crate) fn kv_loss(args: &KvLossArgs) -> Result<()> {
    run(cargo().args(["build", "--release", "--locked", "-p", "phi-edge"]))?;
    let library = library::for_this_machine()?;
    let demo = root().join("models/demo");
    let prompts = held_out_prompts()?;
    let prompts = prompts.to_string_lossy();
    let answers = ["--prompts", &prompts, "--new-tokens", ANSWER_TOKENS];
    let prefill = measure(&demo, &library, &answers)?;
    let decode = measure(&demo, &library, &["--prefill-chunk", "1"])?;
    write("demo", &demo_table(&prefill, &decode)?)?;
    if args.without_long {
        return Ok(());
    }
    let long = measure(
        &model::long_context()?,
        &library,
        &["--prompt-tokens", &args.long_tokens.to_string()],
    )?;
    write("long", &long_table(&long)?)
}

/// A file of prompts that the demonstration model was not trained on.
fn held_out_prompts() -> Result<PathBuf> {
    let file = target().join("kv-loss-prompts.jsonl");
    let mut script = Command::new(python::environment("model-tools")?);
    script
        .arg(root().join("models/export/prompts.py"))
        .args([PROMPTS, PROMPTS_SEED]);
    let output = script
        .output()
        .context("models/export/prompts.py can't be started")?;
    if !output.status.success() {
        bail!(
            "models/export/prompts.py failed:\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    std::fs::write(&file, output.stdout).with_context(|| format!("{} can't be written", file.display()))?;
    Ok(file)
}

/// The report of `phi-edge bench --kv-loss`.
fn measure(model: &Path, library: &Path, flags: &[&str]) -> Result<Value> {
    let mut command = Command::new(target().join("release/phi-edge"));
    command
        .args(["bench", "--kv-loss", "--json", "--provider", "cpu", "--model"])
        .arg(model)
        .args(flags)
        .env("ORT_DYLIB_PATH", library)
        .stderr(Stdio::inherit());
    let shown = format!("{command:?}");
    eprintln!("Running {shown} …");
    let output = command
        .output()
        .with_context(|| format!("{shown} can't be started"))?;
    if !output.status.success() {
        bail!("{shown} failed: {}", output.status);
    }
    serde_json::from_slice(&output.stdout).with_context(|| format!("{shown} printed no JSON"))
}

fn write(name: &str, table: &str) -> Result<()> {
    print!("{table}");
    let file = root().join("docs/benchmarks.md");
    let old = std::fs::read_to_string(&file).with_context(|| format!("{} can't be read", file.display()))?;
    let new = between(
        &old,
        &format!("cargo xtask kv-loss: {name}"),
        &format!("end of kv-loss: {name}"),
        table,
    );
    std::fs::write(&file, new).with_context(|| format!("{} can't be written", file.display()))
}

const HEAD: &str = "past tokens | compared | top-1 | top-1 where the margin exceeds 0.1 | mean KL | 99th percentile of KL | relative error of logits |";
const RULE: &str = "---|---|---|---|---|---|---|";

fn demo_table(prefill: &Value, decode: &Value) -> Result<String> {
    let mut text = String::new();
    let answers = &prefill["answers"];
    writeln!(
        text,
        "The demonstration model, {}: its answers to {} held-out prompts, of which {} are the same token by token (bounds: \
         top-1 ≥ 99.5 %, mean KL ≤ 0.002); the text in {} passages of {} tokens, {} against {} bytes of keys and values a token.\n",
        processor(),
        answers["answers"],
        answers["answers_alike"],
        prefill["passages"],
        prefill["prompt_tokens"],
        prefill["kv_bytes_per_token"],
        prefill["kv_bytes_per_token_f32"],
    )?;
    writeln!(text, "| | {HEAD}\n|---|{RULE}")?;
    writeln!(text, "| answers | {}", row("–", answers))?;
    for (name, report) in [("text, prefill", prefill), ("text, decode", decode)] {
        for past in ranges(report) {
            writeln!(text, "| {name} | {}", row(&range(past), past))?;
        }
        writeln!(text, "| {name} | {}", row("all", report))?;
    }
    Ok(text)
}

fn long_table(report: &Value) -> Result<String> {
    let mut text = String::new();
    writeln!(
        text,
        "One row of {} tokens, two layers of four heads of 96, random weights, {} against {} bytes of keys and values a token.\n",
        report["prompt_tokens"], report["kv_bytes_per_token"], report["kv_bytes_per_token_f32"],
    )?;
    writeln!(text, "| {HEAD}\n|{RULE}")?;
    let last = ranges(report).last();
    for past in ranges(report) {
        let end = past["past_tokens"][1].as_u64().unwrap_or_default();
        if LONG_PAST.contains(&end) || Some(past) == last {
            writeln!(text, "| {}", row(&format!("up to {end}"), past))?;
        }
    }
    Ok(text)
}

fn ranges(report: &Value) -> impl DoubleEndedIterator<Item = &Value> {
    report["past"].as_array().into_iter().flatten()
}

fn range(past: &Value) -> String {
    format!("{} to {}", past["past_tokens"][0], past["past_tokens"][1])
}

fn row(name: &str, figures: &Value) -> String {
    let percent = |key: &str| {
        figures[key]
            .as_f64()
            .map_or("–".to_owned(), |share| format!("{:.2} %", share * 100.0))
    };
    let number = |key: &str| {
        figures[key]
            .as_f64()
            .map_or("–".to_owned(), |value| format!("{value:.2e}"))
    };
    format!(
        "{name} | {} | {} | {} (of {}) | {} | {} | {} |",
        figures["compared"],
        percent("top1_agreement"),
        percent("decided_top1_agreement"),
        figures["decided"],
        number("kl_mean"),
        number("kl_p99"),
        number("logits_error"),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn figures(past: [u64; 2]) -> Value {
        json!({
            "past_tokens": past, "compared": 100, "top1_agreement": 0.995, "decided": 80, "decided_top1_agreement": 1.0,
            "kl_mean": 0.000_123, "kl_p99": 0.004, "logits_error": null,
        })
    }

    #[test]
    fn the_long_table_has_its_lengths_only() -> Result<()> {
        let report =
            json!({ "past": [figures([2048, 4096]), figures([4096, 8192]), figures([8192, 10_000])] });
        let table = long_table(&report)?;
        assert!(
            table.contains("| up to 4096 | 100 | 99.50 % | 100.00 % (of 80) | 1.23e-4 | 4.00e-3 | – |"),
            "{table}"
        );
        assert!(
            !table.contains("8192") && table.contains("up to 10000"),
            "{table}"
        );
        Ok(())
    }

    #[test]
    fn the_demo_table_has_all_ranges_of_both_runs() -> Result<()> {
        let mut report = figures([0, 0]);
        report["answers"] = figures([0, 0]);
        report["past"] = json!([figures([0, 256]), figures([256, 512])]);
        let table = demo_table(&report, &report)?;
        assert_eq!(
            table.lines().filter(|line| line.contains("99.50 %")).count(),
            7,
            "{table}"
        );
        Ok(())
    }
}
