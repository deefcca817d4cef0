//! Libraries of the system that providers need: whether the loader finds them, and their functions.

use std::ffi::{CStr, c_void};
use std::ptr::NonNull;

/// An open library. It stays loaded: the provider that needs it uses it as well.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(unix), allow(dead_code, reason = "none is opened elsewhere"))]
pub(super) struct SystemLibrary(NonNull<c_void>);

impl SystemLibrary {
    /// Opens the library of this name. The error is the loader's, one line. Only on Unix are there any.
    pub(super) fn open(name: &CStr) -> Result<Self, String> {
        #[cfg(unix)]
        {
            // SAFETY: the name ends with a zero. The library's initialisers run, as they do when its provider loads it.
            let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_LAZY | libc::RTLD_LOCAL) };
            NonNull::new(library).map(Self).ok_or_else(loader_error)
        }
        #[cfg(not(unix))]
        {
            Err(format!(
                "{} is not looked for on this system",
                name.to_string_lossy()
            ))
        }
    }

    /// The address of a function.
    pub(super) fn function(self, name: &CStr) -> Option<*mut c_void> {
        #[cfg(unix)]
        {
            // SAFETY: the library is open, and the name ends with a zero.
            let symbol = unsafe { libc::dlsym(self.0.as_ptr(), name.as_ptr()) };
            (!symbol.is_null()).then_some(symbol)
        }
        #[cfg(not(unix))]
        {
            let _ = name;
            None
        }
    }
}

/// What the loader says about its last failure in this thread.
#[cfg(unix)]
fn loader_error() -> String {
    // SAFETY: the message is valid until this thread's next call of the loader.
    let message = unsafe { libc::dlerror() };
    if message.is_null() {
        return "the loader of libraries does not say why".to_owned();
    }
    // SAFETY: as above; it ends with a zero.
    crate::error::one_line(unsafe { CStr::from_ptr(message) }.to_string_lossy())
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_is_missing_is_named() {
        let fault = SystemLibrary::open(c"libnowhere.so.7").unwrap_err();
        assert_eq!(
            fault,
            "libnowhere.so.7: cannot open shared object file: No such file or directory"
        );
    }

    #[test]
    fn functions_are_found_by_name() {
        let libc = SystemLibrary::open(c"libc.so.6").unwrap();
        assert!(libc.function(c"malloc").is_some());
        assert!(libc.function(c"no_such_function").is_none());
    }
}
