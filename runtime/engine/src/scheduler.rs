//! The scheduler: prefill or decode, and of which sequences.

use crate::decoder::Regime;
use crate::rows::common_prefix;
use crate::sequence::{Readiness, Sequence};
use crate::symbol::ImageId;

/// The kind of the next step: one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StepKind {
    /// A chunk of the prompt of the sequence at this index.
    Prefill(usize),
    /// A crop of an image for the prompt of the sequence at this index.
    Encode(usize, ImageId),
    /// The next token of all sequences whose prompts are computed, or of those of one regime.
    Decode(Option<Regime>),
}

/// The scheduler's state. Prompts enter chunk by chunk between the steps of running answers, so that neither waits
/// long.
#[derive(Debug, Default)]
pub(crate) struct Scheduler {
    last: Option<StepKind>,
    /// The regime that decoded last, whatever prompts entered since.
    decoded: Option<Regime>,
    prefills: u32,
}

/// Prefill steps after which the oldest prompt goes first, however long it is.
const OLDEST_FIRST_INTERVAL: u32 = 4;
/// The fewest tokens of a shared prefix that are worth waiting for.
const MIN_SHARED_TOKENS: usize = 16;

impl Scheduler {
    /// The next step; `None` if nothing runs, or all that runs awaits pixels. `running` is in the order of starting. With `share`, a sequence waits
    /// for an older one that is about to compute their shared prefix. With `mixed`, sequences of both regimes decode
    /// together.
    pub(crate) fn next(&mut self, running: &[Sequence], share: bool, mixed: bool) -> Option<StepKind> {
        let prefill = self.prefill(running, share);
        let decode = if mixed {
            running.iter().any(Sequence::decodes).then_some(None)
        } else {
            self.decode(running).map(Some)
        };
        let step = match (prefill, decode) {
            (Some(step), Some(_)) if matches!(self.last, None | Some(StepKind::Decode(_))) => step,
            (_, Some(regime)) => StepKind::Decode(regime),
            (Some(step), None) => step,
            (None, None) => return None,
        };
        match step {
            StepKind::Prefill(_) | StepKind::Encode(..) => self.prefills = self.prefills.wrapping_add(1),
            StepKind::Decode(regime) => self.decoded = regime,
        }
        self.last = Some(step);
        Some(step)
    }

    /// The step for the sequence whose prompt is next: the shortest remainder first, so that short prompts don't wait for long
    /// ones; at intervals the oldest, so that long ones are served too.
    fn prefill(&self, running: &[Sequence], share: bool) -> Option<StepKind> {
        let open = |index: &usize| {
            let sequence = &running[*index];
            !(sequence.decodes()
                || sequence.readiness == Readiness::AwaitsPixels
                || (share && waits_for_prefix(running, *index)))
        };
        let mut open = (0..running.len()).filter(open);
        let index = if self.prefills % OLDEST_FIRST_INTERVAL == OLDEST_FIRST_INTERVAL - 1 {
            open.next()?
        } else {
            open.min_by_key(|&index| running[index].rest())?
        };
        Some(match running[index].readiness {
            Readiness::Encode(image) => StepKind::Encode(index, image),
            Readiness::Prefill | Readiness::AwaitsPixels => StepKind::Prefill(index),
        })
    }

    /// The regime to decode next, alternating where sequences of both decode.
    fn decode(&self, running: &[Sequence]) -> Option<Regime> {
        let has = |regime| running.iter().any(|s| s.decodes() && s.regime == regime);
        match (has(Regime::Short), has(Regime::Long)) {
            (true, true) if self.decoded == Some(Regime::Short) => Some(Regime::Long),
            (true, _) => Some(Regime::Short),
            (false, true) => Some(Regime::Long),
            (false, false) => None,
        }
    }
}

/// Whether an older sequence is computing a prefix of `running[index]`.
pub(crate) fn waits_for_prefix(running: &[Sequence], index: usize) -> bool {
    awaited_prefixes(running, index).next().is_some()
}

/// The number of tokens that others have computed of the prefix that `running[index]` waits for; `None` if it waits for none.
pub(crate) fn computed_of_awaited(running: &[Sequence], index: usize) -> Option<usize> {
    awaited_prefixes(running, index).map(|older| older.computed).max()
}

/// The older sequences that are computing a prefix of `running[index]`.
fn awaited_prefixes(running: &[Sequence], index: usize) -> impl Iterator<Item = &Sequence> {
    let sequence = &running[index];
    running[..index].iter().filter(move |older| {
        if older.decodes() || older.regime != sequence.regime {
            return false;
        }
        let shared = common_prefix(&older.tokens, &sequence.tokens).min(sequence.tokens.len() - 1);
        shared >= sequence.computed + MIN_SHARED_TOKENS && older.computed < shared
    })
}
