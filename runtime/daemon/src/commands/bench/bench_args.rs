//! The arguments of `phi-edge bench`.

use std::path::PathBuf;

use clap::Args;

use crate::setup::args::ModelArgs;

#[derive(Args, Clone)]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// What to measure.
    #[arg(long, value_name = "NAME", value_enum, default_value = "streams")]
    pub(crate) scenario: Scenario,
    /// Tokens of each prompt; of `burst` and `cached`, those of its own [default: 128; burst and cached 60, gaps 2000,
    /// summary 1500].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    prompt_tokens: Option<u32>,
    /// New tokens of each stream.
    #[arg(long, value_name = "N", default_value = "64", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) new_tokens: u32,
    /// Requests of `burst` and `arrivals` [default: 32 and 8].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    requests: Option<u32>,
    /// Tokens that the prompts of `burst` and `cached` have in common.
    #[arg(long, value_name = "N", default_value = "600")]
    pub(crate) shared_tokens: u32,
    /// Streams at once [default: 1; burst and gaps 4, arrivals 8].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    concurrency: Option<u32>,
    /// Of `summary`: the text that the model is made to write, in place of one that comes along.
    #[arg(long, value_name = "FILE", conflicts_with = "prompts")]
    pub(crate) replay: Option<PathBuf>,
    /// Of `summary` and `--kv-loss`: prompts that the model answers by itself, one JSON string a line.
    #[arg(long, value_name = "FILE")]
    pub(crate) prompts: Option<PathBuf>,
    /// Of `image` and `image-gaps`: the picture, a PNG, JPEG or WebP file.
    #[arg(long, value_name = "FILE", required_if_eq_any = [("scenario", "image"), ("scenario", "image-gaps")])]
    pub(crate) image: Option<PathBuf>,
    /// Of `image` and `image-gaps`: how many parts the picture is cut into at most.
    #[arg(long, value_name = "N", default_value = "4", value_parser = clap::value_parser!(u8).range(1..=16))]
    pub(crate) num_crops: u8,
    /// Measure what 8-bit keys and values cost in accuracy against 32-bit ones, in place of any speed: top-1 agreement and KL
    /// divergence of the predictions on a built-in multilingual text, read in passages of `--prompt-tokens` [default: 2000,
    /// or the model's context], and on the model's own answers of `--new-tokens` to built-in prompts or to `--prompts`.
    #[arg(long, conflicts_with_all = ["scenario", "requests", "shared_tokens", "concurrency", "replay", "image", "bare", "turns", "kv_cache"])]
    pub(crate) kv_loss: bool,
    /// Measure the products of rows with int4 weights alone, without a model, beside the most that the processor's multipliers
    /// could do.
    #[arg(long, conflicts_with_all = ["scenario", "requests", "shared_tokens", "concurrency", "replay", "image", "bare", "turns", "kv_cache", "kv_loss", "model"])]
    pub(crate) products: bool,
    /// Measure the experts of one layer alone, in turns with ONNX Runtime's operator for them.
    #[arg(long, conflicts_with_all = ["scenario", "requests", "shared_tokens", "concurrency", "replay", "image", "bare", "turns", "kv_cache", "kv_loss", "products", "provider"])]
    pub(crate) experts: bool,
    /// Measure all scenarios, the memory and the processor, write one JSON object to this file, and print a row for the table
    /// of docs/hardware.md. `--image` adds those of a picture. It takes some minutes, and more on a slow machine.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["scenario", "prompt_tokens", "new_tokens", "requests", "shared_tokens", "concurrency", "replay", "prompts", "bare", "turns", "kv_loss", "experts", "json"])]
    pub(crate) report: Option<PathBuf>,
    /// Measure a bare loop over the same session too, in turns, this many pairs.
    #[arg(long, value_name = "PAIRS", default_value = "0")]
    pub(crate) bare: u32,
    /// Load, then measure once for every line on standard input: for comparisons in turns with another process.
    #[arg(long, requires = "json", conflicts_with = "bare")]
    pub(crate) turns: bool,
    /// Print one JSON object on one line.
    #[arg(long)]
    pub(crate) json: bool,
}

