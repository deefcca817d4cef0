//! Speculation without a second model: the text so far proposes how it goes on.
//!
//! Texts that quote (logs, tables, code) repeat runs of tokens. Where the last tokens stood before, what followed
//! them then is proposed now, and one run verifies the proposal (prompt look-up decoding; A. Saxena, 2023). How many
//! tokens are worth a try follows from what a wider run costs ([`Cost`]) and from how often such proposals were right.

use crate::cost::Cost;
use crate::ids::TokenId;

/// The most tokens that are proposed at once.
const MOST: usize = 8;
/// The fewest last tokens that must have stood before.
const SHORTEST: usize = 2;
/// Longer agreement says no more.
const LONGEST: usize = 32;
/// How far back is looked: a scan of this many tokens takes microseconds.
const HORIZON: usize = 8192;
/// How many last tokens agree, in classes, with the chance that the next one does too before anything is known.
const CLASSES: [(usize, f64); 5] = [(2, 0.25), (3, 0.4), (5, 0.6), (9, 0.75), (usize::MAX, 0.85)];
/// What one outcome changes of a chance.
const WEIGHT: f64 = 0.2;
/// What an occasion that was let pass brings a chance back to where it began: texts change.
const RETURN: f64 = 0.02;
/// A wider run must promise this much, since costs and chances are estimates.
const MARGIN: f64 = 1.05;

/// What may follow a text.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Proposal<'a> {
    /// At most [`MOST`].
    pub(crate) tokens: &'a [TokenId],
    class: usize,
}

/// What may follow `tokens`, at most `room` of them.
pub(crate) fn propose(tokens: &[TokenId], room: usize) -> Option<Proposal<'_>> {
    let (next, agreeing) = look_up(tokens)?;
    let end = (next + MOST.min(room)).min(tokens.len());
    let class = CLASSES.iter().position(|(most, _)| agreeing <= *most)?;
    (next < end).then(|| Proposal {
        tokens: &tokens[next..end],
        class,
    })
}

/// One sequence's proposals, and what came of them.
#[derive(Debug)]
pub(crate) struct Guesser {
    pub(crate) proposed: usize,
    pub(crate) accepted: usize,
    /// The chance of each further token, by class.
    chances: [f64; CLASSES.len()],
    /// The class of the proposal that is being verified.
    verified: usize,
}

impl Default for Guesser {
    fn default() -> Self {
        Self {
            proposed: 0,
            accepted: 0,
            chances: CLASSES.map(|(_, chance)| chance),
            verified: 0,
        }
    }
}

impl Guesser {
    /// Tokens that `proposal` brings on average if `length` of it are verified.
    pub(crate) fn promise(&self, proposal: &Proposal<'_>, length: usize) -> f64 {
        let chance = self.chances[proposal.class];
        let mut all_so_far = 1.0;
        (0..length.min(proposal.tokens.len()))
            .map(|_| {
                all_so_far *= chance;
                all_so_far
            })
            .sum()
    }

    /// A proposal of this class is about to be verified, or (`false`) was not worth it.
    pub(crate) fn verify(&mut self, class: usize, worth: bool) {
        self.verified = class;
        if !worth {
            let (_, began) = CLASSES[class];
            self.chances[class] += RETURN * (began - self.chances[class]);
        }
    }

    /// Takes note of how many of `proposed` tokens were right.
    pub(crate) fn learn(&mut self, proposed: usize, accepted: usize) {
        self.proposed += proposed;
        self.accepted += accepted;
        let chance = &mut self.chances[self.verified];
        for _ in 0..accepted {
            *chance += WEIGHT * (1.0 - *chance);
        }
        if accepted < proposed {
            *chance -= WEIGHT * *chance;
        }
    }
}

impl Proposal<'_> {
    pub(crate) fn class(&self) -> usize {
        self.class
    }
}

