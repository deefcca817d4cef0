//! The window operator: assigns messages to windows, accumulates their facts and closes windows. Pure: time is an argument.
//!
//! The terms are Flink's: a window assigner, triggers, accumulators, a watermark, late messages and checkpoints, with the
//! differences that this text names.
//!
//! # Time
//!
//! A message's *timestamp* is its arrival or, for [`TimeSource::Field`](super::TimeSource::Field), its event time. A
//! missing event time, or one that is more than the lateness or a minute (whichever is more) ahead of the arrival,
//! counts as the arrival. The *watermark* is the clock less the rule's `lateness` (zero for arrivals): unlike Flink's,
//! the clock and not the messages moves it, so that windows close in silence, too. A window is *due* when the watermark
//! has reached its end. Whatever is due when a message arrives closes before the message is ingested, so it makes no
//! difference whether a tick or a message comes first. Windows are half open: a message at the end of one is in the
//! next.
//!
//! # Kinds of window
//!
//! *Tumbling.* Each local day is divided from its midnight into `every`; the day's last window ends at the next
//! midnight, however long the day is. An `every` of whole days is aligned to local midnights counted from 1970-01-01,
//! one of whole weeks from the Monday after it. Such a window is a *period*.
//!
//! *Hopping.* A window of `length` begins with each tumbling period of `every`. A message counts in every window that
//! contains its timestamp and has not closed.
//!
//! *Session.* A message joins every open session that has a message nearer than `gap`, and merges them; else it
//! begins one. A session starts with its earliest message and ends `gap` after its newest.
//!
//! *Count.* A number of messages in the order of their arrival; the window spans from the earliest to the newest. No
//! message is late.
//!
//! *Schedule.* The local times `at` on `days` are boundaries; a period runs from one to the next. In a gap of the local
//! clock a boundary is the end of the gap, in a fold the first of the two. The same holds for midnights.
//!
//! # Late messages
//!
//! A message is *late* if its window has closed: if its (for hopping: every) window is due when it arrives, or was
//! closed earlier. It counts in no window, only in [`ClosedWindow::late`] of the group's next report: there is no second
//! firing of a window. A message of a session rule is late if it joins no session and its own would be due, or if it is
//! earlier than the end of the group's closed sessions: the end of one that was due, the message that closed one early, the
//! newest message of one that grew too old.
//!
//! # Triggers
//!
//! Beside the watermark, `early` and `early_rate` close a window with the message that meets them, `max_messages` and
//! `max_bytes` with the one that reaches them, in this order of precedence; the window ends a millisecond after that
//! message's timestamp, never after its own end. The rate is exceeded when a message came less than the span after the
//! one that is `n` before it in the same window: what an earlier window counted does not count again. The remainder of
//! a period goes on as a further window from that message's timestamp: later messages at or after it count there, those
//! before it are late. Of more than 1,000 such periods of a group the oldest are closed. Hopping windows have none of
//! these triggers.
//!
//! Session and count windows close at `max_age` after the first of their messages arrived.
//!
//! For `cool_down` after a window of a group has closed (since it was due, or since the message that closed it arrived)
//! `early` and `early_rate` do nothing.
//!
//! *Empty* windows of tumbling, hopping and schedule are reported for known groups where the rule asks for it, from the
//! period of the group's first message on (without groups, from that of the first tick); the remainder of a period that
//! closed early is one, too. Of several that are due at once, only the last is reported.
//!
//! *Absence* is reported once when the newest message of a group (without groups: at first the first tick) arrived
//! `absence` ago.
//!
//! A message that can't be stored counts in no window unless it closes its window by `early`; its group has been seen
//! all the same.
//!
//! # Groups
//!
//! Groups are what Flink's keys are. Messages of more than `max_groups` groups go to [`OVERFLOW_GROUP`], which does not
//! count as one. To make room, the group that has been silent longest is evicted, of those without an open window for which
//! neither absence nor empty windows are to be reported. Its next message begins with an empty state.
//!
//! # Memory
//!
//! An open window holds accumulators, the numbers of the messages that are shown, as many arrivals as the rate needs,
//! and the numbers of its messages as runs: one run where a group's messages come in the order of their windows, at
//! worst 16 bytes a message. Hopping windows share slices, in each of which a message counts once, and a window is merged
//! from its slices when it closes. Each text is held once for all windows of the rule. So memory grows with the stored
//! messages, however many windows they count in; [`WindowOperator::held_bytes`] returns it.
//!
//! # Clocks that are set back
//!
//! Moments given to [`WindowOperator::ingest`] and [`WindowOperator::tick`] are monotonic. If the clock is not, the
//! caller either waits for it with the latest moment, or calls [`WindowOperator::set_back`]: windows that begin after
//! the new moment then close, and what was remembered beyond it is cut to it. A hopping group with such a window, or
//! with one that has closed and ends after the new moment, closes all of its windows, since they share messages.
//!
//! # Holding event time
//!
//! After a downtime, messages that waited at the broker arrive when the clock has passed their event times. While event
//! time is held ([`WindowOperator::hold_event_time`]), the watermark of event-time windows stands still and no group is
//! absent: late is only what had closed before.
//!
//! # Checkpoints
//!
//! A group is restored from its checkpoint and its stored messages. The caller stores each message that is assigned,
//! deletes [`ClosedWindow::forget`] and stores [`ClosedWindow::checkpoint`] in one step, stores the checkpoint of a
//! group also for a message that is not assigned, and all checkpoints after the clock was set back. Then
//! [`WindowOperator::restore`] of the checkpoints and [`WindowOperator::ingest`] of the stored messages, by their
//! numbers and with their arrivals as recorded, bring back the same windows. Only a rule without groups that has not
//! reported anything yet begins to watch for absence again.

