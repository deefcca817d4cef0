//! `phi-edge ask`: one prompt, answered in this process or by a daemon.

mod ask_args;
mod images;
mod remote;
mod status_bar;

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use phi_edge_engine::{
    Detokenizer, Event, Failure, Finish, GenerateRequest, Image, Interrupt, RequestId, Sampling, Stop,
    Summary, Symbol, TokenId,
};
use phi_edge_models::{
    ImageInfo, Message, PromptRoom, Role, TextModel, Truncated, Truncation, encode_truncated,
};
use serde_json::json;

use crate::commands::local_images::{LocalImages, user_turn};
use crate::commands::local_model::LocalModel;
use crate::exit::{Exit, Fault};
use crate::setup::model::ModelSetup;
use crate::terminal;

use ask_args::TruncationArg;
pub(crate) use ask_args::{AskArgs, EXAMPLES};
use status_bar::StatusBar;

/// The id of the only request.
const REQUEST_ID: RequestId = RequestId(0);

/// The log message about a prompt that is not whole.
const LEFT_OUT: &str = "the prompt was too long, and a part of it is left out";

/// Runs the prompt and prints the answer.
pub(crate) fn ask(args: &AskArgs) -> Result<(), Fault> {
    // Read before the load, so that a user who types it does not wait.
    let prompt = args.prompt.as_deref().map(read_prompt).transpose()?;
    let files = images::read_all(&args.image)?;
    if let Some(url) = &args.broker {
        return remote::ask(args, url, prompt.unwrap_or_default(), &files);
    }
    // With ids, exactly what the model does with them is wanted.
    let setup = ModelSetup::from_args(&args.model, 1, args.ids.is_none())?;
    let status = StatusBar::new(format!("loading {}", setup.model.display()));
    let crops = args.num_crops.map_or(setup.num_crops, usize::from);
    let images = LocalImages::read(&args.image, &files, crops)?;
    let mut local = LocalModel::load(&setup)?;
    if !images.infos.is_empty() && local.model.encoder_path().is_none() {
        return Err(Fault::new(Exit::Usage, "--image: this model takes text alone"));
    }
    let text = match (&args.ids, local.model.text()) {
        (_, Ok(text)) => Some(text),
        (Some(_), Err(_)) => None,
        (None, Err(error)) => return Err(error.into()),
    };
    let Truncated { ids, left_out } =
        encode(args, prompt, &images.infos, text.as_ref(), local.engine.context())?;
    tracing::debug!(prompt_tokens = ids.len(), "the prompt is encoded");
    if left_out > 0 {
        tracing::warn!(left_out_tokens = left_out, "{LEFT_OUT}");
    }
    let image_tokens = ids.iter().filter(|symbol| symbol.image().is_some()).count();
    status.set_message(if images.images.is_empty() {
        "reading the prompt"
    } else {
        "looking at the pictures"
    });
    let request = request(args, ids, images.images, text.as_ref());
    let now = local.now();
    let submitted = local.engine.submit(request, now);
    let is_memory_bound = local.engine.context() < local.model.config().context_length;
    submitted
        .map_err(|failure| Fault::failed(format!("{failure}{}", advice(args, &failure, is_memory_bound))))?;
    let mut printer = AnswerPrinter {
        status,
        left_out,
        image_tokens,
        json: args.json,
        text: String::new(),
    };
    let summary = generate(&mut local, &mut printer)?;
    printer.finish(&summary, &local)
}

/// What to do about a request that the engine refuses, behind its failure. `is_memory_bound`: the memory for keys and
/// values bounds the context.
fn advice(args: &AskArgs, failure: &Failure, is_memory_bound: bool) -> String {
    if !matches!(
        failure,
        Failure::ContextOverflow { .. } | Failure::MemoryOverflow { .. }
    ) {
        return String::new();
    }
    let bound = if is_memory_bound {
        ", which is what the memory for keys and values holds"
    } else {
        ""
    };
    let truncate = if args.ids.is_none() && !args.raw && args.truncation == TruncationArg::Error {
        ", or leave out its middle with --truncation middle"
    } else {
        ""
    };
    format!("{bound}; shorten it{truncate}")
}

/// The ids of the prompt for an engine of this context, and the number of tokens that were left out of it.
fn encode(
    args: &AskArgs,
    prompt: Option<String>,
    images: &[ImageInfo],
    text: Option<&TextModel>,
    context: usize,
) -> Result<Truncated, Fault> {
    let truncation = Truncation::from(args.truncation);
    let ids = match (&args.ids, text) {
        (Some(ids), _) => Symbol::of_tokens(ids.iter().copied().map(TokenId)),
        (None, Some(text)) => {
            let prompt = prompt.unwrap_or_default();
            if args.raw {
                Symbol::of_tokens(text.encode_raw(&prompt)?)
            } else if truncation == Truncation::Error {
                text.encode_chat(&conversation(args, &prompt, images))?
            } else {
                let room = PromptRoom::beside(args.max_tokens as usize, context);
                return encode_truncated(text, &[], &conversation(args, &prompt, images), truncation, room)
                    .map_err(|error| {
                        Fault::failed(format!("{error}, after truncation; the context takes {context}"))
                    });
            }
        }
        (None, None) => return Err(Fault::new(Exit::Usage, "a prompt needs a model with a tokenizer")),
    };
    Ok(Truncated { ids, left_out: 0 })
}

