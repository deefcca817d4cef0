//! The images of prompts.

use phi_edge_engine::ImagePixels;

use super::TextModel;
use crate::image::{Detail, ImageGrid, ImageInfo, ReadError, decode, image_id, preprocess, probe};

/// The parts that [`Detail::Auto`] cuts an image into at most, unless configured: the authors' number.
pub(super) const DEFAULT_CROPS: usize = 4;

impl TextModel {
    /// Whether the model takes images.
    pub fn takes_images(&self) -> bool {
        self.num_crops.is_some()
    }

    /// The same with `num_crops` parts at most for [`Detail::Auto`]; of no effect where the model takes text alone.
    #[must_use]
    pub fn with_num_crops(mut self, num_crops: usize) -> Self {
        self.num_crops = self.num_crops.map(|_| num_crops);
        self
    }

    /// Decodes an image, and returns what a prompt needs to know of it.
    ///
    /// # Errors
    /// The file is no picture that can be read.
    pub fn read_image(&self, file: &[u8], detail: Detail) -> Result<ImageInfo, ReadError> {
        let picture = decode(file, pixels_of(file)?)?;
        let crops = self.crops(detail);
        Ok(ImageInfo {
            id: image_id(&picture, crops),
            tokens: ImageGrid::of(picture.width(), picture.height(), crops).tokens(),
        })
    }

    /// Returns the number of places that an image takes, by its file's header alone.
    ///
    /// # Errors
    /// The file is no picture that can be read.
    pub fn image_tokens(&self, file: &[u8], detail: Detail) -> Result<usize, ReadError> {
        let header = probe(file, u64::MAX)?;
        Ok(ImageGrid::of(header.width, header.height, self.crops(detail)).tokens())
    }

    /// Decodes an image, and returns its pixels as the vision encoder takes them.
    ///
    /// # Errors
    /// The file is no picture that can be read.
    pub fn image_pixels(&self, file: &[u8], detail: Detail) -> Result<ImagePixels, ReadError> {
        Ok(preprocess(decode(file, pixels_of(file)?)?, self.crops(detail)))
    }

    fn crops(&self, detail: Detail) -> usize {
        detail.crops(self.num_crops.unwrap_or(DEFAULT_CROPS))
    }
}

/// The pixels of a file by its header: the bound of its decoding where the caller has none, or has applied it.
fn pixels_of(file: &[u8]) -> Result<u64, ReadError> {
    let header = probe(file, u64::MAX)?;
    Ok(u64::from(header.width) * u64::from(header.height))
}
