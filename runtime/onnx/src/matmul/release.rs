//! The release of pages of weights that were read from their file once.

/// The bytes of floats.
pub(crate) fn bytes_of(floats: &[f32]) -> &[u8] {
    // SAFETY: floats are bytes without gaps.
    unsafe { std::slice::from_raw_parts(floats.as_ptr().cast::<u8>(), size_of_val(floats)) }
}

/// Releases the memory of each of `parts` that is mapped from a file: it is read again on access.
///
/// ONNX Runtime keeps an operator's constant inputs for as long as the session lives, mapped from the weights' file. They
/// would count as this process's memory beside their packed copy.
#[cfg(target_os = "linux")]
pub(crate) fn release(parts: &[&[u8]]) {
    use std::ffi::c_void;

    // SAFETY: it has no preconditions.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    for bytes in parts {
        let begin = bytes.as_ptr().addr();
        let start = begin.next_multiple_of(page);
        let end = (begin + bytes.len()) / page * page;
        if start < end && is_file(&maps, start, end) {
            let address = bytes[start - begin..].as_ptr().cast::<c_void>().cast_mut();
            // SAFETY: the pages are those of a file alone, privately mapped and never written, so that nothing in them is
            // lost. Where it fails they stay, which costs memory and nothing else.
            unsafe { libc::madvise(address, end - start, libc::MADV_DONTNEED) };
        }
    }
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn release(_parts: &[&[u8]]) {}

/// Whether one private mapping of a file covers `start..end`, according to `maps` (proc_pid_maps(5)).
#[cfg(target_os = "linux")]
fn is_file(maps: &str, start: usize, end: usize) -> bool {
    maps.lines().any(|line| {
        // address, permissions, offset, device, inode
        let mut fields = line.split_ascii_whitespace();
        let range = fields.next().and_then(|range| range.split_once('-'));
        let private = fields
            .next()
            .is_some_and(|permissions| permissions.ends_with('p'));
        let inode = fields.nth(2);
        let address = |text| usize::from_str_radix(text, 16).ok();
        let covers = range.is_some_and(|(from, to)| {
            address(from).is_some_and(|from| from <= start) && address(to).is_some_and(|to| end <= to)
        });
        covers && private && inode.is_some_and(|inode| inode != "0")
    })
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_mapped_file_is_read_again_and_own_memory_is_kept() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![7; 40_000]).unwrap();
        // SAFETY: no one else has the file.
        let map = unsafe { memmap2::Mmap::map(&file) }.unwrap();
        release(&[&map[100..39_000], &map[..10], &[]]);
        assert!(map.iter().all(|byte| *byte == 7));
        let own = vec![7u8; 4_000_000];
        release(&[&own]);
        assert!(own.iter().all(|byte| *byte == 7));
    }

    #[test]
    fn only_a_private_mapping_of_a_file_is_one() {
        let maps = "1000-5000 r--p 00000000 fe:00 123 /weights\n\
                    5000-9000 rw-p 00000000 00:00 0 \n\
                    9000-b000 r--s 00000000 fe:00 124 /other\n";
        for (start, end, expected) in [
            (0x1000, 0x5000, true),
            (0x2000, 0x3000, true),
            (0x4000, 0x6000, false),
            (0x5000, 0x6000, false),
            (0x9000, 0xa000, false),
        ] {
            assert_eq!(is_file(maps, start, end), expected, "{start:x}");
        }
    }
}
