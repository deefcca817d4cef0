//! The processor: its name, and whether it is slow.

/// Whether the processor lacks what ONNX Runtime's fast int4 kernels and the custom operators need. The model runs all the
/// same: the library has slower kernels for every processor of its platform.
pub fn is_slow_processor() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        !std::arch::is_x86_feature_detected!("avx2")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

/// The kind of processor, as far as results may depend on it.
pub(crate) fn processor_name() -> String {
    // Windows has it in the environment, Linux in a file; on Arm that gives numbers in place of a name.
    let described = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let of = |key: &str| {
        described
            .lines()
            .find(|line| line.starts_with(key))
            .unwrap_or_default()
    };
    let environment = std::env::var("PROCESSOR_IDENTIFIER").unwrap_or_default();
    let lines = ["model name", "flags", "CPU implementer", "CPU part", "Features"].map(of);
    format!("{} {environment} {}", std::env::consts::ARCH, lines.join(" "))
}
