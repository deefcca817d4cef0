//! `cargo xtask bench`: phi-edge and onnxruntime-genai on one model, in turns.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::peer::Peer;
use crate::process::{cargo, root, run, target};
use crate::{library, model, python};

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct BenchArgs {
    /// The model directory; a random one of full shape under target/ unless given.
    #[arg(long)]
    model: Option<PathBuf>,
    /// Pairs of processes.
    #[arg(long, default_value = "5", value_parser = clap::value_parser!(u32).range(1..))]
    pairs: u32,
    /// Measurements in each pair of processes, in turns.
    #[arg(long, default_value = "3", value_parser = clap::value_parser!(u32).range(1..))]
    turns: u32,
    /// Tokens of the prompt.
    #[arg(long, default_value = "512")]
    prompt_tokens: u32,
    /// New tokens.
    #[arg(long, default_value = "64")]
    new_tokens: u32,
    /// Threads of both [default: all processors].
    #[arg(long)]
    threads: Option<usize>,
}

/// What is compared: its key, its name, whether more is better, the bound of the ratio.
const FIGURES: [(&str, &str, bool, f64); 4] = [
    ("prefill_tokens_per_s", "prefill, tokens/s", true, 1.0),
    ("decode_tokens_per_s", "decode, tokens/s", true, 1.0),
    ("rss_bytes", "peak memory, MiB", false, 1.05),
    ("load_ms", "start to ready, ms", false, 1.2),
];

/// One process of ours and one of the peer's, both loaded, measured in turns: what the machine does to one it does to
/// the other a few seconds later. The medians of each.
fn pair(ours: Command, theirs: Command, turns: u32, ours_first: bool) -> Result<(Value, Value)> {
    let (mut ours, mut theirs) = if ours_first {
        let ours = Peer::start(ours)?;
        (ours, Peer::start(theirs)?)
    } else {
        let theirs = Peer::start(theirs)?;
        (Peer::start(ours)?, theirs)
    };
    for turn in 0..turns {
        if ours_first == (turn % 2 == 0) {
            ours.measure()?;
            theirs.measure()?;
        } else {
            theirs.measure()?;
            ours.measure()?;
        }
    }
    Ok((ours.medians(), theirs.medians()))
}

/// Measures and writes docs/benchmarks.md.
pub(crate) fn bench(args: &BenchArgs) -> Result<()> {
    let model = match &args.model {
        Some(model) => model.clone(),
        None => full_shape()?,
    };
    let library = library::for_this_machine()?;
    let peer = python::environment("bench-tools")?;
    run(cargo().args(["build", "--release", "--locked", "-p", "phi-edge"]))?;
    let threads = args
        .threads
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
        .to_string();
    let (prompt, new) = (args.prompt_tokens.to_string(), args.new_tokens.to_string());
    let command = |flags: &[&str]| {
        let mut command = Command::new(target().join("release/phi-edge"));
        command
            .args(["bench", "--provider", "cpu", "--json", "--threads", &threads])
            .args(["--prompt-tokens", &prompt, "--new-tokens", &new])
            .args(["--prefill-chunk", &prompt, "--model"])
            .arg(&model)
            .args(flags)
            .env("ORT_DYLIB_PATH", &library);
        command
    };
    let mut pairs = Vec::new();
    for number in 0..args.pairs {
        let mut genai = Command::new(&peer);
        genai
            .arg(root().join("xtask/genai_bench.py"))
            .arg(&model)
            .args([&threads, &prompt, &new]);
        let pair = pair(command(&["--turns"]), genai, args.turns, number % 2 == 0)?;
        eprintln!("pair {}: {}", number + 1, line(&pair.0, &pair.1));
        pairs.push(pair);
    }
    eprintln!("Measuring the bare loop in the same process …");
    let bare = json(&mut command(&["--bare", &(args.pairs + 2).to_string()]))?;
    let report = report(args, &threads, &pairs, &bare)?;
    print!("{report}");
    let file = root().join("docs/benchmarks.md");
    std::fs::create_dir_all(root().join("docs"))?;
    let old = std::fs::read_to_string(&file).unwrap_or_default();
    std::fs::write(&file, section(&old, &report))
        .with_context(|| format!("{} can't be written", file.display()))
}

fn full_shape() -> Result<PathBuf> {
    let folder = target().join("bench-model");
    if !folder.join("manifest.json").exists() {
        model::write(&folder, 32)?;
    }
    Ok(folder)
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

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or(f64::NAN)
}

const BEGIN: &str = "<!-- cargo xtask bench -->";
const END: &str = "<!-- end -->";

/// The document with the report in its place.
fn section(old: &str, report: &str) -> String {
    match (old.find(BEGIN), old.find(END)) {
        (Some(begin), Some(end)) if begin < end => {
            format!("{}{BEGIN}\n{report}{}", &old[..begin], &old[end..])
        }
        _ => format!("{old}{BEGIN}\n{report}{END}\n"),
    }
}

fn report(args: &BenchArgs, threads: &str, pairs: &[(Value, Value)], bare: &Value) -> Result<String> {
    let mut text = String::new();
    let version = pairs[0].1["version"].as_str().unwrap_or("?");
    writeln!(
        text,
        "\n{} pairs of processes, {} measurements each in turns, {threads} threads, a prompt of {} tokens, {} new ones, {}. Medians, with the least and the greatest.\n",
        pairs.len(),
        args.turns,
        args.prompt_tokens,
        args.new_tokens,
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

fn spread(mut values: Vec<f64>, digits: usize) -> String {
    values.sort_by(f64::total_cmp);
    let (n, median) = (values.len(), median(&values));
    format!(
        "{median:.digits$} ({:.digits$}–{:.digits$})",
        values[0],
        values[n - 1]
    )
}

/// The middle of values in ascending order.
pub(crate) fn median(sorted: &[f64]) -> f64 {
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

fn processor() -> String {
    let info = std::fs::read_to_string(Path::new("/proc/cpuinfo")).unwrap_or_default();
    let name = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    name.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.to_owned())
}
