//! `cargo xtask bench --against BINARY`: this checkout and another build of phi-edge, in turns.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail, ensure};
use serde_json::Value;

use super::peer::pair;
use super::table::{median, number, processor, spread};
use super::{BenchArgs, full_shape_folder, phi_edge, release_binary};
use crate::library;
use crate::process::{cargo, root, run};

/// By how much the median ratio may differ from 1, either way: what is faster is another program, too.
const MAX_DEVIATION: f64 = 0.05;
/// Pairs of processes: their median passes over what other work on the machine does to four of them.
const DEFAULT_PAIRS: u32 = 9;
/// A model with weights of fewer bytes computes 64 tokens in too few milliseconds to be timed.
const SMALL_MODEL_BYTES: u64 = 100 << 20;

/// Sizes of the measurements.
struct Sizes {
    prompt: u32,
    new: u32,
    turns: u32,
}

/// A process of `phi-edge bench` that measures in turns.
#[derive(Clone, Copy)]
enum Load {
    OneStream,
    FourStreams,
}

/// A speed that is compared.
struct Figure {
    name: &'static str,
    load: Load,
    /// Its key in the report of `phi-edge bench`.
    key: &'static str,
}

const FIGURES: [Figure; 3] = [
    Figure {
        name: "prefill",
        load: Load::OneStream,
        key: "prefill_tokens_per_s",
    },
    Figure {
        name: "decode",
        load: Load::OneStream,
        key: "decode_tokens_per_s",
    },
    Figure {
        name: "decode of 4 streams",
        load: Load::FourStreams,
        key: "decode_tokens_per_s",
    },
];

/// The reports of one pair of processes.
struct Pair {
    this: Value,
    other: Value,
}

/// A figure of both builds, in tokens per second, pair by pair.
struct Comparison {
    name: &'static str,
    this: Vec<f64>,
    other: Vec<f64>,
}

/// Which of the two builds.
#[derive(Clone, Copy)]
enum Build {
    This,
    Other,
}

/// Measures, prints the table, and fails where a figure is out of bounds.
pub(super) fn against(args: &BenchArgs, binary: &Path) -> Result<()> {
    ensure!(binary.is_file(), "{} is no file", binary.display());
    ensure!(
        release_binary().canonicalize().ok() != Some(binary.canonicalize()?),
        "{} is what this checkout is built to: copy the other build elsewhere",
        binary.display()
    );
    run(cargo().args(["build", "--release", "--locked", "-p", "phi-edge"]))?;
    let (model, library, threads) = (model(args), library::for_this_machine()?, args.threads());
    let sizes = sizes(args, &model);
    let this = release_binary();
    let command = |build, load| {
        let binary = match build {
            Build::This => this.as_path(),
            Build::Other => binary,
        };
        let mut command = phi_edge(binary, &model, &threads, &library);
        flags(&mut command, load, &sizes);
        command
    };
    let pairs = args.pairs.unwrap_or(DEFAULT_PAIRS);
    let comparisons = measure(command, pairs, sizes.turns)?;
    println!(
        "{pairs} pairs of processes, {} measurements each in turns, {threads} threads, prompts of {} and 64 tokens, {} new ones, \
         {}, {}. Medians in tokens/s, with the least and the greatest.\n",
        sizes.turns,
        sizes.prompt,
        sizes.new,
        model.display(),
        processor()
    );
    print!("{}", table(&comparisons)?);
    verdict(&comparisons)
}

/// The model directory: the one that was named, else the one of full shape where it was written, else the demonstration's.
fn model(args: &BenchArgs) -> PathBuf {
    args.model
        .clone()
        .or_else(full_shape_folder)
        .unwrap_or_else(|| root().join("models/demo"))
}

fn sizes(args: &BenchArgs, model: &Path) -> Sizes {
    let weights = model.read_dir().into_iter().flatten().flatten();
    let bytes: u64 = weights.filter_map(|file| Some(file.metadata().ok()?.len())).sum();
    let (prompt, new, turns) = if bytes < SMALL_MODEL_BYTES {
        (1000, 1000, 9)
    } else {
        (512, 64, 3)
    };
    Sizes {
        prompt: args.prompt_tokens.unwrap_or(prompt),
        new: args.new_tokens.unwrap_or(new),
        turns: args.turns.unwrap_or(turns),
    }
}

