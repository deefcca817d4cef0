//! The options of a request beside its conversation, and their bounds.

use std::time::Duration;

use phi_edge_service::{ErrorCode, Priority, Sampling};

use super::body::{Body, Seed, WirePriority};
use super::{Fault, wrong};
use crate::quote::brief;
use crate::strict::{Object, TextOr, Word};

/// The default of `max_tokens`.
pub(super) const MAX_TOKENS: usize = 256;
/// Bounds on stop strings: each is compared with every piece of text.
const STOPS: usize = 16;
const STOP_BYTES: usize = 256;

/// What the contract has and this version has not.
pub(super) fn unsupported(body: &Body) -> Result<(), Fault> {
    let no = |message: &str| Err((ErrorCode::Unsupported, message.to_owned()));
    if body.images.as_ref().is_some_and(|images| !images.is_empty()) {
        return no("images: this model takes text alone");
    }
    let Some(Object(format)) = &body.response_format else {
        return Ok(());
    };
    match format.kind.as_deref() {
        Some("text") => match format.members.keys().next() {
            None => Ok(()),
            Some(member) => Err(wrong(format!(
                "response_format: unknown field {}, type text has none",
                brief(member)
            ))),
        },
        Some(kind @ ("json_object" | "json_schema" | "regex" | "choice")) => no(&format!(
            "response_format: {kind} is not supported by this version"
        )),
        _ => Err(wrong(
            "response_format: type must be text, json_object, json_schema, regex or choice",
        )),
    }
}

/// Returns the most new tokens: what was asked for, within `most_tokens`.
pub(super) fn max_tokens(asked: Option<u64>, most_tokens: usize) -> Result<usize, Fault> {
    match asked {
        None => Ok(MAX_TOKENS.min(most_tokens)),
        Some(asked) => usize::try_from(asked)
            .ok()
            .filter(|asked| (1..=most_tokens).contains(asked))
            .ok_or_else(|| wrong(format!("max_tokens: {asked} is not in 1 to {most_tokens}"))),
    }
}

/// Returns the client's own deadline.
pub(super) fn deadline(milliseconds: Option<u64>) -> Result<Option<Duration>, Fault> {
    match milliseconds {
        Some(0) => Err(wrong("deadline_ms: must be at least 1")),
        other => Ok(other.map(Duration::from_millis)),
    }
}

/// Returns the sampling parameters of a request.
pub(super) fn sampling(body: &Body) -> Result<Sampling, Fault> {
    let plain = Sampling::default();
    Ok(Sampling {
        temperature: number("temperature", body.temperature, plain.temperature, 0.0, 10.0)?,
        top_k: body.top_k.map_or(plain.top_k, |k| k as usize),
        top_p: match body.top_p {
            Some(0.0) => return Err(wrong("top_p: must be above 0")),
            // What is above 0 stays there as a single.
            top_p => number("top_p", top_p, plain.top_p, 0.0, 1.0)?.max(f32::from_bits(1)),
        },
        min_p: number("min_p", body.min_p, plain.min_p, 0.0, 1.0)?,
        repetition_penalty: number(
            "repetition_penalty",
            body.repetition_penalty,
            plain.repetition_penalty,
            0.1,
            10.0,
        )?,
        seed: match &body.seed {
            None => plain.seed,
            Some(Seed::Plain(seed)) => *seed,
            Some(Seed::Negative(seed)) => seed.cast_unsigned(),
        },
    })
}

/// Returns the priority of a request.
pub(super) fn priority(word: Option<Word<WirePriority>>) -> Priority {
    match word {
        None | Some(Word(WirePriority::Normal)) => Priority::Normal,
        Some(Word(WirePriority::Interactive)) => Priority::Interactive,
        Some(Word(WirePriority::Background)) => Priority::Background,
    }
}

/// Returns the stop strings of a request.
pub(super) fn stops(stop: Option<TextOr<String>>) -> Result<Vec<String>, Fault> {
    let stops = match stop {
        None => Vec::new(),
        Some(TextOr::Text(stop)) => vec![stop],
        Some(TextOr::List(stops)) => stops,
    };
    if stops.len() > STOPS {
        return Err(wrong(format!(
            "stop: {} strings, {STOPS} are the most",
            stops.len()
        )));
    }
    if let Some(n) = stops.iter().position(String::is_empty) {
        return Err(wrong(format!("stop[{n}]: is empty")));
    }
    if let Some(n) = stops.iter().position(|stop| stop.len() > STOP_BYTES) {
        return Err(wrong(format!("stop[{n}]: is longer than {STOP_BYTES} bytes")));
    }
    Ok(stops)
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "JSON has doubles, sampling singles"
)]
fn number(name: &str, given: Option<f64>, default: f32, least: f64, most: f64) -> Result<f32, Fault> {
    match given {
        None => Ok(default),
        Some(value) if (least..=most).contains(&value) => Ok(value as f32),
        Some(value) => Err(wrong(format!("{name}: {value} is not in {least} to {most}"))),
    }
}
