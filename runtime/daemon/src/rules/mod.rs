//! Rules on the command line, and on their way from the configuration to the service.

pub(crate) mod convert;
mod lint;
mod record;
mod replay;

pub(crate) use convert::all;
pub(crate) use lint::lint;
pub(crate) use record::record;
pub(crate) use replay::test;
