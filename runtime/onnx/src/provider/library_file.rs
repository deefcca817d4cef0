//! The check of a plugin's library before it is loaded: it runs with all rights of the process.

use std::path::{Component, Path, PathBuf};

/// Why a library is not loaded.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum LibraryFault {
    /// It is not there.
    Missing(String),
    /// It may not be loaded: the reason, and what to do.
    Refused(String),
}

/// The file that `path` names, links resolved, if it may be loaded: an absolute path of a regular file. On Unix the file and
/// all folders above it belong to root, and no other user may write to them.
pub(super) fn checked(path: &Path) -> Result<PathBuf, LibraryFault> {
    let refused = |fault: &str| LibraryFault::Refused(fault.to_owned());
    if !path.is_absolute() || path.components().any(|part| part == Component::ParentDir) {
        return Err(refused("is no absolute path without \"..\"; write it in full"));
    }
    let real = path
        .canonicalize()
        .map_err(|error| LibraryFault::Missing(format!("can't be read ({error})")))?;
    if !real.is_file() {
        return Err(refused("is no regular file; name the plugin's library itself"));
    }
    #[cfg(unix)]
    for named in [path, &real] {
        unix::check_owner(named).map_err(LibraryFault::Refused)?;
    }
    Ok(real)
}

#[cfg(unix)]
mod unix {
    use std::fs::Metadata;
    use std::os::unix::fs::MetadataExt as _;
    use std::path::Path;

    const WRITABLE_BY_OTHERS: u32 = 0o022;
    /// Of a folder whose entries only their owners may replace.
    const STICKY: u32 = 0o1000;

    /// Checks a file, or the target of a link, and all folders above it.
    pub(super) fn check_owner(path: &Path) -> Result<(), String> {
        for (distance, part) in path.ancestors().enumerate() {
            let metadata = std::fs::metadata(part)
                .map_err(|error| format!("can't be checked: {}: {error}", part.display()))?;
            check_part(part, &metadata, distance)?;
        }
        Ok(())
    }

    /// Checks the file (`distance` 0), its folder (1), or a folder above that.
    fn check_part(part: &Path, metadata: &Metadata, distance: usize) -> Result<(), String> {
        let shown = part.display();
        if metadata.uid() != 0 {
            return Err(format!(
                "is refused: {shown} belongs to user {}, not to root, who could replace the library; chown root it, or \
                 install the plugin elsewhere",
                metadata.uid()
            ));
        }
        // In a folder such as /tmp no other user can replace what root has put there. The library's own folder must be closed to
        // other users: a library that this one needs would be found there.
        let keeps_entries = distance > 1 && metadata.mode() & STICKY != 0;
        if metadata.mode() & WRITABLE_BY_OTHERS != 0 && !keeps_entries {
            return Err(format!(
                "is refused: {shown} can be written by others than root (mode {:o}); chmod go-w it",
                metadata.mode() & 0o7777
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(path: &Path) -> String {
        match checked(path).unwrap_err() {
            LibraryFault::Refused(fault) => fault,
            LibraryFault::Missing(fault) => format!("missing: {fault}"),
        }
    }

    #[test]
    fn what_is_no_absolute_path_of_a_regular_file_is_refused() {
        let check = |path: &str, expected: &str| {
            let said = fault(Path::new(path));
            assert!(said.contains(expected), "{path}: {said}");
        };
        check("ep.so", "absolute path");
        check("/usr/../ep.so", "absolute path");
        let root = if cfg!(windows) { r"C:\" } else { "/" };
        check(&format!("{root}nowhere/ep.so"), "missing: can't be read");
        check(root, "no regular file");
    }

    /// Needs root, who alone can give files away; others see that their own files are refused.
    #[cfg(unix)]
    #[test]
    fn a_file_or_folder_that_others_can_write_is_refused() {
        use std::os::unix::fs::{PermissionsExt as _, chown, symlink};

        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("plugin");
        let file = folder.join("ep.so");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(&file, "no library").unwrap();
        let mode = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        mode(&folder, 0o755);
        mode(&file, 0o644);
        if chown(&file, Some(0), Some(0)).is_err() {
            assert!(fault(&file).contains("not to root"));
            return;
        }
        assert_eq!(checked(&file).unwrap(), file.canonicalize().unwrap());
        for (path, wrong, right) in [
            (&file, 0o664, 0o644),
            (&file, 0o646, 0o644),
            (&folder, 0o775, 0o755),
            (&folder, 0o757, 0o755),
            (&folder, 0o1777, 0o755),
        ] {
            mode(path, wrong);
            let said = fault(&file);
            assert!(said.contains("written by others than root"), "{said}");
            mode(path, right);
        }
        // A link to it is judged by its own folder, too.
        let elsewhere = root.path().join("elsewhere");
        std::fs::create_dir(&elsewhere).unwrap();
        mode(&elsewhere, 0o777);
        let link = elsewhere.join("ep.so");
        symlink(&file, &link).unwrap();
        assert!(fault(&link).contains("elsewhere can be written"));
        mode(&elsewhere, 0o755);
        assert_eq!(checked(&link).unwrap(), file.canonicalize().unwrap());
        for path in [&file, &folder] {
            chown(path, Some(12_345), None).unwrap();
            let said = fault(&file);
            assert!(said.contains("belongs to user 12345"), "{said}");
            chown(path, Some(0), None).unwrap();
        }
    }
}