fn flags(command: &mut Command, load: Load, sizes: &Sizes) {
    let (prompt, new) = (sizes.prompt.to_string(), sizes.new.to_string());
    command.args(["--turns", "--new-tokens", &new]);
    match load {
        Load::OneStream => command.args(["--prompt-tokens", &prompt, "--prefill-chunk", &prompt]),
        Load::FourStreams => command.args(["--prompt-tokens", "64", "--concurrency", "4"]),
    };
}

/// Pairs of processes, one pair loaded at a time; each build is the first in every other pair.
fn measure(command: impl Fn(Build, Load) -> Command, pairs: u32, turns: u32) -> Result<Vec<Comparison>> {
    let mut comparisons = FIGURES.map(|figure| Comparison {
        name: figure.name,
        this: Vec::new(),
        other: Vec::new(),
    });
    for number in 0..pairs {
        let measure = |load| {
            let (this, other) = (command(Build::This, load), command(Build::Other, load));
            let (this, other) = pair(this, other, turns, number % 2 == 0)?;
            anyhow::Ok(Pair { this, other })
        };
        let (one, four) = (measure(Load::OneStream)?, measure(Load::FourStreams)?);
        let mut ratios = Vec::new();
        for (figure, comparison) in FIGURES.iter().zip(&mut comparisons) {
            let pair = match figure.load {
                Load::OneStream => &one,
                Load::FourStreams => &four,
            };
            let ratio = comparison.add(pair, figure.key)?;
            ratios.push(format!("{} {ratio:.3}", figure.name));
        }
        eprintln!("pair {}: {}", number + 1, ratios.join("; "));
    }
    Ok(comparisons.into())
}

impl Comparison {
    /// Takes in a pair's figure and returns the ratio of this build to the other.
    fn add(&mut self, pair: &Pair, key: &str) -> Result<f64> {
        let (this, other) = (number(&pair.this, key), number(&pair.other, key));
        ensure!(this > 0.0, "this build reports no {key}: {}", pair.this);
        ensure!(other > 0.0, "the other build reports no {key}: {}", pair.other);
        self.this.push(this);
        self.other.push(other);
        Ok(this / other)
    }

    /// This build over the other, pair by pair.
    fn ratios(&self) -> Vec<f64> {
        self.this.iter().zip(&self.other).map(|(a, b)| a / b).collect()
    }

    fn median_ratio(&self) -> f64 {
        let mut ratios = self.ratios();
        ratios.sort_by(f64::total_cmp);
        median(&ratios)
    }

    fn is_within_bounds(&self) -> bool {
        (self.median_ratio() - 1.0).abs() <= MAX_DEVIATION
    }
}

fn table(comparisons: &[Comparison]) -> Result<String> {
    let mut text = String::from("| | this build | the other | ratio | within 5 % |\n|---|---|---|---|---|\n");
    for comparison in comparisons {
        writeln!(
            text,
            "| {} | {} | {} | {} | {} |",
            comparison.name,
            spread(comparison.this.clone(), 1),
            spread(comparison.other.clone(), 1),
            spread(comparison.ratios(), 3),
            if comparison.is_within_bounds() {
                "yes"
            } else {
                "no"
            }
        )?;
    }
    Ok(text)
}

