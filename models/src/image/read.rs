//! Pictures from files: PNG, JPEG and WebP.
//!
//! They become RGB of 8 bits: grey is replicated, alpha dropped, palettes and CMYK are converted, 16 bits are rounded to 8, the
//! orientation of EXIF is applied, and of an animation the first picture counts. A header is read before anything is decoded.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use ::image::{
    DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits, RgbImage, guess_format,
};
use phi_edge_engine::ImageId;
use sha2::{Digest, Sha256};

/// The bytes of memory for each pixel of a picture while it is read: 16 bits of four channels, and the copy in RGB.
const BYTES_PER_PIXEL: u64 = 16;

/// The header of a picture's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageHeader {
    /// Width in pixels, as the picture is shown.
    pub width: u32,
    /// Height in pixels, as the picture is shown.
    pub height: u32,
}

/// The reason why a file is no picture that can be read; one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// It is of another format.
    #[error("is neither PNG, JPEG nor WebP")]
    Format,
    /// It has too many pixels.
    #[error("has {width} x {height} pixels, {most} are the most (limits.image_pixels)")]
    TooLarge {
        /// Its width.
        width: u32,
        /// Its height.
        height: u32,
        /// The most pixels.
        most: u64,
    },
    /// It is damaged, or uses what is not supported.
    #[error("can't be read: {0}")]
    Damaged(String),
}

/// Reads the header of a file, which may have `max_pixels`.
///
/// # Errors
/// It is no picture, or has more pixels.
pub fn probe(file: &[u8], max_pixels: u64) -> Result<ImageHeader, ReadError> {
    guarded(|| Ok(open(file, max_pixels)?.1))
}

/// Decodes a file, which may have `max_pixels`. Memory is bounded by them, whatever the file says.
///
/// # Errors
/// It is no picture, has more pixels, or is damaged.
pub fn decode(file: &[u8], max_pixels: u64) -> Result<RgbImage, ReadError> {
    guarded(|| {
        let (mut decoder, _) = open(file, max_pixels)?;
        let orientation = decoder.orientation().map_err(damaged)?;
        let mut limits = Limits::default();
        limits.max_alloc = Some(max_pixels.saturating_mul(BYTES_PER_PIXEL));
        decoder.set_limits(limits).map_err(damaged)?;
        let mut picture = DynamicImage::from_decoder(decoder).map_err(damaged)?;
        picture.apply_orientation(orientation);
        Ok(picture.into_rgb8())
    })
}

/// The identity of a picture that is cut into at most `crops` parts.
pub fn image_id(picture: &RgbImage, crops: usize) -> ImageId {
    let mut hash = Sha256::new();
    hash.update(picture.width().to_le_bytes());
    hash.update(picture.height().to_le_bytes());
    hash.update((crops as u64).to_le_bytes());
    hash.update(picture.as_raw());
    let digest = hash.finalize();
    let mut id = [0; 16];
    for (to, from) in id.iter_mut().zip(digest) {
        *to = from;
    }
    ImageId(id)
}

fn open(file: &[u8], max_pixels: u64) -> Result<(impl ImageDecoder, ImageHeader), ReadError> {
    let format = guess_format(file).map_err(|_| ReadError::Format)?;
    if !matches!(format, ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::WebP) {
        return Err(ReadError::Format);
    }
    let mut reader = ImageReader::with_format(Cursor::new(file), format);
    let mut limits = Limits::default();
    limits.max_alloc = Some(max_pixels.saturating_mul(BYTES_PER_PIXEL));
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(damaged)?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > max_pixels {
        return Err(ReadError::TooLarge {
            width,
            height,
            most: max_pixels,
        });
    }
    if width == 0 || height == 0 {
        return Err(ReadError::Damaged("it has no pixels".to_owned()));
    }
    // The orientations from 5 on exchange width and height.
    let orientation = decoder.orientation().map_err(damaged)?.to_exif();
    let (width, height) = if orientation >= 5 {
        (height, width)
    } else {
        (width, height)
    };
    Ok((decoder, ImageHeader { width, height }))
}

/// Runs a decoder, whose panic is a fault of the file.
fn guarded<T>(decode: impl FnOnce() -> Result<T, ReadError>) -> Result<T, ReadError> {
    catch_unwind(AssertUnwindSafe(decode))
        .unwrap_or_else(|_| Err(ReadError::Damaged("the decoder failed".to_owned())))
}

fn damaged(error: ImageError) -> ReadError {
    let text = error.to_string();
    let line: Vec<&str> = text.split_whitespace().collect();
    ReadError::Damaged(line.join(" "))
}
