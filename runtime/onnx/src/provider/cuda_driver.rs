//! The memory of NVIDIA's GPUs, asked of the driver's own library: ONNX Runtime's interface does not tell it.

use std::ffi::{CStr, c_int, c_uint, c_void};

use super::system_library::SystemLibrary;

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
    Driver::open()?.memory(i32::try_from(device).ok()?)
}

const LIBRARY: &CStr = c"libcuda.so.1";
/// `CUDA_SUCCESS`.
const SUCCESS: c_int = 0;

type Context = *mut c_void;
type Init = unsafe extern "C" fn(c_uint) -> c_int;
type DeviceOf = unsafe extern "C" fn(*mut c_int, c_int) -> c_int;
type Retain = unsafe extern "C" fn(*mut Context, c_int) -> c_int;
type Release = unsafe extern "C" fn(c_int) -> c_int;
type Push = unsafe extern "C" fn(Context) -> c_int;
type Pop = unsafe extern "C" fn(*mut Context) -> c_int;
type MemoryOf = unsafe extern "C" fn(*mut usize, *mut usize) -> c_int;

/// The functions of the driver that tell a device's memory.
struct Driver {
    init: Init,
    device: DeviceOf,
    retain: Retain,
    release: Release,
    push: Push,
    pop: Pop,
    memory: MemoryOf,
}

impl Driver {
    fn open() -> Option<Self> {
        let library = SystemLibrary::open(LIBRARY).ok()?;
        let [init, device, retain, release, push, pop, memory] = [
            c"cuInit",
            c"cuDeviceGet",
            c"cuDevicePrimaryCtxRetain",
            c"cuDevicePrimaryCtxRelease_v2",
            c"cuCtxPushCurrent_v2",
            c"cuCtxPopCurrent_v2",
            c"cuMemGetInfo_v2",
        ]
        .map(|name| library.function(name));
        // SAFETY: these are the driver's functions, with the types that its header (cuda.h) gives them.
        unsafe {
            Some(Self {
                init: std::mem::transmute::<*mut c_void, Init>(init?),
                device: std::mem::transmute::<*mut c_void, DeviceOf>(device?),
                retain: std::mem::transmute::<*mut c_void, Retain>(retain?),
                release: std::mem::transmute::<*mut c_void, Release>(release?),
                push: std::mem::transmute::<*mut c_void, Push>(push?),
                pop: std::mem::transmute::<*mut c_void, Pop>(pop?),
                memory: std::mem::transmute::<*mut c_void, MemoryOf>(memory?),
            })
        }
    }

    /// The memory of a device, asked in its primary context, which CUDA's provider has as well.
    fn memory(&self, ordinal: c_int) -> Option<CardMemory> {
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