/// How many tokens of each proposal are worth being verified by one run over `rows` rows. Shorter rows are filled up to
/// the longest, so all of them count as if they were as long.
pub(crate) fn worth(
    proposals: &[(&Guesser, Proposal<'_>)],
    rows: usize,
    members: usize,
    cost: &Cost,
) -> usize {
    #[expect(clippy::cast_precision_loss, reason = "a handful of rows")]
    let certain = members as f64;
    let Some(plain) = cost.of(rows) else { return 0 };
    let mut best = (0, MARGIN * certain / plain);
    for length in 1..=MOST {
        let Some(cost) = cost.of(rows * (1 + length)) else {
            break;
        };
        let promised: f64 = proposals
            .iter()
            .map(|(guesser, proposal)| guesser.promise(proposal, length))
            .sum();
        let value = (certain + promised) / cost;
        if value > best.1 {
            best = (length, value);
        }
    }
    best.0
}

/// Where the text went on after the last tokens stood before, and how many of them agree. The longest agreement counts,
/// of equal ones the newest: texts go on as they last did.
fn look_up(tokens: &[TokenId]) -> Option<(usize, usize)> {
    let last = tokens.len().checked_sub(1)?;
    let start = tokens.len().saturating_sub(HORIZON);
    let mut best = None;
    let mut longest = SHORTEST - 1;
    for at in (start..last).rev() {
        // What can't be longer than the best so far is passed over quickly.
        if tokens[at] != tokens[last] || at < longest || tokens[at - longest] != tokens[last - longest] {
            continue;
        }
        let agreeing = (0..=at.min(LONGEST - 1))
            .take_while(|&back| tokens[at - back] == tokens[last - back])
            .count();
        if agreeing > longest {
            (best, longest) = (Some((at + 1, agreeing)), agreeing);
        }
        if longest == LONGEST {
            break;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(ids: &[u32]) -> Vec<TokenId> {
        ids.iter().copied().map(TokenId).collect()
    }

    #[test]
    fn the_longest_agreement_counts_then_the_newest() {
        let text = tokens(&[1, 2, 3, 4, 5, 6, 7, 1, 2, 3]);
        assert_eq!(look_up(&text), Some((3, 3)));
        assert_eq!(look_up(&tokens(&[1, 2, 3])), None);
        assert_eq!(look_up(&tokens(&[])), None);
        // One token is no reason.
        assert_eq!(look_up(&tokens(&[1, 2, 1])), None);
        assert_eq!(look_up(&tokens(&[1, 2, 8, 1, 2, 9, 1, 2])), Some((5, 2)));
        // Longer, though older; and what follows may run into the last tokens themselves.
        assert_eq!(look_up(&tokens(&[5, 1, 2, 8, 1, 2, 9, 5, 1, 2])), Some((3, 3)));
        assert_eq!(look_up(&tokens(&[4, 4, 4])), Some((2, 2)));
        assert_eq!(look_up(&tokens(&[7; 100])), Some((99, LONGEST)));
    }

    #[test]
    fn proposals_have_room() {
        let text = tokens(&[1, 2, 3, 4, 5, 6, 7, 1, 2, 3]);
        let proposed = |room| propose(&text, room).map(|p| p.tokens.to_vec());
        assert_eq!(proposed(9), Some(tokens(&[4, 5, 6, 7, 1, 2, 3])));
        assert_eq!(proposed(2), Some(tokens(&[4, 5])));
        assert_eq!(proposed(0), None);
    }

    #[test]
    fn what_is_often_wrong_is_not_worth_it_for_a_while() {
        let (text, cost) = (tokens(&[1, 2, 3, 4, 5, 6, 7, 1, 2, 3]), Cost::default());
        let mut guesser = Guesser::default();
        let length = |guesser: &Guesser, rows| {
            let proposal = propose(&text, 8).unwrap();
            worth(&[(guesser, proposal)], rows, 1, &cost)
        };
        let first = length(&guesser, 1);
        assert!((1..MOST).contains(&first), "{first}");
        let class = propose(&text, 8).unwrap().class();
        for _ in 0..20 {
            guesser.verify(class, true);
            guesser.learn(3, 3);
        }
        assert!(length(&guesser, 1) > first);
        // The more rows stand beside it, the less it brings.
        assert!(length(&guesser, 8) < length(&guesser, 1));
        assert_eq!(length(&guesser, 40), 0);
        for _ in 0..20 {
            guesser.verify(class, true);
            guesser.learn(3, 0);
        }
        assert_eq!(length(&guesser, 1), 0);
        for _ in 0..200 {
            guesser.verify(class, false);
        }
        assert_eq!(length(&guesser, 1), first);
        assert_eq!((guesser.proposed, guesser.accepted), (120, 60));
    }
}
