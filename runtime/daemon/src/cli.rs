//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use phi_edge_mqtt::BrokerUrl;
use phi_edge_onnx::{Prepare, Provider};

/// Answers prompts over MQTT with an exported Phi-3.5 model, on this machine.
#[derive(Parser)]
#[command(name = "phi-edge", version, about, long_about = None, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Run the daemon: take requests from the broker and publish the answers.
    #[command(after_help = RUN_EXAMPLES)]
    Run(ConfigArgs),
    /// Check configuration, model, library, provider and broker, and say what to do about each fault.
    Check(CheckArgs),
    /// Run one prompt, here or at a broker, and print the answer as it grows.
    #[command(after_help = ASK_EXAMPLES)]
    Ask(Box<AskArgs>),
    /// Fetch a model, verified: by short name, from an address, or from a folder.
    #[command(after_help = crate::commands::pull::EXAMPLES)]
    Pull(Box<crate::commands::pull::PullArgs>),
    /// List, verify, choose, remove, export and import models.
    Models(crate::commands::models::ModelsArgs),
    /// Look into the store of a stopped daemon, or empty it.
    Store(StoreArgs),
    /// Watch one node or a fleet: queue, slots, speed, errors.
    Top(TopArgs),
    /// Try rules out: replay recorded messages, record them, check the rules.
    Rules(RulesArgs),
    /// Measure loading, prefill, decoding and memory.
    Bench(BenchArgs),
    /// Write what a report of a fault needs into one file: versions, configuration, log, status; without passwords, prompts
    /// and answers.
    Support(SupportArgs),
    /// Print the effective configuration and where each value came from.
    Config(ConfigArgs),
    /// Note how the daemon ended, for its next start: for ExecStopPost= in the systemd unit.
    #[command(hide = true)]
    RecordExit(ConfigArgs),
    /// Write the manual pages into a folder: for packages.
    #[command(hide = true)]
    Manual {
        /// The folder; it must be there.
        dir: PathBuf,
    },
    /// Print the completions of a shell, to be loaded by it.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

const RUN_EXAMPLES: &str = "Examples:
  phi-edge run --config ./phi-edge.toml
  phi-edge run --set mqtt.embedded=true --set model.path=DIR

Then, from any machine that reaches the broker:
  mosquitto_rr -t phi-edge/v1/NODE/request -e phi-edge/v1/NODE/response/1 -m 'Why is the sky blue?'";

/// Where the configuration comes from, beside /etc/phi-edge and the environment.
#[derive(Args, Clone, Default)]
pub(crate) struct ConfigArgs {
    /// A configuration file, read after those in /etc/phi-edge.
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) config: Option<PathBuf>,
    /// Set one key, after all files and the environment; may be given several times.
    #[arg(long, value_name = "KEY=VALUE", value_parser = setting, global = true)]
    pub(crate) set: Vec<(String, String)>,
}

#[derive(Args)]
pub(crate) struct SupportArgs {
    /// The file; it must not exist yet [default: phi-edge-support-NODE-TIME.tar.gz].
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
}

#[derive(Args)]
pub(crate) struct StoreArgs {
    #[command(subcommand)]
    pub(crate) action: StoreAction,
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
}

#[derive(Subcommand)]
pub(crate) enum StoreAction {
    /// Say what it holds.
    Show,
    /// Forget the outcomes that are kept for clients that ask again.
    PurgeOutcomes,
    /// Remove damaged files that were set aside.
    PurgeAside,
    /// Forget everything, also requests that are not answered yet.
    PurgeAll,
}

#[derive(Args)]
pub(crate) struct RulesArgs {
    #[command(subcommand)]
    pub(crate) action: RulesAction,
}

#[derive(Subcommand)]
pub(crate) enum RulesAction {
    /// Replay recorded messages through a rule: its windows, prompts and texts.
    Test(RuleTestArgs),
    /// Record what a broker sends, one JSON object a line.
    #[command(after_help = RECORD_EXAMPLE)]
    Record(RecordArgs),
    /// Check every rule, and say what to do about each fault.
    Lint(ConfigArgs),
}

const RECORD_EXAMPLE: &str = "Example:
  phi-edge rules record 'plant/+/alarm' > alarms.jsonl";

