//! The gain of speculation: the same texts with and without it, in alternation.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use phi_edge_engine::{Event, Interrupt, RequestId, Summary, Symbol, TokenId};
use phi_edge_models::{Message, Role, TextModel};
use serde_json::{Value, json};

use super::bench_args::BenchArgs;
use super::scenarios::{finish_all, request_of, summaries_of};
use super::{Bench, median};
use crate::exit::{Exit, Fault};

/// The number of times that each text is written in either phase.
const ROUNDS_PER_TEXT: usize = 3;
/// The number of tokens after which speculation is switched, so that a machine whose speed drifts treats both alike.
/// The second phase begins without it.
const STRETCH_TOKENS: usize = 16;
/// A text that quotes its prompt.
const QUOTING_TEXT: &str = include_str!("quoting.txt");
/// A text that neither quotes its prompt nor repeats itself.
const PROSE_TEXT: &str = include_str!("prose.txt");

/// Measures the texts that `args` name, or the built-in ones.
pub(crate) fn summary(local: &mut Bench, args: &BenchArgs) -> Result<Value, Fault> {
    let text = local.model.text()?;
    if let Some(file) = &args.prompts {
        return answers(local, &text, file, args.new_tokens as usize);
    }
    let prompt = log_lines(&text, args.prompt_tokens())?;
    if let Some(file) = &args.replay {
        return forced(local, &text, &prompt, &read(file)?);
    }
    Ok(json!({
        "quoting": forced(local, &text, &prompt, QUOTING_TEXT)?,
        "prose": forced(local, &text, &prompt, PROSE_TEXT)?,
    }))
}

/// Measures `said` as the continuation of `prompt`, whatever the model would choose.
fn forced(local: &mut Bench, text: &TextModel, prompt: &[Symbol], said: &str) -> Result<Value, Fault> {
    let said = text.encode_raw(said)?;
    let mut script = prompt.to_vec();
    script.extend(said.iter().copied().map(Symbol::Token));
    local.engine.decoder_mut().prescribe(script);
    // Once for the prompt, which is remembered from then on.
    write(local, prompt, 1)?;
    let mut ratios = Vec::new();
    let (mut with, mut without) = (Throughput::default(), Throughput::default());
    let (mut guessed, mut right) = (0, 0);
    for _ in 0..ROUNDS_PER_TEXT {
        let mut round = [Throughput::default(), Throughput::default()];
        for phase in [0, 1] {
            let summary = in_stretches(local, prompt, said.len(), phase, &mut round)?;
            if summary.tokens != said {
                return Err(Fault::failed("the model did not write what it was made to write"));
            }
            guessed += summary.draft_tokens;
            right += summary.accepted_draft_tokens;
        }
        ratios.push(round[0].tokens_per_s() / round[1].tokens_per_s());
        with.add(&round[0]);
        without.add(&round[1]);
    }
    local.engine.decoder_mut().prescribe(Vec::new());
    Ok(json!({
        "tokens": said.len(),
        "plain_tokens_per_s": without.tokens_per_s(),
        "guessing_tokens_per_s": with.tokens_per_s(),
        "guessing_over_plain": median(ratios.clone()),
        "ratios": ratios,
        "guessed": guessed,
        "guessed_right": right,
        "written": with.tokens,
    }))
}

/// The tokens of one of the two modes, and the time that they took.
#[derive(Default)]
struct Throughput {
    tokens: usize,
    time: Duration,
}

impl Throughput {
    #[expect(clippy::cast_precision_loss, reason = "token counts are small")]
    fn tokens_per_s(&self) -> f64 {
        self.tokens as f64 / self.time.as_secs_f64().max(1e-9)
    }

    fn add(&mut self, other: &Self) {
        self.tokens += other.tokens;
        self.time += other.time;
    }
}

/// Writes `new` tokens, with speculation (the first of `sides`) and without it in alternation.
fn in_stretches(
    local: &mut Bench,
    prompt: &[Symbol],
    new: usize,
    phase: usize,
    sides: &mut [Throughput; 2],
) -> Result<Summary, Fault> {
    let now = local.now();
    let request = request_of(RequestId(0), prompt.to_vec(), new);
    local.engine.submit(request, now).map_err(Fault::failed)?;
    let clock = local.clock();
    let (interrupt, mut events) = (Interrupt::new(), Vec::new());
    let mut written = 0;
    while !local.engine.is_idle() {
        let side = (written / STRETCH_TOKENS + phase) % 2;
        local.engine.set_speculation(side == 0);
        let (began, seen) = (clock(), events.len());
        local.engine.step(&clock, &interrupt, &mut events);
        let tokens: usize = events[seen..].iter().map(marks).sum();
        // The first token comes with what the prompt costs.
        if written > 0 {
            sides[side].add(&Throughput {
                tokens,
                time: clock().saturating_sub(began),
            });
        }
        written += tokens;
    }
    let mut summaries = summaries_of(events)?;
    summaries.pop().ok_or_else(|| Fault::failed("no answer came"))
}

