//! The type of keys and values: the requested one, and the choice of the one in use.

use std::fmt;
use std::str::FromStr;

use phi_edge_engine::KvType;

use crate::error::OnnxError;
use crate::isa::Isa;
use crate::prepare::Prepare;
use crate::provider::Provider;
use crate::raw::Element;

/// The requested type of keys and values in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvCache {
    /// 8 bits where they are possible, else the graph's own type.
    #[default]
    Auto,
    /// The graph's own type: 32-bit floats, or 16-bit ones of graphs that were exported so (CUDA, DirectML).
    F32,
    /// 8-bit integers with a scale for each token and head.
    I8,
}

impl KvCache {
    /// The spelling in the configuration and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::I8 => "i8",
        }
    }
}

impl fmt::Display for KvCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for KvCache {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Auto, Self::F32, Self::I8]
            .into_iter()
            .find(|kv_cache| kv_cache.as_str() == text)
            .ok_or_else(|| format!("unknown type \"{text}\" of keys and values: use auto, f32 or i8"))
    }
}

/// What decides whether 8 bits are possible.
#[derive(Debug, Clone)]
pub(crate) struct KvSupport {
    /// The provider that runs the graph.
    pub(crate) provider: Provider,
    /// The edits of the graph in use.
    pub(crate) edits: Prepare,
    /// The type of keys and values in the graph's file.
    pub(crate) element: Element,
    /// The instruction set of the custom operators; `None`: there are no kernels for 8 bits.
    pub(crate) isa: Option<Isa>,
    /// Why attention is not computed by the custom operator, where `edits` does not have it and that is known.
    pub(crate) attention: Option<String>,
    /// Why the graph's results with 8 bits are not near enough to those with 32, where it was tried.
    pub(crate) trial: Option<String>,
}

impl KvSupport {
    /// The support with kernels of `isa`, without the faults of the graph.
    pub(crate) fn here(provider: Provider, edits: Prepare, element: Element, isa: Option<Isa>) -> Self {
        Self {
            provider,
            edits,
            element,
            isa,
            attention: None,
            trial: None,
        }
    }

    /// The type in use for `requested`. Fails where that is 8 bits and they are not possible, with the reason.
    pub(crate) fn choose(&self, requested: KvCache) -> Result<KvType, OnnxError> {
        match (requested, self.obstacle()) {
            (KvCache::F32, _) | (KvCache::Auto, Some(_)) => Ok(self.float_type()),
            (KvCache::Auto | KvCache::I8, None) => Ok(KvType::I8),
            (KvCache::I8, Some(fault)) => Err(OnnxError::KvCacheUnavailable {
                kv_cache: requested.as_str(),
                fault,
            }),
        }
    }

    /// Logs that `auto` keeps the graph's own type: a warning where this processor supports 8 bits and the graph does not;
    /// `most` are the edits that were allowed.
    pub(crate) fn log_fallback(&self, kv_type: KvType, most: Prepare) {
        let (reason, kv) = (self.obstacle(), kv_type.as_str());
        if self.provider == Provider::Cpu && self.isa.is_some() && most.attention {
            tracing::warn!(
                reason,
                kv,
                "The model's graph does not allow keys and values of 8 bits."
            );
        } else {
            tracing::info!(reason, kv, "Keys and values of 8 bits are not supported here.");
        }
    }

    /// The graph's own type: every [`Element`] that `session.rs` accepts for keys and values.
    pub(crate) fn float_type(&self) -> KvType {
        if self.element == Element::F16 {
            KvType::F16
        } else {
            KvType::F32
        }
    }

