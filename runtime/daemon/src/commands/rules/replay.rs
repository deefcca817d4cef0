//! `phi-edge rules test`: the replay of recorded messages through one rule, without a broker.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use phi_edge_config::Config;
use phi_edge_models::{Message, ModelDir, Role, TextModel};
use phi_edge_mqtt::filter_matches;
use phi_edge_rules::summary::{PromptBudget, PromptPlan};
use phi_edge_rules::{Replay, ReplayedWindow, Time};
use phi_edge_service::{Service, ServiceConfig, spawn_engine};
use serde_json::Value;
use tokio::sync::mpsc;

use crate::exit::{Exit, Fault};
use crate::setup::args::ConfigArgs;
use crate::setup::model::{self, ModelSetup};
use crate::setup::settings;
use crate::terminal;

use super::record::Recorded;
use crate::setup::rule_conversion::{self, RuleDefaults};

/// The context length that is assumed where there is no model, in tokens.
const CONTEXT_WITHOUT_MODEL: usize = 4096;

#[derive(Args)]
pub(super) struct RuleTestArgs {
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

/// Replays the recording and prints each window, its prompts and the model's text.
pub(super) fn test(args: &RuleTestArgs) -> Result<(), Fault> {
    let config = settings::load(&args.config)?.config;
    let rule = config
        .rules
        .iter()
        .find(|rule| rule.name == args.rule)
        .ok_or_else(|| unknown(args, &config))?;
    let rule = rule_conversion::convert_checked(rule, &RuleDefaults::from_config(&config))?;
    let recording = read(&args.input)?;
    let model = TokenCounter::new(args, &config)?;
    let max_tokens = rule.summary.max_tokens;
    let max_parts = rule.summary.max_parts;
    let most = rule.summary.max_prompt_tokens;
    let topics = rule.topics.clone();
    let replay = Replay::new(rule).map_err(|error| Fault::new(Exit::Config, error))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(Fault::failed)?;
    let outcome = runtime.block_on(async {
        let service = if args.no_model {
            None
        } else {
            Some(serve(&config, args).await?)
        };
        let room = model.context.saturating_sub(max_tokens + 1);
        let printer = WindowPrinter {
            args,
            topics: &topics,
            model: &model,
            tokens: most.map_or(room, |most| room.min(most)),
            max_parts,
            service: service.as_ref(),
        };
        let done = printer.run(replay, &recording).await;
        if let Some(service) = service {
            service.drain(Duration::ZERO).await;
        }
        done
    });
    runtime.shutdown_background();
    outcome
}

fn unknown(args: &RuleTestArgs, config: &Config) -> Fault {
    let known: Vec<&str> = config.rules.iter().map(|rule| rule.name.as_str()).collect();
    let known = if known.is_empty() {
        "there are none".to_owned()
    } else {
        format!("there are {}", known.join(", "))
    };
    Fault::new(
        Exit::Usage,
        format!("there is no rule \"{}\": {known}", args.rule),
    )
}

fn read(path: &Path) -> Result<Vec<Recorded>, Fault> {
    let fault = |text: String| Fault::new(Exit::Usage, format!("{}: {text}", path.display()));
    let file = std::fs::File::open(path).map_err(|error| fault(error.to_string()))?;
    let mut recording = Vec::new();
    for (number, line) in BufReader::new(file).lines().enumerate() {
        let line = line.map_err(|error| fault(error.to_string()))?;
        if line.trim().is_empty() {
            continue;
        }
        let recorded: Recorded = serde_json::from_str(&line).map_err(|error| {
            fault(format!(
                "line {}: {error} (see phi-edge rules record)",
                number + 1
            ))
        })?;
        recording.push(recorded);
    }
    Ok(recording)
}

/// The counter of a prompt's tokens.
struct TokenCounter {
    text: Option<TextModel>,
    context: usize,
}

impl TokenCounter {
    /// Opens the model. With `--no-model` it may be missing: then tokens are estimated.
    fn new(args: &RuleTestArgs, config: &Config) -> Result<Self, Fault> {
        let path = args.model.as_ref().unwrap_or(&config.model.path);
        let opened =
            ModelDir::open(path).and_then(|model| Ok((model.text()?, model.config().context_length)));
        match opened {
            Ok((text, context)) => Ok(Self {
                text: Some(text),
                context,
            }),
            Err(_) if args.no_model => Ok(Self {
                text: None,
                context: CONTEXT_WITHOUT_MODEL,
            }),
            Err(error) => Err(error.into()),
        }
    }