mod calendar;
mod checkpoint;
mod closed_window;
mod context;
mod group;
mod message;
mod open_window;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::{Time, WindowSpec};
use context::WindowContext;
use group::GroupState;
use open_window::OpenWindow;

pub use checkpoint::{Checkpoint, PeriodRemainder};
pub use closed_window::{CloseReason, ClosedWindow};
pub use message::{IngestOutcome, WindowMessage};

/// The group of messages beyond [`WindowSpec::max_groups`] groups.
pub const OVERFLOW_GROUP: &str = "other";

/// The name of the only group of a rule without groups.
const SOLE_GROUP: &str = "";

/// Bytes of a window without its fields, with the allocations for its first messages.
const WINDOW_BYTES: usize = 288;

/// Bytes of the accumulator of a field, without its texts.
const FIELD_BYTES: usize = 160;

/// The window operator of one rule: its groups and their open windows.
#[derive(Debug)]
pub struct WindowOperator {
    context: WindowContext,
    groups: HashMap<Arc<str>, GroupState>,
    queues: Queues,
    /// Whether the only group of a rule without groups is still missing: it exists from the first tick on.
    sole_group_missing: bool,
    /// The latest moment of the clock. What was due by then stays closed if the clock is set back.
    latest: Time,
}

/// The groups by due time and by eviction order.
#[derive(Debug, Default)]
struct Queues {
    /// The number of open windows and slices of all groups.
    open: usize,
    /// By due time. Names come second, so that the order does not depend on a map's.
    due: BTreeSet<(Time, Arc<str>)>,
    /// The groups that may be evicted, by their last message.
    evictable: BTreeSet<(Time, Arc<str>)>,
}

impl WindowOperator {
    /// An operator without messages. `fields` is the number of the rule's fields, `keep_messages` the most messages in
    /// [`ClosedWindow::seqs`], and `grouped` whether the rule has groups: the only group of one without exists from the
    /// first tick on.
    pub fn new(spec: WindowSpec, fields: usize, keep_messages: usize, grouped: bool) -> Self {
        Self {
            context: WindowContext::new(spec, fields, keep_messages),
            groups: HashMap::new(),
            queues: Queues::default(),
            sole_group_missing: !grouped,
            latest: Time(i64::MIN),
        }
    }

    /// The same operator that holds, if `first`, also the first message of a window beside the newest in
    /// [`ClosedWindow::seqs`], which count as one fewer then.
    #[must_use]
    pub fn keeping_first(mut self, first: bool) -> Self {
        self.context.limits.keeps_first = first;
        self
    }

    /// Counts a message, after closing what is due at its arrival.
    pub fn ingest(&mut self, o: &WindowMessage) -> IngestOutcome {
        self.ingest_with(o, |group, context, outcome| {
            let (assigned, closed) = group.ingest(context, o);
            outcome.assigned = assigned;
            outcome.closed.extend(closed);
        })
    }

