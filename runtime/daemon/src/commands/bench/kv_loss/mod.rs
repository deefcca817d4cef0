//! `phi-edge bench --kv-loss`: what keys and values of 8 bits cost in accuracy, against those of 32.

mod divergence;
mod passages;
mod reader;
mod table;

use std::path::Path;

use phi_edge_engine::{DecodeError, Decoder, Symbol};
use phi_edge_models::{Message, Role, TextModel};
use phi_edge_onnx::KvCache;
use serde_json::{Value, json};

use super::bench_args::BenchArgs;
use crate::commands::local_model::LocalModel;
use crate::exit::{Exit, Fault};
use crate::machine::process;
use crate::setup::model::{KvCacheOrigin, ModelSetup};
use divergence::Divergence;
use passages::{Passage, TextPassages};
use reader::{AnswerEnd, Reader};

/// A text of prose in English, German, French, Spanish and Chinese, of numbers and of log lines, written for this purpose.
const TEXT: &str = include_str!("multilingual.txt");
/// Prompts of the kind that rules send, one JSON string a line: facts to be put into words. `models/export/prompts.py 16`
/// drew them from what the demonstration model was not trained on.
const PROMPTS: &str = include_str!("prompts.jsonl");
/// The length of a passage if none is given and the model's context is no shorter.
const PASSAGE_TOKENS: usize = 2000;
/// The most logits of the text that are held between the two passes, in floats: 256 MiB.
const MAX_TEXT_LOGITS: usize = 64 << 20;
/// The most logits of answers that are held, in floats: 128 MiB. Prompts beyond that are left out.
const MAX_ANSWER_LOGITS: usize = 32 << 20;

/// Reads the same tokens under both types of the cache, and prints the divergence.
pub(super) fn kv_loss(args: &BenchArgs) -> Result<(), Fault> {
    let report = measure(args)?;
    if args.json {
        println!("{report}");
    } else {
        print!("{}", table::table(&report));
    }
    Ok(())
}

/// The report. The pass with 8 bits comes first, since that is what a processor may lack kernels for; the models are
/// loaded one after the other, and only the first one's logits are held meanwhile.
fn measure(args: &BenchArgs) -> Result<Value, Fault> {
    let setup = ModelSetup::from_args(&args.model, 1, false)?;
    let chunk = setup.engine.prefill_chunk;
    let mut local = load(&setup, KvCache::I8)?;
    let model_text = local.model.text()?;
    let text = Symbol::of_tokens(model_text.encode_raw(TEXT)?);
    let text = text_passages(&text, args.passage_tokens(), local.engine.decoder())?;
    let prompts = prompts(&model_text, args.prompts.as_deref())?;
    let caps = local.engine.caps();
    check_room(
        &prompts,
        args.new_tokens as usize,
        caps.context_length,
        caps.vocab_size,
    )?;
    let end = AnswerEnd {
        max_tokens: args.new_tokens as usize,
        stop: model_text.stop_ids(),
    };
    let mut reader = Reader {
        decoder: local.engine.decoder_mut(),
        chunk,
    };
    let held = hold(&mut reader, &text, &prompts, &end).map_err(|error| in_pass("8", &error))?;
    let mut report = json!({
        "model": local.model.name(),
        "provider": local.engine.decoder().provider().as_str(),
        "prepared": local.engine.decoder().prepared().as_str(),
        "kv_bytes_per_token": local.engine.caps().kv_bytes_per_token,
        "passages": text.passages.len(),
        "prompt_tokens": passage_length(&text),
    });
    drop(local);

    let mut local = load(&setup, KvCache::F32)?;
    let context = local.engine.caps().context_length;
    if context < passage_length(&text) {
        return Err(too_long(passage_length(&text), context, "32-bit keys and values"));
    }
    report["kv_bytes_per_token_f32"] = json!(local.engine.caps().kv_bytes_per_token);
    let mut reader = Reader {
        decoder: local.engine.decoder_mut(),
        chunk,
    };
    let divergences = compare(&mut reader, &text, &held).map_err(|error| in_pass("32", &error))?;
    report["rss_bytes"] = json!(process::peak_memory());
    add_figures(&mut report, &text, &divergences);
    Ok(report)
}

fn load(setup: &ModelSetup, kv_cache: KvCache) -> Result<LocalModel, Fault> {
    let mut setup = setup.clone();
    setup.decoder.kv_cache = kv_cache;
    setup.kv_cache_origin = KvCacheOrigin::KvLoss;
    LocalModel::load(&setup)
}

/// The passages of `text` for a decoder; `length` is the number of tokens that was asked for.
fn text_passages(
    text: &[Symbol],
    length: Option<usize>,
    decoder: &impl Decoder,
) -> Result<TextPassages, Fault> {
    let caps = decoder.caps();
    let context = caps.context_length;
    if let Some(length) = length.filter(|length| *length > context) {
        return Err(too_long(length, context, "the model's context"));
    }
    let length = length.unwrap_or(PASSAGE_TOKENS.min(context));
    TextPassages::of(text, length, caps.vocab_size, MAX_TEXT_LOGITS)
        .ok_or_else(|| Fault::failed("the model's tokenizer gives the text no tokens"))
}

fn passage_length(text: &TextPassages) -> usize {
    text.passages.first().map_or(0, |passage| passage.tokens.len())
}

fn too_long(length: usize, context: usize, of: &str) -> Fault {
    Fault::new(
        Exit::Usage,
        format!("{of}: {context} tokens at most here, {length} are to be compared: lower --prompt-tokens"),
    )
}

fn in_pass(bits: &str, error: &DecodeError) -> Fault {
    Fault::failed(format!("with keys and values of {bits} bits: {error}"))
}

