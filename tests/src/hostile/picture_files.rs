//! Files that say that they are pictures: damaged ones, truncated ones, and those that are made to cost memory or time.

use std::io::{Cursor, Write as _};

use anyhow::Result;
use flate2::Compression;
use flate2::write::ZlibEncoder;
use image::codecs::jpeg::JpegEncoder;
use image::{ImageFormat, RgbImage};

use crate::chance::Chance;

/// The default of `limits.image_pixels`.
const PIXELS: u32 = 25_000_000;

/// The most pixels of a side.
const MAX_SIDE: u32 = 65_535;

/// Sound pictures, and files in each of the formats to damage.
pub(super) struct PictureFiles {
    good: Vec<Vec<u8>>,
    /// As many pixels as the node takes, in few bytes: square, wide and tall.
    largest: [Vec<u8>; 3],
}

impl PictureFiles {
    pub(super) fn new(chance: &mut Chance) -> Result<Self> {
        let mut good = Vec::new();
        for (width, height) in [(1, 1), (640, 480), (500, 400)] {
            let noise = chance.bytes(width as usize * height as usize * 3);
            let mut picture = RgbImage::new(width, height);
            picture.copy_from_slice(&noise);
            for format in [ImageFormat::Png, ImageFormat::WebP] {
                let mut file = Cursor::new(Vec::new());
                picture.write_to(&mut file, format)?;
                good.push(file.into_inner());
            }
            let mut file = Vec::new();
            JpegEncoder::new_with_quality(&mut file, 80).encode_image(&picture)?;
            good.push(file);
        }
        Ok(Self {
            good,
            largest: [
                plain(5000, 5000)?,
                plain(MAX_SIDE, PIXELS / MAX_SIDE)?,
                plain(PIXELS / MAX_SIDE, MAX_SIDE)?,
            ],
        })
    }

    /// A sound picture.
    pub(super) fn sound(&self, chance: &mut Chance) -> Vec<u8> {
        self.good[chance.size(0..self.good.len())].clone()
    }

    /// A file that may be no picture.
    pub(super) fn hostile(&self, chance: &mut Chance) -> Result<Vec<u8>> {
        let mut file = self.sound(chance);
        let length = file.len();
        match chance.below(14) {
            0 | 1 => file.truncate(chance.size(0..length)),
            2 | 3 => {
                for _ in 0..=chance.below(40) {
                    let at = chance.size(0..length);
                    file[at] = chance.bytes(1)[0];
                }
            }
            // The header.
            4 | 5 => {
                for _ in 0..=chance.below(8) {
                    let at = chance.size(0..length.min(64));
                    file[at] = chance.bytes(1)[0];
                }
            }
            6 => {
                let at = chance.size(0..length);
                let noise = chance.size(1..400);
                file.splice(at..(at + noise).min(length), chance.bytes(noise));
            }
            7 => {
                let from = chance.size(0..length);
                let to = from + chance.size(0..length - from);
                file.drain(from..to);
            }
            8 => {
                let size = chance.size(0..3000);
                file = chance.bytes(size);
            }
            // More pixels than anyone takes, by the header alone.
            9 => {
                let side = chance.pick(&[5001, 60_000, 65_536, 25_000_000, 0x7fff_ffff, 0]);
                file = png(side, chance.pick(&[1, 60_000]), &zlib(&[0; 100])?, &[]);
            }
            // Sides that the header does not have, so that rows are missing.
            10 => file = png(4000, 4000, &zlib(&[0; 100])?, &[]),
            // Sixteen megabytes and more of text or of a colour profile in a few kilobytes.
            11 => {
                let zeros = zlib(&vec![0; chance.size(1 << 20..64 << 20)])?;
                let kind = chance.pick(&[b"iCCP", b"zTXt"]);
                let chunk = [b"n\0\0".as_slice(), &zeros].concat();
                file = png(1, 1, &zlib(&[0; 4])?, &chunk_of(*kind, &chunk));
            }
            // A long run of small chunks.
            12 => {
                let chunks = chunk_of(*b"tEXt", b"a\0b").repeat(chance.size(1..20_000));
                file = png(1, 1, &zlib(&[0; 4])?, &chunks);
            }
            _ => file.clone_from(&self.largest[chance.size(0..self.largest.len())]),
        }
        Ok(file)
    }
}

/// A black picture.
fn plain(width: u32, height: u32) -> Result<Vec<u8>> {
    let bytes = height as usize * (1 + width as usize * 3);
    Ok(png(width, height, &zlib(&vec![0; bytes])?, &[]))
}

/// A PNG of 8-bit RGB with these chunks before its data.
fn png(width: u32, height: u32, data: &[u8], chunks: &[u8]) -> Vec<u8> {
    let mut header = [width.to_be_bytes(), height.to_be_bytes()].concat();
    header.extend([8, 2, 0, 0, 0]);
    [
        b"\x89PNG\r\n\x1a\n".as_slice(),
        &chunk_of(*b"IHDR", &header),
        chunks,
        &chunk_of(*b"IDAT", data),
        &chunk_of(*b"IEND", &[]),
    ]
    .concat()
}

fn chunk_of(kind: [u8; 4], data: &[u8]) -> Vec<u8> {
    let mut sum = flate2::Crc::new();
    sum.update(&kind);
    sum.update(data);
    let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
    [&length.to_be_bytes(), &kind, data, &sum.sum().to_be_bytes()].concat()
}

fn zlib(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}
