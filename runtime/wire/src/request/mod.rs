//! The reading of requests: a JSON object, read strictly, an image, or a plain text.

mod body;
mod content;
mod images;
mod job;
mod options;

use std::time::Duration;

use phi_edge_api::{Detail, ErrorCode, Message, Priority, RequestImage, Sampling, Truncation};
use phi_edge_rules::format_of;

use crate::id::{check_id, check_name};
use crate::strict::LongText;
use body::{FIELDS, RequestBody};
use content::{conversation, place_before_text, user};
use images::{Images, check_media_type, is_image};
pub use job::Envelope;
use options::DEFAULT_MAX_TOKENS;

/// The payload of a request and its media type.
#[derive(Debug, Clone, Copy)]
pub struct Payload<'a> {
    /// The bytes.
    pub bytes: &'a [u8],
    /// The media type, if the sender names one.
    pub content_type: Option<&'a str>,
    /// The question about a payload that is an image, if the sender asks one beside it. Of no meaning for other payloads.
    pub question: Option<&'a str>,
}

impl Payload<'_> {
    /// Whether the payload is an image by its media type, whatever its bytes are.
    pub fn is_image(&self) -> bool {
        self.content_type.is_some_and(is_image)
    }
}

/// The bounds of requests that the node sets.
#[derive(Debug, Clone, Copy)]
pub struct ParseLimits {
    /// The largest `max_tokens`.
    pub max_tokens: usize,
    /// The most images of a request.
    pub images: usize,
}

/// A valid request.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// The id, if the client gives one.
    pub id: Option<String>,
    /// The conversation.
    pub messages: Vec<Message>,
    /// The images that the messages name by their indices.
    pub images: Vec<RequestImage>,
    /// The most new tokens.
    pub max_tokens: usize,
    /// The sampling parameters; the seed is the client's if [`Request::seeded`] is true.
    pub sampling: Sampling,
    /// Whether the client gives the seed.
    pub seeded: bool,
    /// The stop strings.
    pub stop: Vec<String>,
    /// The part of the conversation that is left out where it is too long.
    pub truncation: Truncation,
    /// Whether the text is sent in chunks as it grows.
    pub stream: bool,
    /// Whether chunks are sent as the prompt is computed.
    pub progress: bool,
    /// The priority in the queue.
    pub priority: Priority,
    /// The time that the client gives the answer.
    pub deadline: Option<Duration>,
    /// The session that the request continues or begins.
    pub session: Option<String>,
}

/// The reason why a payload is no valid request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestError {
    /// The request's id, if it can be read.
    pub id: Option<String>,
    /// The code, for programs.
    pub code: ErrorCode,
    /// One line, for people.
    pub message: String,
}

impl RequestError {
    /// Returns the name of the field that is wrong, or `payload`. Unlike the message it quotes nothing: prompts have no place
    /// in the log.
    pub fn field(&self) -> &'static str {
        let named = self.message.split([':', '.', '[', ' ']).next();
        let known = FIELDS.into_iter().find(|field| Some(*field) == named);
        known.unwrap_or("payload")
    }
}

/// Reads a payload; `Ok(None)` if it is empty. Images are not decoded: whether a file is one is not known yet.
///
/// # Errors
/// The payload is no valid request.
pub fn parse_request(payload: Payload<'_>, limits: ParseLimits) -> Result<Option<Request>, RequestError> {
    let Payload {
        bytes, content_type, ..
    } = payload;
    if bytes.is_empty() {
        return Ok(None);
    }
    if payload.is_image() {
        return read_image(payload, limits).map(Some);
    }
    if bytes[0] == b'{' || content_type.is_some_and(is_json) {
        return read_object(bytes, limits).map(Some);
    }
    match std::str::from_utf8(bytes) {
        Ok(text) if text.trim().is_empty() => Err(malformed(None, "the prompt is blank")),
        Ok(text) => Ok(Some(plain(vec![user(text)], Vec::new(), limits))),
        Err(error) => Err(malformed(None, no_text(bytes, error.valid_up_to()))),
    }
}

/// Says what a payload is that is no text: an image without its content type, or something unknown.
fn no_text(bytes: &[u8], valid: usize) -> String {
    match format_of(bytes) {
        Some(format) => format!(
            "the payload is an image ({format}, {} bytes) without its content type: send image/{format}, a response topic, \
             and the question in the user property prompt",
            bytes.len()
        ),
        None => format!(
            "the payload is neither a JSON object nor UTF-8 text (byte {valid} is the first wrong one); an image needs its \
             content type"
        ),
    }
}

