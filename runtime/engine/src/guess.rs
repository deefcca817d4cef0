//! Speculation without a second model: the text so far proposes how it goes on.
//!
//! Texts that quote (logs, tables, code) repeat runs of tokens. Where the last tokens stood before, what followed
//! them then is proposed now, and one run verifies the proposal (prompt look-up decoding; A. Saxena, 2023). A run of
//! a few tokens costs little more than a run of one, so a wrong guess costs little and a right one saves a run.

use crate::ids::TokenId;

/// The most tokens that are proposed at once.
const MOST: usize = 4;
/// Tokens of a run, over all of its rows, that cost little more than the weights they are computed with.
const RUN: usize = 6;
/// The last tokens that must have stood before, longest first.
const NEEDLE: std::ops::RangeInclusive<usize> = 2..=4;
/// How far back is looked: a scan of this many tokens takes microseconds.
const HORIZON: usize = 8192;
/// The longest pause after guesses that came to nothing, in tokens.
const LONGEST_PAUSE: u32 = 64;

/// One sequence's proposals, and what came of them.
#[derive(Debug, Default)]
pub(crate) struct Guesser {
    pub(crate) proposed: usize,
    pub(crate) accepted: usize,
    /// Tokens to go without a proposal.
    pause: u32,
    /// The next pause, doubled with each failure.
    next_pause: u32,
}

impl Guesser {
    /// What may follow `tokens`, at most `room` of them; empty where nothing is worth a try.
    pub(crate) fn propose<'a>(&mut self, tokens: &'a [TokenId], room: usize) -> &'a [TokenId] {
        if self.pause > 0 {
            self.pause -= 1;
            return &[];
        }
        look_up(tokens, MOST.min(room))
    }

    /// Takes note of how many of `proposed` tokens were right.
    pub(crate) fn learn(&mut self, proposed: usize, accepted: usize) {
        self.proposed += proposed;
        self.accepted += accepted;
        if accepted == 0 {
            self.next_pause = (self.next_pause * 2).clamp(2, LONGEST_PAUSE);
            self.pause = self.next_pause;
        } else if accepted * 2 >= proposed {
            self.next_pause = 0;
        }
    }
}

/// The most tokens that each row of a run of `rows` rows may propose: shorter rows are filled up to the longest, so all
/// of them count as if they did.
pub(crate) fn most(rows: usize) -> usize {
    match rows {
        0 | 1 => MOST,
        rows => (RUN / rows).saturating_sub(1).min(MOST),
    }
}

/// What followed the last occurrence of the last few tokens.
fn look_up(tokens: &[TokenId], most: usize) -> &[TokenId] {
    if most == 0 {
        return &[];
    }
    let start = tokens.len().saturating_sub(HORIZON);
    for length in NEEDLE.rev() {
        let Some(begin) = tokens.len().checked_sub(length) else {
            continue;
        };
        let needle = &tokens[begin..];
        // The newest occurrence: texts go on as they last did.
        let found = (start..begin).rev().find(|&at| tokens[at..].starts_with(needle));
        if let Some(at) = found {
            let next = at + length;
            return &tokens[next..(next + most).min(tokens.len())];
        }
    }
    &[]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(ids: &[u32]) -> Vec<TokenId> {
        ids.iter().copied().map(TokenId).collect()
    }

    #[test]
    fn proposes_what_followed_before() {
        let text = tokens(&[1, 2, 3, 4, 5, 6, 7, 1, 2, 3]);
        assert_eq!(look_up(&text, 4), tokens(&[4, 5, 6, 7]));
        assert_eq!(look_up(&text, 2), tokens(&[4, 5]));
        assert_eq!(look_up(&tokens(&[1, 2, 3]), 4), tokens(&[]));
        assert_eq!(look_up(&text, 0), tokens(&[]));
        // The newest of two, and what follows may run into the needle itself.
        assert_eq!(look_up(&tokens(&[1, 2, 8, 1, 2, 9, 1, 2]), 4), tokens(&[9, 1, 2]));
    }

    #[test]
    fn failures_make_it_pause_ever_longer_and_success_starts_over() {
        let text = tokens(&[1, 2, 3, 1, 2]);
        let mut guesser = Guesser::default();
        let mut pauses = Vec::new();
        for _ in 0..7 {
            assert!(!guesser.propose(&text, 4).is_empty());
            guesser.learn(3, 0);
            let mut pause = 0;
            while guesser.propose(&text, 4).is_empty() {
                pause += 1;
            }
            pauses.push(pause);
        }
        assert_eq!(pauses, [2, 4, 8, 16, 32, 64, 64]);
        guesser.learn(3, 2);
        assert!(!guesser.propose(&text, 4).is_empty());
        guesser.learn(3, 0);
        assert_eq!(guesser.pause, 2);
    }
}
