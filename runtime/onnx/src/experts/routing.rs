//! Which tokens go through which expert.

/// A result of this weight or less is left out, as `QMoE` does.
const LEAST_WEIGHT: f32 = 1e-8;

/// Tokens by expert. A pair is a token and one of its experts; the pairs of an expert stand one behind the other.
#[derive(Debug, Default)]
pub(crate) struct Routing {
    /// The token of each pair.
    pub(crate) tokens: Vec<usize>,
    /// The experts that have tokens.
    pub(crate) groups: Vec<ExpertGroup>,
    /// For each token, as many as it has experts: its pairs in the order of their scores.
    pub(crate) parts: Vec<Option<Part>>,
}

/// The pairs of one expert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ExpertGroup {
    pub(crate) expert: usize,
    /// The first pair.
    pub(crate) first: usize,
    pub(crate) count: usize,
}

/// An expert's share in a token's result.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Part {
    pub(crate) pair: usize,
    pub(crate) weight: f32,
}

/// The scores and weights of a router, `[tokens, experts]` each.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RouterOutputs<'a> {
    pub(crate) scores: &'a [f32],
    pub(crate) weights: &'a [f32],
    pub(crate) experts: usize,
    /// How many experts a token has.
    pub(crate) chosen: usize,
}

impl Routing {
    /// Routes all tokens of which `counts` says so. Of equal scores the later expert comes first, as with `QMoE`.
    pub(crate) fn new(from: RouterOutputs<'_>, counts: impl Fn(usize) -> bool) -> Self {
        let RouterOutputs { experts, chosen, .. } = from;
        let mut by_expert = vec![Vec::new(); experts];
        let all = from.scores.len().checked_div(experts).unwrap_or(0);
        let mut parts = vec![None; all * chosen];
        let mut order: Vec<usize> = Vec::with_capacity(experts);
        for token in 0..all {
            if !counts(token) {
                continue;
            }
            let of = |values: &'_ [f32], expert: usize| {
                values.get(token * experts + expert).copied().unwrap_or(0.0)
            };
            order.clear();
            order.extend((0..experts).rev());
            // Stable: the later one stays first.
            order.sort_by(|a, b| of(from.scores, *b).total_cmp(&of(from.scores, *a)));
            for (rank, &expert) in order.iter().take(chosen).enumerate() {
                let weight = of(from.weights, expert);
                if weight > LEAST_WEIGHT {
                    by_expert[expert].push((token, token * chosen + rank, weight));
                }
            }
        }
        let mut routing = Self::default();
        for (expert, pairs) in by_expert
            .iter()
            .enumerate()
            .filter(|(_, pairs)| !pairs.is_empty())
        {
            let first = routing.tokens.len();
            for (at, &(token, part, weight)) in pairs.iter().enumerate() {
                routing.tokens.push(token);
                parts[part] = Some(Part {
                    pair: first + at,
                    weight,
                });
            }
            routing.groups.push(ExpertGroup {
                expert,
                first,
                count: pairs.len(),
            });
        }
        routing.parts = parts;
        routing
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn tokens_go_to_their_best_experts() {
        let scores = [1.0, 3.0, 2.0, 5.0, 0.0, 5.0, 9.0, 9.0, 9.0];
        let weights = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.0, 0.8, 0.9];
        let from = RouterOutputs {
            scores: &scores,
            weights: &weights,
            experts: 3,
            chosen: 2,
        };
        let routing = Routing::new(from, |token| token != 2);
        assert_eq!(routing.tokens, [1, 0, 0, 1]);
        let groups: Vec<_> = routing
            .groups
            .iter()
            .map(|g| (g.expert, g.first, g.count))
            .collect();
        assert_eq!(groups, [(0, 0, 1), (1, 1, 1), (2, 2, 2)]);
        let part = |pair, weight| Some(Part { pair, weight });
        let expected = [part(1, 0.2), part(2, 0.3), part(3, 0.6), part(0, 0.4), None, None];
        assert_eq!(routing.parts, expected);
        // What weighs nothing has no pair.
        let routing = Routing::new(from, |token| token == 2);
        assert_eq!(routing.tokens, [2, 2]);
        assert_eq!(routing.groups.len(), 2);
    }

    proptest! {
        #[test]
        fn each_token_has_its_pairs_once(
            (experts, chosen, scores) in (1usize..20, 1usize..4, 0usize..40).prop_flat_map(|(experts, chosen, tokens)| {
                (Just(experts), Just(chosen), proptest::collection::vec(-9i8..9, experts * tokens))
            }),
        ) {
            let scores: Vec<f32> = scores.into_iter().map(f32::from).collect();
            let weights = vec![0.5; scores.len()];
            let routing = Routing::new(RouterOutputs { scores: &scores, weights: &weights, experts, chosen }, |_| true);
            let tokens = scores.len() / experts;
            prop_assert_eq!(routing.tokens.len(), tokens * chosen.min(experts));
            for (at, part) in routing.parts.iter().enumerate() {
                let Some(part) = part else {
                    prop_assert!(at % chosen >= experts);
                    continue;
                };
                prop_assert_eq!(routing.tokens[part.pair], at / chosen);
                let group = routing.groups.iter().find(|g| (g.first..g.first + g.count).contains(&part.pair)).unwrap();
                let score = scores[at / chosen * experts + group.expert];
                let better = scores[at / chosen * experts..][..experts].iter().filter(|other| **other > score).count();
                prop_assert!(better <= at % chosen);
            }
        }
    }
}
