//! The pictures of a rule's windows that the model is shown.

use super::values::Values;
use super::{PayloadFormat, Picture, PictureChoice, PictureDetail, Prompt};
use crate::ConfigError;

/// Reads the picture settings of a rule with this payload format and prompt.
pub(super) fn read(
    values: &Values<'_>,
    payload: PayloadFormat,
    prompt: &Prompt,
) -> Result<Picture, ConfigError> {
    if values.has_table("picture") && payload != PayloadFormat::Image {
        let problem = "`picture` is for rules with `payload` \"image\"; add it, or leave `picture` out";
        return Err(values.fault("picture", problem));
    }
    if values.has_table("picture") && *prompt == Prompt::None {
        let problem = "`picture` has no effect with `facts_only`, which shows no model anything; remove one";
        return Err(values.fault("picture", problem));
    }
    let which: String = values.value("picture.which")?;
    if which != "sheet" && values.has("picture.sheet") {
        let problem = format!("`picture.sheet` is for `picture.which` \"sheet\", not {which:?}; remove one");
        return Err(values.fault("picture.sheet", problem));
    }
    let detail: String = values.value("picture.detail")?;
    let which = match which.as_str() {
        "first" => PictureChoice::First,
        "sheet" => PictureChoice::Sheet(values.value("picture.sheet")?),
        _ => PictureChoice::Newest,
    };
    fits_kept_messages(values, payload, which)?;
    Ok(Picture {
        which,
        detail: match detail.as_str() {
            "low" => PictureDetail::Low,
            "high" => PictureDetail::High,
            _ => PictureDetail::Auto,
        },
    })
}

/// Checks that the messages which a window keeps are enough for the pictures that it shows.
fn fits_kept_messages(
    values: &Values<'_>,
    payload: PayloadFormat,
    which: PictureChoice,
) -> Result<(), ConfigError> {
    let needed = match which {
        PictureChoice::Newest => 1,
        // The first and the newest message.
        PictureChoice::First => 2,
        PictureChoice::Sheet(pictures) => pictures,
    };
    let kept: usize = values.value("limits.keep_messages")?;
    if payload == PayloadFormat::Image && kept < needed {
        let problem = format!(
            "`limits.keep_messages` is {kept}, but the pictures that `picture` shows need at least {needed}"
        );
        return Err(values.fault("limits.keep_messages", problem));
    }
    Ok(())
}
