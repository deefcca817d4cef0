//! Speculative decoding without a draft model: the text so far drafts how it goes on.
//!
//! Texts that quote (logs, tables, code) repeat runs of tokens. Where the last n-gram occurred before, the tokens
//! that followed it are the draft, and one run verifies it (prompt lookup decoding; A. Saxena, 2023). The draft
//! length follows from what a wider run costs ([`RunCost`]) and from how often such drafts were accepted.

use crate::cost::RunCost;
use crate::symbol::Symbol;

/// The most tokens of a draft.
const MAX_DRAFT_TOKENS: usize = 8;
/// The fewest tokens of an n-gram that is looked up.
const MIN_NGRAM_TOKENS: usize = 2;
/// The most tokens of an n-gram: longer ones predict no better.
const MAX_NGRAM_TOKENS: usize = 32;
/// The number of tokens that are searched: a scan of this many takes microseconds.
const LOOKBACK_TOKENS: usize = 8192;
/// Classes of n-grams by their most tokens, with the acceptance rate that each begins with.
const ACCEPTANCE_CLASSES: [(usize, f64); 5] = [(2, 0.25), (3, 0.4), (5, 0.6), (9, 0.75), (usize::MAX, 0.85)];
/// The weight of one verified token in the acceptance rate.
const OUTCOME_WEIGHT: f64 = 0.2;
/// The weight by which each skipped draft moves the acceptance rate back to where it began: texts change.
const RECOVERY_WEIGHT: f64 = 0.02;
/// The least speed-up that a wider run must have by estimate, since costs and rates are estimates.
const MIN_SPEEDUP: f64 = 1.05;

/// Tokens that may follow a text.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Draft<'a> {
    /// At most [`MAX_DRAFT_TOKENS`].
    pub(crate) tokens: &'a [Symbol],
    class: usize,
}

/// Drafts at most `room` tokens to follow `tokens`.
pub(crate) fn draft(tokens: &[Symbol], room: usize) -> Option<Draft<'_>> {
    let (next, agreeing) = longest_match(tokens)?;
    let most = (next + MAX_DRAFT_TOKENS.min(room)).min(tokens.len());
    // A decode run takes tokens alone: a draft ends before a place in an image.
    let end = next
        + tokens[next..most]
            .iter()
            .take_while(|symbol| symbol.token().is_some())
            .count();
    let class = ACCEPTANCE_CLASSES
        .iter()
        .position(|(most, _)| agreeing <= *most)?;
    (next < end).then(|| Draft {
        tokens: &tokens[next..end],
        class,
    })
}

/// The n-gram drafter of one sequence: its counts and acceptance rates.
#[derive(Debug)]
pub(crate) struct NgramDrafter {
    pub(crate) drafted: usize,
    pub(crate) accepted: usize,
    /// The rate at which each further token is accepted, by class.
    acceptance: [f64; ACCEPTANCE_CLASSES.len()],
    /// The class of the draft under verification.
    verified_class: usize,
}

impl Default for NgramDrafter {
    fn default() -> Self {
        Self {
            drafted: 0,
            accepted: 0,
            acceptance: ACCEPTANCE_CLASSES.map(|(_, chance)| chance),
            verified_class: 0,
        }
    }
}

impl NgramDrafter {
    /// The expected number of accepted tokens if `length` of `draft` are verified.
    pub(crate) fn expected_tokens(&self, draft: &Draft<'_>, length: usize) -> f64 {
        let chance = self.acceptance[draft.class];
        let mut all_so_far = 1.0;
        (0..length.min(draft.tokens.len()))
            .map(|_| {
                all_so_far *= chance;
                all_so_far
            })
            .sum()
    }

    /// Notes that a draft of this class is about to be verified, or (`false`) was skipped.
    pub(crate) fn begin_verification(&mut self, class: usize, drafted: bool) {
        self.verified_class = class;
        if !drafted {
            let (_, began) = ACCEPTANCE_CLASSES[class];
            self.acceptance[class] += RECOVERY_WEIGHT * (began - self.acceptance[class]);
        }
    }

    /// Counts the tokens of a draft and how many of them were accepted.
    pub(crate) fn record(&mut self, drafted: usize, accepted: usize) {
        self.drafted += drafted;
        self.accepted += accepted;
        let chance = &mut self.acceptance[self.verified_class];
        for _ in 0..accepted {
            *chance += OUTCOME_WEIGHT * (1.0 - *chance);
        }
        if accepted < drafted {
            *chance -= OUTCOME_WEIGHT * *chance;
        }
    }
}

impl Draft<'_> {
    pub(crate) fn class(&self) -> usize {
        self.class
    }
}

