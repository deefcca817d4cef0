//! The processor: its name, and a warning where it is slow.

/// A warning where the processor lacks what ONNX Runtime's fast int4 kernels need. The model runs all the same: the
/// library has slower kernels for every processor of its platform.
pub fn processor_warning() -> Option<&'static str> {
    #[cfg(target_arch = "x86_64")]
    if !std::arch::is_x86_feature_detected!("avx2") {
        return Some(
            "this processor has no AVX2: the model runs, but several times slower than on one that has it",
        );
    }
    None
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
