//! A contact sheet: several pictures on one, each as large as its cell allows.

use std::io::Cursor;

use ::image::imageops::{overlay, thumbnail};
use ::image::{ImageFormat, Rgb, RgbImage};

use super::read::decode;

/// The most pixels of a cell's width and of its height. What a sheet of four gives a crop is about half of it.
const CELL: u32 = 672;
/// The pixels between two cells.
const GAP: u32 = 8;
const BACKGROUND: Rgb<u8> = Rgb([255, 255, 255]);

/// The reason for which there is no contact sheet; one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("none of the {pictures} pictures can be read: the first {reason}")]
pub struct SheetError {
    /// The number of files.
    pub pictures: usize,
    /// The fault of the first.
    pub reason: String,
}

/// Draws pictures on one sheet, in reading order, in as many columns as rows or one more. Larger ones are reduced to their
/// cells, smaller ones stay as they are, in the middle. A sheet of none is one white pixel.
pub fn contact_sheet(pictures: &[RgbImage]) -> RgbImage {
    let count = u32::try_from(pictures.len()).unwrap_or(u32::MAX);
    let (columns, rows) = grid(count);
    let fitted: Vec<RgbImage> = pictures.iter().map(fit).collect();
    let width = fitted.iter().map(RgbImage::width).max().unwrap_or(1);
    let height = fitted.iter().map(RgbImage::height).max().unwrap_or(1);
    let side = |cells: u32, cell: u32| cells * (cell + GAP) - GAP;
    let mut sheet = RgbImage::from_pixel(side(columns, width), side(rows, height), BACKGROUND);
    for (picture, place) in fitted.iter().zip(0_u32..) {
        let (column, row) = (place % columns, place / columns);
        let x = column * (width + GAP) + (width - picture.width()) / 2;
        let y = row * (height + GAP) + (height - picture.height()) / 2;
        overlay(&mut sheet, picture, x.into(), y.into());
    }
    sheet
}

/// A contact sheet of files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContactSheet {
    /// A PNG file.
    pub png: Vec<u8>,
    /// The indices of the files that are on it, ascending.
    pub shown: Vec<usize>,
}

/// As [`contact_sheet`] of files (PNG, JPEG, WebP). Each file is decoded by itself and reduced before the next; one that is
/// damaged, or has more than `max_pixels` by its header, is left out.
///
/// # Errors
/// No file can be read.
pub fn contact_sheet_file(files: &[&[u8]], max_pixels: u64) -> Result<ContactSheet, SheetError> {
    let mut pictures = Vec::with_capacity(files.len());
    let mut shown = Vec::with_capacity(files.len());
    let mut first_fault = None;
    for (index, file) in files.iter().enumerate() {
        match decode(file, max_pixels) {
            Ok(picture) => {
                pictures.push(fit(&picture));
                shown.push(index);
            }
            Err(fault) => {
                first_fault.get_or_insert(fault.to_string());
            }
        }
    }
    let error = |reason| SheetError {
        pictures: files.len(),
        reason,
    };
    if pictures.is_empty() {
        return Err(error(first_fault.unwrap_or_else(|| "is missing".to_owned())));
    }
    let mut png = Cursor::new(Vec::new());
    contact_sheet(&pictures)
        .write_to(&mut png, ImageFormat::Png)
        .map_err(|fault| error(fault.to_string()))?;
    Ok(ContactSheet {
        png: png.into_inner(),
        shown,
    })
}

/// The columns and rows for a number of pictures.
fn grid(pictures: u32) -> (u32, u32) {
    let mut columns = 1;
    while columns * columns < pictures {
        columns += 1;
    }
    (columns, pictures.div_ceil(columns).max(1))
}

/// The picture, reduced to a cell where it is larger.
fn fit(picture: &RgbImage) -> RgbImage {
    let (width, height) = picture.dimensions();
    let longer = width.max(height);
    if longer <= CELL {
        return picture.clone();
    }
    let reduced = |side: u32| (side * CELL / longer).max(1);
    thumbnail(picture, reduced(width), reduced(height))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at a fault")]
mod tests {
    use super::*;

    fn plain(width: u32, height: u32, colour: [u8; 3]) -> RgbImage {
        RgbImage::from_pixel(width, height, Rgb(colour))
    }

    fn png(picture: &RgbImage) -> Vec<u8> {
        let mut file = Cursor::new(Vec::new());
        picture.write_to(&mut file, ImageFormat::Png).unwrap();
        file.into_inner()
    }

    #[test]
    fn grids_are_as_wide_as_high_or_a_row_shorter() {
        let grids: Vec<(u32, u32)> = [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 16].map(grid).into();
        let expected = [
            (1, 1),
            (1, 1),
            (2, 1),
            (2, 2),
            (2, 2),
            (3, 2),
            (3, 2),
            (3, 3),
            (3, 3),
            (4, 3),
            (4, 4),
        ];
        assert_eq!(grids, expected);
    }

    #[test]
    fn pictures_are_in_reading_order_in_the_middle_of_their_cells() {
        let (red, green, blue) = ([255, 0, 0], [0, 255, 0], [0, 0, 255]);
        let sheet = contact_sheet(&[plain(40, 30, red), plain(20, 30, green), plain(40, 10, blue)]);
        assert_eq!(sheet.dimensions(), (40 + GAP + 40, 30 + GAP + 30));
        let at = |x, y| sheet.get_pixel(x, y).0;
        assert_eq!(at(0, 0), red);
        assert_eq!(at(40 + GAP, 0), BACKGROUND.0);
        assert_eq!(at(40 + GAP + 10, 0), green);
        assert_eq!(at(0, 30 + GAP + 9), BACKGROUND.0);
        assert_eq!(at(0, 30 + GAP + 10), blue);
        assert_eq!(at(40 + GAP, 30 + GAP), BACKGROUND.0);
    }

    #[test]
    fn large_pictures_are_reduced() {
        let sheet = contact_sheet(&[plain(4000, 3000, [1, 2, 3]), plain(1, 5000, [4, 5, 6])]);
        assert_eq!(sheet.dimensions(), (CELL + GAP + CELL, CELL));
        assert_eq!(sheet.get_pixel(0, CELL / 2).0, [1, 2, 3]);
    }

    #[test]
    fn damaged_and_large_files_are_left_out() {
        let good = png(&plain(30, 20, [9, 9, 9]));
        let large = png(&plain(300, 200, [9, 9, 9]));
        let sheet = contact_sheet_file(&[b"no picture", &good[..20], &large, &good], 1_000).unwrap();
        assert_eq!(sheet.shown, [3]);
        let sheet = ::image::load_from_memory(&sheet.png).unwrap().into_rgb8();
        assert_eq!(sheet, plain(30, 20, [9, 9, 9]));
        let fault = contact_sheet_file(&[&large, b"no picture"], 1_000).unwrap_err();
        assert_eq!(
            fault.to_string(),
            "none of the 2 pictures can be read: the first has 300 x 200 pixels, 1000 are the most (limits.image_pixels)"
        );
        assert!(contact_sheet_file(&[], 1_000).is_err());
    }
}