/// What `bench` measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Scenario {
    /// Streams side by side.
    Streams,
    /// A burst of requests that begin alike.
    Burst,
    /// Requests that come one by one over five seconds.
    Arrivals,
    /// The first token with and without a remembered beginning.
    Cached,
    /// The gaps of running streams while a long prompt enters.
    Gaps,
    /// A text that quotes its prompt, and one that does not, with and without guessing.
    Summary,
    /// The first token of a prompt with a picture, `--image`.
    Image,
    /// The gaps of running streams while a picture, `--image`, is looked at.
    ImageGaps,
}

impl Scenario {
    /// The name on the command line.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Streams => "streams",
            Self::Burst => "burst",
            Self::Arrivals => "arrivals",
            Self::Cached => "cached",
            Self::Gaps => "gaps",
            Self::Summary => "summary",
            Self::Image => "image",
            Self::ImageGaps => "image-gaps",
        }
    }
}

impl BenchArgs {
    /// The same arguments for a scenario with its defaults.
    pub(crate) fn of_scenario(&self, scenario: Scenario) -> Self {
        Self {
            scenario,
            ..self.clone()
        }
    }

    /// The same arguments for `concurrency` streams with prompts of `prompt_tokens`.
    pub(crate) fn of_streams(&self, concurrency: u32, prompt_tokens: u32) -> Self {
        Self {
            scenario: Scenario::Streams,
            concurrency: Some(concurrency),
            prompt_tokens: Some(prompt_tokens),
            ..self.clone()
        }
    }

    /// Tokens of a passage of `--kv-loss`, if given.
    pub(crate) fn passage_tokens(&self) -> Option<usize> {
        self.prompt_tokens.map(|tokens| tokens as usize)
    }

    pub(crate) fn prompt_tokens(&self) -> usize {
        self.prompt_tokens.map_or(
            match self.scenario {
                Scenario::Streams | Scenario::Arrivals | Scenario::Image | Scenario::ImageGaps => 128,
                Scenario::Burst | Scenario::Cached => 60,
                Scenario::Gaps => 2000,
                Scenario::Summary => 1500,
            },
            |tokens| tokens as usize,
        )
    }

    /// Tokens of the scenario's longest sequence, prompt and answer together. Those of a picture are not known beforehand.
    pub(crate) fn longest_sequence(&self) -> usize {
        /// More than the longest text that `summary` prescribes.
        const SUMMARY_TOKENS: usize = 1000;
        let (prompt, new) = (self.prompt_tokens(), self.new_tokens as usize);
        match self.scenario {
            Scenario::Burst | Scenario::Cached => self.shared_tokens as usize + prompt + new,
            Scenario::Summary => prompt + SUMMARY_TOKENS,
            Scenario::Streams
            | Scenario::Arrivals
            | Scenario::Gaps
            | Scenario::Image
            | Scenario::ImageGaps => prompt + new,
        }
    }

    pub(crate) fn requests(&self) -> usize {
        let otherwise = if self.scenario == Scenario::Burst { 32 } else { 8 };
        self.requests.map_or(otherwise, |requests| requests as usize)
    }

    /// Sequences that run at once: the streams, and the request that enters beside them.
    pub(crate) fn slots(&self) -> usize {
        let enters = matches!(self.scenario, Scenario::Gaps | Scenario::ImageGaps);
        self.concurrency() + usize::from(enters)
    }

    pub(crate) fn concurrency(&self) -> usize {
        self.concurrency.map_or(
            match self.scenario {
                Scenario::Streams
                | Scenario::Cached
                | Scenario::Summary
                | Scenario::Image
                | Scenario::ImageGaps => 1,
                Scenario::Burst | Scenario::Gaps => 4,
                Scenario::Arrivals => 8,
            },
            |streams| streams as usize,
        )
    }
}
