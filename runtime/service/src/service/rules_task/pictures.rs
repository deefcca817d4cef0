//! The pictures of a window as the images of a request.

use std::sync::Arc;

use crate::service::Shared;
use phi_edge_api::RequestImage;
use phi_edge_job::ErrorCode;
use phi_edge_models::{Detail, Message, PlacedImage, Role};
use phi_edge_prompts::Prompts;
use phi_edge_rules::{EventError, PayloadFormat, PictureDetail, PromptSource, Rule, ShownPicture};

/// The pictures of a window that can be read, and the images of a prompt that show them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct ShownImages {
    pub(super) pictures: Arc<[ShownPicture]>,
    /// The picture as it came, or a contact sheet of several.
    pub(super) images: Vec<RequestImage>,
}

/// What the model is shown of the pictures of a window of so many messages; nothing of a rule without pictures, or of a window
/// without messages.
///
/// # Errors
/// The rule is about pictures and no message was one, or none of several pictures can be read.
pub(super) async fn shown(
    rule: &Rule,
    messages: u64,
    mut pictures: Vec<ShownPicture>,
    shared: &Shared,
) -> Result<ShownImages, EventError> {
    let file = match pictures.as_slice() {
        [] if asks_about_pictures(rule) && messages > 0 => return Err(none_is_a_picture(messages)),
        [] => return Ok(ShownImages::default()),
        [picture] => picture.file.clone(),
        several => {
            let files = several.iter().map(|picture| picture.file.clone()).collect();
            let sheet = shared.contact_sheet(files).await.map_err(|message| EventError {
                code: ErrorCode::BadRequest,
                message,
            })?;
            let mut indices = 0..;
            pictures.retain(|_| indices.next().is_some_and(|index| sheet.shown.contains(&index)));
            sheet.png.into()
        }
    };
    Ok(ShownImages {
        pictures: pictures.into(),
        images: vec![RequestImage {
            file,
            detail: detail(rule.picture.detail),
        }],
    })
}

fn asks_about_pictures(rule: &Rule) -> bool {
    rule.payload == PayloadFormat::Image && rule.summary.prompt != PromptSource::None
}

fn none_is_a_picture(messages: u64) -> EventError {
    EventError {
        code: ErrorCode::BadRequest,
        message: format!(
            "none of the {messages} messages of the window is a picture (PNG, JPEG, WebP), so the model was not asked"
        ),
    }
}

fn detail(detail: PictureDetail) -> Detail {
    match detail {
        PictureDetail::Low => Detail::Low,
        PictureDetail::Auto => Detail::Auto,
        PictureDetail::High => Detail::High,
    }
}

/// The number of tokens that images take in a prompt.
///
/// # Errors
/// An image can't be read.
pub(super) async fn tokens(prompts: &Arc<dyn Prompts>, images: &[RequestImage]) -> Result<usize, EventError> {
    // The request of a model for text alone is refused.
    if images.is_empty() || !prompts.takes_images() {
        return Ok(0);
    }
    let (prompts, images) = (Arc::clone(prompts), images.to_vec());
    let counted = tokio::task::spawn_blocking(move || {
        let counts = images
            .iter()
            .map(|image| prompts.image_tokens(&image.file, image.detail));
        counts.sum::<Result<usize, String>>()
    });
    let counted = counted.await.unwrap_or_else(|fault| {
        tracing::error!(error = %fault, "measuring a picture panicked");
        Err("can't be read".to_owned())
    });
    counted.map_err(|message| EventError {
        code: ErrorCode::BadRequest,
        message: format!("the picture {message}"),
    })
}

/// The error of a prompt with a picture of so many tokens. One that is too long says what the picture takes of the room.
pub(super) fn with_tokens(mut fault: EventError, tokens: usize) -> EventError {
    if tokens > 0 && fault.code == ErrorCode::ContextOverflow {
        fault.message = format!(
            "{} beside the picture's {tokens}; set `picture.detail` to \"low\" or raise `max_prompt_tokens`",
            fault.message
        );
    }
    fault
}

/// The user's turn of a prompt with images before its text, one a line.
pub(super) fn user_turn(prompt: &str, images: usize) -> Message {
    let content = "\n".repeat(images) + prompt;
    Message {
        images: (0..images)
            .map(|image| PlacedImage::unread(image, image))
            .collect(),
        ..Message::new(Role::User, content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_that_is_too_long_names_the_tokens_of_its_picture() {
        let fault = |code| EventError {
            code,
            message: "0 are allowed".to_owned(),
        };
        let overflow = fault(ErrorCode::ContextOverflow);
        assert_eq!(
            with_tokens(overflow.clone(), 757).message,
            "0 are allowed beside the picture's 757; set `picture.detail` to \"low\" or raise `max_prompt_tokens`"
        );
        assert_eq!(with_tokens(overflow.clone(), 0), overflow);
        let other = fault(ErrorCode::Internal);
        assert_eq!(with_tokens(other.clone(), 757), other);
    }

    #[test]
    fn details_are_those_of_requests() {
        let details = [PictureDetail::Low, PictureDetail::Auto, PictureDetail::High].map(detail);
        assert_eq!(details, [Detail::Low, Detail::Auto, Detail::High]);
    }

    #[test]
    fn images_stand_before_the_text() {
        let turn = user_turn("What is there?", 2);
        assert_eq!(turn.content, "\n\nWhat is there?");
        let places: Vec<(usize, usize)> = turn
            .images
            .iter()
            .map(|placed| (placed.at, placed.image))
            .collect();
        assert_eq!(places, [(0, 0), (1, 1)]);
        assert_eq!(user_turn("p", 0), Message::new(Role::User, "p"));
    }
}
