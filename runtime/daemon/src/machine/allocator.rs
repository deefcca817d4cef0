//! The allocator's settings: what is freed goes back to the system, whatever stays beside it.

use libmimalloc_sys::{mi_option_set_default, mi_option_t};

// Options of mimalloc.h (version 3), for which the bindings have no names.
/// `mi_option_purge_delay`, in milliseconds.
const PURGE_DELAY: mi_option_t = 15;
/// `mi_option_arena_max_object_size`, in KiB.
const ARENA_MAX_OBJECT_SIZE: mi_option_t = 45;

/// Larger objects (pixels, weights) are mapped each by itself, so that what is left of one does not hold an arena's pages.
const LARGEST_IN_ARENA_KIB: std::ffi::c_long = 8 << 10;

/// Has the allocator give freed memory back to the system at once and in pages of the smallest size, unless `MIMALLOC_PURGE_DELAY`
/// or `MIMALLOC_ARENA_MAX_OBJECT_SIZE` say otherwise. Bursts of large messages and pictures otherwise stay resident: for a
/// second and more, and beyond that wherever a few bytes of a large page (2 MiB) are still in use.
pub(crate) fn return_memory_at_once() {
    #[expect(unsafe_code, reason = "the allocator's settings are C functions")]
    // SAFETY: sets integers of a table of atomics; any number below the number of options is one.
    unsafe {
        mi_option_set_default(PURGE_DELAY, 0);
        mi_option_set_default(ARENA_MAX_OBJECT_SIZE, LARGEST_IN_ARENA_KIB);
    }
    #[cfg(target_os = "linux")]
    use_small_pages();
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    bound_c_heap();
}

/// Bounds what the C library's allocator keeps, which ONNX Runtime, SQLite and the tokenizers' regular expressions use: one arena
/// for all threads, of which the end is given back, and a mapping of its own for each object over 1 MiB. Left alone it makes an
/// arena for each thread. `MALLOC_ARENA_MAX` in the environment leaves all of it as it is there.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn bound_c_heap() {
    if std::env::var_os("MALLOC_ARENA_MAX").is_some() {
        return;
    }
    #[expect(unsafe_code, reason = "the allocator's settings are C functions")]
    // SAFETY: sets parameters of the allocator, before other threads exist.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 128 << 10);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 20);
    }
}

/// Keeps the kernel from backing the allocator's arena with large pages where it does so unasked
/// (`/sys/kernel/mm/transparent_hugepage/enabled` is `always`, as on Debian). The library is built not to ask (`no_thp`). Weights ask
/// for themselves, and ONNX Runtime's memory is not the allocator's. Where it fails, memory is returned later: no error.
#[cfg(target_os = "linux")]
fn use_small_pages() {
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else {
        return;
    };
    // The string lies in the arena that was reserved at the first allocation.
    let Some((start, end)) = mapping_of(&maps, maps.as_ptr() as usize) else {
        return;
    };
    #[expect(unsafe_code, reason = "advice on memory is a C function")]
    // SAFETY: the advice changes no contents, only by what pages they are backed.
    unsafe {
        libc::madvise(start as *mut _, end - start, libc::MADV_NOHUGEPAGE);
    }
}

/// The bounds of the mapping that holds `address`, in the text of `/proc/PID/maps`.
#[cfg(target_os = "linux")]
fn mapping_of(maps: &str, address: usize) -> Option<(usize, usize)> {
    maps.lines().find_map(|line| {
        let (start, end) = line.split_once(' ')?.0.split_once('-')?;
        let start = usize::from_str_radix(start, 16).ok()?;
        let end = usize::from_str_radix(end, 16).ok()?;
        (start..end).contains(&address).then_some((start, end))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A library with other numbers for its options fails here, not on a machine in the field.
    #[test]
    fn the_options_are_those_meant() {
        #[expect(unsafe_code, reason = "as above")]
        // SAFETY: reads one integer of a table of atomics.
        let get = |option| unsafe { libmimalloc_sys::mi_option_get(option) };
        let unset = |name: &str| std::env::var_os(name).is_none();
        if unset("MIMALLOC_PURGE_DELAY") && unset("MIMALLOC_ARENA_MAX_OBJECT_SIZE") {
            assert_eq!(get(PURGE_DELAY), 1000, "the library's default, in milliseconds");
            assert_eq!(
                get(ARENA_MAX_OBJECT_SIZE),
                2 << 20,
                "the library's default, in KiB"
            );
            return_memory_at_once();
            assert_eq!(get(PURGE_DELAY), 0);
            assert_eq!(get(ARENA_MAX_OBJECT_SIZE), LARGEST_IN_ARENA_KIB);
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_mapping_of_an_address_is_found() {
        let maps = "1000-3000 r-xp 00000000 fe:00 1 /bin/x\n3000-a000 rw-p 00000000 00:00 0 \n";
        assert_eq!(mapping_of(maps, 0x2fff), Some((0x1000, 0x3000)));
        assert_eq!(mapping_of(maps, 0x3000), Some((0x3000, 0xa000)));
        assert_eq!(mapping_of(maps, 0xa000), None);
        assert_eq!(mapping_of("nothing\nlike-this here\n", 1), None);
    }
}
