//! Pixels as the vision encoder takes them.
//!
//! The picture is resized (antialiased, bilinear, in 8 bits), padded with white to whole parts and normalised; the view of the whole
//! is made from that (antialiased, bicubic, in floats). It is what onnxruntime-genai's pipeline does, but that it fills up with
//! parts of zeros.

use ::image::{Rgb, RgbImage};
use phi_edge_engine::ImagePixels;

use super::grid::{ImageGrid, SIDE};
use super::resample::{bicubic, bilinear};

/// Mean and deviation of the channels (CLIP).
const MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const DEVIATION: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];
const WHITE: Rgb<u8> = Rgb([255, 255, 255]);
const CHANNELS: usize = 3;

/// Cuts a picture into at most `crops` parts (1 to 16) and the view of the whole, which comes first.
pub fn preprocess(picture: RgbImage, crops: usize) -> ImagePixels {
    let grid = ImageGrid::of(picture.width(), picture.height(), crops);
    let padded = padded(&picture, &grid);
    // The largest of all, and not needed any more.
    drop(picture);
    let (width, height) = grid.padded();
    let side = SIDE as usize;
    let parts = grid.rows * grid.columns;
    let mut data = Vec::with_capacity((parts + 1) * CHANNELS * side * side);
    let planes = planes(&padded);
    for plane in &planes {
        data.extend(bicubic(plane, (width, height), side));
    }
    for part in 0..parts {
        let (top, left) = (part / grid.columns * side, part % grid.columns * side);
        for plane in &planes {
            for row in plane.chunks_exact(width).skip(top).take(side) {
                data.extend_from_slice(row.get(left..left + side).unwrap_or_default());
            }
        }
    }
    ImagePixels {
        data,
        crops: parts + 1,
        side,
        grid: (grid.rows, grid.columns),
    }
}

/// The resized picture in the middle of its grid.
fn padded(picture: &RgbImage, grid: &ImageGrid) -> RgbImage {
    let (width, height) = grid.resized;
    let size = |(width, height): (u32, u32)| (width as usize, height as usize);
    let bytes = bilinear(picture.as_raw(), size(picture.dimensions()), size(grid.resized));
    let whole = |pixels: usize| u32::try_from(pixels).unwrap_or(u32::MAX);
    let (grid_width, grid_height) = grid.padded();
    let (grid_width, grid_height) = (whole(grid_width), whole(grid_height));
    let mut padded = RgbImage::from_pixel(grid_width, grid_height, WHITE);
    let (left, top) = ((grid_width - width) / 2, (grid_height - height) / 2);
    if let Some(resized) = RgbImage::from_raw(width, height, bytes) {
        ::image::imageops::replace(&mut padded, &resized, left.into(), top.into());
    }
    padded
}

/// The normalised values of each channel.
fn planes(picture: &RgbImage) -> [Vec<f32>; CHANNELS] {
    std::array::from_fn(|channel| {
        let value = |byte: u8| (f32::from(byte) / 255.0 - MEAN[channel]) / DEVIATION[channel];
        let values: Vec<f32> = (0..=u8::MAX).map(value).collect();
        let bytes = picture.as_raw().iter().skip(channel).step_by(CHANNELS);
        bytes.map(|byte| values[usize::from(*byte)]).collect()
    })
}
