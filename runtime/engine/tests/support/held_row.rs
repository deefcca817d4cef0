//! A row of the scripted decoder.

use std::ops::Range;

use phi_edge_engine::{Regime, SharedSpan, TokenId};

/// A token in a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HeldToken {
    pub value: (TokenId, Regime),
    /// The number of the write that it came from: the same token written again is another one.
    pub write: u64,
}

/// What a row holds itself, and what it reads from others.
#[derive(Debug, Default)]
pub struct HeldRow {
    /// The place of its first own token.
    pub start: usize,
    pub own: Vec<HeldToken>,
    /// The end of the memory that was written.
    resident: usize,
    /// What it reads from other rows since its last run.
    pub shared: Vec<SharedSpan>,
    /// The tokens that it reads.
    pub read: Vec<HeldToken>,
}

impl HeldRow {
    /// The end of its tokens.
    pub fn end(&self) -> usize {
        self.start + self.own.len()
    }

    /// The number of tokens that its memory takes: overwritten ones are there as long as it is not given back.
    pub fn written(&self) -> usize {
        self.resident.saturating_sub(self.start)
    }

    pub fn push(&mut self, token: HeldToken) {
        self.own.push(token);
        self.resident = self.resident.max(self.end());
    }

    /// Tokens that the row holds itself.
    pub fn range(&self, tokens: Range<usize>) -> impl Iterator<Item = HeldToken> + '_ {
        assert!(
            tokens.is_empty() || (self.start <= tokens.start && tokens.end <= self.end()),
            "a row that holds {}..{} itself is asked for {tokens:?}",
            self.start,
            self.end()
        );
        let from = tokens.start.saturating_sub(self.start);
        self.own.iter().skip(from).take(tokens.len()).copied()
    }

    pub fn truncate(&mut self, len: usize) {
        self.own.truncate(len.saturating_sub(self.start));
        self.resident = self.resident.min(len);
        if self.own.is_empty() && len == 0 {
            *self = Self::default();
        }
    }
}
