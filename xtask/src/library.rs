//! Fetches the pinned ONNX Runtime library: the Python wheel's, by pip, with its hash.

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
    fn tag(self) -> &'static str {
        match self {
            Self::LinuxX64 => "manylinux_2_28_x86_64",
            Self::LinuxArm64 => "manylinux_2_28_aarch64",
            Self::WindowsX64 => "win_amd64",
        }
    }

    /// The library within the wheel.
    fn file(self) -> String {
        match self {
            Self::LinuxX64 | Self::LinuxArm64 => format!("onnxruntime/capi/libonnxruntime.so.{VERSION}"),
            Self::WindowsX64 => "onnxruntime/capi/onnxruntime.dll".to_owned(),
        }
    }
}

/// The library's path, fetched if it is not there yet.
pub(crate) fn fetch(platform: Platform) -> Result<PathBuf> {
    let folder = target().join("onnxruntime").join(VERSION).join(platform.tag());
    let library = folder.join(platform.file());
    if library.is_file() {
        return Ok(library);
    }
    eprintln!("Fetching ONNX Runtime {VERSION} for {} …", platform.tag());
    let tags = [
        "--python-version",
        "3.12",
        "--implementation",
        "cp",
        "--abi",
        "cp312",
        "--platform",
        platform.tag(),
    ];
    wheels::fetch("onnxruntime.txt", &tags, &folder).context(
        "the library could not be fetched. A library that is there already can be named by ORT_DYLIB_PATH",
    )?;
    if !library.is_file() {
        bail!("the wheel of ONNX Runtime {VERSION} holds no {}", platform.file());
    }
    Ok(library)
}

/// The library for this machine: `ORT_DYLIB_PATH` where it is set, else the pinned one.
pub(crate) fn for_this_machine() -> Result<PathBuf> {
    match std::env::var_os("ORT_DYLIB_PATH").filter(|path| !path.is_empty()) {
        Some(path) => Ok(PathBuf::from(path)),
        None => fetch(Platform::of_this_machine()?),
    }
}