/// Reads a payload that is the file of an image. Its question is not optional: one that was misspelled must not become
/// another one.
fn read_image(payload: Payload<'_>, limits: ParseLimits) -> Result<Request, RequestError> {
    check_media_type(payload.content_type.unwrap_or_default())
        .map_err(|reason| malformed(None, format!("the content type {reason}")))?;
    let question = payload.question.unwrap_or_default();
    if question.trim().is_empty() {
        return Err(malformed(
            None,
            "prompt: an image as payload needs its question in the user property prompt",
        ));
    }
    let mut messages = vec![user(question)];
    let placed = Images::new(limits.images, None)
        .check_count(1)
        .and_then(|()| place_before_text(&mut messages, 1));
    placed.map_err(|FieldError { code, message }| RequestError {
        id: None,
        code,
        message,
    })?;
    let image = RequestImage {
        file: payload.bytes.into(),
        detail: Detail::default(),
    };
    Ok(plain(messages, vec![image], limits))
}

/// Returns a request with all options at their defaults.
fn plain(messages: Vec<Message>, images: Vec<RequestImage>, limits: ParseLimits) -> Request {
    Request {
        id: None,
        messages,
        images,
        max_tokens: DEFAULT_MAX_TOKENS.min(limits.max_tokens),
        sampling: Sampling::default(),
        seeded: false,
        stop: Vec::new(),
        truncation: Truncation::default(),
        stream: false,
        progress: false,
        priority: Priority::default(),
        deadline: None,
        session: None,
    }
}

fn is_json(content_type: &str) -> bool {
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    media_type.eq_ignore_ascii_case("application/json") || media_type.to_ascii_lowercase().ends_with("+json")
}

fn read_object(bytes: &[u8], limits: ParseLimits) -> Result<Request, RequestError> {
    let body = RequestBody::read(bytes).map_err(|message| malformed(body::id_of(bytes), message))?;
    let id = body.id.clone();
    if let Some(id) = &id {
        check_id(id).map_err(|message| malformed(None, message))?;
    }
    validate(body, limits).map_err(|FieldError { code, message }| RequestError { id, code, message })
}

/// The reason why a field is refused. The message begins with the field's name.
struct FieldError {
    code: ErrorCode,
    message: String,
}

impl FieldError {
    fn malformed(message: impl Into<String>) -> Self {
        Self {
            code: ErrorCode::BadRequest,
            message: message.into(),
        }
    }

    fn too_large(message: impl Into<String>) -> Self {
        Self {
            code: ErrorCode::TooLarge,
            message: message.into(),
        }
    }

    fn unsupported(message: impl Into<String>) -> Self {
        Self {
            code: ErrorCode::Unsupported,
            message: message.into(),
        }
    }
}

/// Checks the fields in a fixed order: the first one at fault is told.
fn validate(body: RequestBody<'_>, limits: ParseLimits) -> Result<Request, FieldError> {
    options::check_supported(&body)?;
    if let Some(session) = &body.session {
        check_name(session).map_err(|reason| FieldError::malformed(format!("session: {reason}")))?;
    }
    let max_tokens = options::max_tokens(body.max_tokens, limits.max_tokens)?;
    let deadline = options::deadline(body.deadline_ms)?;
    let sampling = options::sampling(&body)?;
    let stop = options::stops(body.stop)?;
    let mut images = Images::new(limits.images, body.detail.as_ref());
    let listed = body.images.unwrap_or_default();
    images.check_count(listed.len())?;
    for (n, LongText(encoded)) in listed.iter().enumerate() {
        images.take(&format!("images[{n}]"), encoded, None)?;
    }
    let mut messages = conversation(body.system, body.prompt, body.messages, &mut images)?;
    place_before_text(&mut messages, listed.len())?;
    Ok(Request {
        stop,
        messages,
        images: images.into_files(),
        id: body.id,
        max_tokens,
        sampling,
        seeded: body.seed.is_some(),
        truncation: options::truncation(body.truncation.as_ref()),
        stream: body.stream.unwrap_or(false),
        progress: body.progress.unwrap_or(false),
        priority: options::priority(body.priority.as_ref()),
        deadline,
        session: body.session,
    })
}

fn malformed(id: Option<String>, message: impl Into<String>) -> RequestError {
    RequestError {
        id,
        code: ErrorCode::BadRequest,
        message: message.into(),
    }
}

#[cfg(test)]
mod tests;