    /// As [`Self::ingest`] for a message that can't be stored. It counts if it closes its window by `early`, since it then
    /// need not be stored; else only its group has been seen.
    pub fn ingest_unstorable(&mut self, o: &WindowMessage) -> IngestOutcome {
        self.ingest_with(o, |group, context, outcome| {
            outcome.dropped = !group.would_end_early(context, o);
            if outcome.dropped {
                group.record_dropped(context, o);
            } else {
                let (assigned, closed) = group.ingest(context, o);
                outcome.assigned = assigned;
                outcome.closed.extend(closed);
            }
        })
    }

    fn ingest_with(
        &mut self,
        o: &WindowMessage,
        act: impl FnOnce(&mut GroupState, &mut WindowContext, &mut IngestOutcome),
    ) -> IngestOutcome {
        let mut outcome = IngestOutcome::default();
        // A message that was assigned before a restart closes nothing: what it could have closed is closed.
        let assigned_before = self
            .groups
            .get(o.group.as_str())
            .is_some_and(|group| group.has_assigned(o.seq));
        if !assigned_before {
            outcome.closed = self.tick(o.arrived);
        }
        let mut name = o.group.as_str();
        if !self.groups.contains_key(name) {
            if name != OVERFLOW_GROUP && !self.evict_for_new_group(&mut outcome.evicted) {
                outcome.overflow = true;
                name = OVERFLOW_GROUP;
            }
            if !self.groups.contains_key(name) {
                self.insert_group(name, Checkpoint::default());
            }
        }
        if let Some(group) = self.groups.get_mut(name) {
            act(group, &mut self.context, &mut outcome);
            self.queues.reschedule(group, &mut self.context);
        }
        outcome
    }

    /// Closes the windows that are due at `now`.
    pub fn tick(&mut self, now: Time) -> Vec<ClosedWindow> {
        if self.sole_group_missing {
            self.register_sole_group(now);
        }
        self.latest = self.latest.max(now);
        let mut closed = Vec::new();
        while let Some((due, name)) = self.queues.due.first().filter(|(due, _)| *due <= now).cloned() {
            let Some(group) = self.groups.get_mut(&name) else {
                self.queues.due.remove(&(due, name));
                continue;
            };
            closed.extend(group.close_on_time(&mut self.context, due, now));
            self.queues.reschedule(group, &mut self.context);
        }
        closed
    }

    /// When the next window is due, or the next absence. A rule without groups needs one tick before.
    pub fn due(&self) -> Option<Time> {
        self.queues.due.first().map(|(due, _)| *due)
    }

    /// Holds or releases event time. While it is held, the watermark of event-time windows stands still and no group is
    /// absent; other triggers work. After the release [`Self::tick`] closes what was due meanwhile.
    pub fn hold_event_time(&mut self, held: bool) {
        self.context.held = held;
        for group in self.groups.values_mut() {
            self.queues.reschedule(group, &mut self.context);
        }
    }

    /// Sets the clock back to `now`. All checkpoints may have changed: store [`Self::checkpoints`] after it.
    pub fn set_back(&mut self, now: Time) -> Vec<ClosedWindow> {
        let latest = std::mem::replace(&mut self.latest, now);
        self.for_each_group(|group, context| group.set_back(context, latest, now))
    }

    /// Closes every window that has messages.
    pub fn close_all(&mut self, now: Time, reason: CloseReason) -> Vec<ClosedWindow> {
        self.for_each_group(|group, context| group.close_all(context, now, reason))
    }

    /// The timestamp of a message, by its event time and its arrival.
    pub(crate) fn timestamp_of(&self, event_time: Option<Time>, arrived: Time) -> Time {
        self.context.timestamp_of(event_time, arrived)
    }

    /// For each open window or slice of a group: the numbers of the messages that it would show, ascending by timestamp.
    pub(crate) fn shown_seqs(
        &self,
        group: &str,
    ) -> impl Iterator<Item = impl DoubleEndedIterator<Item = u64> + '_> + '_ {
        let group = self.groups.get(group).into_iter();
        group
            .flat_map(GroupState::open_windows)
            .map(OpenWindow::shown_seqs)
    }

    /// The checkpoints of all groups.
    pub fn checkpoints(&self) -> impl Iterator<Item = (&str, Checkpoint)> {
        self.groups
            .values()
            .map(|group| (&*group.name, group.checkpoint.clone()))
    }

