//! The memory of NVIDIA's GPUs, asked of the driver's own library: ONNX Runtime's interface does not tell it.

/// The memory of a device in bytes, at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CardMemory {
    /// Of the whole device, or of the part of it that this process may use (MIG).
    pub(crate) total: u64,
    /// What no process has taken.
    pub(crate) free: u64,
}

/// The memory of a device of CUDA, counted from 0. `None` where the driver can't tell: it is missing, has no such device, or the
/// system is not one of Unix.
pub(crate) fn card_memory(device: u32) -> Option<CardMemory> {
    #[cfg(unix)]
    return unix::Driver::open()?.memory(i32::try_from(device).ok()?);
    #[cfg(not(unix))]
    {
        let _ = device;
        None
    }
}

#[cfg(unix)]
mod unix {
    use std::ffi::{CStr, c_int, c_uint, c_void};

    use super::CardMemory;

    const LIBRARY: &CStr = c"libcuda.so.1";
    /// `CUDA_SUCCESS`.
    const SUCCESS: c_int = 0;

    type Context = *mut c_void;

    /// The functions of the driver that tell a device's memory. The library stays loaded: CUDA's provider needs it as well.
    pub(super) struct Driver {
        init: unsafe extern "C" fn(c_uint) -> c_int,
        device: unsafe extern "C" fn(*mut c_int, c_int) -> c_int,
        retain: unsafe extern "C" fn(*mut Context, c_int) -> c_int,
        release: unsafe extern "C" fn(c_int) -> c_int,
        push: unsafe extern "C" fn(Context) -> c_int,
        pop: unsafe extern "C" fn(*mut Context) -> c_int,
        memory: unsafe extern "C" fn(*mut usize, *mut usize) -> c_int,
    }

    impl Driver {
        pub(super) fn open() -> Option<Self> {
            // SAFETY: the name ends with a zero. The driver's initialisers run, as they do when CUDA's provider is loaded.
            let library = unsafe { libc::dlopen(LIBRARY.as_ptr(), libc::RTLD_LAZY | libc::RTLD_LOCAL) };
            if library.is_null() {
                return None;
            }
            // SAFETY: these are the driver's functions with the types that its header (cuda.h) gives them.
            unsafe {
                Some(Self {
                    init: std::mem::transmute::<*mut c_void, _>(symbol(library, c"cuInit")?),
                    device: std::mem::transmute::<*mut c_void, _>(symbol(library, c"cuDeviceGet")?),
                    retain: std::mem::transmute::<*mut c_void, _>(symbol(
                        library,
                        c"cuDevicePrimaryCtxRetain",
                    )?),
                    release: std::mem::transmute::<*mut c_void, _>(symbol(
                        library,
                        c"cuDevicePrimaryCtxRelease_v2",
                    )?),
                    push: std::mem::transmute::<*mut c_void, _>(symbol(library, c"cuCtxPushCurrent_v2")?),
                    pop: std::mem::transmute::<*mut c_void, _>(symbol(library, c"cuCtxPopCurrent_v2")?),
                    memory: std::mem::transmute::<*mut c_void, _>(symbol(library, c"cuMemGetInfo_v2")?),
                })
            }
        }

        /// The memory of a device, asked in its primary context, which CUDA's provider has as well.
        pub(super) fn memory(&self, ordinal: c_int) -> Option<CardMemory> {
            let (mut device, mut context, mut before) = (0, std::ptr::null_mut(), std::ptr::null_mut());
            let (mut free, mut total) = (0, 0);
            // SAFETY: all pointers are to variables of the right types, which live longer than the calls. The context is current
            // between `push` and `pop` alone, and is released as often as it is retained.
            let outcome = unsafe {
                if (self.init)(0) != SUCCESS || (self.device)(&raw mut device, ordinal) != SUCCESS {
                    return None;
                }
                if (self.retain)(&raw mut context, device) != SUCCESS {
                    return None;
                }
                let mut outcome = (self.push)(context);
                if outcome == SUCCESS {
                    outcome = (self.memory)(&raw mut free, &raw mut total);
                    (self.pop)(&raw mut before);
                }
                (self.release)(device);
                outcome
            };
            (outcome == SUCCESS).then_some(CardMemory {
                total: total as u64,
                free: free as u64,
            })
        }
    }

    /// # Safety
    /// `library` must be open.
    unsafe fn symbol(library: *mut c_void, name: &CStr) -> Option<*mut c_void> {
        // SAFETY: the caller vouches for the library; the name ends with a zero.
        let symbol = unsafe { libc::dlsym(library, name.as_ptr()) };
        (!symbol.is_null()).then_some(symbol)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_free_is_part_of_the_whole_and_unknown_devices_have_none() {
        if let Some(memory) = card_memory(0) {
            assert!(memory.free <= memory.total && memory.total > 0, "{memory:?}");
        }
        assert_eq!(card_memory(u32::MAX), None);
        assert_eq!(card_memory(4096), None);
    }
}
