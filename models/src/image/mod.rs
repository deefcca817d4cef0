//! Images as the model takes them: read from files, resized, cut into crops.

mod detail;

pub use detail::Detail;
