//! `phi-edge bench --kv-loss`: what keys and values of 8 bits cost in accuracy, against those of 32.

mod divergence;
mod passages;

use std::fmt::Write as _;

use phi_edge_engine::{DecodeError, Decoder, TokenId};
use phi_edge_onnx::KvCache;
use serde_json::{Value, json};

use super::bench_args::BenchArgs;
use crate::commands::local_model::LocalModel;
use crate::exit::{Exit, Fault};
use crate::machine::process;
use crate::setup::model::ModelSetup;
use divergence::{DECIDED_MARGIN, Divergence};
use passages::Passages;

/// A text of prose in English, German, French, Spanish and Chinese, of numbers and of log lines, written for this purpose.
const TEXT: &str = include_str!("multilingual.txt");
/// The length of a passage if none is given and the model's context is no shorter.
const PASSAGE_TOKENS: usize = 2000;
/// The most logits that are held between the two passes, in floats: 256 MiB.
const MAX_HELD_LOGITS: usize = 64 << 20;

/// Reads the text twice, under both types of the cache, and prints the divergence.
pub(super) fn kv_loss(args: &BenchArgs) -> Result<(), Fault> {
    let report = measure(args)?;
    if args.json {
        println!("{report}");
    } else {
        print!("{}", table(&report));
    }
    Ok(())
}

/// The report. The pass with 8 bits comes first, since that is what a processor may lack kernels for; the models are
/// loaded one after the other, and only the first one's logits are held meanwhile.
fn measure(args: &BenchArgs) -> Result<Value, Fault> {
    let setup = ModelSetup::from_args(&args.model, 1, false)?;
    let chunk = setup.engine.prefill_chunk;
    let mut local = load(&setup, KvCache::I8)?;
    let text = local.model.text()?.encode_raw(TEXT)?;
    let passages = passages(&text, args.passage_tokens(), local.engine.decoder())?;
    let held = hold(&passages, local.engine.decoder_mut(), chunk).map_err(|error| in_pass("8", &error))?;
    let mut report = json!({
        "model": local.model.name(),
        "provider": local.engine.decoder().provider().as_str(),
        "prepared": local.engine.decoder().prepared().as_str(),
        "kv_bytes_per_token": local.engine.caps().kv_bytes_per_token,
        "passages": passages.count(),
        "prompt_tokens": passages.length(),
        "text_tokens": text.len(),
    });
    drop(local);

    let mut local = load(&setup, KvCache::F32)?;
    let context = local.engine.caps().context_length;
    if context < passages.length() {
        return Err(too_long(passages.length(), context, "32-bit keys and values"));
    }
    let divergences = compare(&passages, local.engine.decoder_mut(), chunk, &held)
        .map_err(|error| in_pass("32", &error))?;
    report["kv_bytes_per_token_f32"] = json!(local.engine.caps().kv_bytes_per_token);
    report["rss_bytes"] = json!(process::peak_memory());
    add_figures(&mut report, &passages, &divergences);
    Ok(report)
}

fn load(setup: &ModelSetup, kv_cache: KvCache) -> Result<LocalModel, Fault> {
    let mut setup = setup.clone();
    setup.decoder.kv_cache = kv_cache;
    LocalModel::load(&setup)
}

/// The passages of `text` for a decoder; `length` is the number of tokens that was asked for.
fn passages(text: &[TokenId], length: Option<usize>, decoder: &impl Decoder) -> Result<Passages, Fault> {
    let caps = decoder.caps();
    let context = caps.context_length;
    if let Some(length) = length.filter(|length| *length > context) {
        return Err(too_long(length, context, "the model's context"));
    }
    let length = length.unwrap_or(PASSAGE_TOKENS.min(context));
    Passages::of(text, length, caps.vocab_size, MAX_HELD_LOGITS)
        .ok_or_else(|| Fault::failed("the model's tokenizer gives the text no tokens"))
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

/// The logits of all compared positions, in the order in which they are visited.
fn hold(passages: &Passages, decoder: &mut impl Decoder, chunk: usize) -> Result<Vec<f32>, DecodeError> {
    let mut held = Vec::new();
    passages.read(decoder, chunk, &mut |_, logits| {
        finite(logits)?;
        held.extend_from_slice(logits);
        Ok(())
    })?;
    Ok(held)
}

/// The divergence of `held` from the predictions of `reference`, for each band.
fn compare(
    passages: &Passages,
    reference: &mut impl Decoder,
    chunk: usize,
    held: &[f32],
) -> Result<Vec<Divergence>, DecodeError> {
    let mut divergences = vec![Divergence::default(); passages.bands().len()];
    let mut held = held.chunks_exact(reference.caps().vocab_size.max(1));
    passages.read(reference, chunk, &mut |band, logits| {
        finite(logits)?;
        if let (Some(divergence), Some(held)) = (divergences.get_mut(band), held.next()) {
            divergence.add(logits, held);
        }
        Ok(())
    })?;
    Ok(divergences)
}

fn finite(logits: &[f32]) -> Result<(), DecodeError> {
    if logits.iter().all(|logit| logit.is_finite()) {
        return Ok(());
    }
    Err(DecodeError::Failed(
        "logits are infinite or not a number".to_owned(),
    ))
}

fn add_figures(report: &mut Value, passages: &Passages, divergences: &[Divergence]) {
    let mut all = Divergence::default();
    let mut bands = Vec::new();
    for (band, divergence) in passages.bands().iter().zip(divergences) {
        all.merge(divergence);
        let mut figures = divergence.figures();
        figures["past_tokens"] = json!([band.past.start, band.past.end]);
        bands.push(figures);
    }
    if let (Some(report), Value::Object(figures)) = (report.as_object_mut(), all.figures()) {
        report.extend(figures);
    }
    report["past"] = json!(bands);
}

/// The report as a table, with a line for each band.
fn table(report: &Value) -> String {
    let mut text = format!(
        "8-bit keys and values against 32-bit ones: {} passages of {} tokens, {} and {} bytes a token\n\n",
        report["passages"],
        report["prompt_tokens"],
        report["kv_bytes_per_token"],
        report["kv_bytes_per_token_f32"],
    );
    // Writing to a string can't fail.
    let _ = writeln!(
        text,
        "{:>16} {:>9} {:>9} {:>20} {:>10} {:>10} {:>13}",
        "past tokens",
        "compared",
        "top-1",
        format!("with margin > {DECIDED_MARGIN}"),
        "mean KL",
        "99 % of KL",
        "logits' error"
    );
    let bands = report["past"].as_array().map(Vec::as_slice).unwrap_or_default();
    for figures in bands.iter().chain([report]) {
        let past = match figures["past_tokens"].as_array().map(Vec::as_slice) {
            Some([from, to]) => format!("{from} to {to}"),
            _ => "all".to_owned(),
        };
        let percent = |name: &str| {
            figures[name]
                .as_f64()
                .map_or("–".to_owned(), |share| format!("{:.2} %", share * 100.0))
        };
        let number = |name: &str| {
            figures[name]
                .as_f64()
                .map_or("–".to_owned(), |value| format!("{value:.6}"))
        };
        let decided = format!("{} of {}", percent("decided_top1_agreement"), figures["decided"]);
        let _ = writeln!(
            text,
            "{past:>16} {:>9} {:>9} {decided:>20} {:>10} {:>10} {:>13}",
            figures["compared"].to_string(),
            percent("top1_agreement"),
            number("kl_mean"),
            number("kl_p99"),
            number("logits_error"),
        );
    }
    text
}

#[cfg(test)]
mod tests;
