//! What sequences consist of where their identity matters: tokens, and places in images.

use crate::ids::TokenId;

/// The identity of an image as the model sees it: the first 128 bits of the SHA-256 of its pixels and of the number of
/// crops that it is cut into at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageId(pub [u8; 16]);

/// One place of a sequence. Sequences of equal symbols have equal keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Symbol {
    /// A token.
    Token(TokenId),
    /// A place in an image.
    Image {
        /// The image.
        image: ImageId,
        /// The row of the image's features at this place.
        index: u32,
    },
}

impl Symbol {
    /// The token, if it is one.
    pub fn token(self) -> Option<TokenId> {
        match self {
            Self::Token(id) => Some(id),
            Self::Image { .. } => None,
        }
    }

    /// The image that it is a place of.
    pub fn image(self) -> Option<ImageId> {
        match self {
            Self::Token(_) => None,
            Self::Image { image, .. } => Some(image),
        }
    }

    /// The symbols of a text.
    pub fn of_tokens(ids: impl IntoIterator<Item = TokenId>) -> Vec<Self> {
        ids.into_iter().map(Self::Token).collect()
    }

    /// The places of a whole image of `tokens` feature rows.
    pub fn of_image(image: ImageId, tokens: u32) -> impl Iterator<Item = Self> {
        (0..tokens).map(move |index| Self::Image { image, index })
    }
}

impl From<TokenId> for Symbol {
    fn from(id: TokenId) -> Self {
        Self::Token(id)
    }
}

impl PartialEq<TokenId> for Symbol {
    fn eq(&self, id: &TokenId) -> bool {
        self.token() == Some(*id)
    }
}
