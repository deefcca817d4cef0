//! The arguments of `phi-edge ask`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use phi_edge_models::Truncation;
use phi_edge_mqtt::BrokerUrl;

use crate::setup::args::ModelArgs;

pub(crate) const EXAMPLES: &str = "Examples:
  phi-edge ask --model /var/lib/phi-edge/models/phi-3.5-mini \"Why is the sky blue?\"
  journalctl -n 50 | phi-edge ask --model DIR --system \"Summarise in one sentence.\" -
  phi-edge ask --model DIR --ids 1,2,3 --max-tokens 8 --json
  phi-edge ask --model DIR --truncation middle - < long.log
  phi-edge ask --broker mqtt://broker.local \"Why is the sky blue?\"
  phi-edge ask --model DIR --image label.png --num-crops 16 \"What does it say?\"
  phi-edge ask --broker mqtt://broker.local --image gate.jpg \"Is the gate open?\"";

#[derive(Args)]
pub(crate) struct AskArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Ask the daemon at this broker instead: mqtt://[user:password@]host[:port][/base/topic], or mqtts://
    #[arg(long, value_name = "URL", conflicts_with_all = ["model", "provider", "kv_cache", "isa", "threads", "library", "prefill_chunk", "raw", "ids"])]
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
    /// What to leave out of a prompt that is too long: the middle of it, or nothing, which is an error.
    #[arg(long, value_name = "PART", default_value = "error", conflicts_with_all = ["raw", "ids"])]
    pub(crate) truncation: TruncationArg,
    /// A picture (PNG, JPEG, WebP) that the prompt is about; may be given several times.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["raw", "ids"])]
    pub(crate) image: Vec<PathBuf>,
    /// How many parts a picture is cut into at most, 1 to 16; of a daemon, 1 or 16 [default: model.num_crops].
    #[arg(long, value_name = "N", requires = "image", value_parser = clap::value_parser!(u8).range(1..=16))]
    pub(crate) num_crops: Option<u8>,
    /// Print one JSON object on one line instead of the text.
    #[arg(long)]
    pub(crate) json: bool,
    /// The prompt; `-` reads it from standard input.
    #[arg(required_unless_present = "ids")]
    pub(crate) prompt: Option<String>,
}

/// The part of a prompt that is left out where it is too long, by the words of requests. A single prompt has no oldest
/// messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TruncationArg {
    Error,
    Middle,
}

impl TruncationArg {
    /// The word of requests.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Middle => "middle",
        }
    }
}

impl From<TruncationArg> for Truncation {
    fn from(argument: TruncationArg) -> Self {
        match argument {
            TruncationArg::Error => Self::Error,
            TruncationArg::Middle => Self::Middle,
        }
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
