//! `cargo xtask bench`: phi-edge and its peers, or another build of it, on one model, in turns.

mod against;
mod isa;
mod kv;
mod llama;
mod many;
mod one;
mod peer;
pub(crate) mod table;
mod vision;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process::{cargo, root, run, target};
use crate::{library, model, python};

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct BenchArgs {
    /// Only these; all unless given.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Section>,
    /// Compare this checkout with another build of phi-edge instead, and fail where prefill, decode or 4 streams differ by
    /// more than 5 %.
    #[arg(long, value_name = "BINARY", conflicts_with_all = ["only", "llama_server", "without_llama"])]
    against: Option<PathBuf>,
    /// The model directory [default: a random one of full shape, target/bench-model; with --against the demonstration's
    /// where that was never written].
    #[arg(long)]
    model: Option<PathBuf>,
    /// llama.cpp's server; built under target/ from the source package of llama-cpp-python unless given.
    #[arg(long, value_name = "PATH")]
    llama_server: Option<PathBuf>,
    /// Leave llama.cpp out.
    #[arg(long, conflicts_with = "llama_server")]
    without_llama: bool,
    /// Pairs of processes for one stream [default: 5; 9 with --against].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pairs: Option<u32>,
    /// Measurements in each pair of processes, in turns [default: 3; 9 with --against and a small model].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    turns: Option<u32>,
    /// Tokens of the prompt of one stream [default: 512; 1000 with --against and a small model].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    prompt_tokens: Option<u32>,
    /// New tokens [default: 64; 1000 with --against and a small model].
    #[arg(long, value_parser = clap::value_parser!(u32).range(2..))]
    new_tokens: Option<u32>,
    /// Threads of all [default: all processors].
    #[arg(long)]
    threads: Option<usize>,
}

impl BenchArgs {
    fn pairs(&self) -> u32 {
        self.pairs.unwrap_or(5)
    }

    fn turns(&self) -> u32 {
        self.turns.unwrap_or(3)
    }

    fn prompt_tokens(&self) -> u32 {
        self.prompt_tokens.unwrap_or(512)
    }

    fn new_tokens(&self) -> u32 {
        self.new_tokens.unwrap_or(64)
    }

    fn threads(&self) -> String {
        self.threads
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
            .to_string()
    }
}

/// One table of docs/benchmarks.md.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Section {
    /// One stream, against genai and a bare loop.
    One,
    /// 2, 4 and 8 streams, against one.
    Streams,
    /// Requests that arrive over five seconds, against genai.
    Arrivals,
    /// A burst of requests that begin alike, against genai and llama.cpp.
    Burst,
    /// A remembered prefix, against none.
    Cached,
    /// A long prompt that enters beside running streams.
    Gaps,
    /// Guessing, against none.
    Summary,
    /// Keys and values of 8 bits, against 32 bits.
    Kv,
    /// A picture, against genai.
    Vision,
    /// Each instruction set's kernels, against AVX-512's and llama.cpp's for AVX2.
    Isa,
}

impl Section {
    const ALL: [Self; 10] = [
        Self::One,
        Self::Streams,
        Self::Arrivals,
        Self::Burst,
        Self::Cached,
        Self::Gaps,
        Self::Summary,
        Self::Kv,
        Self::Vision,
        Self::Isa,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::One => "one",
            Self::Streams => "streams",
            Self::Arrivals => "arrivals",
            Self::Burst => "burst",
            Self::Cached => "cached",
            Self::Gaps => "gaps",
            Self::Summary => "summary",
            Self::Kv => "kv",
            Self::Vision => "vision",
            Self::Isa => "isa",
        }
    }
}

/// Measures and writes docs/benchmarks.md, a table as soon as it is there; or compares two builds and writes nothing.
pub(crate) fn bench(args: &BenchArgs) -> Result<()> {
    if let Some(binary) = &args.against {
        return against::against(args, binary);
    }
    let bench = Setup::of(args)?;
    for section in Section::ALL {
        if !args.only.is_empty() && !args.only.contains(&section) {
            continue;
        }
        eprintln!("Measuring: {} …", section.name());
        let report = match section {
            Section::One => one::measure(&bench, args)?,
            Section::Streams => many::streams(&bench, args)?,
            Section::Arrivals => many::arrivals(&bench, args)?,
            Section::Burst => many::burst(&bench, args)?,
            Section::Cached => many::cached(&bench, args)?,
            Section::Gaps => many::gaps(&bench, args)?,
            Section::Summary => many::summary(&bench, args)?,
            Section::Kv => kv::measure(&bench, args)?,
            Section::Vision => vision::measure(&bench, args)?,
            Section::Isa => isa::measure(&bench, args)?,
        };
        print!("{report}");
        let file = root().join("docs/benchmarks.md");
        let old = std::fs::read_to_string(&file).unwrap_or_default();
        std::fs::write(&file, table::section(&old, section.name(), &report))
            .with_context(|| format!("{} can't be written", file.display()))?;
    }
    Ok(())
}

