//! The allocator's settings.

use libmimalloc_sys::{mi_option_set_default, mi_option_t};

/// `mi_option_purge_delay` of mimalloc.h, for which the bindings have no name.
const PURGE_DELAY: mi_option_t = 15;

/// Has the allocator give freed memory back to the system at once, unless `MIMALLOC_PURGE_DELAY` says otherwise: bursts of large
/// messages and pictures otherwise stay resident for a second and more, and new ones are allocated beside them.
pub(crate) fn purge_at_once() {
    #[expect(unsafe_code, reason = "the allocator's settings are C functions")]
    // SAFETY: sets one integer of a table of atomics; any number below the number of options is one.
    unsafe {
        mi_option_set_default(PURGE_DELAY, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_option_is_the_purge_delay() {
        #[expect(unsafe_code, reason = "as above")]
        // SAFETY: reads one integer of a table of atomics.
        let get = || unsafe { libmimalloc_sys::mi_option_get(PURGE_DELAY) };
        if std::env::var_os("MIMALLOC_PURGE_DELAY").is_none() {
            assert_eq!(get(), 1000, "the library's default, in milliseconds");
            purge_at_once();
            assert_eq!(get(), 0);
        }
    }
}
