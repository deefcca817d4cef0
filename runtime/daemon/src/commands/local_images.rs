//! The pictures of a prompt that is answered in this process.

use std::path::PathBuf;
use std::sync::Arc;

use phi_edge_engine::{Image, ImagePixels, PixelSource, PixelState};
use phi_edge_models::{ImageGrid, ImageInfo, Message, PlacedImage, Role, decode, image_id, preprocess};

use crate::exit::{Exit, Fault};

/// The maximum number of pixels of a picture: the user's own file, on the user's own machine.
pub(super) const MAX_PIXELS: u64 = 256_000_000;

/// The pictures of a prompt, cut into crops.
pub(crate) struct LocalImages {
    pub(crate) infos: Vec<ImageInfo>,
    pub(crate) images: Vec<Image>,
}

impl LocalImages {
    /// Decodes files and cuts them into at most `crops` parts each.
    ///
    /// # Errors
    /// A file can't be read as a picture.
    pub(crate) fn read(paths: &[PathBuf], files: &[Vec<u8>], crops: usize) -> Result<Self, Fault> {
        let mut read = Self {
            infos: Vec::with_capacity(files.len()),
            images: Vec::with_capacity(files.len()),
        };
        for (path, file) in paths.iter().zip(files) {
            let fault = |text: String| Fault::new(Exit::Usage, format!("--image {}: {text}", path.display()));
            let picture = decode(file, MAX_PIXELS).map_err(|error| fault(error.to_string()))?;
            let info = ImageInfo {
                id: image_id(&picture, crops),
                tokens: ImageGrid::of(picture.width(), picture.height(), crops).tokens(),
            };
            let pixels = preprocess(picture, crops);
            read.infos.push(info);
            // The engine takes an image once, however often it is shown.
            if read.images.iter().all(|image| image.id != info.id) {
                read.images.push(Image {
                    id: info.id,
                    tokens: info.tokens,
                    source: Arc::new(ReadyPixels::new(pixels)),
                });
            }
        }
        Ok(read)
    }
}

/// Pixels that are there already.
pub(super) struct ReadyPixels(Arc<ImagePixels>);

impl ReadyPixels {
    pub(super) fn new(pixels: ImagePixels) -> Self {
        Self(Arc::new(pixels))
    }
}

impl PixelSource for ReadyPixels {
    fn pixels(&self) -> PixelState {
        PixelState::Ready(Arc::clone(&self.0))
    }
}

/// The user's turn of a prompt with images before its text, one a line.
pub(crate) fn user_turn(prompt: &str, images: &[ImageInfo]) -> Message {
    let placed = images.iter().enumerate().map(|(image, info)| PlacedImage {
        at: image,
        image,
        info: Some(*info),
    });
    Message {
        images: placed.collect(),
        ..Message::new(Role::User, "\n".repeat(images.len()) + prompt)
    }
}
