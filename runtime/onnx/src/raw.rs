//! Raw tensors over borrowed memory. Safe bindings of borrowed tensors deadlock in this version of `ort`
//! (docs/decisions), so views and bindings go through the C API.

use std::ffi::{CStr, c_void};
use std::ptr::NonNull;

use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::{IoBinding, RunOptions, Session};
use ort::{AsPointer, sys};

use crate::error::one_line;

/// An element type of the graphs' inputs and outputs. `session.rs` decides which of them logits, keys and values may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Element {
    F32,
    F16,
    I32,
    I64,
    U8,
}

impl Element {
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::F32 | Self::I32 => 4,
            Self::F16 => 2,
            Self::I64 => 8,
            Self::U8 => 1,
        }
    }

    fn code(self) -> sys::ONNXTensorElementDataType {
        use sys::ONNXTensorElementDataType as Code;
        match self {
            Self::F32 => Code::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
            Self::F16 => Code::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
            Self::I32 => Code::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32,
            Self::I64 => Code::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64,
            Self::U8 => Code::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
        }
    }
}

/// The description of the host's memory.
pub(crate) fn host_memory() -> ort::Result<MemoryInfo<'static>> {
    MemoryInfo::new(
        AllocationDevice::CPU,
        0,
        AllocatorType::Device,
        MemoryType::Default,
    )
}

/// A tensor over borrowed memory.
pub(crate) struct View(NonNull<sys::OrtValue>);

// SAFETY: an OrtValue has no thread affinity; the decoder that holds the views is used by one thread at a time.
unsafe impl Send for View {}

impl View {
    /// A tensor of `shape` at `data`.
    ///
    /// # Safety
    /// `data` must point to `shape`'s product of elements on the device of `memory`, which stay valid and
    /// are not otherwise written for as long as a run may use the view.
    pub(crate) unsafe fn new(
        memory: &MemoryInfo<'_>,
        data: *mut c_void,
        shape: &[i64],
        element: Element,
    ) -> Result<Self, String> {
        // SAFETY: the description is valid for the call; the caller vouches for the data.
        unsafe { Self::described_by(memory.ptr(), data, shape, element) }
    }

    /// The same, where `memory` is the description of an allocator.
    ///
    /// # Safety
    /// As for [`View::new`]; `memory` must be valid for the call.
    pub(crate) unsafe fn described_by(
        memory: *const sys::OrtMemoryInfo,
        data: *mut c_void,
        shape: &[i64],
        element: Element,
    ) -> Result<Self, String> {
        let elements: i64 = shape.iter().product();
        let bytes = usize::try_from(elements).map_err(|e| e.to_string())? * element.bytes();
        let mut value = std::ptr::null_mut();
        // SAFETY: the pointers are valid for the call; the caller vouches for the data.
        status(unsafe {
            (ort::api().CreateTensorWithDataAsOrtValue)(
                memory,
                data,
                bytes,
                shape.as_ptr(),
                shape.len(),
                element.code(),
                &raw mut value,
            )
        })?;
        NonNull::new(value)
            .map(Self)
            .ok_or_else(|| "ONNX Runtime returned no tensor".to_owned())
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // SAFETY: the value was created in `new` and is released once. The data is not the value's.
        unsafe { (ort::api().ReleaseValue)(self.0.as_ptr()) }
    }
}

/// Binds `view` as an input. The binding shares the value; the data must outlive the runs.
pub(crate) fn bind_input(binding: &mut IoBinding, name: &CStr, view: &View) -> Result<(), String> {
    // SAFETY: all three pointers are valid for the call, and the binding takes its own reference.
    status(unsafe { (ort::api().BindInput)(binding.ptr_mut(), name.as_ptr(), view.0.as_ptr()) })
}

/// Binds `view` as an output.
pub(crate) fn bind_output(binding: &mut IoBinding, name: &CStr, view: &View) -> Result<(), String> {
    // SAFETY: as for `bind_input`.
    status(unsafe { (ort::api().BindOutput)(binding.ptr_mut(), name.as_ptr(), view.0.as_ptr()) })
}

/// Runs the session over what is bound.
pub(crate) fn run(session: &mut Session, options: &RunOptions, binding: &IoBinding) -> Result<(), String> {
    // SAFETY: `session` is borrowed mutably, so no other run is under way; the rest is valid for the call.
    status(unsafe { (ort::api().RunWithBinding)(session.ptr().cast_mut(), options.ptr(), binding.ptr()) })
}

/// The outcome of a call of the C API.
pub(crate) fn status(status: sys::OrtStatusPtr) -> Result<(), String> {
    if status.0.is_null() {
        return Ok(());
    }
    // SAFETY: a non-null status carries a message until it is released, once.
    unsafe {
        let message = CStr::from_ptr((ort::api().GetErrorMessage)(status.0))
            .to_string_lossy()
            .into_owned();
        (ort::api().ReleaseStatus)(status.0);
        Err(one_line(message))
    }
}
