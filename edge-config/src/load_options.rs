//! What the load of a configuration depends on.

use std::path::PathBuf;

/// Everything that the configuration depends on. [`Default`] reads no file and no environment.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// The file named on the command line; it must exist.
    pub config: Option<PathBuf>,
    /// The environment; only `PHI_EDGE__…` and `CREDENTIALS_DIRECTORY` are looked at.
    pub env: Vec<(String, String)>,
    /// The values of flags, as keys (`model.path`) and texts.
    pub flags: Vec<(String, String)>,
    /// The folder of `config.toml`, `conf.d` and `rules.d` (`/etc/phi-edge` on an installed system), which may be
    /// missing; empty means none.
    pub system_dir: PathBuf,
    /// The folder of the model and the store, unless they are set, on systems without `/var/lib`; empty means the built-in
    /// defaults.
    pub state_dir: PathBuf,
    /// The machine's host name, from which `node.name` follows.
    pub hostname: String,
}
