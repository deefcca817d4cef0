//! Fetches ONNX Runtime libraries, the pinned one and others: Python wheels', by pip, with their hashes.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::process::target;
use crate::wheels;

/// The pinned version.
pub(crate) const VERSION: &str = "1.32.0";

/// A platform that the library is fetched for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Platform {
    LinuxX64,
    LinuxArm64,
    WindowsX64,
}

impl Platform {
    pub(crate) fn of_this_machine() -> Result<Self> {
        match (std::env::consts::OS, std::env::consts::ARCH) {
            ("linux", "x86_64") => Ok(Self::LinuxX64),
            ("linux", "aarch64") => Ok(Self::LinuxArm64),
            ("windows", "x86_64") => Ok(Self::WindowsX64),
            (os, arch) => bail!(
                "no ONNX Runtime is pinned for {os} on {arch}; install version {VERSION} and set ORT_DYLIB_PATH to its library"
            ),
        }
    }

    /// The name that Rust has for it.
    pub(crate) fn triple(self) -> &'static str {
        match self {
            Self::LinuxX64 => "x86_64-unknown-linux-gnu",
            Self::LinuxArm64 => "aarch64-unknown-linux-gnu",
            // MinGW's, since its linker and libraries are packages of Debian.
            Self::WindowsX64 => "x86_64-pc-windows-gnu",
        }
    }

    /// The name that Rust has for it, if it is a Linux.
    pub(crate) fn linux_triple(self) -> Option<&'static str> {
        match self {
            Self::LinuxX64 | Self::LinuxArm64 => Some(self.triple()),
            Self::WindowsX64 => None,
        }
    }

    /// The platform's tag in the names of wheels.
    pub(crate) fn tag(self) -> &'static str {
        match self {
            Self::LinuxX64 => "manylinux_2_28_x86_64",
            Self::LinuxArm64 => "manylinux_2_28_aarch64",
            Self::WindowsX64 => "win_amd64",
        }
    }

    /// The library of this version within a wheel.
    fn file(self, version: &str) -> String {
        match self {
            Self::LinuxX64 | Self::LinuxArm64 => format!("onnxruntime/capi/libonnxruntime.so.{version}"),
            Self::WindowsX64 => "onnxruntime/capi/onnxruntime.dll".to_owned(),
        }
    }
}

/// A wheel of PyPI with an ONNX Runtime library, for Python 3.12.
pub(crate) struct Wheel {
    /// The library's version.
    pub(crate) version: &'static str,
    /// The file in `xtask/` that names the wheel, with its hash.
    pub(crate) requirements: &'static str,
    /// Where the wheel is unpacked.
    pub(crate) folder: PathBuf,
    pub(crate) platform: Platform,
}

impl Wheel {
    /// The library's path, fetched if it is not there yet.
    pub(crate) fn fetch(&self) -> Result<PathBuf> {
        let library = self.folder.join(self.platform.file(self.version));
        if library.is_file() {
            return Ok(library);
        }
        let tag = self.platform.tag();
        eprintln!(
            "Fetching ONNX Runtime {} of {} for {tag} …",
            self.version, self.requirements
        );
        wheels::fetch(self.requirements, &wheels::python_tags(tag), &self.folder).context(
            "the library could not be fetched. A library that is there already can be named by ORT_DYLIB_PATH",
        )?;
        if !library.is_file() {
            bail!(
                "the wheel of ONNX Runtime {} holds no {}",
                self.version,
                library.display()
            );
        }
        Ok(library)
    }
}

/// The path of the pinned library, fetched if it is not there yet.
pub(crate) fn fetch(platform: Platform) -> Result<PathBuf> {
    let wheel = Wheel {
        version: VERSION,
        requirements: "onnxruntime.txt",
        folder: target().join("onnxruntime").join(VERSION).join(platform.tag()),
        platform,
    };
    wheel.fetch()
}

/// The library for this machine: `ORT_DYLIB_PATH` where it is set, else the pinned one.
pub(crate) fn for_this_machine() -> Result<PathBuf> {
    match std::env::var_os("ORT_DYLIB_PATH").filter(|path| !path.is_empty()) {
        Some(path) => Ok(PathBuf::from(path)),
        None => fetch(Platform::of_this_machine()?),
    }
}
