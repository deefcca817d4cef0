//! The images of requests: which of their features are missing, and the steps that encode them.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::Engine;
use crate::decoder::{DecodeError, Decoder, Interrupt};
use crate::image::{Image, ImageFeatures, PixelState};
use crate::request::{Event, Failure, GenerateRequest};
use crate::scheduler::waits_for_prefix;
use crate::sequence::Readiness;
use crate::symbol::{ImageId, ImageSpan, Symbol};

impl<D: Decoder> Engine<D> {
    /// Whether nothing can be done before the pixels of an image are ready: a step would do nothing. The image's source
    /// then wakes the caller; a submission or a cancellation is a reason for a step as well.
    pub fn waits_for_pixels(&self) -> bool {
        self.waits_for_pixels
    }

    /// The number of crops of images that were encoded so far.
    pub fn crops_encoded(&self) -> u64 {
        self.crops_encoded
    }

    /// The memory of the features of images, in bytes.
    pub fn image_bytes(&self) -> u64 {
        self.features.bytes()
    }

    /// Checks that no image is there twice, and that each place of an image belongs to an image of the request.
    pub(super) fn validate_images(&self, request: &GenerateRequest) -> Result<(), Failure> {
        let takes_images = self.decoder.caps().image_width.is_some();
        let mut known = HashMap::with_capacity(request.images.len());
        for image in &request.images {
            if known.insert(image.id, image.tokens).is_some() {
                return Err(Failure::Invalid("the request has an image twice".into()));
            }
        }
        for symbol in &request.prompt {
            let Symbol::Image { image, index } = *symbol else {
                continue;
            };
            if !takes_images {
                return Err(Failure::Invalid("the model takes text alone".into()));
            }
            if known.get(&image).is_none_or(|&tokens| index as usize >= tokens) {
                return Err(Failure::Invalid(
                    "the prompt has a place of an image that the request does not have".into(),
                ));
            }
        }
        Ok(())
    }

    /// Decides what a step can do for each sequence whose prompt is not computed, and asks for pixels. Returns whether
    /// sequences failed for their images.
    pub(super) fn update_readiness(&mut self, events: &mut Vec<Event>) -> bool {
        let (mut asked, mut failed, mut index) = (Vec::new(), false, 0);
        while index < self.running.len() {
            match self.readiness(index, &mut asked) {
                Ok(readiness) => {
                    self.running[index].readiness = readiness;
                    index += 1;
                }
                Err(failure) => {
                    self.fail_for(index, failure, events);
                    failed = true;
                }
            }
        }
        failed
    }

    /// Evicts features beyond the bound, and ends the encoding of images that no sequence wants any more.
    pub(super) fn evict_features(&mut self) {
        let running = &self.running;
        self.features
            .evict(|image| running.iter().any(|sequence| sequence.wants_image(image)));
    }

    /// The places of the sequence at `index` that can be computed next: up to the first image without features.
    pub(super) fn computable(&self, index: usize) -> Range<usize> {
        let sequence = &self.running[index];
        let end = match self.missing_image(index) {
            Some(missing) => missing.places.start,
            None => sequence.tokens.len(),
        };
        sequence.computed..end
    }

    /// One encode step: the next crop of an image that the sequence at `index` wants.
    pub(super) fn encode(
        &mut self,
        index: usize,
        image: ImageId,
        interrupt: &Interrupt,
        events: &mut Vec<Event>,
    ) {
        let Some(encoding) = self.features.encoding_mut(image) else {
            return;
        };
        let (pixels, before) = (Arc::clone(&encoding.pixels), encoding.state.crops);
        let mut wanting = self.running.iter().filter(|sequence| sequence.wants_image(image));
        if let (Some(sequence), None) = (wanting.next(), wanting.next()) {
            // The run serves one request, so that its cancellation may end it.
            interrupt.set_sole_request(sequence.id());
        }
        let outcome = self
            .decoder
            .encode_image(image, &pixels, &mut encoding.state, interrupt);
        interrupt.clear_sole_request();
        let after = encoding.state.crops;
        let error = match outcome {
            Ok(Some(features)) => {
                self.crops_encoded += pixels.crops.saturating_sub(before) as u64;
                match self.check_features(index, &features, image) {
                    Ok(()) => return self.features.insert(image, features),
                    Err(error) => error,
                }
            }
            Ok(None) if (before + 1..=pixels.crops).contains(&after) => {
                self.crops_encoded += (after - before) as u64;
                return;
            }
            Ok(None) => "the image encoder did not encode a crop".to_owned(),
            // What is encoded so far stays; the caller that raised the interrupt cancels what is to end.
            Err(DecodeError::Interrupted) => return interrupt.clear(),
            Err(error) => error.to_string(),
        };
        self.features.abandon(image);
        self.fail(index, &error, events);
    }

    /// Checks that features are those of an image of the sequence at `index`.
    fn check_features(&self, index: usize, features: &ImageFeatures, image: ImageId) -> Result<(), String> {
        if features.id == image && self.is_whole(index, features) {
            return Ok(());
        }
        let tokens = self.image(index, image).map_or(0, |image| image.tokens);
        Err(format!(
            "the features of an image of {tokens} tokens are {} numbers in rows of {}",
            features.data.len(),
            features.width
        ))
    }

    /// Whether features are all of those of an image of the sequence at `index`.
    fn is_whole(&self, index: usize, features: &ImageFeatures) -> bool {
        let width = self.decoder.caps().image_width.unwrap_or_default();
        let image = self.image(index, features.id);
        image.is_some_and(|image| features.has_shape(image.tokens, width))
    }

    /// What a step can do for the sequence at `index`. `asked` are the images whose pixels older sequences provide.
    fn readiness(&mut self, index: usize, asked: &mut Vec<ImageId>) -> Result<Readiness, Failure> {
        let sequence = &self.running[index];
        // One that waits for a prefix may take its images with it.
        let waits = self.config.prefix_cache && waits_for_prefix(&self.running, index);
        if sequence.images.is_empty() || sequence.decodes() || waits {
            return Ok(Readiness::Prefill);
        }
        if self.computable(index).is_empty() && (sequence.computed == 0 || sequence.chunks == 0) {
            // Others may have computed the image by now.
            self.reuse_running(index);
        }
        let Some(image) = self.missing_image(index).map(|missing| missing.image) else {
            return Ok(Readiness::Prefill);
        };
        if !self.features.is_encoding(image) && !asked.contains(&image) {
            let source = self.image(index, image).map(|image| Arc::clone(&image.source));
            match source.map(|source| source.pixels()) {
                Some(PixelState::Ready(pixels)) => self.features.begin(image, pixels),
                Some(PixelState::Pending) => asked.push(image),
                Some(PixelState::Failed(line)) => return Err(Failure::Image(line)),
                None => return Err(Failure::Invalid("an image of the prompt is missing".into())),
            }
        }
        Ok(if !self.computable(index).is_empty() {
            Readiness::Prefill
        } else if self.features.is_encoding(image) {
            Readiness::Encode(image)
        } else {
            Readiness::AwaitsPixels
        })
    }

    /// The first places that are not computed of an image without features.
    fn missing_image(&self, index: usize) -> Option<&ImageSpan> {
        let mut spans = self.running[index].uncomputed_images();
        spans.find(|span| {
            let features = self.features.get(span.image);
            features.is_none_or(|features| !self.is_whole(index, features))
        })
    }

    /// An image of the sequence at `index`.
    fn image(&self, index: usize, image: ImageId) -> Option<&Image> {
        let images = &self.running[index].request.images;
        images.iter().find(|known| known.id == image)
    }
}
