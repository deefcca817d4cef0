//! What this processor means for speed.

/// A word of warning where the processor lacks what ONNX Runtime's fast int4 kernels need. It works all the
/// same: the library has slower kernels for every processor of its platform.
pub fn processor_warning() -> Option<&'static str> {
    #[cfg(target_arch = "x86_64")]
    if !std::arch::is_x86_feature_detected!("avx2") {
        return Some(
            "this processor has no AVX2: the model runs, but several times slower than on one that has it",
        );
    }
    None
}
