//! A machine with configuration files in a folder of its own.
#![allow(unreachable_pub, dead_code, reason = "each test program uses its part")]

use std::fs;
use std::path::PathBuf;

use phi_edge_config::{ConfigError, LoadOptions, Loaded, load};
use tempfile::TempDir;

/// A machine with its files, environment and flags.
pub struct Machine {
    pub folder: TempDir,
    pub options: LoadOptions,
}

impl Machine {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options = LoadOptions {
            system_dir: folder.path().join("etc"),
            hostname: "gateway".to_owned(),
            ..LoadOptions::default()
        };
        fs::create_dir_all(options.system_dir.join("conf.d")).unwrap();
        Self { folder, options }
    }

    pub fn file(self, name: &str, text: &str) -> Self {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), text).unwrap();
        self
    }

    /// The file of `--config`.
    pub fn config(mut self, text: &str) -> Self {
        fs::write(self.path("my.toml"), text).unwrap();
        self.options.config = Some(self.path("my.toml"));
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.options.env.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn flag(mut self, key: &str, value: &str) -> Self {
        self.options.flags.push((key.to_owned(), value.to_owned()));
        self
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn load(&self) -> Result<Loaded, ConfigError> {
        load(&self.options)
    }

    pub fn loaded(&self) -> Loaded {
        self.load().unwrap_or_else(|fault| panic!("{fault}"))
    }

    /// The one line of the fault, with the folder's own path taken out.
    pub fn fault(&self) -> String {
        let line = self.load().expect_err("a fault").to_string();
        assert!(!line.contains('\n'), "{line}");
        line.replace(
            &format!("{}{}", self.folder.path().display(), std::path::MAIN_SEPARATOR),
            "",
        )
    }
}
