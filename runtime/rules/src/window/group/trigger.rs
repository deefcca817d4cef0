//! The triggers of a group's windows: by a message, by the watermark, by age and by silence.

use std::time::Duration;

use super::GroupState;
use super::close::WindowEnd;
use crate::window::calendar::Span;
use crate::window::context::WindowContext;
use crate::window::open_window::OpenWindow;
use crate::window::{CloseReason, ClosedWindow, WindowMessage};
use crate::{Time, WindowKind};

/// The time from the message that closes a window to the window's end.
const CLOSE_OFFSET: Duration = Duration::from_millis(1);

impl GroupState {
    pub(super) fn close_on_message(
        &mut self,
        context: &mut WindowContext,
        index: usize,
        o: &WindowMessage,
        time: Time,
    ) -> Option<ClosedWindow> {
        let window = &self.windows[index];
        let spec = &context.spec;
        let cooled_down = self.has_cooled_down(o.arrived);
        let too_many = spec.early_rate.is_some_and(|(most, within)| {
            let back = usize::try_from(most).unwrap_or(usize::MAX);
            window
                .arrival_before(back)
                .is_some_and(|before| o.arrived < before.after(within))
        });
        let full = spec.max_messages.is_some_and(|most| window.messages >= most)
            || spec.max_bytes.is_some_and(|most| window.bytes >= most);
        let reason = if cooled_down && (o.early || too_many) {
            CloseReason::Early
        } else if full {
            CloseReason::Full
        } else if matches!(spec.kind, WindowKind::Count { messages } if window.messages >= messages) {
            CloseReason::Due
        } else {
            return None;
        };
        let end = time.after(CLOSE_OFFSET).min(window.span.end);
        Some(self.close(
            context,
            index,
            WindowEnd {
                reason,
                end,
                at: o.arrived,
                remainder_from: Some(time),
            },
        ))
    }

    /// When [`Self::close_on_time`] has something to do.
    pub(in crate::window) fn due(&mut self, context: &mut WindowContext) -> Option<Time> {
        if self.stale {
            self.stale = false;
            self.empty_window = self.find_empty_window(context);
        }
        let window = match context.spec.kind {
            WindowKind::Session { .. } | WindowKind::Count { .. } => self
                .windows
                .iter()
                .filter_map(|window| window_due(context, window))
                .map(|(due, _)| due)
                .min(),
            WindowKind::Hopping { .. } => self.first_hopping_span(context).map(|span| context.due(span.end)),
            _ => self.windows.first().map(|window| context.due(window.span.end)),
        };
        let empty_window = self.empty_window.map(|span| context.due(span.end));
        let of_windows = window.into_iter().chain(empty_window).min();
        [
            of_windows.filter(|_| !context.holds_event_time()),
            self.absent_at(context),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Closes what is due at `due`, which is not after `now`.
    pub(in crate::window) fn close_on_time(
        &mut self,
        context: &mut WindowContext,
        due: Time,
        now: Time,
    ) -> Option<ClosedWindow> {
        if let Some(span) = self
            .first_hopping_span(context)
            .filter(|span| context.due(span.end) == due)
        {
            return Some(self.close_hopping(context, span, |window| WindowEnd {
                reason: CloseReason::Due,
                end: window.span.end,
                at: due,
                remainder_from: Some(window.span.end),
            }));
        }
        let found = self.windows.iter().enumerate().find_map(|(index, window)| {
            window_due(context, window)
                .filter(|(at, _)| *at == due)
                .map(|(_, reason)| (index, reason))
        });
        if let Some((index, reason)) = found {
            let window = &self.windows[index];
            let (end, remainder_from) = match reason {
                CloseReason::Full => (due.clamp(window.newest, window.span.end), window.newest),
                _ => (window.span.end, window.span.end),
            };
            return Some(self.close(
                context,
                index,
                WindowEnd {
                    reason,
                    end,
                    at: due,
                    remainder_from: Some(remainder_from),
                },
            ));
        }
        if let Some(empty_window) = self
            .empty_window
            .filter(|empty_window| context.due(empty_window.end) == due)
        {
            return self.report_empty_window(context, empty_window, now);
        }
        let seen = self
            .checkpoint
            .last_seen
            .filter(|_| self.absent_at(context) == Some(due))?;
        self.checkpoint.absent = true;
        let span = Span {
            start: seen,
            end: due,
        };
        Some(self.report_without_messages(context, span, CloseReason::Absence, due))
    }

    fn absent_at(&self, context: &WindowContext) -> Option<Time> {
        let absence = context
            .spec
            .absence
            .filter(|_| !self.checkpoint.absent && !context.held)?;
        Some(self.checkpoint.last_seen?.after(absence))
    }
}

/// When a window closes without a message, and the reason.
fn window_due(context: &WindowContext, window: &OpenWindow) -> Option<(Time, CloseReason)> {
    let aged = context
        .max_age()
        .map(|age| (window.opened.after(age), CloseReason::Full));
    let due = (!matches!(context.spec.kind, WindowKind::Count { .. }))
        .then(|| (context.due(window.span.end), CloseReason::Due));
    match (due, aged) {
        (Some(due), Some(aged)) => Some(if aged.0 < due.0 { aged } else { due }),
        (due, aged) => due.or(aged),
    }
}
