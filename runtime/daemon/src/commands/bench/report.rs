//! `phi-edge bench --report`: this machine and all scenarios in one file, beside what arithmetic expects, and a row for
//! docs/hardware.md.

use std::path::Path;

use phi_edge_onnx::{Isa, ProductWeights, probe};
use serde_json::{Value, json};

use super::bench_args::{BenchArgs, Scenario};
use super::{Bench, load, median, once};
use crate::exit::{Exit, Fault};
use crate::machine::cores::ComputeCores;
use crate::machine::processor::Processor;
use crate::machine::sysfs::{CpuCache, SYSFS, Sysfs};
use crate::setup::kv_budget;
use crate::setup::model::ModelSetup;

/// The version of the file's format.
const FORMAT: u32 = 1;
/// Sequences that run at once in the largest scenario.
const SLOTS: usize = 8;
/// The size of the memory that is read, in times of the largest cache, between the two bounds.
const CACHE_MULTIPLE: u64 = 8;
const MIN_READ_BYTES: u64 = 256 << 20;
const MAX_READ_BYTES: u64 = 1 << 30;
/// The measurements of a scenario of streams, of which the median counts.
const STREAM_ROUNDS: usize = 3;

/// Measures, writes `file` and prints the row.
pub(crate) fn report(args: &BenchArgs, file: &Path) -> Result<(), Fault> {
    // Before minutes of measurements: a file that can't be written.
    write(file, &json!({}))?;
    let setup = ModelSetup::from_args(&args.model, SLOTS, false)?;
    let machine = Machine::measure(&setup.cores);
    let cores = setup.cores.clone();
    eprintln!("loading the model …");
    let (mut local, loaded) = load(setup)?;
    let isa = local.engine.decoder().inner().isa();
    let weights = ProductWeights::read(&local.model.decoder_path())?;
    let expected = Expected::of(&machine, weights, isa, cores.threads);
    let scenarios = scenarios(&mut local, args)?;
    let row = Row {
        machine: &machine,
        cores: &cores,
        isa: isa.map_or("none", Isa::as_str),
        model: local.model.name(),
        expected: &expected,
        scenarios: &scenarios,
    };
    let row = row.to_string();
    let report = json!({
        "format": FORMAT,
        "version": env!("CARGO_PKG_VERSION"),
        "processor": {
            "name": machine.processor.name,
            "architecture": std::env::consts::ARCH,
            "extensions": machine.processor.extensions,
            "caches": machine.caches,
            "cpus": cores.cpus(),
            "slower_cpus": cores.slower(),
        },
        "memory": {
            "bytes": machine.memory_bytes,
            "read_bytes_per_s": machine.read_bytes_per_s.round(),
            "read_buffer_bytes": machine.read_buffer_bytes,
        },
        "model": {
            "name": local.model.name(),
            "weights_bytes_per_token": weights.bytes,
            "multiply_adds_per_token": weights.multiply_adds,
        },
        "loaded": loaded,
        "expected": {
            "multiply_adds_per_s": expected.multiply_adds_per_s,
            "prefill_tokens_per_s": expected.prefill,
            "decode_tokens_per_s": expected.decode,
        },
        "scenarios": scenarios,
        "row": row,
    });
    write(file, &report)?;
    println!("{ROW_HEAD}\n{row}");
    Ok(())
}

fn write(file: &Path, report: &Value) -> Result<(), Fault> {
    std::fs::write(file, format!("{report:#}\n")).map_err(|error| {
        Fault::new(
            Exit::Usage,
            format!("{} can't be written: {error}", file.display()),
        )
    })
}

/// The processor and the memory.
struct Machine {
    processor: Processor,
    caches: Vec<CpuCache>,
    memory_bytes: Option<u64>,
    read_buffer_bytes: u64,
    read_bytes_per_s: f64,
}

impl Machine {
    /// Reads what the system says, and measures the memory on the threads that compute.
    fn measure(cores: &ComputeCores) -> Self {
        let sysfs = Sysfs::at(Path::new(SYSFS));
        let caches = sysfs.caches(cores.first_cpu().unwrap_or(0));
        let largest = caches.iter().map(|cache| cache.bytes).max().unwrap_or(0);
        let wanted = (largest * CACHE_MULTIPLE).clamp(MIN_READ_BYTES, MAX_READ_BYTES);
        let memory_bytes = kv_budget::machine_memory();
        // A quarter of a small machine's memory at most.
        let read_buffer_bytes = memory_bytes.map_or(wanted, |memory| wanted.min(memory / 4));
        eprintln!("reading {} MiB of memory …", read_buffer_bytes >> 20);
        let buffer = usize::try_from(read_buffer_bytes).unwrap_or(usize::MAX);
        Self {
            processor: Processor::detect(),
            caches,
            memory_bytes,
            read_buffer_bytes,
            read_bytes_per_s: probe::read_bandwidth(buffer, cores.threads),
        }
    }
}

/// What arithmetic expects: upper bounds of what one stream can reach.
struct Expected {
    /// Multiply-adds of bytes a second on registers alone; `None` without kernels of this program's own.
    multiply_adds_per_s: Option<f64>,
    /// Prompt tokens a second: that, over the multiply-adds of a token.
    prefill: Option<f64>,
    /// New tokens a second: the bandwidth of the memory over the weights of a token.
    decode: f64,
}

