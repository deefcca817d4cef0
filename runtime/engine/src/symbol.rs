//! What sequences consist of where their identity matters: tokens, and places in images.

use std::ops::Range;

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

/// Consecutive places of one image in a sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ImageSpan {
    /// The image.
    pub(crate) image: ImageId,
    /// Its places in the sequence.
    pub(crate) places: Range<usize>,
}

impl ImageSpan {
    /// The spans of a sequence, in its order.
    pub(crate) fn of(symbols: &[Symbol]) -> Vec<Self> {
        let mut spans: Vec<Self> = Vec::new();
        for (place, symbol) in symbols.iter().enumerate() {
            let Some(image) = symbol.image() else { continue };
            match spans.last_mut() {
                Some(last) if last.image == image && last.places.end == place => last.places.end += 1,
                _ => spans.push(Self {
                    image,
                    places: place..place + 1,
                }),
            }
        }
        spans
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_consecutive_places_of_one_image() {
        let (a, b) = (ImageId([1; 16]), ImageId([2; 16]));
        let mut symbols = Symbol::of_tokens([TokenId(1)]);
        symbols.extend(Symbol::of_image(a, 2));
        symbols.extend(Symbol::of_image(b, 1));
        symbols.push(Symbol::Token(TokenId(2)));
        symbols.extend(Symbol::of_image(b, 3));
        let spans: Vec<_> = ImageSpan::of(&symbols)
            .into_iter()
            .map(|span| (span.image, span.places))
            .collect();
        assert_eq!(spans, [(a, 1..3), (b, 3..4), (b, 5..8)]);
        assert_eq!(ImageSpan::of(&[]), []);
    }
}
