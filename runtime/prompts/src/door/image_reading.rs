//! The reading of a request's images, before its text is encoded.

use std::sync::Arc;

use phi_edge_models::ImageInfo;
use sha2::{Digest as _, Sha256};

use super::budget::{Lane, MemoryBudget, Share};
use super::{EncodeDoor, NotEncoded};
use crate::interface::Prompts;
use phi_edge_api::RequestImage;
use phi_edge_store::encode_note::{self, WorkDigest};

/// The memory that the decoding of an image takes for each of its pixels, in bytes: at most 16 bits of four channels as the
/// file has them, and the copy in RGB.
const BYTES_PER_PIXEL: usize = 3 * 4;

/// The images of a request, and the bound of each.
#[derive(Clone)]
pub struct ImagesToRead {
    /// The images.
    pub images: Arc<[RequestImage]>,
    /// The maximum number of pixels of one.
    pub max_pixels: u64,
}

impl ImagesToRead {
    /// Returns the digest of a text of this digest and the images.
    pub(super) async fn digest_behind(&self, text: WorkDigest) -> WorkDigest {
        if self.images.is_empty() {
            return text;
        }
        let images = Arc::clone(&self.images);
        // Files are megabytes: not on a thread that others wait for.
        let digest = tokio::task::spawn_blocking(move || {
            let mut digest = Sha256::new_with_prefix(text);
            for image in images.iter() {
                digest.update(&image.file);
            }
            digest.finalize().into()
        });
        // It can't panic, and a runtime that ends asks for no digest.
        digest.await.unwrap_or(text)
    }

    /// Returns the memory that the largest image takes while it is decoded, in bytes, by the headers alone.
    fn measure(&self, prompts: &dyn Prompts) -> Result<usize, NotEncoded> {
        let mut memory = 0;
        for (index, image) in self.images.iter().enumerate() {
            let size = prompts.image_size(&image.file);
            let (width, height) = size.map_err(|message| NotEncoded::BadImage { index, message })?;
            let pixels = u64::from(width) * u64::from(height);
            if pixels > self.max_pixels {
                return Err(NotEncoded::ImageTooLarge {
                    index,
                    pixels,
                    most: self.max_pixels,
                });
            }
            memory = memory.max(decoding_memory(width, height));
        }
        Ok(memory)
    }

    /// Decodes one image after another, and keeps the pixels of none.
    fn read(&self, prompts: &dyn Prompts) -> Result<Vec<ImageInfo>, NotEncoded> {
        let images = self.images.iter().enumerate();
        images
            .map(|(index, image)| {
                let info = prompts.read_image(&image.file, image.detail);
                info.map_err(|message| NotEncoded::BadImage { index, message })
            })
            .collect()
    }
}

/// The memory for decoding images outside the door, out of the same budget as the door's.
#[derive(Debug, Clone)]
pub struct DecodeMemory(MemoryBudget);

/// Memory for decoding one image, given back when it is dropped.
#[derive(Debug)]
#[must_use = "the memory is taken as long as this lives"]
pub struct DecodeShare {
    _share: Share,
}

impl DecodeMemory {
    /// Waits for the memory that the decoding of an image of `size`, width and height in pixels, takes.
    pub async fn take(&self, (width, height): (u32, u32)) -> DecodeShare {
        let memory = decoding_memory(width, height);
        DecodeShare {
            _share: self.0.take(Lane::Large, memory).await,
        }
    }
}

/// The memory that the decoding of an image takes, in bytes.
pub(super) fn decoding_memory(width: u32, height: u32) -> usize {
    let pixels = u64::from(width) * u64::from(height);
    usize::try_from(pixels)
        .unwrap_or(usize::MAX)
        .saturating_mul(BYTES_PER_PIXEL)
}

impl EncodeDoor {
    /// Returns the memory for decoding images outside the door.
    pub fn decode_memory(&self) -> DecodeMemory {
        DecodeMemory(self.budget.clone())
    }

    /// Reads the images of a request when there is memory for it.
    pub(super) async fn read_images(
        &self,
        prompts: &Arc<dyn Prompts>,
        to_read: ImagesToRead,
        digest: WorkDigest,
        suspect: bool,
    ) -> Result<Vec<ImageInfo>, NotEncoded> {
        if to_read.images.is_empty() {
            return Ok(Vec::new());
        }
        let memory = to_read.measure(prompts.as_ref())?;
        let share: Share = if suspect {
            self.all_after_delay().await
        } else {
            self.budget.take(Lane::Large, memory).await
        };
        let (note, prompts) = (Arc::clone(&self.note), Arc::clone(prompts));
        let read = tokio::task::spawn_blocking(move || {
            let _entry = encode_note::enter(&note, digest, suspect);
            let read = to_read.read(prompts.as_ref());
            drop((share, to_read));
            read
        });
        read.await.unwrap_or_else(|error| {
            tracing::error!(%error, "reading an image panicked");
            Err(NotEncoded::Failed)
        })
    }
}
