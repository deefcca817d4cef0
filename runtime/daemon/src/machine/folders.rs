//! The folders of configuration, state and logs, where the system has them.

use std::path::PathBuf;

/// The folder of `config.toml`, `conf.d` and `rules.d`: `/etc/phi-edge`, on Windows `%ProgramData%\phi-edge`.
pub(crate) fn configuration() -> PathBuf {
    if cfg!(windows) {
        program_data()
    } else {
        PathBuf::from("/etc/phi-edge")
    }
}

/// The folder of the model and the store, where it is not the configuration's built-in one: on Windows `%ProgramData%\phi-edge`.
pub(crate) fn state() -> PathBuf {
    if cfg!(windows) {
        program_data()
    } else {
        PathBuf::new()
    }
}

fn program_data() -> PathBuf {
    let data = std::env::var_os("ProgramData").filter(|data| !data.is_empty());
    PathBuf::from(data.unwrap_or_else(|| r"C:\ProgramData".into())).join("phi-edge")
}
