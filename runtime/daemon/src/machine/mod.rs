//! The machine and this process, as the operating system describes them.

pub(crate) mod allocator;
pub(crate) mod cores;
pub(crate) mod identity;
pub(crate) mod process;
pub(crate) mod processor;
pub(crate) mod sysfs;
pub(crate) mod thermal;
