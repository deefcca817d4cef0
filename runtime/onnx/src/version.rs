//! The versions of ONNX Runtime that this crate works with.

/// The oldest library that works (the API level this crate is built for).
pub const MINIMUM_VERSION: &str = "1.24";
/// The version that the project's own commands fetch and test with.
pub const PINNED_VERSION: &str = "1.32.0";