#[derive(Args)]
pub(crate) struct RuleTestArgs {
    /// The rule's name.
    pub(crate) rule: String,
    /// The recording, as phi-edge rules record writes it.
    #[arg(long, value_name = "FILE")]
    pub(crate) input: PathBuf,
    /// Let time pass N times as fast as recorded [default: as fast as possible].
    #[arg(long, value_name = "N", value_parser = speed)]
    pub(crate) speed: Option<f64>,
    /// Show windows, facts and prompts without asking the model.
    #[arg(long)]
    pub(crate) no_model: bool,
    /// The model directory [default: model.path of the configuration].
    #[arg(long, value_name = "DIR")]
    pub(crate) model: Option<PathBuf>,
    /// Print each window's event as one JSON object on one line.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
}

#[derive(Args)]
pub(crate) struct RecordArgs {
    /// Topic filters.
    #[arg(required = true, value_name = "TOPIC")]
    pub(crate) topics: Vec<String>,
    /// The broker: mqtt://[user:password@]host[:port], or mqtts://
    #[arg(long, value_name = "URL", default_value = "mqtt://localhost")]
    pub(crate) broker: BrokerUrl,
    /// For mqtts://: the authority that signed the broker's certificate, PEM.
    #[arg(long, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// For mqtts://: the client's own certificate, PEM.
    #[arg(long, value_name = "FILE", requires = "key")]
    pub(crate) cert: Option<PathBuf>,
    /// For mqtts://: the key of the client's certificate, PEM.
    #[arg(long, value_name = "FILE", requires = "cert")]
    pub(crate) key: Option<PathBuf>,
    /// End after so many messages.
    #[arg(long, value_name = "N")]
    pub(crate) messages: Option<u64>,
    /// End after so many seconds.
    #[arg(long, value_name = "N")]
    pub(crate) seconds: Option<u64>,
}

#[derive(Args)]
pub(crate) struct TopArgs {
    /// The broker: mqtt://[user:password@]host[:port][/base/topic], or mqtts://; all nodes unless a base topic is given.
    #[arg(long, value_name = "URL", default_value = "mqtt://localhost")]
    pub(crate) broker: BrokerUrl,
    /// For mqtts://: the authority that signed the broker's certificate, PEM.
    #[arg(long, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// For mqtts://: the client's own certificate, PEM.
    #[arg(long, value_name = "FILE", requires = "key")]
    pub(crate) cert: Option<PathBuf>,
    /// For mqtts://: the key of the client's certificate, PEM.
    #[arg(long, value_name = "FILE", requires = "cert")]
    pub(crate) key: Option<PathBuf>,
    /// Print what there is as text, once; so too where the output is no terminal.
    #[arg(long)]
    pub(crate) once: bool,
}

#[derive(Args)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    /// Leave out the broker.
    #[arg(long)]
    pub(crate) offline: bool,
}

const ASK_EXAMPLES: &str = "Examples:
  phi-edge ask --model /var/lib/phi-edge/models/phi-3.5-mini \"Why is the sky blue?\"
  journalctl -n 50 | phi-edge ask --model DIR --system \"Summarise in one sentence.\" -
  phi-edge ask --model DIR --ids 1,2,3 --max-tokens 8 --json
  phi-edge ask --broker mqtt://broker.local \"Why is the sky blue?\"";

/// Which model, and how it is run.
#[derive(Args, Clone)]
pub(crate) struct ModelArgs {
    /// The model directory: the folder that holds genai_config.json [default: model.path of the configuration].
    #[arg(long, value_name = "DIR")]
    pub(crate) model: Option<PathBuf>,
    /// Where it runs: auto, cpu, cuda or directml. An explicit choice is never replaced by another [default: auto].
    #[arg(long, value_name = "NAME")]
    pub(crate) provider: Option<Provider>,
    /// Threads of a run [default: all processors this process may use].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) threads: Option<u16>,
    /// The ONNX Runtime library, a file or its folder [default: looked for].
    #[arg(long, value_name = "PATH")]
    pub(crate) library: Option<PathBuf>,
    /// How far the graph may be edited in memory: plain, logits, rope or ragged, with own products of int4 weights by
    /// +matmul and own attention by +attention [default: ragged+matmul+attention].
    #[arg(long, value_name = "LEVEL")]
    pub(crate) prepare: Option<Prepare>,
    /// The most prompt tokens computed in one go [default: 512].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) prefill_chunk: Option<u32>,
}

