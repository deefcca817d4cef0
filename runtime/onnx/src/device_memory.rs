//! Memory of an execution provider's device, from the allocator of a session.
//!
//! A buffer is what the provider says it is: an address on CUDA, a handle on WebGPU. It is never read through, and calculated with
//! where it is known to be an address ([`DeviceBuffer::part`]).

use std::ffi::{CStr, c_void};
use std::ptr::NonNull;
use std::sync::Arc;

use ort::session::Session;
use ort::{AsPointer, sys};

use crate::raw::{Element, View, status};

/// The allocator of the device that a session takes one of its inputs on.
pub(crate) struct DeviceAllocator(NonNull<sys::OrtAllocator>);

// SAFETY: the decoder that owns it is used by one thread at a time; ONNX Runtime's allocators have no thread affinity.
unsafe impl Send for DeviceAllocator {}
// SAFETY: as above; it is shared by the buffers of one owner alone.
unsafe impl Sync for DeviceAllocator {}

impl DeviceAllocator {
    /// The allocator for the input `name`.
    pub(crate) fn of_input(session: &Session, name: &str) -> Result<Arc<Self>, String> {
        let inputs = session.inputs();
        let index = inputs.iter().position(|input| input.name() == name);
        let index = index.ok_or_else(|| format!("it has no input \"{name}\""))?;
        let mut infos = vec![std::ptr::null(); inputs.len()];
        let mut allocator = std::ptr::null_mut();
        // SAFETY: there is room for each input's description, which is the session's; all pointers are valid for the calls.
        unsafe {
            status((ort::api().SessionGetMemoryInfoForInputs)(
                session.ptr(),
                infos.as_mut_ptr(),
                infos.len(),
            ))?;
            status((ort::api().CreateAllocator)(
                session.ptr(),
                infos[index],
                &raw mut allocator,
            ))?;
        }
        NonNull::new(allocator)
            .map(|allocator| Arc::new(Self(allocator)))
            .ok_or_else(|| "ONNX Runtime returned no allocator".to_owned())
    }

    /// The device's name ("Cpu", "Cuda", …).
    pub(crate) fn device(&self) -> Result<String, String> {
        let mut name = std::ptr::null();
        // SAFETY: the description belongs to the allocator, and the name to the description.
        unsafe {
            status((ort::api().MemoryInfoGetName)(self.info()?, &raw mut name))?;
            Ok(CStr::from_ptr(name).to_string_lossy().into_owned())
        }
    }

    /// A buffer of this many bytes, with anything in it.
    pub(crate) fn allocate(self: &Arc<Self>, bytes: usize) -> Result<DeviceBuffer, String> {
        let mut data = std::ptr::null_mut();
        // SAFETY: both pointers are valid for the call.
        status(unsafe { (ort::api().AllocatorAlloc)(self.0.as_ptr(), bytes, &raw mut data) })?;
        let data = NonNull::new(data).ok_or_else(|| format!("the device has no {bytes} bytes left"))?;
        Ok(DeviceBuffer {
            data,
            bytes,
            allocator: Arc::clone(self),
        })
    }

    fn info(&self) -> Result<*const sys::OrtMemoryInfo, String> {
        let mut info = std::ptr::null();
        // SAFETY: both pointers are valid for the call.
        status(unsafe { (ort::api().AllocatorGetInfo)(self.0.as_ptr(), &raw mut info) })?;
        Ok(info)
    }
}

impl Drop for DeviceAllocator {
    fn drop(&mut self) {
        // SAFETY: it was created in `of_input`, is released once, and no buffer of it is left.
        unsafe { (ort::api().ReleaseAllocator)(self.0.as_ptr()) }
    }
}

/// A buffer in a device's memory.
pub(crate) struct DeviceBuffer {
    data: NonNull<c_void>,
    bytes: usize,
    allocator: Arc<DeviceAllocator>,
}

// SAFETY: it owns its memory; see `DeviceAllocator`.
unsafe impl Send for DeviceBuffer {}

impl DeviceBuffer {
    /// The whole buffer as a tensor. It must be dropped before the buffer, and no two runs may use it at once.
    pub(crate) fn view(&self, shape: &[i64], element: Element) -> Result<View, String> {
        let elements: i64 = shape.iter().product();
        let bytes = usize::try_from(elements).map_err(|error| error.to_string())? * element.bytes();
        if bytes != self.bytes {
            return Err(format!("a tensor of {bytes} bytes in a buffer of {}", self.bytes));
        }
        // SAFETY: the buffer has this size; the caller holds to the rest.
        unsafe { View::described_by(self.allocator.info()?, self.data.as_ptr(), shape, element) }
    }

    /// A tensor within the buffer, from its byte `start` on. Only of devices whose buffers are addresses. As for
    /// [`DeviceBuffer::view`], it must be dropped before the buffer.
    pub(crate) fn part(&self, start: usize, shape: &[i64], element: Element) -> Result<View, String> {
        let elements: i64 = shape.iter().product();
        let bytes = usize::try_from(elements).map_err(|error| error.to_string())? * element.bytes();
        if start.checked_add(bytes).is_none_or(|end| end > self.bytes) {
            return Err(format!(
                "{bytes} bytes from {start} on in a buffer of {}",
                self.bytes
            ));
        }
        let data = self.data.as_ptr().wrapping_byte_add(start);
        // SAFETY: the tensor lies within the buffer; the caller holds to the rest.
        unsafe { View::described_by(self.allocator.info()?, data, shape, element) }
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        // SAFETY: it came from this allocator and is freed once. An error means that it is not freed.
        let freed =
            status(unsafe { (ort::api().AllocatorFree)(self.allocator.0.as_ptr(), self.data.as_ptr()) });
        if let Err(error) = freed {
            tracing::warn!(error, "Memory of the device could not be freed.");
        }
    }
}
