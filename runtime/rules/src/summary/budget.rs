//! The token budget of prompts.

use super::error::SummaryError;

/// The most bytes of a text for each allowed token; a longer one is too long without counting. Counting megabytes takes
/// seconds, and no tokenizer's usual token is so long.
const MAX_BYTES_PER_TOKEN: usize = 64;
/// The most sizes that are tried for a part.
pub(super) const MAX_PROBES: usize = 24;

/// The token budget of a window's prompts.
#[derive(Clone, Copy)]
pub struct PromptBudget<'a> {
    /// The most tokens of one prompt.
    pub tokens: usize,
    /// The most parts; 0 counts as 1.
    pub max_parts: usize,
    /// Counts the tokens of a prompt with everything around it (system message, chat template).
    pub count: &'a dyn Fn(&str) -> Result<usize, String>,
}

impl PromptBudget<'_> {
    pub(super) fn tokens_of(&self, prompt: &str) -> Result<usize, SummaryError> {
        if prompt.len() / MAX_BYTES_PER_TOKEN > self.tokens {
            return Ok(prompt.len() / MAX_BYTES_PER_TOKEN);
        }
        (self.count)(prompt).map_err(SummaryError::Encode)
    }

    pub(super) fn refusal(&self, needed: usize) -> SummaryError {
        SummaryError::DoesNotFit {
            needed,
            allowed: self.tokens,
        }
    }
}

impl std::fmt::Debug for PromptBudget<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Budget")
            .field("tokens", &self.tokens)
            .field("max_parts", &self.max_parts)
            .finish_non_exhaustive()
    }
}

/// The largest size that is found to fit, by bisection between one that fits and one that does not.
pub(super) fn largest_fitting(
    fits: usize,
    too_large: usize,
    mut try_size: impl FnMut(usize) -> Result<bool, SummaryError>,
) -> Result<usize, SummaryError> {
    let (mut low, mut high) = (fits, too_large);
    for _ in 0..MAX_PROBES {
        if high - low <= 1 {
            break;
        }
        let middle = low.midpoint(high);
        if try_size(middle)? {
            low = middle;
        } else {
            high = middle;
        }
    }
    Ok(low)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Words and the bytes of long ones, with ten tokens around.
    #[allow(clippy::unnecessary_wraps, reason = "the shape of a tokenizer")]
    pub(in super::super) fn count(prompt: &str) -> Result<usize, String> {
        Ok(10
            + prompt
                .split_whitespace()
                .map(|word| word.len().div_ceil(8))
                .sum::<usize>())
    }

    pub(in super::super) fn budget(tokens: usize, max_parts: usize) -> PromptBudget<'static> {
        PromptBudget {
            tokens,
            max_parts,
            count: &count,
        }
    }
}