    /// The reason why keys and values can't have 8 bits; `None` where they can.
    pub(crate) fn obstacle(&self) -> Option<String> {
        if self.provider != Provider::Cpu {
            Some(format!(
                "the model runs on \"{}\", and 8-bit keys and values are supported on the processor only",
                self.provider
            ))
        } else if self.element != Element::F32 {
            Some("the graph was exported with 16-bit keys and values, and only one with 32-bit ones can be edited for 8 bits".to_owned())
        } else if self.isa.is_none() {
            Some("this version has no kernels for 8-bit keys and values on this processor (they need x86-64 with AVX2 or 64-bit Arm), or runtime.isa leaves them out".to_owned())
        } else if !self.edits.attention {
            let reason = self.attention.as_deref();
            Some(format!(
                "8-bit keys and values need the custom operator for attention, but the edits of the graph in use are \"{}\": {}",
                self.edits,
                reason.unwrap_or("the others do not apply to it")
            ))
        } else {
            self.trial.as_ref().map(|fault| {
                format!("the model was tried with 8-bit keys and values, and they do not serve it: {fault}")
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prepare::Level;

    const ALL: KvSupport = KvSupport {
        provider: Provider::Cpu,
        edits: Prepare::ALL,
        element: Element::F32,
        isa: Some(Isa::Scalar),
        attention: None,
        trial: None,
    };

    #[test]
    fn names_are_read_as_they_are_written() {
        for kv_cache in [KvCache::Auto, KvCache::F32, KvCache::I8] {
            assert_eq!(kv_cache.to_string().parse(), Ok(kv_cache));
        }
        let error = "q8".parse::<KvCache>().unwrap_err();
        assert!(
            error.contains("\"q8\"") && error.contains("auto, f32 or i8"),
            "{error}"
        );
    }

    #[test]
    fn auto_takes_eight_bits_where_they_are_possible() {
        assert_eq!(ALL.choose(KvCache::Auto).unwrap(), KvType::I8);
        assert_eq!(ALL.choose(KvCache::I8).unwrap(), KvType::I8);
        assert_eq!(ALL.choose(KvCache::F32).unwrap(), KvType::F32);
    }

    #[test]
    fn where_eight_bits_are_not_possible_auto_keeps_the_graphs_type_and_i8_says_why() {
        let without_attention = Prepare {
            attention: false,
            ..Prepare::ALL
        };
        let check = |support: KvSupport, kept: KvType, reason: &str| {
            assert_eq!(support.choose(KvCache::Auto).unwrap(), kept, "{reason}");
            assert_eq!(support.choose(KvCache::F32).unwrap(), kept, "{reason}");
            let error = support.choose(KvCache::I8).unwrap_err().to_string();
            let advice = "Set runtime.kv_cache to \"auto\" or \"f32\"";
            assert!(
                error.contains("\"i8\"") && error.contains(reason) && error.contains(advice),
                "{error}"
            );
            assert!(!error.contains('\n'), "{error}");
        };
        let provider = Provider::Cuda;
        check(KvSupport { provider, ..ALL }, KvType::F32, "runs on \"cuda\"");
        let element = Element::F16;
        check(KvSupport { element, ..ALL }, KvType::F16, "16-bit");
        check(
            KvSupport {
                provider,
                element,
                ..ALL
            },
            KvType::F16,
            "runs on \"cuda\"",
        );
        check(KvSupport { isa: None, ..ALL }, KvType::F32, "x86-64 with AVX2");
        let trial = Some("logits differ".to_owned());
        check(KvSupport { trial, ..ALL }, KvType::F32, "logits differ");
        for edits in [without_attention, Prepare::form(Level::Ragged), Prepare::PLAIN] {
            let reason = format!("in use are \"{edits}\": ");
            check(KvSupport { edits, ..ALL }, KvType::F32, &reason);
            let attention = Some("a node has softcap = 30".to_owned());
            let reason = format!("in use are \"{edits}\": a node has softcap = 30.");
            let support = KvSupport {
                edits,
                attention,
                ..ALL
            };
            check(support, KvType::F32, &reason);
        }
    }

    #[test]
    fn this_processors_support_follows_from_its_kernels() {
        for isa in [None, Some(Isa::Scalar), Isa::detect()] {
            let here = KvSupport::here(Provider::Cpu, Prepare::ALL, Element::F32, isa);
            assert_eq!(here.choose(KvCache::I8).is_ok(), isa.is_some());
        }
    }
}
