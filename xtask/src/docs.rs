//! `cargo xtask docs`: documents that are made from the sources.

use anyhow::{Context, Result};

use crate::process::root;

/// Writes docs/config.md; a test of edge-config says when it is stale.
pub(crate) fn docs() -> Result<()> {
    let file = root().join("docs/config.md");
    std::fs::write(&file, phi_edge_config::reference())
        .with_context(|| format!("{} can't be written", file.display()))?;
    println!("{}", file.display());
    Ok(())
}