fn request(
    args: &AskArgs,
    prompt: Vec<Symbol>,
    images: Vec<Image>,
    text: Option<&TextModel>,
) -> GenerateRequest {
    let stop_ids = text.map_or_else(Vec::new, TextModel::stop_ids);
    GenerateRequest {
        id: REQUEST_ID,
        prompt,
        images,
        max_tokens: args.max_tokens as usize,
        sampling: Sampling {
            temperature: args.temperature,
            top_k: args.top_k as usize,
            top_p: args.top_p,
            seed: args.seed,
            ..Sampling::default()
        },
        stop: Stop {
            ids: stop_ids,
            strings: args.stop.clone(),
        },
        detokenizer: text.map_or_else(
            || Box::new(NoText) as Box<dyn Detokenizer>,
            TextModel::detokenizer,
        ),
        deadline: None,
    }
}

fn conversation(args: &AskArgs, prompt: &str, images: &[ImageInfo]) -> Vec<Message> {
    let system = args
        .system
        .iter()
        .map(|text| Message::new(Role::System, text.clone()));
    let user = user_turn(prompt, images);
    system.chain([user]).collect()
}

fn generate(local: &mut LocalModel, printer: &mut AnswerPrinter) -> Result<Summary, Fault> {
    let clock = local.clock();
    let interrupt = Interrupt::new();
    let stop = stop_on_ctrl_c(&interrupt)?;
    let mut events = Vec::new();
    loop {
        if stop.load(Ordering::SeqCst) {
            interrupt.clear();
            local.engine.cancel(REQUEST_ID);
        }
        local.engine.step(&clock, &interrupt, &mut events);
        for event in events.drain(..) {
            match event {
                Event::Started { .. } => {}
                Event::Progress { done, total, .. } => printer.status.set_progress(done as u64, total as u64),
                Event::Text { delta, .. } => printer.print(&delta)?,
                Event::Finished { summary, .. } => return Ok(summary),
                Event::Failed { reason, .. } => return Err(Fault::failed(reason)),
            }
        }
    }
}

/// Returns a flag that Ctrl-C sets; the run that is in progress is interrupted.
fn stop_on_ctrl_c(interrupt: &Interrupt) -> Result<Arc<AtomicBool>, Fault> {
    let stop = Arc::new(AtomicBool::new(false));
    let (seen, interrupt) = (Arc::clone(&stop), interrupt.clone());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Fault::failed)?;
    // It waits for as long as the process lives.
    std::thread::spawn(move || {
        if runtime.block_on(tokio::signal::ctrl_c()).is_ok() {
            seen.store(true, Ordering::SeqCst);
            interrupt.raise();
        }
    });
    Ok(stop)
}

fn read_prompt(argument: &str) -> Result<String, Fault> {
    if argument != "-" {
        return Ok(argument.to_owned());
    }
    let mut prompt = String::new();
    std::io::stdin()
        .read_to_string(&mut prompt)
        .map_err(|error| Fault::failed(format!("the prompt can't be read from standard input: {error}")))?;
    Ok(prompt)
}

/// The printer of the answer, on standard output.
struct AnswerPrinter {
    status: StatusBar,
    /// The number of tokens that the prompt does not have because it was too long.
    left_out: usize,
    /// The number of tokens of the prompt that are places of images.
    image_tokens: usize,
    json: bool,
    text: String,
}

impl AnswerPrinter {
    fn print(&mut self, delta: &str) -> Result<(), Fault> {
        if self.json {
            self.text.push_str(delta);
            return Ok(());
        }
        self.status.clear();
        let mut out = std::io::stdout().lock();
        out.write_all(terminal::text(delta).as_bytes())
            .and_then(|()| out.flush())
            .map_err(broken_output)
    }

    fn finish(mut self, summary: &Summary, local: &LocalModel) -> Result<(), Fault> {
        self.status.clear();
        if summary.finish == Finish::Repetition {
            tracing::warn!("the answer was ended because it repeats itself");
        }
        let line = if self.json {
            let mut usage = json!({
                "prompt_tokens": summary.prompt_tokens,
                "completion_tokens": summary.tokens.len(),
                "cached_tokens": summary.cached_tokens,
            });
            if self.left_out > 0 {
                usage["left_out_tokens"] = self.left_out.into();
            }
            if self.image_tokens > 0 {
                usage["image_tokens"] = self.image_tokens.into();
            }
            json!({
                "text": self.text,
                "tokens": summary.tokens.iter().map(|id| id.0).collect::<Vec<_>>(),
                "finish_reason": finish_reason(summary.finish),
                "usage": usage,
                "timing": {
                    "load_ms": millis(local.load),
                    "prefill_ms": millis(summary.prefill),
                    "decode_ms": millis(summary.decode),
                },
            })
            .to_string()
        } else {
            String::new()
        };
        writeln!(std::io::stdout().lock(), "{}", terminal::json(&line)).map_err(broken_output)?;
        if summary.finish == Finish::Cancelled {
            return Err(Fault::failed("interrupted"));
        }
        Ok(())
    }
}

fn finish_reason(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        Finish::Length | Finish::Repetition => "length",
        Finish::Cancelled => "cancelled",
        Finish::Deadline => "deadline",
    }
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
fn broken_output(error: std::io::Error) -> Fault {
    Fault::failed(format!("the answer can't be written to standard output: {error}"))
}

/// A detokenizer without text, for ids that run without a tokenizer.
struct NoText;

impl Detokenizer for NoText {
    fn push(&mut self, _: TokenId) -> String {
        String::new()
    }

    fn finish(&mut self) -> String {
        String::new()
    }
}
