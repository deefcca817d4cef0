//! The pictures of `phi-edge ask --image`.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::exit::{Exit, Fault};

/// The most bytes of a file: larger ones exceed any `limits.max_payload`.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// Reads the files of pictures.
///
/// # Errors
/// A file can't be read, is too large, or is neither PNG, JPEG nor WebP.
pub(super) fn read_all(paths: &[PathBuf]) -> Result<Vec<Vec<u8>>, Fault> {
    paths.iter().map(|path| read(path, MAX_FILE_BYTES)).collect()
}

fn read(path: &Path, most: u64) -> Result<Vec<u8>, Fault> {
    let fault = |text: String| Fault::new(Exit::Usage, format!("--image {}: {text}", path.display()));
    let unreadable = |error: std::io::Error| fault(format!("can't be read: {error}"));
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(most + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > most {
        return Err(fault(format!("has more than {most} bytes; reduce the picture")));
    }
    if !is_picture(&bytes) {
        return Err(fault(
            "is no PNG, JPEG or WebP file; convert it to one of them".to_owned(),
        ));
    }
    Ok(bytes)
}

/// Whether a file begins as PNG, JPEG or WebP does.
fn is_picture(file: &[u8]) -> bool {
    file.starts_with(b"\x89PNG\r\n\x1a\n")
        || file.starts_with(b"\xFF\xD8\xFF")
        || matches!(
            file,
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..]
        )
}

/// The `detail` of a request for a number of crops; a daemon knows words only.
///
/// # Errors
/// No word stands for that number.
pub(super) fn detail(num_crops: Option<u8>) -> Result<Option<&'static str>, Fault> {
    match num_crops {
        None => Ok(None),
        Some(1) => Ok(Some("low")),
        Some(16) => Ok(Some("high")),
        Some(other) => Err(Fault::new(
            Exit::Usage,
            format!(
                "--num-crops {other}: a daemon takes 1 or 16; leave it out for the daemon's own model.num_crops"
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_checked_by_their_first_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let check = |name: &str, content: &[u8], expected: Result<(), &str>| {
            let path = folder.path().join(name);
            std::fs::write(&path, content).unwrap();
            let read = read(&path, 20);
            match expected {
                Ok(()) => assert_eq!(read.unwrap(), content, "{name}"),
                Err(part) => {
                    let text = read.unwrap_err().to_string();
                    assert!(
                        text.contains(part) && text.contains(name) && !text.contains('\n'),
                        "{text}"
                    );
                }
            }
        };
        check("a.png", b"\x89PNG\r\n\x1a\nrest", Ok(()));
        check("a.jpg", b"\xFF\xD8\xFF\xE0", Ok(()));
        check("a.webp", b"RIFF1234WEBPVP8 ", Ok(()));
        check("a.gif", b"GIF89a", Err("is no PNG, JPEG or WebP"));
        check("empty", b"", Err("is no PNG, JPEG or WebP"));
        check("large.jpg", &[0xFF; 21], Err("has more than 20 bytes"));
    }

    #[test]
    fn what_is_no_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        for path in [folder.path().join("missing.png"), folder.path().to_owned()] {
            let text = read_all(std::slice::from_ref(&path)).unwrap_err().to_string();
            assert!(text.contains("can't be read") && !text.contains('\n'), "{text}");
        }
    }

    #[test]
    fn words_for_numbers_of_crops() {
        assert_eq!(detail(None).ok(), Some(None));
        assert_eq!(detail(Some(1)).ok(), Some(Some("low")));
        assert_eq!(detail(Some(16)).ok(), Some(Some("high")));
        let text = detail(Some(4)).unwrap_err().to_string();
        assert!(text.contains("a daemon takes 1 or 16"), "{text}");
    }
}