/// The draft length of a run over `rows` rows; 0 where a draft does not pay. Shorter rows are filled up to the
/// longest, so all of them count as if they were as long.
pub(crate) fn draft_length(
    drafts: &[(&NgramDrafter, Draft<'_>)],
    rows: usize,
    members: usize,
    cost: &RunCost,
) -> usize {
    #[expect(clippy::cast_precision_loss, reason = "a handful of rows")]
    let certain = members as f64;
    let Some(plain) = cost.of(rows) else { return 0 };
    let mut best = (0, MIN_SPEEDUP * certain / plain);
    for length in 1..=MAX_DRAFT_TOKENS {
        let Some(cost) = cost.of(rows * (1 + length)) else {
            break;
        };
        let expected: f64 = drafts
            .iter()
            .map(|(drafter, draft)| drafter.expected_tokens(draft, length))
            .sum();
        let value = (certain + expected) / cost;
        if value > best.1 {
            best = (length, value);
        }
    }
    best.0
}

/// The longest earlier match of the text's end: the position after it and its length. Of equal lengths the newest
/// wins: texts go on as they last did. A match has tokens alone: what stands about an image says nothing about it.
fn longest_match(tokens: &[Symbol]) -> Option<(usize, usize)> {
    let last = tokens.len().checked_sub(1)?;
    let start = tokens.len().saturating_sub(LOOKBACK_TOKENS);
    let mut best = None;
    let mut longest = MIN_NGRAM_TOKENS - 1;
    for at in (start..last).rev() {
        // Positions that can't beat the best so far are skipped quickly.
        if tokens[at] != tokens[last] || at < longest || tokens[at - longest] != tokens[last - longest] {
            continue;
        }
        let agreeing = (0..=at.min(MAX_NGRAM_TOKENS - 1))
            .take_while(|&back| {
                tokens[at - back] == tokens[last - back] && tokens[at - back].token().is_some()
            })
            .count();
        if agreeing > longest {
            (best, longest) = (Some((at + 1, agreeing)), agreeing);
        }
        if longest == MAX_NGRAM_TOKENS {
            break;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::TokenId;
    use crate::symbol::ImageId;

    fn tokens(ids: &[u32]) -> Vec<Symbol> {
        ids.iter().copied().map(|id| Symbol::Token(TokenId(id))).collect()
    }

    #[test]
    fn the_longest_agreement_counts_then_the_newest() {
        let text = tokens(&[1, 2, 3, 4, 5, 6, 7, 1, 2, 3]);
        assert_eq!(longest_match(&text), Some((3, 3)));
        assert_eq!(longest_match(&tokens(&[1, 2, 3])), None);
        assert_eq!(longest_match(&tokens(&[])), None);
        // One token is no reason.
        assert_eq!(longest_match(&tokens(&[1, 2, 1])), None);
        assert_eq!(longest_match(&tokens(&[1, 2, 8, 1, 2, 9, 1, 2])), Some((5, 2)));
        // Longer, though older; and what follows may run into the last tokens themselves.
        assert_eq!(
            longest_match(&tokens(&[5, 1, 2, 8, 1, 2, 9, 5, 1, 2])),
            Some((3, 3))
        );
        assert_eq!(longest_match(&tokens(&[4, 4, 4])), Some((2, 2)));
        assert_eq!(longest_match(&tokens(&[7; 100])), Some((99, MAX_NGRAM_TOKENS)));
    }

    #[test]
    fn drafts_are_bounded() {
        let text = tokens(&[1, 2, 3, 4, 5, 6, 7, 1, 2, 3]);
        let proposed = |room| draft(&text, room).map(|p| p.tokens.to_vec());
        assert_eq!(proposed(9), Some(tokens(&[4, 5, 6, 7, 1, 2, 3])));
        assert_eq!(proposed(2), Some(tokens(&[4, 5])));
        assert_eq!(proposed(0), None);
    }

    #[test]
    fn images_are_neither_matched_nor_drafted() {
        let image = |tokens| Symbol::of_image(ImageId([3; 16]), tokens);
        let mut text = tokens(&[1, 2, 3]);
        text.extend(image(4));
        text.extend(tokens(&[5, 1, 2]));
        assert_eq!(draft(&text, 8).map(|draft| draft.tokens), Some(&text[2..3]));
        // The end of the text occurred before only as a part of an image, or behind one.
        let mut text: Vec<Symbol> = image(9).collect();
        text.extend(tokens(&[5]));
        text.extend(image(9));
        assert_eq!(draft(&text, 8), None);
        text.extend(tokens(&[5]));
        assert_eq!(draft(&text, 8), None);
        // Nothing but an image followed.
        let mut text = tokens(&[1, 2]);
        text.extend(image(2));
        text.extend(tokens(&[1, 2]));
        assert_eq!(draft(&text, 8), None);
    }

    #[test]
    fn drafts_that_are_often_rejected_pause_for_a_while() {
        let (text, cost) = (tokens(&[1, 2, 3, 4, 5, 6, 7, 1, 2, 3]), RunCost::default());
        let mut drafter = NgramDrafter::default();
        let length = |drafter: &NgramDrafter, rows| {
            let draft = draft(&text, 8).unwrap();
            draft_length(&[(drafter, draft)], rows, 1, &cost)
        };
        let first = length(&drafter, 1);
        assert!((1..MAX_DRAFT_TOKENS).contains(&first), "{first}");
        let class = draft(&text, 8).unwrap().class();
        for _ in 0..20 {
            drafter.begin_verification(class, true);
            drafter.record(3, 3);
        }
        assert!(length(&drafter, 1) > first);
        // The more rows stand beside it, the less it brings.
        assert!(length(&drafter, 8) < length(&drafter, 1));
        assert_eq!(length(&drafter, 40), 0);
        for _ in 0..20 {
            drafter.begin_verification(class, true);
            drafter.record(3, 0);
        }
        assert_eq!(length(&drafter, 1), 0);
        for _ in 0..200 {
            drafter.begin_verification(class, false);
        }
        assert_eq!(length(&drafter, 1), first);
        assert_eq!((drafter.drafted, drafter.accepted), (120, 60));
    }
}
