//! What is missing, and what to do about it, from the messages of ONNX Runtime and the loader of libraries.

use std::ffi::CStr;

use super::Provider;
use super::system_library::SystemLibrary;

/// The loader of Vulkan's drivers.
const VULKAN: &CStr = c"libvulkan.so.1";

/// The part of ONNX Runtime's message that says what is wrong, without the place in its source.
pub(super) fn essence(message: &str) -> String {
    const MARK: &str = "[ONNXRuntimeError] : ";
    // "/source/file.cc:65 function condition was false. The message".
    const CONDITION: &str = " was false. ";
    // A wrapped error repeats the mark: the innermost one is the cause.
    let Some((_, inner)) = message.rsplit_once(MARK) else {
        let words = message.rsplit_once(CONDITION).map(|(_, words)| words.trim());
        return words
            .filter(|words| !words.is_empty())
            .unwrap_or(message)
            .to_owned();
    };
    // "1 : FAIL : the message".
    let mut parts = inner.splitn(3, " : ");
    let words = match (parts.next(), parts.next(), parts.next()) {
        (Some(code), Some(_), Some(words)) if code.parse::<u32>().is_ok() => words,
        _ => inner,
    };
    words.trim().to_owned()
}

/// The same with the library that WebGPU misses, where it found no device and that is why: it only prints its name.
pub(super) fn with_missing_library(provider: Provider, fault: String) -> String {
    // Elsewhere it takes the system's own interface.
    let by_vulkan = cfg!(unix) && provider == Provider::WebGpu && fault.contains("adapter");
    if !by_vulkan {
        return fault;
    }
    match SystemLibrary::open(VULKAN) {
        Err(missing) => format!("{fault}: {missing}"),
        Ok(_) => fault,
    }
}

/// What to do where `provider` is not available for this reason.
pub(super) fn advice(provider: Provider, fault: &str) -> String {
    if let Some(missing) = missing_library(fault) {
        return format!("Install {missing}{}", origin(missing));
    }
    if let Some((_, symbol)) = fault.split_once("undefined symbol: ") {
        // The driver's own functions go on with a capital, those of CUDA's libraries (cudaMalloc, cublasCreate) do not.
        let rest = symbol.strip_prefix("cu").unwrap_or_default();
        return if rest.starts_with(|letter: char| letter.is_ascii_uppercase()) {
            "Install a newer driver of the GPU, which has that function".to_owned()
        } else {
            "Install libraries of the versions that docs/gpu.md names".to_owned()
        };
    }
    let no_device = [
        "no device",
        "No adapter",
        "adapter",
        "CUDA-capable device",
        "CUDA failure 100",
        // DXGI: unsupported.
        "887A0004",
    ];
    if fault.contains("DXCore is not available") {
        return "Name the device by runtime.device_id; 0 is the first".to_owned();
    }
    // DXGI: not found.
    if fault.contains("887A0002") {
        return "Check runtime.device_id, which counts from 0, and the GPU's driver".to_owned();
    }
    let old_driver = ["driver version is insufficient", "CUDA failure 35"];
    if old_driver.iter().any(|words| fault.contains(words)) {
        return "Install a newer driver of the GPU".to_owned();
    }
    if no_device.iter().any(|words| fault.contains(words)) {
        return match provider {
            Provider::Cuda => "Install NVIDIA's driver, and let the service reach the device (docs/gpu.md)",
            _ => "Install the GPU's driver, and let the service reach the device (docs/gpu.md)",
        }
        .to_owned();
    }
    "See docs/gpu.md for what it needs".to_owned()
}

/// The library that the loader did not find.
fn missing_library(fault: &str) -> Option<&str> {
    let (before, _) = fault.split_once(": cannot open shared object file")?;
    let name = before.rsplit([' ', '"']).next()?;
    (!name.is_empty()).then_some(name)
}

