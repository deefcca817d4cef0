//! An archive in parts, each in a folder of its own.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// The most bytes of a folder: what can be carried to a machine in one go.
pub(crate) const FOLDER_BYTES: u64 = 48 << 20;

/// Cuts `archive` into parts of `part_bytes` (the last one has what is left) and writes them below `out` as `01/part-01`,
/// `02/part-02` and so on; returns these names.
pub(crate) fn split(archive: &Path, out: &Path, part_bytes: u64) -> Result<Vec<String>> {
    ensure!(part_bytes > 0, "parts need at least a byte");
    let mut left = File::open(archive).with_context(|| format!("{} can't be read", archive.display()))?;
    let mut bytes = left.metadata()?.len();
    let mut names = Vec::new();
    while bytes > 0 {
        let number = names.len() + 1;
        let name = format!("{number:02}/part-{number:02}");
        let file = out.join(&name);
        std::fs::create_dir_all(out.join(format!("{number:02}")))?;
        let mut part = File::create(&file).with_context(|| format!("{} can't be written", file.display()))?;
        let copied = std::io::copy(&mut (&mut left).take(part_bytes), &mut part)?;
        ensure!(
            copied > 0,
            "{} became shorter while it was read",
            archive.display()
        );
        bytes = bytes.saturating_sub(copied);
        names.push(name);
    }
    Ok(names)
}

/// Fails where the files in a folder directly below `out` have more than `most` bytes together.
pub(crate) fn check_folders(out: &Path, most: u64) -> Result<()> {
    for folder in std::fs::read_dir(out)? {
        let folder = folder?.path();
        let mut bytes = 0;
        for file in std::fs::read_dir(&folder)? {
            bytes += file?.metadata()?.len();
        }
        ensure!(
            bytes <= most,
            "{} has {bytes} bytes, more than {most}",
            folder.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn parts_joined_are_the_archive_and_no_folder_is_larger_than_its_bound() {
        const PART: u64 = 100;
        for length in [0_u32, 1, 99, 100, 101, 199, 200, 1234] {
            let folder = tempfile::tempdir().unwrap();
            let (archive, out) = (folder.path().join("archive"), folder.path().join("out"));
            std::fs::create_dir(&out).unwrap();
            let content: Vec<u8> = (0..length).map(|at| (at * 7 % 251) as u8).collect();
            std::fs::write(&archive, &content).unwrap();
            let names = split(&archive, &out, PART).unwrap();
            assert_eq!(names.len() as u64, u64::from(length).div_ceil(PART));
            let mut joined = Vec::new();
            for name in &names {
                joined.extend(std::fs::read(out.join(name)).unwrap());
            }
            assert!(joined == content, "{length}");
            check_folders(&out, PART).unwrap();
            let less = PART.min(u64::from(length)).saturating_sub(1);
            assert_eq!(check_folders(&out, less).is_ok(), names.is_empty());
            // Names sort in the order of the parts, so that a shell's pattern joins them too.
            assert!(names.is_sorted());
        }
    }
}
