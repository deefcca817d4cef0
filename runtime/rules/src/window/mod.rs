//! WindowOperator: when they begin and end, and what is counted in them. Pure: time is an argument.
//!
//! # What is counted where
//!
//! *Time.* A message's time is its arrival or, for [`TimeSource::Field`](super::TimeSource::Field), its stamp. A missing
//! stamp, or one that is more than the lateness or a minute (whichever is more) ahead of the arrival, counts as the
//! arrival. A window is *due* when the clock shows its end and the lateness (zero for arrival) has passed. Whatever is due
//! when a message arrives ends before the message is looked at, so it makes no difference who looks at the clock first.
//! WindowOperator are half open: a message at the end of one is in the next.
//!
//! *Tumbling.* Each local day is divided from its midnight into `every`; the day's last window ends at the next
//! midnight, however long the day is. An `every` of whole days is aligned to local midnights counted from 1970-01-01,
//! one of whole weeks from the Monday after it. Such a window is a *period*.
//!
//! *Hopping.* A window of `length` begins with each tumbling period of `every`. A message counts in every window that
//! holds its time and has not closed.
//!
//! *Session.* A message joins every open session of which a message is nearer than `gap`, and makes one of them; else it
//! begins one. A session starts with its earliest message and ends `gap` after its newest.
//!
//! *Count.* So many messages, as they come; from the earliest to the newest. Nothing is late.
//!
//! *Schedule.* The local times `at` on `days` are boundaries; a period runs from one to the next. In a gap of the local
//! clock a boundary is the end of the gap, in a fold the first of the two. A midnight is found likewise.
//!
//! *Late* is a message whose window has closed: one whose (for hopping: every) window is due when it arrives, or was
//! closed earlier. It counts in no window, only in [`ClosedWindow::late`] of what the group reports next. Of a session it is
//! one that joins none and whose own would be due, or that is earlier than where the group's sessions have ended: at the end
//! of one that was due, at the message that ended one early, at the newest message of one that grew too old.
//!
//! # What else ends a window
//!
//! `early` and `early_rate` end a window with the message that meets them, `max_messages` and `max_bytes` with the one that
//! reaches them, in this order of precedence; the window ends a millisecond after that message's time, never after its own
//! end. The rate is exceeded when a message came less than the span after the one that is `n` before it in the same
//! window: what an earlier window counted does not count again. What is left of a period goes on as a further window,
//! from that message's time: later messages at or after it count there, those before it are late. Of more than 1,000 such
//! periods of a group the oldest are closed. Hopping windows have none of this.
//!
//! Session and count windows end by `max_age` after the first of their messages arrived.
//!
//! After a window of a group has ended, `early` and `early_rate` do nothing until `cool_down` has passed since: since it
//! was due, or the message came that ended it.
//!
//! *Empty* windows of tumbling, hopping and schedule are reported for known groups where the rule asks for it, from the
//! period of the group's first message on (without groups, from that of the first tick); what is left of a period that ended
//! early is one, too. Of several that are found due at once, only the last is reported.
//!
//! *Absence* is reported once when the newest message of a group (without groups: at first the first tick) arrived so
//! long ago.
//!
//! A message that there is no room to keep counts in no window, unless it ends its window by `early`; its group was there
//! all the same.
//!
//! # Groups
//!
//! Messages of more than `max_groups` groups go to [`OVERFLOW_GROUP`], which does not count as one. To make room, the group that was
//! silent longest is forgotten, if there is one without an open window of which neither absence nor empty windows are to
//! be reported. Should it come back, it begins anew.
//!
//! # Memory
//!
//! An open window holds running facts, the places of the messages that are kept, as many arrivals as the rate needs,
//! and the numbers of its messages as runs: one run where a group's messages come in the order of their windows, at
//! worst 16 bytes a message. Hopping windows are not held at all: what they share is held in slices, in each of which a
//! message counts once, and a window is put together when it ends. Each text is held once for all windows of the rule.
//! So all of it grows with the stored messages, however many windows they count in, and [`WindowOperator::held_bytes`] tells it.
//!
//! # The clock
//!
//! Moments given to [`WindowOperator::ingest`] and [`WindowOperator::tick`] do not go back. If the clock does, the caller either waits
//! for it with the latest moment, or says so by [`WindowOperator::set_back`]: then windows that begin after the new moment end,
//! and what was remembered beyond it is cut to it. A hopping group with such a window, or with one that has closed and
//! ends after the new moment, ends all of its windows, since they share messages.
//!
//! # After a downtime
//!
//! Messages that waited at the broker arrive after the clock has passed what they are about. While windows are held
//! ([`WindowOperator::hold_event_time`]) nothing is absent, and windows of a field's time are not due and nothing is late for them but what
//! had closed before.
//!
//! # Restarts
//!
//! A group is its checkpoint and its stored messages. The caller stores each message that is placed, deletes
//! [`ClosedWindow::forget`] and stores [`ClosedWindow::checkpoint`] in one step, and stores the checkpoint of a group also for a message that is
//! not placed, and all checkpoints after the clock was set back. Then [`WindowOperator::restore`] of the checkpoints and
//! [`WindowOperator::ingest`] of the stored messages, by their numbers and with their arrivals as recorded, bring back the
//! same windows. Only a rule without groups that has not reported anything yet begins to watch anew.

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

