//! The conversation of a request: a prompt or messages, each a text or parts.

use phi_edge_api::{Message, PlacedImage, Role};

use super::FieldError;
use super::body::{ContentPart, ImageUrl, MessageBody, PartType, RoleName};
use super::images::{Images, data_url};
use crate::strict::{LongText, Object, TextOr, TextOrObject, Word};

/// Returns the messages of a request in their order, the system message first, and adds their images to `images`.
pub(super) fn conversation(
    system: Option<String>,
    prompt: Option<String>,
    messages: Option<Vec<Object<MessageBody<'_>>>>,
    images: &mut Images,
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
            for (n, Object(body)) in messages.into_iter().enumerate() {
                conversation.push(message(n, body, images)?);
            }
        }
        (Some(_), Some(_)) => return Err(FieldError::malformed("prompt and messages: give one of them")),
        (None, None) => return Err(FieldError::malformed("prompt or messages: one of them is needed")),
    }
    Ok(conversation)
}

/// Puts the first `count` images, one a line, before the text of the last message of the user.
pub(super) fn place_before_text(messages: &mut [Message], count: usize) -> Result<(), FieldError> {
    if count == 0 {
        return Ok(());
    }
    let Some(message) = messages.iter_mut().rfind(|message| message.role == Role::User) else {
        return Err(FieldError::malformed(
            "images: no message is the user's, and images belong to one",
        ));
    };
    message.content.insert_str(0, &"\n".repeat(count));
    for placed in &mut message.images {
        placed.at += count;
    }
    let before = (0..count).map(|image| PlacedImage::unread(image, image));
    message.images.splice(0..0, before);
    Ok(())
}

/// Returns message `n`: its text is a string, or the parts of type text one after the other, between which its images keep
/// their places.
fn message(n: usize, body: MessageBody<'_>, images: &mut Images) -> Result<Message, FieldError> {
    let role = match body.role.0 {
        RoleName::System => Role::System,
        RoleName::User => Role::User,
        RoleName::Assistant => Role::Assistant,
    };
    let parts = match body.content {
        TextOr::Text(text) => return Ok(Message::new(role, text)),
        TextOr::List(parts) => parts,
    };
    let mut message = Message::new(role, "");
    for (m, Object(part)) in parts.into_iter().enumerate() {
        let at = format!("messages[{n}].content[{m}]");
        let Some(Word(kind)) = part.kind else {
            return Err(FieldError::malformed(format!(
                "{at}.type: must be text, image or image_url"
            )));
        };
        check_members(&at, kind, &part)?;
        if let (PartType::Text, Some(piece)) = (kind, &part.text) {
            message.content.push_str(piece);
            continue;
        }
        if role != Role::User {
            return Err(FieldError::malformed(format!(
                "{at}: images belong to messages of the user"
            )));
        }
        let image = image(&at, &part, images)?;
        let place = message.content.len();
        message.images.push(PlacedImage::unread(place, image));
    }
    Ok(message)
}

/// Refuses a part that lacks the member of its type, or has one of another type.
fn check_members(at: &str, kind: PartType, part: &ContentPart<'_>) -> Result<(), FieldError> {
    let (name, needed) = match kind {
        PartType::Text => ("text", "text"),
        PartType::Image => ("image", "data"),
        PartType::ImageUrl => ("image_url", "image_url"),
    };
    let is_image = matches!(kind, PartType::Image);
    for (member, is_given, is_allowed) in [
        ("text", part.text.is_some(), needed == "text"),
        ("data", part.data.is_some(), is_image),
        ("detail", part.detail.is_some(), is_image),
        ("image_url", part.image_url.is_some(), needed == "image_url"),
    ] {
        if is_given && !is_allowed {
            return Err(FieldError::malformed(format!(
                "{at}.{member}: a part of type {name} has none"
            )));
        }
        if member == needed && !is_given {
            return Err(FieldError::malformed(format!("{at}.{member}: is missing")));
        }
    }
    Ok(())
}

/// Takes the image of a part and returns its index.
fn image(at: &str, part: &ContentPart<'_>, images: &mut Images) -> Result<usize, FieldError> {
    if let Some(LongText(data)) = &part.data {
        return images.take(&format!("{at}.data"), data, part.detail.as_ref());
    }
    let (at, url, detail) = match &part.image_url {
        Some(TextOrObject::Text(LongText(url))) => (format!("{at}.image_url"), url, None),
        Some(TextOrObject::Object(ImageUrl {
            url: LongText(url),
            detail,
        })) => (format!("{at}.image_url.url"), url, detail.as_ref()),
        None => return Err(FieldError::malformed(format!("{at}: has no image"))),
    };
    let encoded = data_url(url).map_err(|reason| FieldError::malformed(format!("{at}: {reason}")))?;
    images.take(&at, encoded, detail)
}

/// Returns a message of the user.
pub(super) fn user(text: &str) -> Message {
    Message::new(Role::User, text.to_owned())
}
