//! One stream, against onnxruntime-genai and against a bare loop in the same process.

use std::fmt::Write as _;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::peer::pair;
use super::table::{number, processor, spread};
use super::{BenchArgs, Setup};

/// What is compared: its key, its name, whether more is better, the bound of the ratio.
const FIGURES: [(&str, &str, bool, f64); 4] = [
    ("prefill_tokens_per_s", "prefill, tokens/s", true, 1.0),
    ("decode_tokens_per_s", "decode, tokens/s", true, 1.0),
    ("rss_bytes", "peak memory, MiB", false, 1.05),
    ("load_ms", "start to ready, ms", false, 1.2),
];

/// Pairs of processes, both loaded, that measure in turns; and the bare loop.
pub(crate) fn measure(setup: &Setup, args: &BenchArgs) -> Result<String> {
    let (prompt, new) = (args.prompt_tokens().to_string(), args.new_tokens().to_string());
    let ours = |flags: &[&str]| {
        let mut command = setup.ours(flags);
        command.args(["--prompt-tokens", &prompt, "--new-tokens", &new]);
        command
    };
    let mut pairs = Vec::new();
    for number in 0..args.pairs() {
        let settings = [("prompt", args.prompt_tokens()), ("new", args.new_tokens())];
        let genai = setup.genai("streams", &settings);
        let pair = pair(ours(&["--turns"]), genai, args.turns(), number % 2 == 0)?;
        eprintln!("pair {}: {}", number + 1, line(&pair.0, &pair.1));
        pairs.push(pair);
    }
    eprintln!("Measuring the bare loop in the same process …");
    // The loop has no chunks.
    let pairs_of_runs = (args.pairs() + 2).to_string();
    let bare = json(&mut ours(&["--bare", &pairs_of_runs, "--prefill-chunk", &prompt]))?;
    report(args, &setup.threads, &pairs, &bare)
}

fn json(command: &mut Command) -> Result<Value> {
    let shown = format!("{command:?}");
    let output = command
        .output()
        .with_context(|| format!("{shown} can't be started"))?;
    if !output.status.success() {
        bail!("{shown} failed:\n{}", String::from_utf8_lossy(&output.stderr));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().last().unwrap_or_default();
    serde_json::from_str(last).with_context(|| format!("{shown} printed {last:?}"))
}

fn line(a: &Value, b: &Value) -> String {
    let ratios = FIGURES.map(|(key, name, _, _)| format!("{name} {:.3}", number(a, key) / number(b, key)));
    ratios.join("; ")
}

fn report(args: &BenchArgs, threads: &str, pairs: &[(Value, Value)], bare: &Value) -> Result<String> {
    let mut text = String::new();
    let version = pairs[0].1["version"].as_str().unwrap_or("?");
    writeln!(
        text,
        "{} pairs of processes, {} measurements each in turns, {threads} threads, a prompt of {} tokens, {} new ones, {}. Medians, with the least and the greatest.\n",
        pairs.len(),
        args.turns(),
        args.prompt_tokens(),
        args.new_tokens(),
        processor()
    )?;
    writeln!(
        text,
        "| | phi-edge | genai {version} | ratio | bound |\n|---|---|---|---|---|"
    )?;
    for (key, name, more, bound) in FIGURES {
        let scale = if key == "rss_bytes" {
            1.0 / 1_048_576.0
        } else {
            1.0
        };
        let of = |pick: fn(&(Value, Value)) -> &Value| -> Vec<f64> {
            pairs.iter().map(|pair| number(pick(pair), key) * scale).collect()
        };
        let (ours, theirs) = (of(|pair| &pair.0), of(|pair| &pair.1));
        let ratios: Vec<f64> = ours.iter().zip(&theirs).map(|(a, b)| a / b).collect();
        let sign = if more { "≥" } else { "≤" };
        writeln!(
            text,
            "| {name} | {} | {} | {} | {sign} {bound} |",
            spread(ours, 1),
            spread(theirs, 1),
            spread(ratios, 3)
        )?;
    }
    writeln!(
        text,
        "\nAgainst a bare ONNX Runtime loop in the same process, in turns: prefill {:.3}, decode {:.3} (bound: ≥ 0.97).\n",
        number(bare, "prefill_over_bare"),
        number(bare, "decode_over_bare")
    )?;
    Ok(text)
}