/// An error that names the figures out of bounds.
fn verdict(comparisons: &[Comparison]) -> Result<()> {
    let outside = comparisons
        .iter()
        .filter(|comparison| !comparison.is_within_bounds());
    let outside: Vec<String> = outside
        .map(|comparison| {
            format!(
                "{} by a ratio of {:.3}",
                comparison.name,
                comparison.median_ratio()
            )
        })
        .collect();
    if !outside.is_empty() {
        bail!("the builds differ by more than 5 %: {}", outside.join(", "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A process in place of `phi-edge bench` that reports these speeds, one of them for each measurement.
    #[cfg(unix)]
    fn speaker(prefill: f64, decode: &[f64]) -> Command {
        let decode: Vec<String> = decode.iter().map(f64::to_string).collect();
        let script = format!(
            "echo '{{\"load_ms\": 1}}'; for speed in {}; do read -r _ || exit; \
             echo a line of a library; \
             echo \"{{\\\"prefill_tokens_per_s\\\": {prefill}, \\\"decode_tokens_per_s\\\": $speed}}\"; done; cat > /dev/null",
            decode.join(" ")
        );
        let mut command = Command::new("sh");
        command.args(["-c", &script]);
        command
    }

    fn comparison(this: &[f64], other: &[f64]) -> Comparison {
        Comparison {
            name: "decode",
            this: this.to_vec(),
            other: other.to_vec(),
        }
    }

    #[cfg(unix)]
    #[test]
    fn each_pair_gives_one_ratio_a_figure() {
        let command = |build, load| match (build, load) {
            (Build::This, Load::OneStream) => speaker(300.0, &[10.0, 12.0, 90.0]),
            (Build::Other, Load::OneStream) => speaker(200.0, &[12.0, 12.0, 12.0]),
            (Build::This, Load::FourStreams) => speaker(1.0, &[30.0, 30.0, 30.0]),
            (Build::Other, Load::FourStreams) => speaker(1.0, &[40.0, 40.0, 40.0]),
        };
        let found = measure(command, 2, 3).unwrap();
        let medians: Vec<(&str, f64, usize)> = found
            .iter()
            .map(|one| (one.name, one.median_ratio(), one.this.len()))
            .collect();
        assert_eq!(
            medians,
            [
                ("prefill", 1.5, 2),
                ("decode", 1.0, 2),
                ("decode of 4 streams", 0.75, 2)
            ]
        );
        let error = verdict(&found).unwrap_err().to_string();
        assert_eq!(
            error,
            "the builds differ by more than 5 %: prefill by a ratio of 1.500, decode of 4 streams by a ratio of 0.750"
        );
    }

    #[cfg(unix)]
    #[test]
    fn a_report_without_the_figure_is_an_error() {
        let command = |build, _| match build {
            Build::This => speaker(1.0, &[1.0]),
            Build::Other => speaker(1.0, &[0.0]),
        };
        let error = measure(command, 1, 1).err().unwrap().to_string();
        assert!(
            error.starts_with("the other build reports no decode_tokens_per_s"),
            "{error}"
        );
    }

    #[test]
    fn the_median_of_the_ratios_decides() {
        let check = |this: &[f64], other: &[f64], within: bool| {
            let comparison = comparison(this, other);
            assert_eq!(comparison.is_within_bounds(), within, "{:?}", comparison.ratios());
            assert_eq!(verdict(&[comparison]).is_ok(), within);
        };
        check(&[100.0, 100.0, 100.0], &[100.0, 100.0, 100.0], true);
        check(&[96.0, 50.0, 97.0], &[100.0, 100.0, 100.0], true);
        check(&[94.0, 94.0, 100.0], &[100.0, 100.0, 100.0], false);
        check(&[106.0, 106.0, 100.0], &[100.0, 100.0, 100.0], false);
        // Of pairs, not of medians: both builds slowed down together.
        check(&[100.0, 50.0, 20.0], &[101.0, 50.5, 20.2], true);
        check(&[], &[], false);
    }

    #[test]
    fn the_table_has_a_line_for_each_figure() {
        let text = table(&[comparison(&[98.0, 100.0, 99.0], &[100.0, 100.0, 100.0])]).unwrap();
        let last = text.lines().last().unwrap();
        assert_eq!(
            last,
            "| decode | 99.0 (98.0–100.0) | 100.0 (100.0–100.0) | 0.990 (0.980–1.000) | yes |"
        );
    }

    #[test]
    fn the_flags_are_those_of_phi_edge_bench() {
        let sizes = Sizes {
            prompt: 512,
            new: 64,
            turns: 3,
        };
        let of = |load| {
            let mut command = Command::new("phi-edge");
            flags(&mut command, load, &sizes);
            let words: Vec<String> = command
                .get_args()
                .map(|word| word.to_string_lossy().into_owned())
                .collect();
            words.join(" ")
        };
        assert_eq!(
            of(Load::OneStream),
            "--turns --new-tokens 64 --prompt-tokens 512 --prefill-chunk 512"
        );
        assert_eq!(
            of(Load::FourStreams),
            "--turns --new-tokens 64 --prompt-tokens 64 --concurrency 4"
        );
    }
}