#[derive(Args)]
pub(crate) struct AskArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Ask the daemon at this broker instead: mqtt://[user:password@]host[:port][/base/topic], or mqtts://
    #[arg(long, value_name = "URL", conflicts_with_all = ["model", "provider", "threads", "library", "prefill_chunk", "raw", "ids"])]
    pub(crate) broker: Option<BrokerUrl>,
    /// For mqtts://: the authority that signed the broker's certificate, PEM.
    #[arg(long, value_name = "FILE", requires = "broker")]
    pub(crate) ca: Option<PathBuf>,
    /// For mqtts://: the client's own certificate, PEM.
    #[arg(long, value_name = "FILE", requires = "key")]
    pub(crate) cert: Option<PathBuf>,
    /// For mqtts://: the key of the client's certificate, PEM.
    #[arg(long, value_name = "FILE", requires = "cert")]
    pub(crate) key: Option<PathBuf>,
    /// What the model is told before the prompt.
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["raw", "ids"])]
    pub(crate) system: Option<String>,
    /// The most new tokens.
    #[arg(long, value_name = "N", default_value = "256", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_tokens: u32,
    /// 0 always takes the likeliest token; higher is more varied.
    #[arg(long, value_name = "T", default_value = "0", value_parser = temperature)]
    pub(crate) temperature: f32,
    /// Keep only the K likeliest tokens; 0 keeps all.
    #[arg(long, value_name = "K", default_value = "0")]
    pub(crate) top_k: u32,
    /// Keep the likeliest tokens that make up this share; 1 keeps all.
    #[arg(long, value_name = "P", default_value = "1", value_parser = share)]
    pub(crate) top_p: f32,
    /// The same seed gives the same text.
    #[arg(long, value_name = "N", default_value = "0")]
    pub(crate) seed: u64,
    /// End the answer before this text; may be given several times.
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
    /// Give the prompt to the model as it is, without its chat template.
    #[arg(long, conflicts_with = "ids")]
    pub(crate) raw: bool,
    /// Token ids instead of a prompt, separated by commas.
    #[arg(long, value_name = "1,2,3", value_delimiter = ',', conflicts_with = "prompt")]
    pub(crate) ids: Option<Vec<u32>>,
    /// Print one JSON object on one line instead of the text.
    #[arg(long)]
    pub(crate) json: bool,
    /// The prompt; `-` reads it from standard input.
    #[arg(required_unless_present = "ids")]
    pub(crate) prompt: Option<String>,
}

#[derive(Args)]
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
    /// Of `summary`: prompts that the model answers by itself, one JSON string a line.
    #[arg(long, value_name = "FILE")]
    pub(crate) prompts: Option<PathBuf>,
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
}

impl BenchArgs {
    pub(crate) fn prompt_tokens(&self) -> usize {
        self.prompt_tokens.map_or(
            match self.scenario {
                Scenario::Streams | Scenario::Arrivals => 128,
                Scenario::Burst | Scenario::Cached => 60,
                Scenario::Gaps => 2000,
                Scenario::Summary => 1500,
            },
            |tokens| tokens as usize,
        )
    }

    pub(crate) fn requests(&self) -> usize {
        let otherwise = if self.scenario == Scenario::Burst { 32 } else { 8 };
        self.requests.map_or(otherwise, |requests| requests as usize)
    }

    pub(crate) fn concurrency(&self) -> usize {
        self.concurrency.map_or(
            match self.scenario {
                Scenario::Streams | Scenario::Cached | Scenario::Summary => 1,
                Scenario::Burst | Scenario::Gaps => 4,
                Scenario::Arrivals => 8,
            },
            |streams| streams as usize,
        )
    }
}

fn setting(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().to_owned(), value.to_owned())),
        _ => Err("must be KEY=VALUE, as in mqtt.host=broker.local".to_owned()),
    }
}

fn speed(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() && value > 0.0 => Ok(value),
        _ => Err("must be a number above 0".to_owned()),
    }
}

fn temperature(text: &str) -> Result<f32, String> {
    number(text, 0.0, 10.0)
}

fn share(text: &str) -> Result<f32, String> {
    number(text, 0.0, 1.0)
}

fn number(text: &str, least: f32, most: f32) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(value) if (least..=most).contains(&value) => Ok(value),
        _ => Err(format!("must be a number from {least} to {most}")),
    }
}