    fn count(&self, system: Option<&str>, prompt: &str) -> Result<usize, String> {
        let Some(text) = &self.text else {
            // About four bytes a token, as English has it.
            return Ok(prompt.len() / 4);
        };
        let message = |role, content: &str| Message::new(role, content.to_owned());
        let mut messages: Vec<Message> = system
            .map(|text| message(Role::System, text))
            .into_iter()
            .collect();
        messages.push(message(Role::User, prompt));
        text.encode_chat(&messages)
            .map(|ids| ids.len())
            .map_err(|error| error.to_string())
    }
}

/// A service over the real engine, without a durable store.
async fn serve(config: &Config, args: &RuleTestArgs) -> Result<Service, Fault> {
    let mut setup = ModelSetup::from_config(config, &[]);
    if let Some(model) = &args.model {
        setup.model.clone_from(model);
    }
    setup.pinned = None;
    setup.decoder.edit_cache = model::cache_folder().map(|folder| folder.join(model::EDIT_CACHE_FILE));
    let model = ModelDir::open(&setup.model)?;
    model::warn_of_demonstration(&model);
    let text = model.text()?;
    let name = model.name();
    eprintln!("loading {}", setup.model.display());
    let engine = spawn_engine("engine", None, move || setup.engine(&model))
        .await
        .map_err(|error| match error {
            phi_edge_service::StartError::Build(fault) => fault,
            other => Fault::failed(other),
        })?;
    let (replies, mut taken) = mpsc::channel(16);
    // Only summaries are requested, and they are returned by `word`.
    tokio::spawn(async move { while taken.recv().await.is_some() {} });
    let service_config = ServiceConfig {
        model: name,
        ..ServiceConfig::default()
    };
    Ok(Service::start(service_config, engine, Arc::new(text), replies))
}

struct WindowPrinter<'a> {
    args: &'a RuleTestArgs,
    /// The rule's filters.
    topics: &'a [String],
    model: &'a TokenCounter,
    tokens: usize,
    max_parts: usize,
    service: Option<&'a Service>,
}

