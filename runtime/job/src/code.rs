//! The error codes of the contract.

/// An error code of the wire contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// The request is malformed.
    BadRequest,
    /// The payload is larger than the limit.
    TooLarge,
    /// The queue is full.
    Busy,
    /// The deadline passed before the job started.
    Expired,
    /// The job was cancelled before it started.
    Cancelled,
    /// The prompt does not fit the context.
    ContextOverflow,
    /// The request asks for something that this model or version can't do.
    Unsupported,
    /// The daemon can't take work now.
    Unavailable,
    /// A fault of the daemon.
    Internal,
}

impl ErrorCode {
    /// Returns the code's spelling on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::TooLarge => "too_large",
            Self::Busy => "busy",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
            Self::ContextOverflow => "context_overflow",
            Self::Unsupported => "unsupported",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
        }
    }
}

impl ErrorCode {
    /// All codes: one that is missing here can't be read back from the store.
    pub const ALL: [Self; 9] = [
        Self::BadRequest,
        Self::TooLarge,
        Self::Busy,
        Self::Expired,
        Self::Cancelled,
        Self::ContextOverflow,
        Self::Unsupported,
        Self::Unavailable,
        Self::Internal,
    ];

    /// Returns the code of this spelling.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|code| code.as_str() == word)
    }
}

impl std::fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
