//! The size that a library's file must have.
//!
//! The loader maps what a library's headers name, and a page beyond the file's end ends the process by a signal when it is
//! touched: so a file that was not copied whole is found before it is loaded.

use std::path::Path;

/// Says that `path` is a 64-bit ELF file that is shorter than its headers say; `None` for all else, which the loader judges.
pub(crate) fn cut_short(path: &Path) -> Option<String> {
    let mut file = std::fs::File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    let end = end_of_segments(&mut file)?;
    (end > length).then(|| {
        format!(
            "it has {length} bytes, and its headers name {end}: the file was not copied whole; copy it again"
        )
    })
}

/// The end of the last segment in the file (elf(5)).
fn end_of_segments(file: &mut (impl std::io::Read + std::io::Seek)) -> Option<u64> {
    const HEADER: usize = 64;
    const ENTRY: usize = 56;
    let mut header = [0u8; HEADER];
    file.read_exact(&mut header).ok()?;
    // 64 bits, the lowest byte first.
    if !header.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let number = |bytes: &[u8]| {
        bytes
            .iter()
            .rev()
            .fold(0u64, |number, byte| number << 8 | u64::from(*byte))
    };
    let (offset, size, count) = (
        number(&header[32..40]),
        number(&header[54..56]),
        number(&header[56..58]),
    );
    if size != ENTRY as u64 {
        return None;
    }
    file.seek(std::io::SeekFrom::Start(offset)).ok()?;
    let mut end = 0;
    for _ in 0..count {
        let mut entry = [0u8; ENTRY];
        if file.read_exact(&mut entry).is_err() {
            return offset.checked_add(size.checked_mul(count)?);
        }
        // Only what is loaded: other segments lie within these.
        if number(&entry[..4]) == 1 {
            end = end.max(number(&entry[8..16]).checked_add(number(&entry[32..40]))?);
        }
    }
    Some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(all(target_os = "linux", target_pointer_width = "64"))]
    #[test]
    fn a_library_that_was_cut_is_found() {
        let whole = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &whole).unwrap();
        assert_eq!(cut_short(file.path()), None);
        for length in [100, 4_000, 40_000] {
            std::fs::write(file.path(), &whole[..length]).unwrap();
            let fault = cut_short(file.path()).unwrap();
            assert!(fault.contains(&format!("it has {length} bytes")), "{fault}");
        }
    }

    #[test]
    fn what_is_no_such_file_is_left_to_the_loader() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for content in [&b""[..], b"text", b"\x7fELF\x01\x01", &[0x7f; 64]] {
            std::fs::write(file.path(), content).unwrap();
            assert_eq!(cut_short(file.path()), None);
        }
        assert_eq!(cut_short(Path::new("/nowhere")), None);
    }
}
