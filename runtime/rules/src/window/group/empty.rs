//! Windows without messages.

use super::Group;
use crate::window::calendar::Span;
use crate::window::context::Frame;
use crate::window::{Closed, Closing};
use crate::{Time, WindowKind};

impl Group {
    /// Reports windows without messages from then on.
    pub(in crate::window) fn expect_from(&mut self, from: Time) {
        self.mark.empty_from = Some(from);
        self.stale = true;
    }

    /// A window has ended, or is not to be reported: empty ones are looked for behind it.
    pub(super) fn pass(&mut self, frame: &mut Frame, span: Span) {
        if let Some(from) = self.mark.empty_from {
            self.expect_from(from.max(frame.period(span.start).end));
        }
    }

    /// The next empty window that is to be reported.
    pub(super) fn find_vacant(&self, frame: &mut Frame) -> Option<Span> {
        let from = self.mark.empty_from.filter(|_| frame.reports_empty())?;
        let mut period = frame.period(from);
        while self.occupies(frame, period) {
            period = frame.period(period.end);
        }
        Some(self.vacancy(frame, period))
    }

    /// Reports the empty window, unless a later one is due as well.
    pub(super) fn report_vacant(&mut self, frame: &mut Frame, vacant: Span, now: Time) -> Option<Closed> {
        let mut last = frame.last_due_period(now);
        while self.occupies(frame, last) && last.start > vacant.start {
            last = frame.period_before(last);
        }
        if last.start > vacant.start {
            self.expect_from(last.start);
            return None;
        }
        let closed_until = &mut self.mark.closed_until;
        *closed_until = (*closed_until).max(Some(vacant.end));
        self.pass(frame, vacant);
        let due = frame.due(vacant.end);
        self.prune(frame, due);
        Some(self.report_nothing(frame, vacant, Closing::Due, due))
    }

    fn occupies(&self, frame: &Frame, period: Span) -> bool {
        if frame.is_hopping() {
            return self.hops_in(period);
        }
        self.windows
            .iter()
            .any(|window| period.contains(window.span.start))
    }

    fn vacancy(&self, frame: &Frame, period: Span) -> Span {
        match frame.spec.kind {
            WindowKind::Hopping { length, .. } => Span {
                start: period.start,
                end: period.start.after(length),
            },
            _ => Span {
                start: self.floor(period),
                end: period.end,
            },
        }
    }
}