/// The built-in prompts, or those in `file`, each as the user's message of a conversation.
fn prompts(text: &TextModel, file: Option<&Path>) -> Result<Vec<Vec<Symbol>>, Fault> {
    let lines = match file {
        Some(file) => std::fs::read_to_string(file)
            .map_err(|error| Fault::new(Exit::Usage, format!("{} can't be read: {error}", file.display())))?,
        None => PROMPTS.to_owned(),
    };
    let mut prompts = Vec::new();
    for (n, line) in lines.lines().enumerate() {
        let content: String = serde_json::from_str(line).map_err(|error| {
            let name = file.map_or_else(
                || "the built-in prompts".to_owned(),
                |file| file.display().to_string(),
            );
            Fault::new(
                Exit::Usage,
                format!("{name}: line {} is no JSON string: {error}", n + 1),
            )
        })?;
        let role = Role::User;
        prompts.push(text.encode_chat(&[Message::new(role, content)])?);
    }
    Ok(prompts)
}

/// Fails where no answer to a prompt could be compared.
fn check_room(
    prompts: &[Vec<Symbol>],
    new_tokens: usize,
    context: usize,
    vocab_size: usize,
) -> Result<(), Fault> {
    let usage = |message: String| Err(Fault::new(Exit::Usage, message));
    let Some(shortest) = prompts.iter().map(Vec::len).filter(|length| *length > 0).min() else {
        return usage("--prompts: the file has no prompt; write one JSON string a line".to_owned());
    };
    if shortest + new_tokens > context {
        let most = context.saturating_sub(shortest);
        return usage(if most == 0 {
            format!(
                "--prompts: the shortest prompt has {shortest} tokens, and the context takes {context}: shorten it"
            )
        } else {
            format!(
                "--new-tokens {new_tokens} leaves no room for a prompt: the shortest has {shortest} tokens, and the context \
                 takes {context}; give --new-tokens {most} or less"
            )
        });
    }
    let most = MAX_ANSWER_LOGITS / vocab_size.max(1);
    if new_tokens > most {
        return usage(format!(
            "--new-tokens {new_tokens}: the logits of so long an answer take more memory than is used for them; give \
             --new-tokens {most} or less"
        ));
    }
    Ok(())
}

/// What the pass with 8 bits leaves: logits in the order in which they are visited.
struct Held {
    text: Vec<f32>,
    answers: Vec<HeldAnswer>,
}

/// An answer that the model with 8 bits has generated.
struct HeldAnswer {
    passage: Passage,
    logits: Vec<f32>,
}

fn hold(
    reader: &mut Reader<'_, impl Decoder>,
    text: &TextPassages,
    prompts: &[Vec<Symbol>],
    end: &AnswerEnd,
) -> Result<Held, DecodeError> {
    let mut held = Held {
        text: Vec::new(),
        answers: Vec::new(),
    };
    for passage in &text.passages {
        reader.read(passage, &mut |_, logits| {
            held.text.extend_from_slice(logits);
            Ok(())
        })?;
    }
    let (context, vocab) = (
        reader.decoder.caps().context_length,
        reader.decoder.caps().vocab_size,
    );
    let mut room = MAX_ANSWER_LOGITS;
    for prompt in prompts {
        let most = end.max_tokens * vocab;
        if prompt.is_empty() || prompt.len() + end.max_tokens > context || room < most {
            continue;
        }
        let mut logits = Vec::new();
        let passage = reader.answer(prompt, end, &mut |_, row| {
            logits.extend_from_slice(row);
            Ok(())
        })?;
        room -= logits.len();
        held.answers.push(HeldAnswer { passage, logits });
    }
    Ok(held)
}

/// The divergences from the predictions of the model with 32 bits.
struct Divergences {
    /// One for each range of past lengths.
    text: Vec<Divergence>,
    /// One for each answer.
    answers: Vec<Divergence>,
}

fn compare(
    reader: &mut Reader<'_, impl Decoder>,
    text: &TextPassages,
    held: &Held,
) -> Result<Divergences, DecodeError> {
    let vocab = reader.decoder.caps().vocab_size.max(1);
    let mut divergences = Divergences {
        text: vec![Divergence::default(); text.past.len()],
        answers: Vec::new(),
    };
    let mut rows = held.text.chunks_exact(vocab);
    for passage in &text.passages {
        reader.read(passage, &mut |group, logits| {
            if let (Some(divergence), Some(row)) = (divergences.text.get_mut(group), rows.next()) {
                divergence.add(logits, row);
            }
            Ok(())
        })?;
    }
    for answer in &held.answers {
        let (mut divergence, mut rows) = (Divergence::default(), answer.logits.chunks_exact(vocab));
        reader.read(&answer.passage, &mut |_, logits| {
            if let Some(row) = rows.next() {
                divergence.add(logits, row);
            }
            Ok(())
        })?;
        divergences.answers.push(divergence);
    }
    Ok(divergences)
}

fn add_figures(report: &mut Value, text: &TextPassages, divergences: &Divergences) {
    let mut past = Vec::new();
    for (range, divergence) in text.past.iter().zip(&divergences.text) {
        let mut figures = divergence.figures();
        figures["past_tokens"] = json!([range.start, range.end]);
        past.push(figures);
    }
    if let (Some(report), Value::Object(figures)) = (
        report.as_object_mut(),
        Divergence::sum(&divergences.text).figures(),
    ) {
        report.extend(figures);
    }
    report["past"] = json!(past);
    let mut answers = Divergence::sum(&divergences.answers).figures();
    answers["answers"] = json!(divergences.answers.len());
    answers["answers_alike"] = json!(
        divergences
            .answers
            .iter()
            .filter(|answer| answer.is_same_top())
            .count()
    );
    report["answers"] = answers;
}

#[cfg(test)]
mod tests;