pub use checkpoint::{Checkpoint, PeriodRemainder};
pub use closed_window::{CloseReason, ClosedWindow};
pub use message::{IngestOutcome, WindowMessage};

/// The group of what is beyond [`WindowSpec::max_groups`].
pub const OVERFLOW_GROUP: &str = "other";

/// The group of rules without groups.
const SOLE_GROUP: &str = "";

/// What a window takes without its fields, with what is allocated for its first messages.
const WINDOW_BYTES: usize = 288;

/// What the facts of a field take, without its texts.
const FIELD_BYTES: usize = 160;

/// The windows of one rule.
#[derive(Debug)]
pub struct WindowOperator {
    context: WindowContext,
    groups: HashMap<Arc<str>, GroupState>,
    queues: Queues,
    /// Whether the only group of a rule without groups is yet to be watched.
    sole_group_missing: bool,
    /// The latest moment of the clock; what was due by then is closed, even if the clock is set back.
    latest: Time,
}

/// Groups by what is to be done with them.
#[derive(Debug, Default)]
struct Queues {
    /// WindowOperator and slices that are open in all of them.
    open: usize,
    /// By when they are due. Names come second, so that the order does not depend on a map's.
    due: BTreeSet<(Time, Arc<str>)>,
    /// By when they were last seen: those that may be forgotten.
    evictable: BTreeSet<(Time, Arc<str>)>,
}

impl WindowOperator {
    /// Without messages yet. `fields` is how many fields the rule has, `keep_messages` how many messages of a window
    /// are named in [`ClosedWindow::seqs`], and `grouped` whether the rule has groups: one without is watched from the
    /// first tick on, before anything came.
    pub fn new(spec: WindowSpec, fields: usize, keep_messages: usize, grouped: bool) -> Self {
        Self {
            context: WindowContext::new(spec, fields, keep_messages),
            groups: HashMap::new(),
            queues: Queues::default(),
            sole_group_missing: !grouped,
            latest: Time(i64::MIN),
        }
    }

    /// Counts a message, after ending what is due at its arrival.
    pub fn ingest(&mut self, o: &WindowMessage) -> IngestOutcome {
        self.ingest_with(o, |group, context, outcome| {
            let (assigned, closed) = group.ingest(context, o);
            outcome.assigned = assigned;
            outcome.closed.extend(closed);
        })
    }

    /// As [`Self::ingest`] for a message that there is no room to keep. It counts all the same if its window ends with it
    /// by `early`, since then it need not be kept; else only its group was there.
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
        // A message that was placed before a restart ends nothing: what it could have ended has ended.
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

    /// Ends what is due.
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

    /// When [`Self::tick`] has something to do next. A rule without groups needs one tick before that counts.
    pub fn due(&self) -> Option<Time> {
        self.queues.due.first().map(|(due, _)| *due)
    }

    /// While `held`, nothing is absent, and where messages say their own time, no window is due: messages from before may
    /// still come. What ends windows otherwise goes on. [`Self::tick`] ends later what was due meanwhile.
    pub fn hold_event_time(&mut self, held: bool) {
        self.context.held = held;
        for group in self.groups.values_mut() {
            self.queues.reschedule(group, &mut self.context);
        }
    }

    /// The wall clock was set back to `now`. All checkpoints may have changed: store [`Self::checkpoints`] after it.
    pub fn set_back(&mut self, now: Time) -> Vec<ClosedWindow> {
        let latest = std::mem::replace(&mut self.latest, now);
        self.for_each_group(|group, context| group.set_back(context, latest, now))
    }

    /// Ends every window that holds messages.
    pub fn close_all(&mut self, now: Time, reason: CloseReason) -> Vec<ClosedWindow> {
        self.for_each_group(|group, context| group.close_all(context, now, reason))
    }

    /// The time by which a message counts that arrived then and says to be of `stamp`.
    pub(crate) fn timestamp_of(&self, event_time: Option<Time>, arrived: Time) -> Time {
        self.context.timestamp_of(event_time, arrived)
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

    /// What open windows hold in memory, in bytes, by their number, the number of their fields and the texts in them.
    pub fn held_bytes(&self) -> u64 {
        let window = WINDOW_BYTES + self.context.limits.fields * FIELD_BYTES;
        (self.queues.open * window + self.context.texts.bytes()) as u64
    }

    /// Gives back what is held for windows that have ended.
    pub(crate) fn give_back(&mut self) {
        self.context.texts.give_back();
    }

    /// Makes a group known, before its stored messages are observed again.
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

    /// Forgets idle groups until there is room for one more. False if there is none.
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
    /// Moves the group to where it belongs now.
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
