//! Images as the model takes them: read from files, resized, cut into crops.

mod contact_sheet;
mod detail;
mod info;

pub use contact_sheet::{SheetError, contact_sheet, contact_sheet_file};
pub use detail::Detail;
pub use info::ImageInfo;
