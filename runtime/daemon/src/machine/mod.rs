//! The machine and this process, as the operating system describes them.

pub(crate) mod allocator;
pub(crate) mod cores;
pub(crate) mod folders;
pub(crate) mod identity;
pub(crate) mod memory;
pub(crate) mod process;
pub(crate) mod processor;
pub(crate) mod sysfs;
pub(crate) mod thermal;
pub(crate) mod uptime;
