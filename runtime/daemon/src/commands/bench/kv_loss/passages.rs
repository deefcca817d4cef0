//! The token sequences that both models read, and their positions whose predictions are compared.

use std::ops::Range;

use phi_edge_engine::Symbol;

/// The end of the first range of past lengths; each further one ends at twice the end of the one before.
const FIRST_RANGE_TOKENS: usize = 256;
/// The most positions of a range that are compared: its last ones.
const MAX_COMPARED: usize = 1024;

/// A token sequence that is read from an empty row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Passage {
    pub(super) tokens: Vec<Symbol>,
    /// The positions whose predictions are compared, in ascending order: after the token there, what comes next?
    pub(super) compared: Vec<Compared>,
    /// The number of tokens that decides on the LongRoPE factors of the whole sequence: at least its own.
    pub(super) regime_tokens: usize,
    /// Whether the compared positions take a run each, as in decoding; otherwise they are read in chunks, as in prefill.
    pub(super) decoded: bool,
}

/// Positions that are compared, and the index of the group that their figures belong to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Compared {
    pub(super) group: usize,
    pub(super) positions: Range<usize>,
}

/// Passages of equal length from one text, with a group for each range of past lengths.
#[derive(Debug)]
pub(super) struct TextPassages {
    pub(super) passages: Vec<Passage>,
    /// The past lengths of each group.
    pub(super) past: Vec<Range<usize>>,
}

impl TextPassages {
    /// The passages of `length` tokens in `text`; one of the text repeated where the text is shorter. Of each range of past
    /// lengths as many positions are compared as let the logits of all take at most `max_logits` floats, but at least one.
    ///
    /// `None`: `text` has no tokens, or `length` is 0.
    pub(super) fn of(text: &[Symbol], length: usize, vocab_size: usize, max_logits: usize) -> Option<Self> {
        if text.is_empty() || length == 0 {
            return None;
        }
        let count = (text.len() / length).max(1);
        let tokens: Vec<Symbol> = text.iter().copied().cycle().take(count * length).collect();
        let past = past_ranges(length);
        let most = (max_logits / vocab_size.max(1) / count / past.len()).clamp(1, MAX_COMPARED);
        let groups = past.iter().enumerate().map(|(group, past)| Compared {
            group,
            positions: past.end - past.len().min(most)..past.end,
        });
        let compared: Vec<Compared> = groups.collect();
        let passages = tokens.chunks_exact(length).map(|tokens| Passage {
            tokens: tokens.to_vec(),
            compared: compared.clone(),
            regime_tokens: length,
            decoded: false,
        });
        Some(Self {
            passages: passages.collect(),
            past,
        })
    }
}

/// Ranges of past lengths that cover `length`: each ends at twice the end of the one before, the last at `length`.
fn past_ranges(length: usize) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    let (mut start, mut end) = (0, FIRST_RANGE_TOKENS);
    while start < length {
        ranges.push(start..end.min(length));
        (start, end) = (end, end.saturating_mul(2));
    }
    ranges
}
