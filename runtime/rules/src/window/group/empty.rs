//! Empty windows: their reports where the rule asks for them.

use super::GroupState;
use crate::window::calendar::Span;
use crate::window::context::WindowContext;
use crate::window::{CloseReason, ClosedWindow};
use crate::{Time, WindowKind};

impl GroupState {
    /// Reports empty windows from `from` on.
    pub(in crate::window) fn report_empty_from(&mut self, from: Time) {
        self.checkpoint.empty_from = Some(from);
        self.stale = true;
    }

    /// Skips a window that has closed, or is not to be reported: empty ones are looked for behind it.
    pub(super) fn skip_empty_until(&mut self, context: &mut WindowContext, span: Span) {
        if let Some(from) = self.checkpoint.empty_from {
            self.report_empty_from(from.max(context.period(span.start).end));
        }
    }

    /// The next empty window that is to be reported.
    pub(super) fn find_empty_window(&self, context: &mut WindowContext) -> Option<Span> {
        let from = self.checkpoint.empty_from.filter(|_| context.reports_empty())?;
        let mut period = context.period(from);
        while self.occupies(context, period) {
            period = context.period(period.end);
        }
        Some(self.empty_span(context, period))
    }

    /// Reports the empty window, unless a later one is due as well.
    pub(super) fn report_empty_window(
        &mut self,
        context: &mut WindowContext,
        empty_window: Span,
        now: Time,
    ) -> Option<ClosedWindow> {
        let mut last = context.last_due_period(now);
        while self.occupies(context, last) && last.start > empty_window.start {
            last = context.period_before(last);
        }
        if last.start > empty_window.start {
            self.report_empty_from(last.start);
            return None;
        }
        let closed_until = &mut self.checkpoint.closed_until;
        *closed_until = (*closed_until).max(Some(empty_window.end));
        self.skip_empty_until(context, empty_window);
        let due = context.due(empty_window.end);
        self.prune_remainders(context, due);
        Some(self.report_without_messages(context, empty_window, CloseReason::Due, due))
    }

    fn occupies(&self, context: &WindowContext, period: Span) -> bool {
        if context.is_hopping() {
            return self.has_hop_at(period);
        }
        self.windows
            .iter()
            .any(|window| period.contains(window.span.start))
    }

    fn empty_span(&self, context: &WindowContext, period: Span) -> Span {
        match context.spec.kind {
            WindowKind::Hopping { length, .. } => Span {
                start: period.start,
                end: period.start.after(length),
            },
            _ => Span {
                start: self.remaining_start(period),
                end: period.end,
            },
        }
    }
}
