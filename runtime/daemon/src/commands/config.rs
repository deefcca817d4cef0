//! `phi-edge config`: the effective configuration.

use crate::exit::Fault;
use crate::setup::args::ConfigArgs;
use crate::setup::settings;

/// Prints each value and where it came from.
pub(crate) fn config(args: &ConfigArgs) -> Result<(), Fault> {
    settings::load(args).map(|loaded| print!("{}", phi_edge_config::render(&loaded)))
}
