//! Requests: what a payload is, and the strict reading of the JSON form.

use std::collections::BTreeMap;
use std::time::Duration;

use phi_edge_service::{ErrorCode, Message, Priority, Role, Sampling};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use crate::strict::{Object, TextOr, Word};

/// The default of `max_tokens`.
const MAX_TOKENS: usize = 256;
/// Bounds on stop strings: each is compared with every piece of text.
const STOPS: usize = 16;
const STOP_BYTES: usize = 256;
/// The fields of a request: [`Body`] has the same.
const FIELDS: [&str; 18] = [
    "id",
    "prompt",
    "messages",
    "system",
    "images",
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "seed",
    "stop",
    "response_format",
    "stream",
    "priority",
    "deadline_ms",
    "session",
];
/// The most characters of a message about a fault of form: it quotes the payload.
const FAULT: usize = 200;

/// A request's payload and what says how to read it.
#[derive(Debug, Clone, Copy)]
pub struct Payload<'a> {
    /// The bytes.
    pub bytes: &'a [u8],
    /// The media type, where the sender names one.
    pub content_type: Option<&'a str>,
}

/// A request that can be served as far as its text tells.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed {
    /// The client's name for it.
    pub id: Option<String>,
    /// The conversation.
    pub messages: Vec<Message>,
    /// The most new tokens.
    pub max_tokens: usize,
    /// How tokens are chosen; a seed that was not given is left to the caller.
    pub sampling: Sampling,
    /// Whether the client gave the seed.
    pub seeded: bool,
    /// Stop strings.
    pub stop: Vec<String>,
    /// Publish chunks.
    pub stream: bool,
    /// Who goes first.
    pub priority: Priority,
    /// The client's own deadline.
    pub deadline: Option<Duration>,
    /// The conversation that this goes on, or begins.
    pub session: Option<String>,
}

/// A request that can't be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// Its id, where one could be read.
    pub id: Option<String>,
    /// For programs.
    pub code: ErrorCode,
    /// For people.
    pub message: String,
}

impl Rejected {
    /// The field that is wrong, or `payload`. Unlike the message it quotes nothing: prompts have no place in the log.
    pub fn field(&self) -> &'static str {
        let named = self.message.split([':', '.', '[', ' ']).next();
        let known = FIELDS.into_iter().find(|field| Some(*field) == named);
        known.unwrap_or("payload")
    }
}

/// Reads a payload. `Ok(None)`: it is empty, and nothing is asked. `most_tokens` bounds `max_tokens`.
pub fn parse_request(payload: Payload<'_>, most_tokens: usize) -> Result<Option<Parsed>, Rejected> {
    let Payload { bytes, content_type } = payload;
    if bytes.is_empty() {
        return Ok(None);
    }
    if bytes[0] == b'{' || content_type.is_some_and(is_json) {
        return object(bytes, most_tokens).map(Some);
    }
    match std::str::from_utf8(bytes) {
        Ok(text) if text.trim().is_empty() => Err(bad(None, "the prompt is blank")),
        Ok(text) => Ok(Some(Parsed {
            id: None,
            messages: vec![user(text)],
            max_tokens: MAX_TOKENS.min(most_tokens),
            sampling: Sampling::default(),
            seeded: false,
            stop: Vec::new(),
            stream: false,
            priority: Priority::default(),
            deadline: None,
            session: None,
        })),
        Err(error) => Err(bad(
            None,
            format!(
                "the payload is neither a JSON object nor UTF-8 text (byte {} is the first wrong one)",
                error.valid_up_to()
            ),
        )),
    }
}

/// Whether `id` is 1 to 64 of `A-Z a-z 0-9 . _ -`; the error says what is wrong.
pub fn valid_id(id: &str) -> Result<(), String> {
    valid_name(id).map_err(|reason| format!("id: {reason}"))
}

fn valid_name(name: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if (1..=64).contains(&name.len()) && name.chars().all(allowed) {
        return Ok(());
    }
    Err(format!(
        "{} is no id: 1 to 64 of A-Z a-z 0-9 . _ - are",
        brief(name)
    ))
}

