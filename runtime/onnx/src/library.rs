//! The ONNX Runtime library: where it is found, and loading it.

use parking_lot::Mutex;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use ort::environment::Environment;

use crate::elf_size::cut_short;
use crate::error::{OnnxError, one_line};

/// The folder that packages put the library into.
#[cfg(unix)]
const PACKAGE_FOLDER: &str = "/usr/lib/phi-edge";

/// The loaded library. One per process: the first one loaded stays.
#[derive(Debug, Clone)]
pub struct Library {
    environment: Environment,
    path: PathBuf,
}

/// The library of this process; later calls get the same one.
static LOADED: Mutex<Option<Library>> = Mutex::new(None);

impl Library {
    /// Loads the library: the configured file or folder, else `ORT_DYLIB_PATH`, beside the binary,
    /// `/usr/lib/phi-edge`, the system's own folders (not on Windows, which has an older library there). A place that is named
    /// explicitly must work.
    pub fn find(configured: Option<&Path>) -> Result<Self, OnnxError> {
        let mut loaded = LOADED.lock();
        if let Some(library) = loaded.as_ref() {
            return Ok(library.clone());
        }
        let environment_path = std::env::var_os("ORT_DYLIB_PATH").filter(|value| !value.is_empty());
        let library = locate(configured, environment_path.as_deref())?;
        *loaded = Some(library.clone());
        Ok(library)
    }

    /// The library where it is installed; a test without it prints that it skips, and fails under `CI=true`.
    #[cfg(test)]
    pub(crate) fn for_tests() -> Option<Self> {
        match Self::find(None) {
            Ok(library) => Some(library),
            Err(error) => {
                assert!(std::env::var_os("CI").is_none_or(|v| v != "true"), "{error}");
                println!("SKIPPED: {error}");
                None
            }
        }
    }

    /// The library's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The library's description of itself (version, commit, build).
    pub fn description(&self) -> &'static str {
        ort::info()
    }

    pub(crate) fn environment(&self) -> &Environment {
        &self.environment
    }
}

fn locate(configured: Option<&Path>, environment: Option<&OsStr>) -> Result<Library, OnnxError> {
    if let Some(path) = configured {
        return load_named(path, "runtime.library");
    }
    if let Some(path) = environment {
        return load_named(Path::new(path), "ORT_DYLIB_PATH");
    }
    let mut looked = vec![
        "runtime.library (not set)".to_owned(),
        "ORT_DYLIB_PATH (not set)".to_owned(),
    ];
    let mut folders = Vec::new();
    if let Some(folder) = std::env::current_exe().ok().as_deref().and_then(Path::parent) {
        folders.push(folder.to_path_buf());
        folders.push(folder.join("lib"));
    }
    #[cfg(unix)]
    folders.push(PathBuf::from(PACKAGE_FOLDER));
    for folder in folders {
        if let Some(file) = in_folder(&folder) {
            return load(&file);
        }
        looked.push(folder.display().to_string());
    }
    if cfg!(windows) {
        return Err(OnnxError::LibraryNotFound { looked });
    }
    let system = plain_name();
    match load(Path::new(system)) {
        Ok(library) => Ok(library),
        Err(OnnxError::LibraryUnusable { fault, .. }) if fault.contains("too old") => {
            Err(OnnxError::LibraryUnusable {
                path: system.into(),
                fault,
            })
        }
        Err(_) => {
            looked.push(format!("the system's library folders ({system})"));
            Err(OnnxError::LibraryNotFound { looked })
        }
    }
}

fn load_named(path: &Path, source: &str) -> Result<Library, OnnxError> {
    let file = if path.is_dir() {
        in_folder(path)
    } else {
        // In full: a name alone would be looked for in the system's folders.
        path.is_file()
            .then(|| std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf()))
    };
    match file {
        Some(file) => load(&file),
        None => Err(OnnxError::LibraryNotFound {
            looked: vec![format!("{} ({source})", path.display())],
        }),
    }
}

/// The library in `folder`: its plain name, or the highest version.
fn in_folder(folder: &Path) -> Option<PathBuf> {
    let plain = folder.join(plain_name());
    if plain.is_file() {
        return Some(plain);
    }
    let prefix = plain_name();
    let mut versions: Vec<(Vec<u32>, PathBuf)> = std::fs::read_dir(folder)
        .ok()?
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let version = name.strip_prefix(prefix)?.strip_prefix('.')?;
            let numbers = version
                .split('.')
                .map(str::parse)
                .collect::<Result<Vec<u32>, _>>()
                .ok()?;
            Some((numbers, entry.path()))
        })
        .collect();
    versions.sort();
    versions.pop().map(|(_, path)| path)
}

fn plain_name() -> &'static str {
    if cfg!(windows) {
        "onnxruntime.dll"
    } else if cfg!(target_os = "macos") {
        "libonnxruntime.dylib"
    } else {
        "libonnxruntime.so"
    }
}

fn load(path: &Path) -> Result<Library, OnnxError> {
    let unusable = |fault: String| OnnxError::LibraryUnusable {
        path: path.to_path_buf(),
        fault,
    };
    if let Some(fault) = cut_short(path) {
        return Err(unusable(fault));
    }
    crate::telemetry::forbid_telemetry();
    let builder = ort::init_from(path).map_err(|error| {
        let fault = match &error {
            ort::LoadDynamicError::BadVersion { version_str, .. } => {
                format!("its version {version_str} is too old")
            }
            other => one_line(other),
        };
        unusable(fault)
    })?;
    let environment = builder
        .with_name("phi-edge")
        .with_telemetry(false)
        .build()
        .map_err(|error| unusable(one_line(error)))?;
    // At its own default level the library formats a line for every allocation, even if it is not logged.
    let level = if tracing::enabled!(target: "ort", tracing::Level::INFO) {
        ort::logging::LogLevel::Info
    } else {
        ort::logging::LogLevel::Warning
    };
    environment.set_log_level(level);
    Ok(Library {
        environment,
        path: path.to_path_buf(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_place_without_a_library_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let error = locate(Some(folder.path()), None).unwrap_err().to_string();
        assert!(
            error.contains(&folder.path().display().to_string()) && error.contains("runtime.library"),
            "{error}"
        );
        let error = locate(None, Some(folder.path().as_os_str()))
            .unwrap_err()
            .to_string();
        assert!(error.contains("ORT_DYLIB_PATH"), "{error}");
    }

    #[test]
    fn a_file_that_is_no_library_is_unusable() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(plain_name());
        std::fs::write(&file, "no library").unwrap();
        let error = locate(Some(&file), None).unwrap_err();
        assert!(
            matches!(&error, OnnxError::LibraryUnusable { path, .. } if *path == file),
            "{error}"
        );
    }

    #[test]
    fn the_highest_version_in_a_folder_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        for version in ["1.9.0", "1.32.0", "1.4", "1"] {
            std::fs::write(folder.path().join(format!("{}.{version}", plain_name())), "").unwrap();
        }
        let found = in_folder(folder.path()).unwrap();
        assert!(found.to_string_lossy().ends_with("1.32.0"), "{}", found.display());
    }
}
