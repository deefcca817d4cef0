//! The close of a window, and the group's checkpoint after it.

use super::GroupState;
use crate::Time;
use crate::WindowKind;
use crate::facts::Accumulator;
use crate::window::calendar::Span;
use crate::window::context::WindowContext;
use crate::window::open_window::OpenWindow;
use crate::window::{CloseReason, ClosedWindow, PeriodRemainder};

/// The most remainders of periods in a checkpoint. Event times may lie in any period within the lateness.
const MAX_REMAINDERS: usize = 1000;

/// The end of a window: its reason and its moments.
#[derive(Debug, Clone, Copy)]
pub(super) struct WindowEnd {
    pub(super) reason: CloseReason,
    pub(super) end: Time,
    /// The close by the clock.
    pub(super) at: Time,
    /// The start of its period's remainder; `None` if the period may be opened again.
    pub(super) remainder_from: Option<Time>,
}

impl WindowEnd {
    /// The end of a window that closes at `now` for a reason from outside.
    pub(super) fn now(window: &OpenWindow, now: Time, reason: CloseReason) -> Self {
        Self {
            reason,
            end: now.max(window.newest).min(window.span.end),
            at: now,
            remainder_from: (reason != CloseReason::Clock)
                .then(|| window.newest.min(now).max(window.span.start)),
        }
    }
}

impl GroupState {
    pub(super) fn close(
        &mut self,
        context: &mut WindowContext,
        index: usize,
        ending: WindowEnd,
    ) -> ClosedWindow {
        let window = self.windows.remove(index);
        self.finish(context, window, ending)
    }

    pub(super) fn finish(
        &mut self,
        context: &mut WindowContext,
        window: OpenWindow,
        ending: WindowEnd,
    ) -> ClosedWindow {
        self.record_close(context, window.span, ending);
        context.texts.window_ended();
        if !context.spec.cool_down.is_zero() {
            self.checkpoint.cool_until = self
                .checkpoint
                .cool_until
                .max(Some(ending.at.after(context.spec.cool_down)));
        }
        let end = if matches!(context.spec.kind, WindowKind::Count { .. }) {
            window.newest
        } else {
            ending.end
        };
        let (start, messages, bytes) = (window.span.start, window.messages, window.bytes);
        let late = std::mem::take(&mut self.checkpoint.late);
        let (seqs, forget, facts) = window.finish();
        ClosedWindow {
            group: self.name.to_string(),
            start,
            end,
            reason: ending.reason,
            messages,
            bytes,
            late,
            seqs,
            at: ending.at,
            facts,
            forget,
            checkpoint: self.checkpoint.clone(),
        }
    }

    /// Records in the checkpoint what has closed.
    fn record_close(&mut self, context: &mut WindowContext, span: Span, ending: WindowEnd) {
        self.stale = true;
        let closed_until = &mut self.checkpoint.closed_until;
        match context.spec.kind {
            WindowKind::Tumbling { .. } | WindowKind::Schedule { .. } => {
                let Some(remainder_from) = ending.remainder_from else {
                    return;
                };
                self.checkpoint
                    .remainders
                    .retain(|remainder| remainder.end != span.end);
                if remainder_from < span.end {
                    self.checkpoint.remainders.push(PeriodRemainder {
                        from: remainder_from,
                        end: span.end,
                    });
                    self.bound_remainders();
                } else {
                    *closed_until = (*closed_until).max(Some(span.end));
                    self.skip_empty_until(context, span);
                }
                self.prune_remainders(context, ending.at);
            }
            WindowKind::Hopping { .. } if ending.reason == CloseReason::Due => {
                *closed_until = (*closed_until).max(Some(span.end));
                self.skip_empty_until(context, span);
            }
            WindowKind::Session { .. } => *closed_until = (*closed_until).max(ending.remainder_from),
            WindowKind::Hopping { .. } | WindowKind::Count { .. } => {}
        }
    }

    /// Closes the oldest remainders where there are too many: the checkpoint is written with each close.
    fn bound_remainders(&mut self) {
        let remainders = &mut self.checkpoint.remainders;
        while remainders.len() > MAX_REMAINDERS {
            let oldest = remainders
                .iter()
                .enumerate()
                .min_by_key(|(_, remainder)| remainder.end);
            let Some((index, end)) = oldest.map(|(index, remainder)| (index, remainder.end)) else {
                return;
            };
            remainders.remove(index);
            self.checkpoint.closed_until = self.checkpoint.closed_until.max(Some(end));
        }
    }

    /// Removes the remainders whose end the watermark has passed.
    pub(super) fn prune_remainders(&mut self, context: &WindowContext, at: Time) {
        let closed_until = &mut self.checkpoint.closed_until;
        self.checkpoint.remainders.retain(|remainder| {
            let passed = context.watermark_passed(remainder.end, at);
            if passed {
                *closed_until = (*closed_until).max(Some(remainder.end));
            }
            !passed
        });
    }

    pub(super) fn report_without_messages(
        &mut self,
        context: &WindowContext,
        span: Span,
        reason: CloseReason,
        at: Time,
    ) -> ClosedWindow {
        ClosedWindow {
            group: self.name.to_string(),
            start: span.start,
            end: span.end,
            reason,
            messages: 0,
            bytes: 0,
            late: std::mem::take(&mut self.checkpoint.late),
            seqs: Vec::new(),
            at,
            facts: vec![Accumulator::default().finish(); context.limits.fields],
            forget: Vec::new(),
            checkpoint: self.checkpoint.clone(),
        }
    }
}
