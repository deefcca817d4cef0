//! The images of requests.

use super::Engine;
use crate::decoder::Decoder;
use crate::request::{Failure, GenerateRequest};
use crate::symbol::Symbol;

impl<D: Decoder> Engine<D> {
    /// Checks that each place of an image belongs to an image of the request.
    pub(super) fn validate_images(&self, request: &GenerateRequest) -> Result<(), Failure> {
        let takes_images = self.decoder.caps().image_width.is_some();
        for symbol in &request.prompt {
            let Symbol::Image { image, index } = *symbol else {
                continue;
            };
            if !takes_images {
                return Err(Failure::Invalid("the model takes text alone".into()));
            }
            let found = request.images.iter().find(|known| known.id == image);
            if found.is_none_or(|known| index as usize >= known.tokens) {
                return Err(Failure::Invalid(
                    "the prompt has a place of an image that the request does not have".into(),
                ));
            }
        }
        Ok(())
    }
}