fn is_json(content_type: &str) -> bool {
    let kind = content_type.split(';').next().unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("application/json") || kind.to_ascii_lowercase().ends_with("+json")
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    id: Option<String>,
    prompt: Option<String>,
    messages: Option<Vec<Object<WireMessage>>>,
    system: Option<String>,
    images: Option<Vec<IgnoredAny>>,
    max_tokens: Option<u64>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    top_k: Option<u32>,
    min_p: Option<f64>,
    repetition_penalty: Option<f64>,
    seed: Option<Seed>,
    stop: Option<TextOr<String>>,
    response_format: Option<Object<WireFormat>>,
    stream: Option<bool>,
    priority: Option<Word<WirePriority>>,
    deadline_ms: Option<u64>,
    session: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireMessage {
    role: Word<WireRole>,
    content: TextOr<Object<WirePart>>,
}

/// A part of a message. `text` belongs to parts of type text, `data` to those of type image.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WirePart {
    #[serde(rename = "type")]
    kind: Option<Word<WireKind>>,
    text: Option<String>,
    data: Option<String>,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum WireKind {
    Text,
    Image,
}

/// The answer's form. What the forms beside text come with is not read before they are supported.
#[derive(Deserialize)]
struct WireFormat {
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(flatten)]
    members: BTreeMap<String, Value>,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum WireRole {
    System,
    User,
    Assistant,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum WirePriority {
    Interactive,
    Normal,
    Background,
}

/// Clients of other servers send negative seeds.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a whole number of 64 bits")]
enum Seed {
    Plain(u64),
    Negative(i64),
}

fn object(bytes: &[u8], most_tokens: usize) -> Result<Parsed, Rejected> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let read = serde_path_to_error::deserialize::<_, Object<Body>>(&mut json)
        .map_err(|error| {
            let path = error.path().to_string();
            match path.as_str() {
                // Where there is no path: the whole, or a key that is none.
                "." | "?" => error.into_inner().to_string(),
                _ => format!("{path}: {}", error.into_inner()),
            }
        })
        .and_then(|Object(body)| json.end().map(|()| body).map_err(|error| error.to_string()));
    let body = match read {
        Ok(body) => body,
        Err(message) => return Err(bad(id_of(bytes), cut(message))),
    };
    let id = body.id.clone();
    if let Some(id) = &id {
        valid_id(id).map_err(|message| bad(None, message))?;
    }
    validated(body, most_tokens).map_err(|(code, message)| Rejected { id, code, message })
}

/// The id of a request that is wrong elsewhere, so that its sender can be told.
fn id_of(bytes: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct OnlyId {
        id: String,
    }
    let OnlyId { id } = serde_json::from_slice(bytes).ok()?;
    valid_id(&id).is_ok().then_some(id)
}

type Fault = (ErrorCode, String);

fn validated(body: Body, most_tokens: usize) -> Result<Parsed, Fault> {
    unsupported(&body)?;
    if let Some(session) = &body.session {
        valid_name(session).map_err(|reason| wrong(format!("session: {reason}")))?;
    }
    let max_tokens = match body.max_tokens {
        None => MAX_TOKENS.min(most_tokens),
        Some(asked) => usize::try_from(asked)
            .ok()
            .filter(|asked| (1..=most_tokens).contains(asked))
            .ok_or_else(|| wrong(format!("max_tokens: {asked} is not in 1 to {most_tokens}")))?,
    };
    let deadline = match body.deadline_ms {
        Some(0) => return Err(wrong("deadline_ms: must be at least 1")),
        other => other.map(Duration::from_millis),
    };
    let plain = Sampling::default();
    let sampling = Sampling {
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
        seed: match body.seed {
            None => plain.seed,
            Some(Seed::Plain(seed)) => seed,
            Some(Seed::Negative(seed)) => seed.cast_unsigned(),
        },
    };
    Ok(Parsed {
        stop: stops(body.stop)?,
        messages: conversation(body.system, body.prompt, body.messages)?,
        id: body.id,
        max_tokens,
        sampling,
        seeded: body.seed.is_some(),
        stream: body.stream.unwrap_or(false),
        priority: match body.priority {
            None | Some(Word(WirePriority::Normal)) => Priority::Normal,
            Some(Word(WirePriority::Interactive)) => Priority::Interactive,
            Some(Word(WirePriority::Background)) => Priority::Background,
        },
        deadline,
        session: body.session,
    })
}

/// What the contract has and this version has not.
fn unsupported(body: &Body) -> Result<(), Fault> {
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

fn conversation(
    system: Option<String>,
    prompt: Option<String>,
    messages: Option<Vec<Object<WireMessage>>>,
) -> Result<Vec<Message>, Fault> {
    let mut conversation: Vec<Message> = system
        .map(|content| Message {
            role: Role::System,
            content,
        })
        .into_iter()
        .collect();
    match (prompt, messages) {
        (Some(prompt), None) if prompt.trim().is_empty() => return Err(wrong("prompt: is blank")),
        (Some(prompt), None) => conversation.push(user(&prompt)),
        (None, Some(messages)) if messages.is_empty() => return Err(wrong("messages: is empty")),
        (None, Some(messages)) => {
            for (n, Object(message)) in messages.into_iter().enumerate() {
                conversation.push(Message {
                    role: match message.role.0 {
                        WireRole::System => Role::System,
                        WireRole::User => Role::User,
                        WireRole::Assistant => Role::Assistant,
                    },
                    content: content(n, message.content)?,
                });
            }
        }
        (Some(_), Some(_)) => return Err(wrong("prompt and messages: give one of them")),
        (None, None) => return Err(wrong("prompt or messages: one of them is needed")),
    }
    Ok(conversation)
}

/// The text of a message: a string, or parts of type text.
fn content(n: usize, content: TextOr<Object<WirePart>>) -> Result<String, Fault> {
    let parts = match content {
        TextOr::Text(text) => return Ok(text),
        TextOr::List(parts) => parts,
    };
    let mut text = String::new();
    for (m, Object(part)) in parts.into_iter().enumerate() {
        let at = format!("messages[{n}].content[{m}]");
        match (part.kind, part.text, part.data) {
            (Some(Word(WireKind::Text)), Some(piece), None) => text.push_str(&piece),
            (Some(Word(WireKind::Text)), None, _) => {
                return Err(wrong(format!("{at}.text: must be a string")));
            }
            (Some(Word(WireKind::Text)), _, Some(_)) => {
                return Err(wrong(format!("{at}.data: a part of type text has none")));
            }
            (Some(Word(WireKind::Image)), Some(_), _) => {
                return Err(wrong(format!("{at}.text: a part of type image has none")));
            }
            (Some(Word(WireKind::Image)), None, _) => {
                return Err((
                    ErrorCode::Unsupported,
                    format!("{at}: this model takes text alone"),
                ));
            }
            (None, ..) => return Err(wrong(format!("{at}.type: must be text or image"))),
        }
    }
    Ok(text)
}

fn stops(stop: Option<TextOr<String>>) -> Result<Vec<String>, Fault> {
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

fn user(text: &str) -> Message {
    Message {
        role: Role::User,
        content: text.to_owned(),
    }
}

fn wrong(message: impl Into<String>) -> Fault {
    (ErrorCode::BadRequest, message.into())
}

fn bad(id: Option<String>, message: impl Into<String>) -> Rejected {
    Rejected {
        id,
        code: ErrorCode::BadRequest,
        message: message.into(),
    }
}

/// A message without what is beyond [`FAULT`].
fn cut(mut message: String) -> String {
    if let Some((end, _)) = message.char_indices().nth(FAULT) {
        message.truncate(end);
        message.push('…');
    }
    message
}

/// A client's text, short enough for a message.
fn brief(text: &str) -> String {
    let short: String = text.chars().take(40).collect();
    if short.len() < text.len() {
        format!("{short:?}…")
    } else {
        format!("{short:?}")
    }
}

#[cfg(test)]
mod tests;
