//! Images as the model takes them: read from files, resized, cut into crops.

mod contact_sheet;
mod detail;
mod grid;
mod info;
mod preprocess;
mod read;
mod resample;

pub use contact_sheet::{ContactSheet, SheetError, contact_sheet, contact_sheet_file};
pub use detail::Detail;
pub use grid::ImageGrid;
pub use info::ImageInfo;
pub use preprocess::preprocess;
pub use read::{ImageHeader, ReadError, decode, image_id, probe};
