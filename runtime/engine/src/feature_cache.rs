//! The features of images: those that are kept for sequences to come, and those under way.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use crate::image::{ImageEncoding, ImageFeatures, ImagePixels};
use crate::symbol::{ImageId, ImageSpan};

/// The features of images, the least recently used evicted first, and the images that are being encoded.
#[derive(Debug)]
pub(crate) struct FeatureCache {
    /// The most bytes of features that no sequence needs at present.
    bound: u64,
    cached: HashMap<ImageId, CachedFeatures>,
    encodings: HashMap<ImageId, Encoding>,
    /// The sum of what `cached` takes, in bytes.
    bytes: u64,
    /// Counts uses.
    clock: u64,
}

#[derive(Debug)]
struct CachedFeatures {
    features: Arc<ImageFeatures>,
    last_used: u64,
}

/// An image that is being encoded.
#[derive(Debug)]
pub(crate) struct Encoding {
    pub(crate) pixels: Arc<ImagePixels>,
    pub(crate) state: ImageEncoding,
}

impl FeatureCache {
    /// An empty cache of this many bytes.
    pub(crate) fn new(bound: u64) -> Self {
        Self {
            bound,
            cached: HashMap::new(),
            encodings: HashMap::new(),
            bytes: 0,
            clock: 0,
        }
    }

    /// The features of an image.
    pub(crate) fn get(&self, image: ImageId) -> Option<&Arc<ImageFeatures>> {
        self.cached.get(&image).map(|cached| &cached.features)
    }

    /// The features of the images of `spans` that have places in `places`, each once. They are marked as just used.
    pub(crate) fn of(&mut self, spans: &[ImageSpan], places: &Range<usize>) -> Vec<Arc<ImageFeatures>> {
        let overlaps = |span: &&ImageSpan| span.places.start < places.end && places.start < span.places.end;
        let mut features: Vec<Arc<ImageFeatures>> = Vec::new();
        for span in spans.iter().filter(overlaps) {
            self.clock += 1;
            if let Some(cached) = self.cached.get_mut(&span.image) {
                cached.last_used = self.clock;
                if features.iter().all(|known| known.id != span.image) {
                    features.push(Arc::clone(&cached.features));
                }
            }
        }
        features
    }

    /// The memory of all features, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether an image is being encoded.
    pub(crate) fn is_encoding(&self, image: ImageId) -> bool {
        self.encodings.contains_key(&image)
    }

    /// Begins to encode an image.
    pub(crate) fn begin(&mut self, image: ImageId, pixels: Arc<ImagePixels>) {
        let state = ImageEncoding::default();
        self.encodings.insert(image, Encoding { pixels, state });
    }

    /// What is encoded of an image so far.
    pub(crate) fn encoding_mut(&mut self, image: ImageId) -> Option<&mut Encoding> {
        self.encodings.get_mut(&image)
    }

    /// Ends the encoding of an image without features, and drops its pixels.
    pub(crate) fn abandon(&mut self, image: ImageId) {
        self.encodings.remove(&image);
    }

    /// Ends the encoding of an image with its features, and drops its pixels. The caller then evicts what exceeds the bound.
    pub(crate) fn insert(&mut self, image: ImageId, features: ImageFeatures) {
        self.encodings.remove(&image);
        self.clock += 1;
        self.bytes += features.bytes();
        let cached = CachedFeatures {
            features: Arc::new(features),
            last_used: self.clock,
        };
        if let Some(former) = self.cached.insert(image, cached) {
            self.bytes -= former.features.bytes();
        }
    }

    /// Ends the encoding of images that are not needed, and evicts features that are not, the least recently used first,
    /// until the rest are within the bound.
    pub(crate) fn evict(&mut self, is_needed: impl Fn(ImageId) -> bool) {
        self.encodings.retain(|&image, _| is_needed(image));
        while self.bytes > self.bound {
            let idle = self.cached.iter().filter(|(image, _)| !is_needed(**image));
            let Some((&image, _)) = idle.min_by_key(|(_, cached)| cached.last_used) else {
                return;
            };
            if let Some(evicted) = self.cached.remove(&image) {
                self.bytes -= evicted.features.bytes();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn features(image: ImageId, floats: usize) -> ImageFeatures {
        ImageFeatures {
            id: image,
            data: vec![0.0; floats],
            width: 1,
        }
    }

    #[test]
    fn the_least_recently_used_features_go_first_and_needed_ones_stay() {
        let id = |n| ImageId([n; 16]);
        let mut cache = FeatureCache::new(80);
        for n in 0..3 {
            cache.insert(id(n), features(id(n), 10));
        }
        let spans = [(0, 2..4), (1, 4..6), (0, 6..8)].map(|(n, places)| ImageSpan { image: id(n), places });
        let used = |cache: &mut FeatureCache, places| {
            let features = cache.of(&spans, &places);
            features.iter().map(|features| features.id).collect::<Vec<_>>()
        };
        assert_eq!(used(&mut cache, 3..7), [id(0), id(1)]);
        assert_eq!(used(&mut cache, 6..9), [id(0)]);
        assert_eq!(used(&mut cache, 0..2), []);
        assert!(cache.of(&[], &(0..9)).is_empty());
        cache.evict(|_| false);
        let held = |cache: &FeatureCache| (0..4).filter(|n| cache.get(id(*n)).is_some()).collect::<Vec<_>>();
        assert_eq!((held(&cache), cache.bytes()), (vec![0, 1], 80));
        cache.insert(id(3), features(id(3), 30));
        cache.evict(|image| image == id(1));
        // What is needed exceeds the bound only as long as it is.
        cache.evict(|image| image == id(1) || image == id(3));
        assert_eq!(held(&cache), [1]);
        cache.insert(id(3), features(id(3), 30));
        cache.evict(|image| image == id(1) || image == id(3));
        assert_eq!((held(&cache), cache.bytes()), (vec![1, 3], 160));
        cache.evict(|_| false);
        assert_eq!((held(&cache), cache.bytes()), (vec![], 0));
        assert_eq!(used(&mut cache, 0..9), []);
    }

    #[test]
    fn the_same_features_count_once() {
        let id = ImageId([1; 16]);
        let mut cache = FeatureCache::new(100);
        cache.insert(id, features(id, 10));
        cache.insert(id, features(id, 20));
        assert_eq!(cache.bytes(), 80);
    }

    #[test]
    fn pixels_go_with_the_encoding() {
        let id = ImageId([1; 16]);
        let pixels = Arc::new(ImagePixels {
            data: vec![],
            crops: 1,
            side: 0,
            grid: (0, 0),
        });
        let mut cache = FeatureCache::new(100);
        for end in 0..3 {
            cache.begin(id, Arc::clone(&pixels));
            assert!(cache.is_encoding(id) && cache.encoding_mut(id).is_some());
            cache.evict(|image| image == id);
            assert!(cache.is_encoding(id));
            match end {
                0 => cache.abandon(id),
                1 => cache.evict(|_| false),
                _ => cache.insert(id, features(id, 1)),
            }
            assert!(!cache.is_encoding(id));
            assert_eq!(Arc::strong_count(&pixels), 1);
        }
    }
}
