//! `cargo xtask library --provider NAME`: ONNX Runtime libraries with execution providers that the pinned one does not have.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;

use crate::library::{Platform, Wheel};
use crate::process::target;
use crate::wheels;

/// An execution provider that the pinned library does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DeviceProvider {
    /// NVIDIA's GPUs, on Linux.
    Cuda,
    /// GPUs with DirectX 12, on Windows.
    Directml,
    /// GPUs over Vulkan, on Linux.
    Webgpu,
}

impl DeviceProvider {
    /// The platform that its library is pinned for.
    fn platform(self) -> Platform {
        match self {
            Self::Cuda | Self::Webgpu => Platform::LinuxX64,
            Self::Directml => Platform::WindowsX64,
        }
    }

    fn wheel(self) -> Wheel {
        let (version, requirements, folder) = match self {
            Self::Cuda => ("1.31.1", "cuda.txt", "cuda/library"),
            Self::Directml => ("1.24.4", "directml.txt", "directml/library"),
            Self::Webgpu => ("1.27.0", "webgpu.txt", "webgpu/library"),
        };
        Wheel {
            version,
            requirements,
            // Apart from the pinned library, so that a search below target/onnxruntime finds that one alone.
            folder: target().join(folder).join(version),
            platform: self.platform(),
        }
    }
}

/// The path of the library with `provider`, fetched if it is not there yet. `with_cuda`: CUDA's own libraries are put beside it.
pub(crate) fn fetch(
    provider: DeviceProvider,
    platform: Option<Platform>,
    with_cuda: bool,
) -> Result<PathBuf> {
    let pinned = provider.platform();
    ensure!(
        platform.is_none_or(|platform| platform == pinned),
        "the library with {provider:?} is pinned for {pinned:?} only; leave --platform out"
    );
    ensure!(
        provider == DeviceProvider::Cuda || !with_cuda,
        "--with-cuda is for --provider cuda: no other provider uses CUDA"
    );
    let library = provider.wheel().fetch()?;
    if with_cuda {
        let beside = library.parent().context("the library is in no folder")?;
        fetch_cuda(beside)?;
    }
    Ok(library)
}

/// Fetches CUDA's libraries and cuDNN into `folder`: 1.3 GB of downloads.
fn fetch_cuda(folder: &Path) -> Result<()> {
    let wanted = include_str!("../cuda-libraries.txt");
    let stamp = folder.join("cuda-libraries.txt");
    if std::fs::read_to_string(&stamp).is_ok_and(|fetched| fetched == wanted) {
        return Ok(());
    }
    eprintln!("Fetching CUDA's libraries (1.3 GB) …");
    let unpacked = folder.join("wheels");
    // Wheels name the oldest system that they run on, each its own.
    let tags = [
        "--platform",
        "manylinux_2_28_x86_64",
        "--platform",
        "manylinux_2_27_x86_64",
        "--platform",
        "manylinux_2_17_x86_64",
        "--platform",
        "manylinux_2_12_x86_64",
    ];
    wheels::fetch("cuda-libraries.txt", &tags, &unpacked)?;
    let mut moved = 0;
    // NVIDIA's wheels have a folder each, or share one: nvidia/cu13/lib, nvidia/cudnn/lib.
    for package in std::fs::read_dir(unpacked.join("nvidia")).context("the wheels hold no folder nvidia")? {
        let Ok(files) = std::fs::read_dir(package?.path().join("lib")) else {
            continue;
        };
        for file in files.filter_map(Result::ok) {
            let name = file.file_name();
            if name.to_string_lossy().contains(".so") {
                std::fs::rename(file.path(), folder.join(&name))?;
                moved += 1;
            }
        }
    }
    if moved == 0 {
        bail!("the wheels of CUDA hold no libraries");
    }
    std::fs::remove_dir_all(&unpacked)?;
    std::fs::write(&stamp, wanted)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_requirement_names_the_version_of_its_wheel_and_has_a_hash() {
        for (provider, requirements) in [
            (DeviceProvider::Cuda, include_str!("../cuda.txt")),
            (DeviceProvider::Directml, include_str!("../directml.txt")),
            (DeviceProvider::Webgpu, include_str!("../webgpu.txt")),
        ] {
            let version = provider.wheel().version;
            assert!(requirements.contains(&format!("=={version} ")), "{provider:?}");
            assert!(requirements.contains("--hash=sha256:"), "{provider:?}");
        }
        let cuda = include_str!("../cuda-libraries.txt");
        assert_eq!(cuda.matches("==").count(), cuda.matches("--hash=sha256:").count());
    }

    #[test]
    fn what_is_not_pinned_is_refused() {
        for (provider, platform, with_cuda, expected) in [
            (
                DeviceProvider::Cuda,
                Some(Platform::WindowsX64),
                false,
                "LinuxX64",
            ),
            (
                DeviceProvider::Directml,
                Some(Platform::LinuxArm64),
                false,
                "WindowsX64",
            ),
            (DeviceProvider::Webgpu, None, true, "--with-cuda"),
        ] {
            let refused = fetch(provider, platform, with_cuda).map_err(|error| error.to_string());
            assert!(
                refused.as_ref().is_err_and(|error| error.contains(expected)),
                "{refused:?}"
            );
        }
    }
}
