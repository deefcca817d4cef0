//! Windows: when they begin and end, and what is counted in them. Pure: time is an argument.

mod closed;

use super::{Time, WindowSpec};

pub use closed::{Closed, Closing, Mark, Observation, Observed, Split};

/// The group of what is beyond [`WindowSpec::max_groups`].
pub const OTHER: &str = "other";

/// The windows of one rule.
#[derive(Debug)]
pub struct Windows {
    spec: WindowSpec,
}

impl Windows {
    /// Without messages yet. `fields` is how many fields the rule has, `keep_messages` how many messages of a window
    /// are named in [`Closed::seqs`], and `grouped` whether the rule has groups: one without is watched from the
    /// first tick on, before anything came.
    pub fn new(spec: WindowSpec, fields: usize, keep_messages: usize, grouped: bool) -> Self {
        let _ = (fields, keep_messages, grouped);
        Self { spec }
    }

    /// Counts a message, after ending what is due at its arrival.
    pub fn observe(&mut self, o: &Observation) -> Observed {
        let _ = o;
        Observed::default()
    }

    /// Ends what is due.
    pub fn tick(&mut self, now: Time) -> Vec<Closed> {
        let _ = now;
        Vec::new()
    }

    /// When [`Self::tick`] has something to do next. A rule without groups needs one tick before that counts.
    pub fn due(&self) -> Option<Time> {
        None
    }

    /// The wall clock was set back to `now`. All marks may have changed: store [`Self::marks`] after it.
    pub fn set_back(&mut self, now: Time) -> Vec<Closed> {
        let _ = now;
        Vec::new()
    }

    /// Ends every window that holds messages.
    pub fn close_all(&mut self, now: Time, why: Closing) -> Vec<Closed> {
        let _ = (now, why, &self.spec);
        Vec::new()
    }

    /// The marks of all groups.
    pub fn marks(&self) -> impl Iterator<Item = (&str, Mark)> {
        std::iter::empty()
    }

    /// The mark of a group.
    pub fn mark(&self, group: &str) -> Option<Mark> {
        let _ = group;
        None
    }

    /// Makes a group known, before its stored messages are observed again.
    pub fn restore(&mut self, group: String, mark: Mark) {
        let _ = (group, mark);
    }
}
