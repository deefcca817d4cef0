//! `phi-edge rules`: tries rules out.

mod lint;
mod record;
mod replay;

pub(crate) use lint::lint;
pub(crate) use record::record;
pub(crate) use replay::test;
