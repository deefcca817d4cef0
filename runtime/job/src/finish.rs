//! The reasons for which an answer ends.

/// The reason why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token or stop string.
    Stop,
    /// `max_tokens`, a full context, or a text that repeats itself.
    Length,
    /// The client cancelled it.
    Cancelled,
    /// Its deadline passed.
    Deadline,
}

impl FinishReason {
    /// All reasons.
    pub const ALL: [Self; 4] = [Self::Stop, Self::Length, Self::Cancelled, Self::Deadline];

    /// Returns the reason's spelling on the wire and in the store.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Cancelled => "cancelled",
            Self::Deadline => "deadline",
        }
    }

    /// Returns the reason of this spelling.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == word)
    }
}
