//! The conversation of a request: a prompt or messages, each a text or parts.

use phi_edge_service::{ErrorCode, Message, Role};

use super::body::{WireKind, WireMessage, WirePart, WireRole};
use super::{Fault, wrong};
use crate::strict::{Object, TextOr, Word};

/// Returns the messages of a request in their order, the system message first.
pub(super) fn conversation(
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

/// Returns a message of the user.
pub(super) fn user(text: &str) -> Message {
    Message {
        role: Role::User,
        content: text.to_owned(),
    }
}
