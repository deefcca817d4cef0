//! Images of requests: their pixels, as the vision encoder takes them, and their features, as it gives them.

use std::sync::Arc;

use crate::symbol::ImageId;

/// An image of a request.
#[derive(Clone)]
pub struct Image {
    /// Its identity.
    pub id: ImageId,
    /// The number of places that it takes in a sequence: rows of its features.
    pub tokens: usize,
    /// Where its pixels come from.
    pub source: Arc<dyn PixelSource>,
}

/// A source of an image's pixels. Decoding and resizing take a while: they run on another thread.
pub trait PixelSource: Send + Sync {
    /// Returns the state of the pixels. The first call begins to make them; the source wakes the engine's thread when they
    /// are ready or failed. [`PixelState::Ready`] hands them over: the source need not keep them, and a later call, for a
    /// sequence that is computed again, may begin to make them again.
    fn pixels(&self) -> PixelState;
}

/// The state of an image's pixels.
#[derive(Debug, Clone)]
pub enum PixelState {
    /// They are being made.
    Pending,
    /// They are ready.
    Ready(Arc<ImagePixels>),
    /// They can't be made; one line for the client.
    Failed(String),
}

/// The pixels of an image, cut into crops: the global view first, then the parts in reading order.
#[derive(Debug, Clone, PartialEq)]
pub struct ImagePixels {
    /// `[crops, 3, side, side]`, row-major, normalised.
    pub data: Vec<f32>,
    /// The number of crops, the global view among them.
    pub crops: usize,
    /// Width and height of a crop, in pixels.
    pub side: usize,
    /// Rows and columns of the parts.
    pub grid: (usize, usize),
}

/// The features of an image: what the embeddings at its places are.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageFeatures {
    /// The image.
    pub id: ImageId,
    /// `[tokens, width]`, row-major.
    pub data: Vec<f32>,
    /// The width of the model's hidden state.
    pub width: usize,
}

impl ImageFeatures {
    /// The memory that they take, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        (self.data.len() * size_of::<f32>()) as u64
    }

    /// Whether they are `tokens` rows of `width`.
    pub(crate) fn has_shape(&self, tokens: usize, width: usize) -> bool {
        self.width == width && tokens.checked_mul(width) == Some(self.data.len())
    }
}

/// What the encoder has made of an image so far.
#[derive(Debug, Clone, Default)]
pub struct ImageEncoding {
    /// The number of crops that are encoded.
    pub crops: usize,
    /// Their features before the parts are joined.
    pub data: Vec<f32>,
}
