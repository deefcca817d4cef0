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
/// The bytes of memory for what a file has beside its pixels.
const METADATA_BYTES: u64 = 1 << 20;
/// The most pixels of a side, which is JPEG's own bound. Decoders hold several rows beside the picture, and resampling a weight for
/// each pixel of a row.
const MAX_SIDE: u32 = 65_535;
/// Markers of JPEG.
const START_OF_SCAN: u8 = 0xDA;
const END_OF_IMAGE: [u8; 2] = [0xFF, 0xD9];

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
    /// A side has too many pixels.
    #[error("has {width} x {height} pixels, and a side may have 65535")]
    SideTooLong {
        /// Its width.
        width: u32,
        /// Its height.
        height: u32,
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
    let within = |(width, height): (u32, u32)| match u64::from(width) * u64::from(height) {
        _ if width.max(height) > MAX_SIDE => Err(ReadError::SideTooLong { width, height }),
        0 => Err(ReadError::Damaged("it has no pixels".to_owned())),
        pixels if pixels > max_pixels => Err(ReadError::TooLarge {
            width,
            height,
            most: max_pixels,
        }),
        pixels => Ok(pixels),
    };
    // What stands before the pixels of a PNG may be compressed, and its decoder unpacks it at once.
    let claimed = match format {
        ImageFormat::Png => within(png_size(file)?)?,
        ImageFormat::Jpeg if !has_end(file) => {
            return Err(ReadError::Damaged("the end of the file is missing".to_owned()));
        }
        ImageFormat::Jpeg | ImageFormat::WebP => 0,
        _ => return Err(ReadError::Format),
    };
    let mut reader = ImageReader::with_format(Cursor::new(file), format);
    reader.limits(limits(claimed));
    let mut decoder = reader.into_decoder().map_err(damaged)?;
    let (width, height) = decoder.dimensions();
    let pixels = within((width, height))?;
    decoder.set_limits(limits(pixels)).map_err(damaged)?;
    // The orientations from 5 on exchange width and height.
    let orientation = decoder.orientation().map_err(damaged)?.to_exif();
    let (width, height) = if orientation >= 5 {
        (height, width)
    } else {
        (width, height)
    };
    Ok((decoder, ImageHeader { width, height }))
}

/// The memory that a picture of so many pixels may take while it is read.
fn limits(pixels: u64) -> Limits {
    let mut limits = Limits::default();
    limits.max_alloc = Some(
        pixels
            .saturating_mul(BYTES_PER_PIXEL)
            .saturating_add(METADATA_BYTES),
    );
    limits
}

/// Width and height by the header of a PNG, which is its first chunk.
fn png_size(file: &[u8]) -> Result<(u32, u32), ReadError> {
    let number = |at: usize| Some(u32::from_be_bytes(file.get(at..at + 4)?.try_into().ok()?));
    let header = file.get(12..16) == Some(b"IHDR");
    match (number(16), number(20)) {
        (Some(width), Some(height)) if header => Ok((width, height)),
        _ => Err(ReadError::Damaged("it has no header".to_owned())),
    }
}

/// Whether a JPEG has the marker of its end behind its first scan. Decoders fill up what is missing with grey.
fn has_end(file: &[u8]) -> bool {
    let mut at = 2;
    while let Some(&[0xFF, marker, high, low]) = file.get(at..at + 4) {
        let length = usize::from(u16::from_be_bytes([high, low]));
        at += 2 + length;
        if marker == START_OF_SCAN {
            let scan = file.get(at..).unwrap_or_default();
            return scan.windows(2).any(|pair| pair == END_OF_IMAGE);
        }
    }
    // Not of the usual order: the decoder finds out.
    true
}

/// Runs a decoder, whose panic is a fault of the file.
fn guarded<T>(decode: impl FnOnce() -> Result<T, ReadError>) -> Result<T, ReadError> {
    catch_unwind(AssertUnwindSafe(decode))
        .unwrap_or_else(|_| Err(ReadError::Damaged("the decoder failed".to_owned())))
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
fn damaged(error: ImageError) -> ReadError {
    let text = error.to_string();
    let line: Vec<&str> = text.split_whitespace().collect();
    ReadError::Damaged(line.join(" "))
}