    /// The checkpoint of a group.
    pub fn checkpoint(&self, group: &str) -> Option<Checkpoint> {
        self.groups.get(group).map(|group| group.checkpoint.clone())
    }

    /// Bytes that open windows hold in memory, by their number, the number of their fields and the texts in them.
    pub fn held_bytes(&self) -> u64 {
        let window = WINDOW_BYTES + self.context.limits.fields * FIELD_BYTES;
        (self.queues.open * window + self.context.texts.bytes()) as u64
    }

    /// Frees the texts of windows that have closed.
    pub(crate) fn free_texts(&mut self) {
        self.context.texts.free_texts();
    }

    /// Restores a group's checkpoint, before its stored messages are ingested again.
    pub fn restore(&mut self, group: impl AsRef<str>, checkpoint: Checkpoint) {
        self.insert_group(group.as_ref(), checkpoint);
    }

    fn insert_group(&mut self, name: &str, checkpoint: Checkpoint) {
        let name: Arc<str> = name.into();
        if let Some(known) = self.groups.remove(&name) {
            self.queues.remove(&known);
        }
        let group = self
            .groups
            .entry(Arc::clone(&name))
            .or_insert(GroupState::new(name, checkpoint));
        self.queues.reschedule(group, &mut self.context);
    }

    fn register_sole_group(&mut self, now: Time) {
        self.sole_group_missing = false;
        if !self.groups.contains_key(SOLE_GROUP) {
            self.insert_group(
                SOLE_GROUP,
                Checkpoint {
                    last_seen: Some(now),
                    ..Checkpoint::default()
                },
            );
        }
        if let Some(group) = self
            .groups
            .get_mut(SOLE_GROUP)
            .filter(|group| group.checkpoint.empty_from.is_none())
        {
            if self.context.reports_empty() {
                group.report_empty_from(self.context.period(now).start);
            }
            self.queues.reschedule(group, &mut self.context);
        }
    }

    /// Evicts groups until there is room for one more. Returns false if there is none.
    fn evict_for_new_group(&mut self, evicted: &mut Vec<String>) -> bool {
        loop {
            let counted = self.groups.len() - usize::from(self.groups.contains_key(OVERFLOW_GROUP));
            if counted < self.context.spec.max_groups {
                return true;
            }
            let Some((_, name)) = self.queues.evictable.pop_first() else {
                return false;
            };
            if let Some(group) = self.groups.remove(&name) {
                self.queues.remove(&group);
                evicted.push(name.to_string());
            }
        }
    }

    fn for_each_group(
        &mut self,
        mut act: impl FnMut(&mut GroupState, &mut WindowContext) -> Vec<ClosedWindow>,
    ) -> Vec<ClosedWindow> {
        let mut names: Vec<Arc<str>> = self.groups.keys().cloned().collect();
        names.sort_unstable();
        let mut closed = Vec::new();
        for name in names {
            if let Some(group) = self.groups.get_mut(&name) {
                closed.extend(act(group, &mut self.context));
                self.queues.reschedule(group, &mut self.context);
            }
        }
        closed
    }
}

impl Queues {
    /// Moves the group to its places by its present state.
    fn reschedule(&mut self, group: &mut GroupState, context: &mut WindowContext) {
        self.open = self.open + group.open() - group.counted;
        group.counted = group.open();
        let due = group.due(context);
        let evictable = group
            .is_evictable(context)
            .then(|| group.checkpoint.last_seen.unwrap_or(Time(i64::MIN)));
        requeue(&mut self.due, &group.name, &mut group.queued, due);
        requeue(&mut self.evictable, &group.name, &mut group.evictable, evictable);
    }

    fn remove(&mut self, group: &GroupState) {
        self.open -= group.counted;
        for (queue, place) in [
            (&mut self.due, group.queued),
            (&mut self.evictable, group.evictable),
        ] {
            if let Some(place) = place {
                queue.remove(&(place, Arc::clone(&group.name)));
            }
        }
    }
}

fn requeue(
    queue: &mut BTreeSet<(Time, Arc<str>)>,
    name: &Arc<str>,
    from: &mut Option<Time>,
    to: Option<Time>,
) {
    if *from == to {
        return;
    }
    if let Some(from) = *from {
        queue.remove(&(from, Arc::clone(name)));
    }
    if let Some(to) = to {
        queue.insert((to, Arc::clone(name)));
    }
    *from = to;
}
