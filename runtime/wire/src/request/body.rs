//! The JSON form of a request, read strictly.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::id::check_id;
use crate::quote::{breaks_base64, cut};
use crate::strict::{LongText, Object, TextOr, TextOrObject, Word};

/// The names of the fields of [`RequestBody`].
pub(super) const FIELDS: [&str; 21] = [
    "id",
    "prompt",
    "messages",
    "system",
    "images",
    "detail",
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "seed",
    "stop",
    "response_format",
    "truncation",
    "stream",
    "progress",
    "priority",
    "deadline_ms",
    "session",
];

/// A request as its sender writes it, with every field optional. `validate` in the parent module checks the fields;
/// docs/mqtt.md describes them, docs/asyncapi.json has their schema, and `tests/asyncapi.rs` makes values for each.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RequestBody<'a> {
    pub(super) id: Option<String>,
    pub(super) prompt: Option<String>,
    #[serde(borrow)]
    pub(super) messages: Option<Vec<Object<MessageBody<'a>>>>,
    pub(super) system: Option<String>,
    #[serde(borrow)]
    pub(super) images: Option<Vec<LongText<'a>>>,
    pub(super) detail: Option<Word<DetailName>>,
    pub(super) max_tokens: Option<u64>,
    pub(super) temperature: Option<f64>,
    pub(super) top_p: Option<f64>,
    pub(super) top_k: Option<u32>,
    pub(super) min_p: Option<f64>,
    pub(super) repetition_penalty: Option<f64>,
    pub(super) seed: Option<Seed>,
    pub(super) stop: Option<TextOr<String>>,
    pub(super) response_format: Option<Object<ResponseFormat>>,
    pub(super) truncation: Option<Word<TruncationName>>,
    pub(super) stream: Option<bool>,
    pub(super) progress: Option<bool>,
    pub(super) priority: Option<Word<PriorityName>>,
    pub(super) deadline_ms: Option<u64>,
    pub(super) session: Option<String>,
}

impl<'a> RequestBody<'a> {
    /// Reads a JSON object.
    ///
    /// # Errors
    /// One line that names the field at fault and quotes little.
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, String> {
        let mut json = serde_json::Deserializer::from_slice(bytes);
        serde_path_to_error::deserialize::<_, Object<RequestBody>>(&mut json)
            .map_err(|error| {
                let path = error.path().to_string();
                let reason = match error.into_inner() {
                    error if breaks_base64_at(bytes, &error) => {
                        "base64 with line breaks; encode it in one line (base64 -w0)".to_owned()
                    }
                    error => error.to_string(),
                };
                match path.as_str() {
                    // No path: the error is about the whole, or about a key.
                    "." | "?" => reason,
                    _ => format!("{path}: {reason}"),
                }
            })
            .and_then(|Object(body)| json.end().map(|()| body).map_err(|error| error.to_string()))
            .map_err(|message| cut(&message))
    }
}

/// Whether the error is about a line break within base64: as a character of its own JSON strings can't have one.
fn breaks_base64_at(bytes: &[u8], error: &serde_json::Error) -> bool {
    // The error's line counts from 1; its column is the number of bytes that were read of it.
    let mut lines = bytes.split_inclusive(|byte| *byte == b'\n');
    let before: usize = lines
        .by_ref()
        .take(error.line().saturating_sub(1))
        .map(<[u8]>::len)
        .sum();
    let read = before + error.column();
    error.is_syntax()
        && read
            .checked_sub(1)
            .is_some_and(|place| breaks_base64(bytes, place))
}

/// Returns the id of a request that is wrong elsewhere, so that its sender can be told.
pub(super) fn id_of(bytes: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct OnlyId {
        id: String,
    }
    let OnlyId { id } = serde_json::from_slice(bytes).ok()?;
    check_id(&id).is_ok().then_some(id)
}

/// A message of the conversation.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MessageBody<'a> {
    pub(super) role: Word<RoleName>,
    #[serde(borrow)]
    pub(super) content: TextOr<Object<ContentPart<'a>>>,
}

/// A part of a message. `text` belongs to parts of type text, `data` and `detail` to those of type image, `image_url` to those
/// of type `image_url`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ContentPart<'a> {
    #[serde(rename = "type")]
    pub(super) kind: Option<Word<PartType>>,
    pub(super) text: Option<String>,
    #[serde(borrow)]
    pub(super) data: Option<LongText<'a>>,
    pub(super) detail: Option<Word<DetailName>>,
    #[serde(borrow)]
    pub(super) image_url: Option<TextOrObject<'a, ImageUrl<'a>>>,
}

/// The type of a part of a message.
#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "snake_case")]
pub(super) enum PartType {
    Text,
    Image,
    ImageUrl,
}

/// The image of a part of type `image_url`, in the form of OpenAI's API.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ImageUrl<'a> {
    #[serde(borrow)]
    pub(super) url: LongText<'a>,
    pub(super) detail: Option<Word<DetailName>>,
}

/// How closely the model looks at an image.
#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
pub(super) enum DetailName {
    Low,
    Auto,
    High,
}

/// The form of the answer. The members of forms other than text are not read until those are supported.
#[derive(Deserialize)]
pub(super) struct ResponseFormat {
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
    #[serde(flatten)]
    pub(super) members: BTreeMap<String, Value>,
}

/// The role of a message.
#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
pub(super) enum RoleName {
    System,
    User,
    Assistant,
}

/// The priority of a request.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum PriorityName {
    Interactive,
    Normal,
    Background,
}

/// The part of a conversation that is left out where it is too long.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum TruncationName {
    Error,
    OldestMessages,
    Middle,
}

/// A seed of 64 bits. Clients of other servers send negative ones.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a whole number of 64 bits")]
pub(super) enum Seed {
    Plain(u64),
    Negative(i64),
}
