//! 64-bit Arm from another machine: built with a cross compiler, and tried under QEMU's user mode.

mod answers;
mod binary_format;
mod emulated_tests;
mod emulator;
mod package_test;

pub(crate) use emulated_tests::test;
pub(crate) use package_test::package_test;
