//! Symbols of a prompt as bytes.
//!
//! A token is its id, as a little-endian number of 32 bits. Successive places of an image are seven such numbers: [`PLACES`],
//! the four of the image's id, the first place, and their count. A prompt without images is what earlier versions wrote.

use phi_edge_engine::{ImageId, Symbol, TokenId};

/// What the places of an image begin with. No vocabulary has a token of this id.
const PLACES: u32 = u32::MAX;
/// The numbers that follow it.
const PLACES_NUMBERS: usize = 6;

/// Returns symbols as bytes.
pub(crate) fn symbols_to_bytes(symbols: &[Symbol]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4 * symbols.len());
    let mut rest = symbols;
    while let Some((first, others)) = rest.split_first() {
        match *first {
            Symbol::Token(id) => {
                bytes.extend(id.0.to_le_bytes());
                rest = others;
            }
            Symbol::Image { image, index } => {
                let place = |n: u32| Symbol::Image {
                    image,
                    index: index.wrapping_add(n),
                };
                let places = (0u32..).zip(rest).take_while(|(n, symbol)| **symbol == place(*n));
                let count = places.last().map_or(1, |(n, _)| n + 1);
                bytes.extend(PLACES.to_le_bytes());
                bytes.extend(image.0);
                bytes.extend(index.to_le_bytes());
                bytes.extend(count.to_le_bytes());
                rest = rest.get(count as usize..).unwrap_or_default();
            }
        }
    }
    bytes
}

/// Returns the symbols that [`symbols_to_bytes`] wrote, at most `most`; `None` where the bytes are damaged.
pub(crate) fn symbols_of_bytes(bytes: &[u8], most: usize) -> Option<Vec<Symbol>> {
    let (numbers, []) = bytes.as_chunks::<4>() else {
        return None;
    };
    let mut symbols = Vec::new();
    let mut rest = numbers;
    while let Some((number, others)) = rest.split_first() {
        let number = u32::from_le_bytes(*number);
        if number != PLACES {
            symbols.push(Symbol::Token(TokenId(number)));
            rest = others;
            continue;
        }
        let (places, others) = others.split_at_checked(PLACES_NUMBERS)?;
        let (image, [index, count]) = places.split_at_checked(4)? else {
            return None;
        };
        let image = ImageId(image.as_flattened().try_into().ok()?);
        let (index, count) = (u32::from_le_bytes(*index), u32::from_le_bytes(*count));
        if symbols.len() + count as usize > most {
            return None;
        }
        let end = index.checked_add(count)?;
        symbols.extend((index..end).map(|index| Symbol::Image { image, index }));
        rest = others;
    }
    Some(symbols)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn parts() -> impl Strategy<Value = Vec<Symbol>> {
        let token = (0..40_000u32).prop_map(|id| vec![Symbol::Token(TokenId(id))]);
        let image = (any::<[u8; 16]>(), 0..u32::MAX - 100, 1..60u32).prop_map(|(image, from, count)| {
            let place = |index| Symbol::Image {
                image: ImageId(image),
                index,
            };
            (from..from + count).map(place).collect()
        });
        let part = prop_oneof![4 => token, 1 => image];
        prop::collection::vec(part, 0..20).prop_map(|parts| parts.concat())
    }

    proptest! {
        #[test]
        fn symbols_come_back(symbols in parts()) {
            let bytes = symbols_to_bytes(&symbols);
            prop_assert_eq!(symbols_of_bytes(&bytes, symbols.len()), Some(symbols));
        }

        #[test]
        fn damaged_bytes_take_no_memory(bytes in prop::collection::vec(prop_oneof![Just(255u8), any::<u8>()], 0..200)) {
            if let Some(symbols) = symbols_of_bytes(&bytes, 1000) {
                prop_assert!(symbols.len() <= 1000);
            }
        }
    }

    #[test]
    fn a_text_is_its_ids() {
        let symbols = [7, 300].map(|id| Symbol::Token(TokenId(id)));
        assert_eq!(symbols_to_bytes(&symbols), [7, 0, 0, 0, 44, 1, 0, 0]);
    }
}
