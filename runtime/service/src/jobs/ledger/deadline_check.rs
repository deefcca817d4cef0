//! The check of new requests against their deadline, by the least time that their prompts take.

use std::time::Duration;

use phi_edge_engine::{PrefillEstimate, Summary};
use tokio::time::Instant;

/// The time after a measurement, or after a late request that was accepted for one, until a late request is accepted to measure
/// the speed again. A refused prompt measures nothing, so that a node which was measured in a slow moment would refuse for ever.
const PROBE_INTERVAL: Duration = Duration::from_mins(10);

/// What a prompt meets at the engine when it arrives.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EngineOutlook {
    /// The number of its tokens that the prefix cache holds.
    pub(crate) cached_tokens: usize,
    /// The share of time in which the engine computes: above 0, at most 1.
    pub(crate) share: f64,
}

/// The measured speed of prefill, and when it was measured.
#[derive(Debug, Default)]
pub(super) struct DeadlineCheck {
    estimate: PrefillEstimate,
    /// The times of recent measurements and the tokens of their prompts; of several, those of the shorter ones or later.
    measured: Vec<(Instant, usize)>,
    /// The last late request that was accepted.
    probed: Option<Instant>,
}

/// A prompt that can't be computed in time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct LatePrompt {
    /// The number of its tokens that are to be computed.
    pub(super) new_tokens: usize,
    /// The time that they take at least.
    pub(super) time: Duration,
}

impl DeadlineCheck {
    /// Adds the prompt of a finished answer to what was measured.
    pub(super) fn observe(&mut self, summary: &Summary, now: Instant) {
        if let Some(tokens) = self.estimate.observe(summary) {
            self.measured
                .retain(|(at, other)| *other < tokens && is_recent(*at, now));
            self.measured.push((now, tokens));
        }
    }

    /// Whether a prompt would take more than twice the time that is left to it.
    pub(super) fn late(
        &mut self,
        prompt_tokens: usize,
        outlook: EngineOutlook,
        left: Duration,
        now: Instant,
    ) -> Option<LatePrompt> {
        // A job whose deadline has passed by now expires in the queue.
        if left.is_zero() {
            return None;
        }
        let new_tokens = prompt_tokens.saturating_sub(outlook.cached_tokens);
        let computing = self.estimate.time(prompt_tokens, new_tokens)?;
        let time = Duration::try_from_secs_f64(computing.as_secs_f64() / outlook.share).ok()?;
        if time <= left * 2 {
            return None;
        }
        // A longer prompt says nothing about the speed of a shorter one.
        let mut measured = self
            .measured
            .iter()
            .filter(|(_, tokens)| *tokens <= prompt_tokens);
        if measured.any(|(at, _)| is_recent(*at, now)) || self.probed.is_some_and(|at| is_recent(at, now)) {
            return Some(LatePrompt { new_tokens, time });
        }
        self.probed = Some(now);
        None
    }
}

fn is_recent(at: Instant, now: Instant) -> bool {
    now.saturating_duration_since(at) < PROBE_INTERVAL
}
