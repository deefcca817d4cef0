//! The sizes of the HD transform of Phi-3-vision: how a picture is resized and cut into parts.

/// Width and height of a crop, in pixels.
pub(crate) const SIDE: u32 = 336;
/// Places of the features of one crop.
const CROP_TOKENS: usize = 144;
/// Places of a row of a crop.
const CROP_ROWS: usize = 12;
/// The most parts that a picture is cut into, beside the view of the whole.
const MAX_PARTS: usize = 16;

/// The grid of parts of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageGrid {
    /// Rows of parts.
    pub rows: usize,
    /// Columns of parts.
    pub columns: usize,
    /// Width and height of the resized picture, which stands in the middle of the grid.
    pub(crate) resized: (u32, u32),
}

impl ImageGrid {
    /// The grid of a picture of `width` x `height` pixels, with at most `crops` parts (1 to 16). A side of less than a pixel, which
    /// the reference can't resize, becomes one.
    pub fn of(width: u32, height: u32, crops: usize) -> Self {
        let (width, height) = (width.max(1), height.max(1));
        let (long, short) = (width.max(height), width.min(height));
        let crops = crops.clamp(1, MAX_PARTS);
        let ratio = f64::from(long) / f64::from(short);
        // Parts of the short side where the long one has `parts`.
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "at most 17 by at least 1"
        )]
        let short_parts = |parts: usize| (small(parts) / ratio).ceil() as usize;
        let mut parts = 1;
        while (parts + 1) * short_parts(parts + 1) <= crops {
            parts += 1;
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "at most 16 x 336"
        )]
        let side = |pixels: f64| pixels as u32;
        let long_side = small(parts) * f64::from(SIDE);
        let resized = (side(long_side), side(long_side / ratio).max(1));
        let others = resized.1.div_ceil(SIDE) as usize;
        if width < height {
            Self {
                rows: parts,
                columns: others,
                resized: (resized.1, resized.0),
            }
        } else {
            Self {
                rows: others,
                columns: parts,
                resized,
            }
        }
    }

    /// The number of places that the picture takes in a sequence: those of its parts, each row of them closed by a separator, one
    /// separator, and those of the view of the whole.
    pub fn tokens(&self) -> usize {
        (self.rows * self.columns + 1) * CROP_TOKENS + 1 + (self.rows + 1) * CROP_ROWS
    }

    /// Width and height of all parts together, in pixels.
    pub(crate) fn padded(&self) -> (usize, usize) {
        (self.columns * SIDE as usize, self.rows * SIDE as usize)
    }
}

/// A number of parts.
fn small(parts: usize) -> f64 {
    f64::from(u32::try_from(parts).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_sizes() {
        for ((width, height, crops), (rows, columns, tokens)) in [
            ((1300, 876, 16), (3, 4, 1921)),
            ((1300, 876, 4), (2, 2, 757)),
            ((640, 480, 16), (3, 4, 1921)),
            ((640, 480, 4), (2, 2, 757)),
            ((300, 900, 16), (6, 2, 1957)),
            ((100, 100, 16), (4, 4, 2509)),
            ((1, 1, 1), (1, 1, 313)),
        ] {
            let grid = ImageGrid::of(width, height, crops);
            assert_eq!(
                (grid.rows, grid.columns, grid.tokens()),
                (rows, columns, tokens),
                "{width}x{height} at {crops}"
            );
        }
    }

    proptest! {
        #[test]
        fn every_picture_fits_its_grid(
            width in prop_oneof![1..3000u32, any::<u32>()],
            height in prop_oneof![1..3000u32, any::<u32>()],
            crops in 0..40usize,
        ) {
            let grid = ImageGrid::of(width, height, crops);
            prop_assert!(grid.rows * grid.columns <= crops.clamp(1, MAX_PARTS));
            let (padded_width, padded_height) = grid.padded();
            let (resized_width, resized_height) = grid.resized;
            prop_assert!(resized_width >= 1 && resized_width as usize <= padded_width);
            prop_assert!(resized_height >= 1 && resized_height as usize <= padded_height);
        }
    }
}