/// Tokens of an event: each has one mark for its text.
fn marks(event: &Event) -> usize {
    match event {
        Event::Text { delta, .. } => delta.len(),
        _ => 0,
    }
}

/// Measures the model's own answers to the prompts in `file`.
fn answers(local: &mut Bench, text: &TextModel, file: &Path, most: usize) -> Result<Value, Fault> {
    let (mut plain, mut guessed) = (Vec::new(), Vec::new());
    for (n, line) in read(file)?.lines().enumerate() {
        let prompt: String = serde_json::from_str(line).map_err(|error| {
            Fault::new(
                Exit::Usage,
                format!("{}: line {} is no JSON string: {error}", file.display(), n + 1),
            )
        })?;
        let ids = text.encode_chat(&[Message::new(Role::User, prompt)])?;
        for guessing in [n % 2 == 0, n % 2 != 0] {
            local.engine.set_speculation(guessing);
            let summary = write_until(local, &ids, most, text.stop_ids())?;
            if guessing { &mut guessed } else { &mut plain }.push(summary);
        }
    }
    let same = plain
        .iter()
        .zip(&guessed)
        .filter(|(a, b)| a.tokens == b.tokens)
        .count();
    let tokens = plain.iter().map(|s| s.tokens.len()).sum();
    let mut report = compared(&plain, &guessed, tokens);
    report["answers"] = json!(plain.len());
    report["answers_alike"] = json!(same);
    Ok(report)
}

#[expect(clippy::cast_precision_loss, reason = "token counts are small")]
fn compared(plain: &[Summary], guessed: &[Summary], tokens: usize) -> Value {
    let speed = |of: &[Summary]| -> Vec<f64> {
        let speed = |s: &Summary| s.tokens.len().saturating_sub(1) as f64 / s.decode.as_secs_f64().max(1e-9);
        of.iter().map(speed).collect()
    };
    let (plain, fast) = (speed(plain), speed(guessed));
    let ratios = fast
        .iter()
        .zip(&plain)
        .map(|(fast, plain)| fast / plain)
        .collect();
    let all = |pick: fn(&Summary) -> usize| guessed.iter().map(pick).sum::<usize>();
    json!({
        "tokens": tokens,
        "plain_tokens_per_s": median(plain),
        "guessing_tokens_per_s": median(fast),
        "guessing_over_plain": median(ratios),
        "guessed": all(|s| s.draft_tokens),
        "guessed_right": all(|s| s.accepted_draft_tokens),
        "written": all(|s| s.tokens.len()),
    })
}

fn write(local: &mut Bench, prompt: &[Symbol], new: usize) -> Result<Summary, Fault> {
    write_until(local, prompt, new, Vec::new())
}

fn write_until(
    local: &mut Bench,
    prompt: &[Symbol],
    new: usize,
    end: Vec<TokenId>,
) -> Result<Summary, Fault> {
    let mut request = request_of(RequestId(0), prompt.to_vec(), new);
    request.stop.ids = end;
    let now = local.now();
    local.engine.submit(request, now).map_err(Fault::failed)?;
    let mut summaries = finish_all(local)?;
    summaries.pop().ok_or_else(|| Fault::failed("no answer came"))
}

/// Synthetic log lines of machines, `tokens` tokens of them.
fn log_lines(text: &TextModel, tokens: usize) -> Result<Vec<Symbol>, Fault> {
    let mut lines = String::from("Summarise these lines and quote what matters.\n");
    let mut ids = Vec::new();
    for n in 0_usize.. {
        let (device, quantity) = match n % 4 {
            0 => ("press-07", "pressure"),
            1 => ("oven-2", "temperature"),
            2 => ("pump-A3", "flow"),
            _ => ("line-11", "speed"),
        };
        let value = 100 + (n * 37) % 83;
        let level = if n % 9 == 4 {
            "WARN above limit"
        } else {
            "INFO in range"
        };
        let (minute, second) = ((n / 6) % 60, (n * 10) % 60);
        // Writing to a string can't fail.
        let _ = writeln!(
            lines,
            "06:{minute:02}:{second:02} {device} {quantity} {value}.{} {level}",
            n % 10
        );
        ids = Symbol::of_tokens(text.encode_raw(&lines)?);
        if ids.len() >= tokens {
            break;
        }
    }
    ids.truncate(tokens);
    Ok(ids)
}

fn read(file: &Path) -> Result<String, Fault> {
    std::fs::read_to_string(file)
        .map_err(|error| Fault::new(Exit::Usage, format!("{} can't be read: {error}", file.display())))
}
