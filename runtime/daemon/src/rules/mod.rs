//! Rules as the daemon runs them.

mod convert;

pub(crate) use convert::all;
