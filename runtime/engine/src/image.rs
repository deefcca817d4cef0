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
    /// are ready or failed.
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

/// What the encoder has made of an image so far.
#[derive(Debug, Clone, Default)]
pub struct ImageEncoding {
    /// The number of crops that are encoded.
    pub crops: usize,
    /// Their features before the parts are joined.
    pub data: Vec<f32>,
}
