//! The repetition guard: it ends an answer that repeats the same tokens without end.

use crate::ids::TokenId;

/// The longest period that is looked for, in tokens.
const MAX_PERIOD_TOKENS: usize = 64;
/// Times that a period must come in a row.
const MIN_REPEATS: usize = 8;
/// Tokens that the repeats must take together: short rows of equal tokens (rules, tables) are ordinary text.
const MIN_REPEATED_TOKENS: usize = 128;

/// The repetition state of one sequence.
#[derive(Debug, Default)]
pub(crate) struct RepetitionGuard {
    tokens: Vec<TokenId>,
    /// `run[p - 1]`: how many of the latest tokens equal the one `p` before them.
    run: Vec<usize>,
}

impl RepetitionGuard {
    /// Adds the next token; true once the end of the text repeats one period often enough.
    pub(crate) fn push(&mut self, id: TokenId) -> bool {
        self.run.resize(MAX_PERIOD_TOKENS, 0);
        let mut circles = false;
        for (index, run) in self.run.iter_mut().enumerate() {
            let period = index + 1;
            let same = self
                .tokens
                .len()
                .checked_sub(period)
                .is_some_and(|at| self.tokens[at] == id);
            *run = if same { *run + 1 } else { 0 };
            circles |= *run >= MIN_REPEATED_TOKENS.max(MIN_REPEATS * period);
        }
        self.tokens.push(id);
        circles
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fires_after(tokens: impl Iterator<Item = u32>) -> Option<usize> {
        let mut guard = RepetitionGuard::default();
        tokens
            .enumerate()
            .find(|(_, t)| guard.push(TokenId(*t)))
            .map(|(n, _)| n + 1)
    }

    #[test]
    fn circles_are_noticed_and_plain_text_is_not() {
        assert_eq!(
            fires_after(std::iter::repeat_n(5, 1000)),
            Some(1 + MIN_REPEATED_TOKENS)
        );
        assert_eq!(
            fires_after((0..1000).map(|n| n % 40)),
            Some(40 + MIN_REPEATS * 40)
        );
        assert_eq!(fires_after((0..1000).map(|n| n % 65)), None);
        assert_eq!(fires_after(0..1000), None);
        // A row of 100 equal tokens amid others is no endless circle.
        assert_eq!(
            fires_after((0..1000).map(|n| if n % 200 < 100 { 7 } else { n })),
            None
        );
    }
}
