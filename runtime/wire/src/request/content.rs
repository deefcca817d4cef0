//! The conversation of a request: a prompt or messages, each a text or parts.

use phi_edge_api::{Message, Role};

use super::FieldError;
use super::body::{ContentPart, MessageBody, PartType, RoleName};
use crate::strict::{Object, TextOr, Word};

/// Returns the messages of a request in their order, the system message first.
pub(super) fn conversation(
    system: Option<String>,
    prompt: Option<String>,
    messages: Option<Vec<Object<MessageBody>>>,
) -> Result<Vec<Message>, FieldError> {
    let mut conversation: Vec<Message> = system
        .map(|content| Message::new(Role::System, content))
        .into_iter()
        .collect();
    match (prompt, messages) {
        (Some(prompt), None) if prompt.trim().is_empty() => {
            return Err(FieldError::malformed("prompt: is blank"));
        }
        (Some(prompt), None) => conversation.push(user(&prompt)),
        (None, Some(messages)) if messages.is_empty() => {
            return Err(FieldError::malformed("messages: is empty"));
        }
        (None, Some(messages)) => {
            for (n, Object(message)) in messages.into_iter().enumerate() {
                conversation.push(Message::new(
                    match message.role.0 {
                        RoleName::System => Role::System,
                        RoleName::User => Role::User,
                        RoleName::Assistant => Role::Assistant,
                    },
                    content(n, message.content)?,
                ));
            }
        }
        (Some(_), Some(_)) => return Err(FieldError::malformed("prompt and messages: give one of them")),
        (None, None) => return Err(FieldError::malformed("prompt or messages: one of them is needed")),
    }
    Ok(conversation)
}

/// Returns the text of message `n`: a string, or parts of type text one after the other.
fn content(n: usize, content: TextOr<Object<ContentPart>>) -> Result<String, FieldError> {
    let parts = match content {
        TextOr::Text(text) => return Ok(text),
        TextOr::List(parts) => parts,
    };
    let mut text = String::new();
    for (m, Object(part)) in parts.into_iter().enumerate() {
        let at = format!("messages[{n}].content[{m}]");
        match (part.kind, part.text, part.data) {
            (Some(Word(PartType::Text)), Some(piece), None) => text.push_str(&piece),
            (Some(Word(PartType::Text)), None, _) => {
                return Err(FieldError::malformed(format!("{at}.text: must be a string")));
            }
            (Some(Word(PartType::Text)), _, Some(_)) => {
                return Err(FieldError::malformed(format!(
                    "{at}.data: a part of type text has none"
                )));
            }
            (Some(Word(PartType::Image)), Some(_), _) => {
                return Err(FieldError::malformed(format!(
                    "{at}.text: a part of type image has none"
                )));
            }
            (Some(Word(PartType::Image)), None, _) => {
                return Err(FieldError::unsupported(format!(
                    "{at}: this model takes text alone"
                )));
            }
            (None, ..) => return Err(FieldError::malformed(format!("{at}.type: must be text or image"))),
        }
    }
    Ok(text)
}

/// Returns a message of the user.
pub(super) fn user(text: &str) -> Message {
    Message::new(Role::User, text.to_owned())
}
