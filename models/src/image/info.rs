//! What a prompt needs to know of an image.

use phi_edge_engine::ImageId;

/// What a prompt needs to know of an image: its identity and its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageInfo {
    /// The image's identity.
    pub id: ImageId,
    /// The number of places that it takes in a sequence.
    pub tokens: usize,
}