/// Where a library comes from, for those that are known.
fn origin(library: &str) -> &'static str {
    let name = library.rsplit('/').next().unwrap_or(library);
    let known = [
        (
            "libonnxruntime_providers_",
            " beside ONNX Runtime's library, of the same build",
        ),
        ("libcudnn", " (NVIDIA's cuDNN)"),
        ("libcuda.so", " (NVIDIA's driver)"),
        (
            "libcu",
            " (NVIDIA's CUDA toolkit, or its packages nvidia-* of PyPI)",
        ),
        (
            "libnvrtc",
            " (NVIDIA's CUDA toolkit, or its packages nvidia-* of PyPI)",
        ),
        ("libvulkan", " (Debian: libvulkan1, and the GPU's Vulkan driver)"),
    ];
    known
        .into_iter()
        .find(|(prefix, _)| name.starts_with(prefix))
        .map_or(" where the loader of libraries finds it", |(_, origin)| origin)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_is_named_with_its_origin() {
        let message = "/onnxruntime_src/onnxruntime/core/session/provider_bridge_ort.cc:2210 onnxruntime::Provider& \
            onnxruntime::ProviderLibrary::Get() [ONNXRuntimeError] : 1 : FAIL : Failed to load library \
            libonnxruntime_providers_cuda.so with error: libcublasLt.so.13: cannot open shared object file: No such file or \
            directory";
        let fault = essence(message);
        assert_eq!(
            fault,
            "Failed to load library libonnxruntime_providers_cuda.so with error: libcublasLt.so.13: cannot open shared \
             object file: No such file or directory"
        );
        assert_eq!(
            advice(Provider::Cuda, &fault),
            "Install libcublasLt.so.13 (NVIDIA's CUDA toolkit, or its packages nvidia-* of PyPI)"
        );
        let check = |name: &str, expected: &str| {
            let fault =
                format!("/opt/ep.so: {name}: cannot open shared object file: No such file or directory");
            assert!(advice(Provider::Plugin, &fault).contains(expected), "{name}");
        };
        check("libcudnn.so.9", "cuDNN");
        check("libcuda.so.1", "driver");
        check("libvulkan.so.1", "libvulkan1");
        check("libtbb.so.12", "where the loader");
    }

    #[test]
    fn a_library_that_is_too_old_is_told_from_the_driver() {
        let lacks = |symbol: &str| {
            advice(
                Provider::Cuda,
                &format!("libonnxruntime_providers_cuda.so: undefined symbol: {symbol}"),
            )
        };
        assert!(lacks("cuTensorMapEncodeTiled").contains("newer driver"));
        assert!(lacks("cublasLtMatmul").contains("versions"));
        assert!(lacks("_ZN4onnx").contains("versions"));
    }

    #[test]
    fn a_machine_without_vulkan_is_told_so() {
        let fault = "Failed to get a WebGPU adapter: No supported adapters".to_owned();
        let cause = with_missing_library(Provider::WebGpu, fault.clone());
        let expected = match SystemLibrary::open(VULKAN) {
            Err(_) if cfg!(unix) => "Install libvulkan.so.1 (Debian: libvulkan1",
            _ => "Install the GPU's driver",
        };
        assert!(advice(Provider::WebGpu, &cause).starts_with(expected), "{cause}");
        // Of another provider, or another fault, it is not asked.
        assert_eq!(with_missing_library(Provider::Cuda, fault.clone()), fault);
        assert_eq!(with_missing_library(Provider::WebGpu, "lost".to_owned()), "lost");
    }

    #[test]
    fn a_message_without_a_mark_stays_as_it_is() {
        assert_eq!(essence("no device"), "no device");
        assert_eq!(essence("[ONNXRuntimeError] : odd"), "odd");
        assert_eq!(
            essence(
                "/src/webgpu_context.cc:65 Initialize() status == Success was false. Failed to get a WebGPU adapter: none"
            ),
            "Failed to get a WebGPU adapter: none"
        );
        assert_eq!(essence("it was false. "), "it was false. ");
        assert!(advice(Provider::Cuda, "no CUDA-capable device is detected").contains("NVIDIA's driver"));
        assert!(advice(Provider::DirectMl, "Exception(1) tid(218) 887A0004").contains("the GPU's driver"));
        assert!(advice(Provider::DirectMl, "Exception(1) tid(148) 887A0002").contains("runtime.device_id"));
        let old_windows =
            "DXCore is not available on this platform. This is expected on older versions of Windows";
        assert!(advice(Provider::DirectMl, old_windows).contains("runtime.device_id"));
        assert!(advice(Provider::WebGpu, "something else").contains("docs/gpu.md"));
    }
}
