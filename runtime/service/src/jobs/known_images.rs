//! Images whose identity is known, with the files that they are read from.

use std::collections::HashSet;

use phi_edge_engine::Symbol;
use phi_edge_models::ImageInfo;

use phi_edge_api::RequestImage;

/// An image that was read, and its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KnownImage {
    pub(crate) info: ImageInfo,
    pub(crate) file: RequestImage,
}

impl KnownImage {
    /// The images of these files, which were read as `infos`.
    pub(crate) fn all(files: &[RequestImage], infos: &[ImageInfo]) -> Vec<Self> {
        let pairs = files.iter().zip(infos);
        pairs
            .map(|(file, info)| Self {
                info: *info,
                file: file.clone(),
            })
            .collect()
    }
}

/// Returns those of `images` that a prompt names, each once.
pub(crate) fn named_by(prompt: &[Symbol], images: impl IntoIterator<Item = KnownImage>) -> Vec<KnownImage> {
    let mut missing: HashSet<_> = prompt.iter().filter_map(|symbol| symbol.image()).collect();
    let named = images.into_iter().filter(|image| missing.remove(&image.info.id));
    named.collect()
}

/// Returns the number of places of images in a prompt.
pub(crate) fn image_tokens(prompt: &[Symbol]) -> usize {
    let places = prompt.iter().filter(|symbol| symbol.image().is_some());
    places.count()
}

#[cfg(test)]
mod tests {
    use phi_edge_engine::{ImageId, TokenId};

    use super::*;
    use phi_edge_api::Detail;

    #[test]
    fn a_prompt_keeps_the_images_that_it_names_once() {
        let image = |id: u8, tokens| KnownImage {
            info: ImageInfo {
                id: ImageId([id; 16]),
                tokens,
            },
            file: RequestImage {
                file: [id].into(),
                detail: Detail::Auto,
            },
        };
        let prompt: Vec<Symbol> = Symbol::of_image(ImageId([2; 16]), 3)
            .chain([Symbol::Token(TokenId(5))])
            .chain(Symbol::of_image(ImageId([1; 16]), 2))
            .collect();
        let named = named_by(&prompt, [image(1, 2), image(3, 1), image(2, 3), image(1, 2)]);
        assert_eq!(named, [image(1, 2), image(2, 3)]);
        assert_eq!(image_tokens(&prompt), 5);
    }
}
