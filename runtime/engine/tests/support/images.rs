//! Images of the scripted decoder: their pixels follow from their identities, their features from their pixels, and the keys
//! at their places from their features.

#![allow(
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    clippy::cast_possible_truncation,
    reason = "numbers of tests are small"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use phi_edge_engine::{
    Image, ImageEncoding, ImageFeatures, ImageId, ImagePixels, Input, PixelSource, PixelState, Symbol,
    TokenId,
};

pub const WIDTH: usize = 2;

/// Image `n`, of this many crops and places.
pub fn image_id(n: u8, crops: u8, tokens: u8) -> ImageId {
    let mut id = [n; 16];
    (id[0], id[1]) = (crops, tokens);
    ImageId(id)
}

pub fn crops(id: ImageId) -> usize {
    usize::from(id.0[0])
}

pub fn tokens(id: ImageId) -> usize {
    usize::from(id.0[1])
}

/// The memory of an image's features.
pub fn bytes(id: ImageId) -> u64 {
    (tokens(id) * WIDTH * 4) as u64
}

pub fn pixels(id: ImageId) -> ImagePixels {
    ImagePixels {
        data: (0..crops(id))
            .flat_map(|crop| [f32::from(id.0[2]), crop as f32, 1.0])
            .collect(),
        crops: crops(id),
        side: 1,
        grid: (tokens(id), 1),
    }
}

pub fn encode_crop(pixels: &ImagePixels, encoding: &mut ImageEncoding) {
    assert!(encoding.crops < pixels.crops, "all crops are encoded");
    let crop = &pixels.data[encoding.crops * 3..][..3];
    encoding.data.push(crop[0] * 5.0 + crop[1] * 3.0 + crop[2]);
    encoding.crops += 1;
}

pub fn join(id: ImageId, pixels: &ImagePixels, encoding: &ImageEncoding) -> ImageFeatures {
    assert_eq!(encoding.data.len(), pixels.crops);
    let whole = encoding
        .data
        .iter()
        .fold(1.0, |hash, value| (hash * 7.0 + value) % 1009.0);
    let rows = 0..pixels.grid.0;
    ImageFeatures {
        id,
        data: rows.flat_map(|row| [whole, row as f32]).collect(),
        width: WIDTH,
    }
}

/// What the encoder makes of an image.
pub fn features(id: ImageId) -> ImageFeatures {
    let (pixels, mut encoding) = (pixels(id), ImageEncoding::default());
    for _ in 0..pixels.crops {
        encode_crop(&pixels, &mut encoding);
    }
    join(id, &pixels, &encoding)
}

/// An input has the features of the images that it names, and no others.
pub fn assert_features(input: &Input<'_>) {
    let mut named: Vec<ImageId> = input.symbols.iter().filter_map(|symbol| symbol.image()).collect();
    let mut given: Vec<ImageId> = input.features.iter().map(|features| features.id).collect();
    named.sort_unstable();
    named.dedup();
    given.sort_unstable();
    assert_eq!(named, given, "features of other images than those of the input");
    for given in input.features {
        assert_eq!(**given, features(given.id), "the features of another image");
    }
}

/// What stands for the keys of a symbol: of a place in an image a number that is no token's.
pub fn value(symbol: Symbol, features: &[Arc<ImageFeatures>]) -> TokenId {
    let Symbol::Image { image, index } = symbol else {
        return symbol.token().expect("a token");
    };
    let features = features.iter().find(|features| features.id == image);
    let features = features.expect("the features of an image");
    let row = &features.data[index as usize * WIDTH..][..WIDTH];
    TokenId(1000 + (row[0] as u32) * 100 + row[1] as u32)
}

/// Pixels that are ready at once, or some time after they were asked for.
pub struct Source {
    pub id: ImageId,
    /// The time, in steps.
    pub clock: Arc<AtomicUsize>,
    pub delay: usize,
    pub fails: bool,
    pub asked: Arc<Mutex<Option<usize>>>,
}

impl PixelSource for Source {
    fn pixels(&self) -> PixelState {
        let now = self.clock.load(Ordering::Relaxed);
        let mut asked = self.asked.lock();
        if now < *asked.get_or_insert(now) + self.delay {
            return PixelState::Pending;
        }
        if self.fails {
            return PixelState::Failed(FAILED.to_owned());
        }
        // They are handed over: a later call begins again.
        *asked = None;
        PixelState::Ready(Arc::new(pixels(self.id)))
    }
}

pub const FAILED: &str = "image 1 is damaged";

/// An image whose pixels are ready at once.
pub fn image(id: ImageId) -> Image {
    delayed(id, 0, false, &Arc::default()).0
}

/// An image whose pixels are ready, or fail, `delay` steps of `clock` after they were asked for; and when they were.
pub fn delayed(
    id: ImageId,
    delay: usize,
    fails: bool,
    clock: &Arc<AtomicUsize>,
) -> (Image, Arc<Mutex<Option<usize>>>) {
    let asked = Arc::default();
    let source = Source {
        id,
        clock: Arc::clone(clock),
        delay,
        fails,
        asked: Arc::clone(&asked),
    };
    let image = Image {
        id,
        tokens: tokens(id),
        source: Arc::new(source),
    };
    (image, asked)
}