impl Expected {
    fn of(machine: &Machine, weights: ProductWeights, isa: Option<Isa>, threads: usize) -> Self {
        let peak = isa.and_then(|isa| probe::multiply_adds(isa, threads));
        let over = |rate: f64, count: u64| rate / to_f64(count.max(1));
        Self {
            multiply_adds_per_s: peak,
            prefill: peak.map(|peak| over(peak, weights.multiply_adds)),
            decode: over(machine.read_bytes_per_s, weights.bytes),
        }
    }
}

/// All scenarios that the model and the arguments allow, by name.
fn scenarios(local: &mut Bench, args: &BenchArgs) -> Result<Value, Fault> {
    let mut report = json!({});
    for (name, concurrency, prompt) in [("one_stream", 1, 512), ("four_streams", 4, 64)] {
        let args = args.of_streams(concurrency, prompt);
        report[name] = measured(local, &args, name, streams)?;
    }
    // Speculation is switched on and off by the summary, which therefore is the last.
    let text = [
        Scenario::Burst,
        Scenario::Arrivals,
        Scenario::Cached,
        Scenario::Gaps,
    ];
    let images = [Scenario::Image, Scenario::ImageGaps];
    let images = images.into_iter().filter(|_| args.image.is_some());
    for scenario in text.into_iter().chain(images).chain([Scenario::Summary]) {
        let (name, args) = (scenario.as_str(), args.of_scenario(scenario));
        report[name] = measured(local, &args, name, once)?;
    }
    Ok(report)
}

/// A scenario's figures, or why it is left out.
fn measured(
    local: &mut Bench,
    args: &BenchArgs,
    name: &str,
    measure: fn(&mut Bench, &BenchArgs) -> Result<Value, Fault>,
) -> Result<Value, Fault> {
    let (needed, context) = (args.longest_sequence(), local.engine.context());
    if needed > context {
        let reason = format!("it needs a context of {needed} tokens, and the model's is {context}");
        return Ok(json!({ "left_out": reason }));
    }
    eprintln!("measuring {name} …");
    measure(local, args)
}

/// The median of some measurements of streams.
fn streams(local: &mut Bench, args: &BenchArgs) -> Result<Value, Fault> {
    let mut rounds = Vec::new();
    for _ in 0..STREAM_ROUNDS {
        rounds.push(once(local, args)?);
    }
    let mut report = rounds.last().cloned().unwrap_or_default();
    for name in [
        "prefill_tokens_per_s",
        "decode_tokens_per_s",
        "first_token_ms",
        "total_s",
    ] {
        report[name] = json!(median(
            rounds.iter().filter_map(|round| round[name].as_f64()).collect()
        ));
    }
    Ok(report)
}

/// The head of the table of docs/hardware.md that rows go into.
const ROW_HEAD: &str = "\
| processor | `isa`, threads | memory read, GB/s | model | prefill, tokens/s: measured, at most by arithmetic | decode, tokens/s: measured, \
at most by arithmetic | four streams, tokens/s | version |
|---|---|---|---|---|---|---|---|";

/// A row of that table.
struct Row<'a> {
    machine: &'a Machine,
    cores: &'a ComputeCores,
    isa: &'a str,
    model: String,
    expected: &'a Expected,
    scenarios: &'a Value,
}

impl std::fmt::Display for Row<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let figure = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |value| format!("{value:.1}"));
        let of = |scenario: &str, name: &str| figure(self.scenarios[scenario][name].as_f64());
        write!(
            f,
            "| {} | `{}`, {} | {:.1} | {} | {}, {} | {}, {} | {} | {} |",
            self.machine.processor.name.replace('|', "/"),
            self.isa,
            self.cores.threads,
            self.machine.read_bytes_per_s / 1e9,
            self.model,
            of("one_stream", "prefill_tokens_per_s"),
            figure(self.expected.prefill),
            of("one_stream", "decode_tokens_per_s"),
            figure(Some(self.expected.decode)),
            of("four_streams", "decode_tokens_per_s"),
            env!("CARGO_PKG_VERSION"),
        )
    }
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn to_f64(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_the_columns_of_its_head() {
        let machine = Machine {
            processor: Processor {
                name: "Intel(R) N100".to_owned(),
                extensions: Vec::new(),
            },
            caches: Vec::new(),
            memory_bytes: None,
            read_buffer_bytes: MIN_READ_BYTES,
            read_bytes_per_s: 20e9,
        };
        let weights = ProductWeights {
            multiply_adds: 3_700_000_000,
            bytes: 2_000_000_000,
        };
        let expected = Expected::of(&machine, weights, None, 4);
        assert!((expected.decode - 10.0).abs() < 1e-9 && expected.prefill.is_none());
        let cores = ComputeCores::detect(&Sysfs::at(Path::new(SYSFS)), Some(4));
        let scenarios = json!({"one_stream": {"prefill_tokens_per_s": 31.04, "decode_tokens_per_s": 7.5}});
        let row = Row {
            machine: &machine,
            cores: &cores,
            isa: "avxvnni",
            model: "phi".to_owned(),
            expected: &expected,
            scenarios: &scenarios,
        };
        let row = row.to_string();
        assert!(
            row.starts_with("| Intel(R) N100 | `avxvnni`, 4 | 20.0 | phi | 31.0, – | 7.5, 10.0 | – | "),
            "{row}"
        );
        let columns = |line: &str| line.matches('|').count();
        let head: Vec<usize> = ROW_HEAD.lines().map(columns).collect();
        assert_eq!(head, [columns(&row); 2]);
    }
}
