//! How closely the model looks at an image.

/// How closely the model looks at an image: the most parts that it is cut into, beside the view of the whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Detail {
    /// One part.
    Low,
    /// `model.num_crops` parts.
    #[default]
    Auto,
    /// 16 parts.
    High,
}

impl Detail {
    /// The most parts, where `num_crops` is that of [`Detail::Auto`].
    pub fn crops(self, num_crops: usize) -> usize {
        match self {
            Self::Low => 1,
            Self::Auto => num_crops,
            Self::High => 16,
        }
    }
}
