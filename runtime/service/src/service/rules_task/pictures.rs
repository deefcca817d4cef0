//! The pictures of a window as the images of a request.

use std::sync::Arc;

use phi_edge_api::RequestImage;
use phi_edge_job::ErrorCode;
use phi_edge_models::{Detail, Message, PlacedImage, Role, contact_sheet_file};
use phi_edge_prompts::Prompts;
use phi_edge_rules::{EventError, PictureDetail, PictureSpec, ShownPicture};

/// The images of a prompt: the picture as it came, or a contact sheet of several, of which each has at most `max_pixels`.
///
/// # Errors
/// None of several pictures can be read.
pub(super) async fn images(
    spec: PictureSpec,
    pictures: &[ShownPicture],
    max_pixels: u64,
) -> Result<Vec<RequestImage>, EventError> {
    let file = match pictures {
        [] => return Ok(Vec::new()),
        [picture] => picture.file.clone(),
        several => {
            let several = several.to_vec();
            let drawn = tokio::task::spawn_blocking(move || {
                let files: Vec<&[u8]> = several.iter().map(|picture| &*picture.file).collect();
                contact_sheet_file(&files, max_pixels).map_err(|fault| fault.to_string())
            });
            let drawn = drawn.await.map_err(|fault| {
                tracing::error!(error = %fault, "drawing a contact sheet panicked");
                "the contact sheet can't be drawn".to_owned()
            });
            let drawn = drawn.flatten().map_err(|message| EventError {
                code: ErrorCode::BadRequest,
                message,
            })?;
            drawn.into()
        }
    };
    let detail = match spec.detail {
        PictureDetail::Low => Detail::Low,
        PictureDetail::Auto => Detail::Auto,
        PictureDetail::High => Detail::High,
    };
    Ok(vec![RequestImage { file, detail }])
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
    use phi_edge_rules::Time;

    use super::*;

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

    #[tokio::test]
    async fn several_pictures_are_one_image() {
        let picture = |file: &[u8]| ShownPicture {
            time: Time(0),
            topic: "gate".to_owned(),
            file: file.into(),
        };
        let spec = PictureSpec {
            detail: PictureDetail::Low,
            ..PictureSpec::default()
        };
        assert_eq!(images(spec, &[], 1000).await, Ok(Vec::new()));
        let one = images(spec, &[picture(b"as it came")], 1000).await;
        assert!(
            matches!(one.as_deref(), Ok([image]) if *image.file == *b"as it came" && image.detail == Detail::Low)
        );
        let file = contact_sheet_file(&[], 1).err();
        assert!(file.is_some());
        let damaged = images(spec, &[picture(b"no"), picture(b"picture")], 1000).await;
        assert!(matches!(
            damaged,
            Err(EventError {
                code: ErrorCode::BadRequest,
                ..
            })
        ));
    }
}