impl WindowPrinter<'_> {
    async fn run(&self, mut replay: Replay, recording: &[Recorded]) -> Result<(), Fault> {
        let (mut windows, mut skipped) = (0, 0_usize);
        let mut last: Option<Time> = None;
        for (number, recorded) in recording.iter().enumerate() {
            let at = Time(recorded.time.as_millisecond());
            let payload = recorded
                .bytes()
                .map_err(|error| Fault::new(Exit::Usage, format!("message {}: {error}", number + 1)))?;
            if let (Some(speed), Some(last)) = (self.args.speed, last) {
                tokio::time::sleep(at.since(last).div_f64(speed)).await;
            }
            // Windows that are due between two messages end at their own time.
            while let Some(due) = replay.due().filter(|due| *due <= at) {
                for window in replay.tick(due) {
                    windows += 1;
                    self.print(windows, &window).await?;
                }
                if replay.due() == Some(due) {
                    break;
                }
            }
            last = Some(at);
            if !taken(self.topics, &recorded.topic) {
                skipped += 1;
                continue;
            }
            for window in replay.ingest(&recorded.topic, &payload, at) {
                windows += 1;
                self.print(windows, &window).await?;
            }
        }
        let end = last.unwrap_or_default();
        for window in replay.end(end) {
            windows += 1;
            self.print(windows, &window).await?;
        }
        if !self.args.json {
            line(&format!(
                "{} messages, {windows} windows",
                recording.len() - skipped
            ))?;
        }
        if skipped > 0 {
            eprintln!(
                "{}",
                terminal::line(&skipped_note(skipped, recording, self.topics))
            );
        }
        Ok(())
    }

    async fn print(&self, number: u64, window: &ReplayedWindow) -> Result<(), Fault> {
        let count = |prompt: &str| self.model.count(window.system(), prompt);
        let budget = PromptBudget {
            tokens: self.tokens,
            max_parts: self.max_parts,
            count: &count,
        };
        let plan = window
            .prompts(&budget)
            .map_err(|error| Fault::new(Exit::Config, error.to_string()));
        let event = match self.service {
            Some(service) => service.summarise(window).await,
            None => window.event().clone(),
        };
        let encoded = phi_edge_wire::encode_event(&event, "test");
        if self.args.json {
            return line(&terminal::json(&String::from_utf8_lossy(&encoded)));
        }
        let shown: Value = serde_json::from_slice(&encoded).unwrap_or_default();
        line(&format!("== window {number}: {}", window.topic()))?;
        line(&format!("group {:?}, {}", event.group, shown["window"]))?;
        for (field, facts) in shown["stats"].as_object().into_iter().flatten() {
            line(&format!("  {field}: {facts}"))?;
        }
        match plan? {
            None => line("-- no prompt")?,
            Some(plan) => self.prompts(&plan, &count)?,
        }
        if self.service.is_some() {
            line("-- text")?;
            line(event.text.as_deref().unwrap_or("(none)"))?;
            if let Some(error) = &event.error {
                line(&format!("-- error {}: {}", error.code, error.message))?;
            }
            if let Some(numbers) = &event.unsupported_numbers {
                line(&format!("-- unsupported numbers: {}", numbers.join(", ")))?;
            }
        }
        line("")
    }

    fn prompts(&self, plan: &PromptPlan, count: &dyn Fn(&str) -> Result<usize, String>) -> Result<(), Fault> {
        let about = if self.model.text.is_some() { "" } else { "about " };
        for (part, prompt) in plan.prompts.iter().enumerate() {
            let tokens = count(prompt).map_err(Fault::failed)?;
            let of = if plan.prompts.len() > 1 {
                format!(" of part {} of {}", part + 1, plan.prompts.len())
            } else {
                String::new()
            };
            line(&format!(
                "-- prompt{of}, {about}{tokens} tokens of {}",
                self.tokens
            ))?;
            line(prompt)?;
        }
        if plan.left_out > 0 {
            line(&format!(
                "-- {} messages are left out of the prompts",
                plan.left_out
            ))?;
        }
        Ok(())
    }
}

/// Whether the rule takes messages of this topic.
fn taken(filters: &[String], topic: &str) -> bool {
    filters.iter().any(|filter| filter_matches(filter, topic))
}

fn skipped_note(skipped: usize, recording: &[Recorded], filters: &[String]) -> String {
    let mut topics = recording.iter().map(|recorded| recorded.topic.as_str());
    let example = topics.find(|topic| !taken(filters, topic)).unwrap_or_default();
    format!(
        "{skipped} more messages are skipped: the rule's topics ({}) do not match theirs, such as {example}",
        filters.join(", ")
    )
}

fn speed(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() && value > 0.0 => Ok(value),
        _ => Err("must be a number above 0".to_owned()),
    }
}

fn line(text: &str) -> Result<(), Fault> {
    writeln!(std::io::stdout().lock(), "{}", terminal::text(text))
        .map_err(|error| Fault::failed(format!("the output can't be written: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_rules_topics_match_is_replayed() {
        let filters = ["plant/+/temperature".to_owned(), "room/#".to_owned()];
        let recorded = |topic: &str| Recorded {
            time: jiff::Timestamp::UNIX_EPOCH,
            topic: topic.to_owned(),
            payload: Some("1".to_owned()),
            payload_base64: None,
        };
        let recording = ["plant/a/temperature", "plant/a/speed", "room/b/c"].map(recorded);
        let left: Vec<&str> = recording
            .iter()
            .map(|recorded| recorded.topic.as_str())
            .filter(|topic| !taken(&filters, topic))
            .collect();
        assert_eq!(left, ["plant/a/speed"]);
        let note = skipped_note(1, &recording, &filters);
        assert!(
            note.contains("plant/+/temperature, room/#") && note.contains("plant/a/speed"),
            "{note}"
        );
    }
}
