//! The instruction set of the custom operators' kernels: detected, or forced by the configuration.

use std::fmt;
use std::str::FromStr;

use crate::error::OnnxError;
use crate::paged_stand_in::{PagedStandIn, RUNTIME_DOMAIN};

/// The instruction set that the kernels of the custom operators are written for. All kernels give the same results, to the
/// last bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Isa {
    /// AVX-512 with F, BW, VL and VNNI: registers of 512 bits.
    Avx512Vnni,
    /// AVX2, FMA and F16C with dot products of bytes in registers of 256 bits: AVX-VNNI, or VNNI of AVX-512VL.
    AvxVnni,
    /// AVX2, FMA and F16C.
    Avx2,
    /// NEON with dot products of bytes (Arm's FEAT_DotProd).
    NeonDot,
    /// NEON, which every 64-bit Arm processor has.
    Neon,
    /// No vector instructions: the reference. Never chosen by itself.
    Scalar,
}

impl Isa {
    /// All instruction sets, the fastest of each architecture first.
    pub const ALL: [Self; 6] = [
        Self::Avx512Vnni,
        Self::AvxVnni,
        Self::Avx2,
        Self::NeonDot,
        Self::Neon,
        Self::Scalar,
    ];

    /// The spelling in the configuration and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Avx512Vnni => "avx512vnni",
            Self::AvxVnni => "avxvnni",
            Self::Avx2 => "avx2",
            Self::NeonDot => "neondot",
            Self::Neon => "neon",
            Self::Scalar => "scalar",
        }
    }

    /// Whether this processor has the instruction set.
    #[cfg(target_arch = "x86_64")]
    pub fn is_supported(self) -> bool {
        use std::arch::is_x86_feature_detected as has;
        let avx2 = has!("avx2") && has!("fma") && has!("f16c");
        match self {
            Self::Avx512Vnni => has!("avx512f") && has!("avx512bw") && has!("avx512vl") && has!("avx512vnni"),
            Self::AvxVnni => avx2 && (has!("avxvnni") || (has!("avx512vl") && has!("avx512vnni"))),
            Self::Avx2 => avx2,
            Self::NeonDot | Self::Neon => false,
            Self::Scalar => true,
        }
    }

    /// Whether this processor has the instruction set.
    #[cfg(target_arch = "aarch64")]
    pub fn is_supported(self) -> bool {
        match self {
            Self::NeonDot => std::arch::is_aarch64_feature_detected!("dotprod"),
            Self::Neon | Self::Scalar => true,
            Self::Avx512Vnni | Self::AvxVnni | Self::Avx2 => false,
        }
    }

    /// Whether this processor has the instruction set.
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    pub fn is_supported(self) -> bool {
        self == Self::Scalar
    }

    /// Whether this processor has the dot products of 256 bits in AVX-512VL's encoding (EVEX), with 32 registers, and this
    /// instruction set may use it.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn has_evex_dot_products(self) -> bool {
        use std::arch::is_x86_feature_detected as has;
        self == Self::AvxVnni && has!("avx512vl") && has!("avx512vnni")
    }

    /// The fastest instruction set that this processor has; `None` where ONNX Runtime's own kernels are faster than what is
    /// left.
    pub fn detect() -> Option<Self> {
        let vector = Self::ALL.into_iter().filter(|isa| *isa != Self::Scalar);
        vector.into_iter().find(|isa| isa.is_supported())
    }
}

/// The requested instruction set of the custom operators' kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IsaChoice {
    /// The fastest that this processor has.
    #[default]
    Auto,
    /// This one; the load fails where the processor does not have it.
    Only(Isa),
    /// None: the custom operators are left out, and ONNX Runtime's kernels compute.
    None,
}

impl IsaChoice {
    /// The spelling in the configuration and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Only(isa) => isa.as_str(),
            Self::None => "none",
        }
    }

    /// The instruction set in use; `None` where the custom operators are left out.
    ///
    /// # Errors
    /// This processor does not have the requested one.
    pub(crate) fn resolve(self) -> Result<Option<Isa>, OnnxError> {
        match self {
            Self::Auto => Ok(Isa::detect()),
            Self::None => Ok(None),
            Self::Only(isa) if isa.is_supported() => Ok(Some(isa)),
            Self::Only(isa) => Err(OnnxError::IsaUnavailable { isa: isa.as_str() }),
        }
    }
}

impl fmt::Display for IsaChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for IsaChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let only = Isa::ALL.into_iter().map(Self::Only);
        [Self::Auto, Self::None]
            .into_iter()
            .chain(only)
            .find(|choice| choice.as_str() == text)
            .ok_or_else(|| {
                format!(
                    "unknown instruction set \"{text}\": use auto, avx512vnni, avxvnni, avx2, neondot, neon, scalar or none"
                )
            })
    }
}

/// The resources of a session on the processor.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CpuResources {
    /// Threads of a run.
    pub(crate) threads: usize,
    /// The instruction set of the custom operators; `None`: the session has none of them.
    pub(crate) isa: Option<Isa>,
    /// What computes `PagedAttention`; `None`: nothing on the processor does.
    pub(crate) paged: Option<PagedStandIn>,
}

impl CpuResources {
    /// The domain of `PagedAttention`.
    pub(crate) fn paged_domain(&self) -> &'static str {
        self.paged.map_or(RUNTIME_DOMAIN, |paged| paged.domain)
    }

    /// Those of a small graph without custom operators.
    pub(crate) const ONE_THREAD: Self = Self {
        threads: 1,
        isa: None,
        paged: None,
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for choice in [IsaChoice::Auto, IsaChoice::None]
            .into_iter()
            .chain(Isa::ALL.map(IsaChoice::Only))
        {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
        let error = "avx".parse::<IsaChoice>().unwrap_err();
        assert!(
            error.contains("\"avx\"") && error.contains("avx2, neondot, neon, scalar or none"),
            "{error}"
        );
    }

    #[test]
    fn the_choice_is_the_detected_one_the_forced_one_or_none() {
        assert_eq!(IsaChoice::Auto.resolve().unwrap(), Isa::detect());
        assert_eq!(IsaChoice::None.resolve().unwrap(), None);
        assert_ne!(Isa::detect(), Some(Isa::Scalar));
        for isa in Isa::ALL {
            match IsaChoice::Only(isa).resolve() {
                Ok(chosen) => assert!(chosen == Some(isa) && isa.is_supported()),
                Err(error) => {
                    let error = error.to_string();
                    assert!(!isa.is_supported() && error.contains(isa.as_str()), "{error}");
                }
            }
        }
        // What is detected is the first of what is supported.
        let supported = Isa::ALL.into_iter().find(|isa| isa.is_supported());
        assert_eq!(Isa::detect(), supported.filter(|isa| *isa != Isa::Scalar));
    }
}
