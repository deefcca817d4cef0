//! The options of a request beside its conversation, and their bounds.

use std::time::Duration;

use phi_edge_api::{Priority, Sampling, Truncation};

use super::FieldError;
use super::body::{PriorityName, RequestBody, Seed, TruncationName};
use crate::quote::brief;
use crate::strict::{Object, TextOr, Word};

/// The default of `max_tokens`.
pub(super) const DEFAULT_MAX_TOKENS: usize = 256;
/// The most stop strings: each is compared with every piece of text.
const MAX_STOPS: usize = 16;
/// The most bytes of a stop string.
const MAX_STOP_BYTES: usize = 256;

/// Refuses the options that the contract has and this version does not support.
pub(super) fn check_supported(body: &RequestBody<'_>) -> Result<(), FieldError> {
    let Some(Object(format)) = &body.response_format else {
        return Ok(());
    };
    match format.kind.as_deref() {
        Some("text") => match format.members.keys().next() {
            None => Ok(()),
            Some(member) => Err(FieldError::malformed(format!(
                "response_format: unknown field {}, type text has none",
                brief(member)
            ))),
        },
        Some(kind @ ("json_object" | "json_schema" | "regex" | "choice")) => Err(FieldError::unsupported(
            format!("response_format: {kind} is not supported by this version"),
        )),
        _ => Err(FieldError::malformed(
            "response_format: type must be text, json_object, json_schema, regex or choice",
        )),
    }
}

/// Returns the most new tokens: the number asked for, which must be 1 to `token_limit`.
pub(super) fn max_tokens(asked: Option<u64>, token_limit: usize) -> Result<usize, FieldError> {
    match asked {
        None => Ok(DEFAULT_MAX_TOKENS.min(token_limit)),
        Some(asked) => usize::try_from(asked)
            .ok()
            .filter(|asked| (1..=token_limit).contains(asked))
            .ok_or_else(|| {
                FieldError::malformed(format!("max_tokens: {asked} is not in 1 to {token_limit}"))
            }),
    }
}

/// Returns the time that the client gives the answer.
pub(super) fn deadline(milliseconds: Option<u64>) -> Result<Option<Duration>, FieldError> {
    match milliseconds {
        Some(0) => Err(FieldError::malformed("deadline_ms: must be at least 1")),
        other => Ok(other.map(Duration::from_millis)),
    }
}

/// Returns the sampling parameters of a request.
pub(super) fn sampling(body: &RequestBody<'_>) -> Result<Sampling, FieldError> {
    let plain = Sampling::default();
    Ok(Sampling {
        temperature: number("temperature", body.temperature, plain.temperature, 0.0, 10.0)?,
        top_k: body.top_k.map_or(plain.top_k, |k| k as usize),
        top_p: match body.top_p {
            Some(0.0) => return Err(FieldError::malformed("top_p: must be above 0")),
            // A double above 0 must stay above 0 as a single.
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
pub(super) fn priority(word: Option<&Word<PriorityName>>) -> Priority {
    match word {
        None | Some(Word(PriorityName::Normal)) => Priority::Normal,
        Some(Word(PriorityName::Interactive)) => Priority::Interactive,
        Some(Word(PriorityName::Background)) => Priority::Background,
    }
}

/// Returns the part of a conversation that is left out where it is too long.
pub(super) fn truncation(word: Option<&Word<TruncationName>>) -> Truncation {
    match word {
        None | Some(Word(TruncationName::Error)) => Truncation::Error,
        Some(Word(TruncationName::OldestMessages)) => Truncation::OldestMessages,
        Some(Word(TruncationName::Middle)) => Truncation::Middle,
    }
}

/// Returns the stop strings of a request.
pub(super) fn stops(stop: Option<TextOr<String>>) -> Result<Vec<String>, FieldError> {
    let stops = match stop {
        None => Vec::new(),
        Some(TextOr::Text(stop)) => vec![stop],
        Some(TextOr::List(stops)) => stops,
    };
    if stops.len() > MAX_STOPS {
        return Err(FieldError::malformed(format!(
            "stop: {} strings, {MAX_STOPS} are the most",
            stops.len()
        )));
    }
    if let Some(n) = stops.iter().position(String::is_empty) {
        return Err(FieldError::malformed(format!("stop[{n}]: is empty")));
    }
    if let Some(n) = stops.iter().position(|stop| stop.len() > MAX_STOP_BYTES) {
        return Err(FieldError::malformed(format!(
            "stop[{n}]: is longer than {MAX_STOP_BYTES} bytes"
        )));
    }
    Ok(stops)
}

/// Returns a number of a request as single, or its default; a number must be `least` to `most`.
#[expect(
    clippy::cast_possible_truncation,
    reason = "JSON has doubles, sampling singles"
)]
fn number(name: &str, given: Option<f64>, default: f32, least: f64, most: f64) -> Result<f32, FieldError> {
    match given {
        None => Ok(default),
        Some(value) if (least..=most).contains(&value) => Ok(value as f32),
        Some(value) => Err(FieldError::malformed(format!(
            "{name}: {value} is not in {least} to {most}"
        ))),
    }
}