/// Everything that is measured, ready to be started.
struct Setup {
    model: PathBuf,
    library: PathBuf,
    /// The interpreter that has onnxruntime-genai.
    genai: PathBuf,
    /// llama.cpp's server and a model of the same shape.
    llama: Option<(PathBuf, PathBuf)>,
    threads: String,
}

impl Setup {
    fn of(args: &BenchArgs) -> Result<Self> {
        let wanted = |section| args.only.is_empty() || args.only.contains(&section);
        let model = match &args.model {
            Some(model) => model.clone(),
            None if args.only == [Section::Vision] => PathBuf::new(),
            None => full_shape()?,
        };
        run(cargo().args(["build", "--release", "--locked", "-p", "phi-edge"]))?;
        let llama = if args.without_llama || !(wanted(Section::Burst) || wanted(Section::Streams)) {
            None
        } else {
            let server = match &args.llama_server {
                Some(server) => server.clone(),
                None => llama::server(llama::Processor::Own)?,
            };
            Some((server, llama::model()?))
        };
        Ok(Self {
            model,
            library: library::for_this_machine()?,
            genai: python::environment("bench-tools")?,
            llama,
            threads: args.threads(),
        })
    }

    /// `phi-edge bench` with these flags.
    fn ours(&self, flags: &[&str]) -> Command {
        self.ours_on(&self.model, flags)
    }

    fn ours_on(&self, model: &Path, flags: &[&str]) -> Command {
        let mut command = phi_edge(&release_binary(), model, &self.threads, &self.library);
        command.args(flags);
        command
    }

    /// xtask/genai_bench.py with these settings.
    fn genai(&self, scenario: &str, settings: &[(&str, u32)]) -> Command {
        self.genai_on(&self.model, scenario, settings)
    }

    fn genai_on(&self, model: &Path, scenario: &str, settings: &[(&str, u32)]) -> Command {
        let mut command = Command::new(&self.genai);
        command
            .arg(root().join("xtask/genai_bench.py"))
            .arg(model)
            .arg(scenario);
        self.settings(&mut command, settings);
        command
    }

    /// xtask/llama_bench.py with these settings, where llama.cpp is to be measured.
    fn llama(&self, scenario: &str, settings: &[(&str, u32)]) -> Option<Command> {
        let (server, model) = self.llama.as_ref()?;
        Some(self.llama_of(server, model, scenario, settings))
    }

    /// The same with this server and model.
    fn llama_of(&self, server: &Path, model: &Path, scenario: &str, settings: &[(&str, u32)]) -> Command {
        let mut command = Command::new(&self.genai);
        command
            .arg(root().join("xtask/llama_bench.py"))
            .args([server, model])
            .arg(scenario);
        self.settings(&mut command, settings);
        command
    }

    fn settings(&self, command: &mut Command, settings: &[(&str, u32)]) {
        command.arg(format!("threads={}", self.threads));
        command.args(settings.iter().map(|(key, value)| format!("{key}={value}")));
    }
}

/// This checkout's build.
fn release_binary() -> PathBuf {
    target().join("release/phi-edge")
}

/// `phi-edge bench` of this binary; the flags of the scenario are the caller's.
fn phi_edge(binary: &Path, model: &Path, threads: &str, library: &Path) -> Command {
    let mut command = Command::new(binary);
    command
        .args(["bench", "--provider", "cpu", "--json", "--threads", threads])
        .arg("--model")
        .arg(model)
        .env("ORT_DYLIB_PATH", library);
    command
}

/// The random model of full shape, written where it is absent.
fn full_shape() -> Result<PathBuf> {
    if let Some(folder) = full_shape_folder() {
        return Ok(folder);
    }
    let folder = target().join("bench-model");
    model::write(&folder, 32)?;
    Ok(folder)
}

/// The random model of full shape, if it was written.
fn full_shape_folder() -> Option<PathBuf> {
    let folder = target().join("bench-model");
    folder.join("manifest.json").exists().then_some(folder)
}
