//! `phi-edge manual`: the manual pages, for packages.

use std::path::PathBuf;

use clap::Args;

use crate::exit::Fault;

#[derive(Args)]
pub(crate) struct ManualArgs {
    /// The folder; it must be there.
    dir: PathBuf,
}

/// Writes a page for each command of `program`.
pub(crate) fn manual(args: &ManualArgs, program: clap::Command) -> Result<(), Fault> {
    clap_mangen::generate_to(program, &args.dir)
        .map_err(|error| Fault::failed(format!("{}: {error}", args.dir.display())))
}
