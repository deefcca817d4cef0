//! The JSON form of a request, read strictly.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use crate::id::valid_id;
use crate::quote::cut;
use crate::strict::{Object, TextOr, Word};

/// The fields of a request: [`Body`] has the same.
pub(super) const FIELDS: [&str; 18] = [
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

/// A request as its sender writes it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Body {
    pub(super) id: Option<String>,
    pub(super) prompt: Option<String>,
    pub(super) messages: Option<Vec<Object<WireMessage>>>,
    pub(super) system: Option<String>,
    pub(super) images: Option<Vec<IgnoredAny>>,
    pub(super) max_tokens: Option<u64>,
    pub(super) temperature: Option<f64>,
    pub(super) top_p: Option<f64>,
    pub(super) top_k: Option<u32>,
    pub(super) min_p: Option<f64>,
    pub(super) repetition_penalty: Option<f64>,
    pub(super) seed: Option<Seed>,
    pub(super) stop: Option<TextOr<String>>,
    pub(super) response_format: Option<Object<WireFormat>>,
    pub(super) stream: Option<bool>,
    pub(super) priority: Option<Word<WirePriority>>,
    pub(super) deadline_ms: Option<u64>,
    pub(super) session: Option<String>,
}

impl Body {
    /// Reads a JSON object.
    ///
    /// # Errors
    /// One line that names the field at fault and quotes little.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, String> {
        let mut json = serde_json::Deserializer::from_slice(bytes);
        serde_path_to_error::deserialize::<_, Object<Body>>(&mut json)
            .map_err(|error| {
                let path = error.path().to_string();
                match path.as_str() {
                    // Where there is no path: the whole, or a key that is none.
                    "." | "?" => error.into_inner().to_string(),
                    _ => format!("{path}: {}", error.into_inner()),
                }
            })
            .and_then(|Object(body)| json.end().map(|()| body).map_err(|error| error.to_string()))
            .map_err(cut)
    }
}

/// Returns the id of a request that is wrong elsewhere, so that its sender can be told.
pub(super) fn id_of(bytes: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct OnlyId {
        id: String,
    }
    let OnlyId { id } = serde_json::from_slice(bytes).ok()?;
    valid_id(&id).is_ok().then_some(id)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WireMessage {
    pub(super) role: Word<WireRole>,
    pub(super) content: TextOr<Object<WirePart>>,
}

/// A part of a message. `text` belongs to parts of type text, `data` to those of type image.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WirePart {
    #[serde(rename = "type")]
    pub(super) kind: Option<Word<WireKind>>,
    pub(super) text: Option<String>,
    pub(super) data: Option<String>,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
pub(super) enum WireKind {
    Text,
    Image,
}

/// The answer's form. What the forms beside text come with is not read before they are supported.
#[derive(Deserialize)]
pub(super) struct WireFormat {
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
    #[serde(flatten)]
    pub(super) members: BTreeMap<String, Value>,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
pub(super) enum WireRole {
    System,
    User,
    Assistant,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum WirePriority {
    Interactive,
    Normal,
    Background,
}

/// Clients of other servers send negative seeds.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a whole number of 64 bits")]
pub(super) enum Seed {
    Plain(u64),
    Negative(i64),
}
