//! Requests: what a payload is, and the strict reading of the JSON form.

mod body;
mod content;
mod options;

use std::time::Duration;

use phi_edge_service::{ErrorCode, Message, Priority, Sampling};

use crate::id::{valid_id, valid_name};
use body::{Body, FIELDS};
use content::{conversation, user};
use options::MAX_TOKENS;

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

fn is_json(content_type: &str) -> bool {
    let kind = content_type.split(';').next().unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("application/json") || kind.to_ascii_lowercase().ends_with("+json")
}

fn object(bytes: &[u8], most_tokens: usize) -> Result<Parsed, Rejected> {
    let body = Body::read(bytes).map_err(|message| bad(body::id_of(bytes), message))?;
    let id = body.id.clone();
    if let Some(id) = &id {
        valid_id(id).map_err(|message| bad(None, message))?;
    }
    validated(body, most_tokens).map_err(|(code, message)| Rejected { id, code, message })
}

/// A field at fault: for programs, and for people.
type Fault = (ErrorCode, String);

fn validated(body: Body, most_tokens: usize) -> Result<Parsed, Fault> {
    options::unsupported(&body)?;
    if let Some(session) = &body.session {
        valid_name(session).map_err(|reason| wrong(format!("session: {reason}")))?;
    }
    let max_tokens = options::max_tokens(body.max_tokens, most_tokens)?;
    let deadline = options::deadline(body.deadline_ms)?;
    let sampling = options::sampling(&body)?;
    Ok(Parsed {
        stop: options::stops(body.stop)?,
        messages: conversation(body.system, body.prompt, body.messages)?,
        id: body.id,
        max_tokens,
        sampling,
        seeded: body.seed.is_some(),
        stream: body.stream.unwrap_or(false),
        priority: options::priority(body.priority),
        deadline,
        session: body.session,
    })
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

#[cfg(test)]
mod tests;
