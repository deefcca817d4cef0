//! The form of the image encoder's weights in memory.

/// The form of the image encoder's weights in memory: as in the file, or quantised when the model is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum VisionWeights {
    /// 8 bits where this program has kernels for the processor and the loss is small; else as in the file.
    #[default]
    Auto,
    /// As in the file.
    F32,
    /// 8 bits, in blocks of 64 with a scale each.
    Int8,
    /// 4 bits, in blocks of 32 with a scale each: half the memory of 8 bits, no faster, and a larger loss.
    Int4,
}

impl VisionWeights {
    /// The spelling in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }

    /// Bits of a weight and the size of a block, where weights are quantised.
    pub(super) fn quantisation(self) -> Option<(i64, i64)> {
        match self {
            Self::F32 => None,
            Self::Auto | Self::Int8 => Some((8, 64)),
            Self::Int4 => Some((4, 32)),
        }
    }
}

impl std::str::FromStr for VisionWeights {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Auto, Self::F32, Self::Int8, Self::Int4]
            .into_iter()
            .find(|weights| weights.as_str() == text)
            .ok_or_else(|| format!("unknown \"{text}\": use auto, f32, int8 or int4"))
    }
}
