//! A window that is open.

use std::collections::VecDeque;
use std::ops::RangeInclusive;

use super::Observation;
use super::calendar::Span;
use crate::facts::{Accumulator, TextPool};
use crate::{FieldFacts, Time};

/// What is counted of a window. Of its messages it holds numbers only: of all as ranges, of those to be shown one by one.
#[derive(Debug)]
pub(super) struct Window {
    /// Its span. Of sessions and counts it moves with their messages.
    pub(super) span: Span,
    /// When the first of its messages came.
    pub(super) opened: Time,
    /// The greatest time of its messages.
    pub(super) newest: Time,
    pub(super) messages: u64,
    pub(super) bytes: u64,
    /// First and last numbers of unbroken runs of the group's stored messages, ascending.
    runs: Vec<(u64, u64)>,
    kept: VecDeque<(Time, u64)>,
    /// The newest arrivals, as many as the rate needs.
    recent: VecDeque<(u64, Time)>,
    facts: Vec<Accumulator>,
}

/// How much of its messages a window holds on to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hold {
    pub(super) fields: usize,
    pub(super) kept: usize,
    pub(super) recent: usize,
}

impl Window {
    pub(super) fn new(span: Span, arrived: Time, hold: Hold) -> Self {
        Self {
            span,
            opened: arrived,
            newest: Time(i64::MIN),
            messages: 0,
            bytes: 0,
            // Most hopping windows are put together of slices of one message each.
            runs: Vec::with_capacity(1),
            kept: VecDeque::with_capacity(hold.kept.min(1)),
            recent: VecDeque::new(),
            facts: vec![Accumulator::default(); hold.fields],
        }
    }

    /// Counts a message at time `t`; its texts are those of `pool`.
    pub(super) fn count(&mut self, o: &Observation, t: Time, hold: Hold, pool: &mut TextPool) {
        self.messages += 1;
        self.bytes = self.bytes.saturating_add(o.bytes);
        self.opened = self.opened.min(o.arrived);
        self.newest = self.newest.max(t);
        for (field, value) in &o.values {
            if let Some(facts) = self.facts.get_mut(*field) {
                facts.add(t, o.seq, value, pool);
            }
        }
        if hold.kept > 0 {
            let place = (t, o.seq);
            let at = match self.kept.back() {
                Some(back) if *back > place => self.kept.partition_point(|kept| *kept < place),
                _ => self.kept.len(),
            };
            self.kept.insert(at, place);
        }
        if hold.recent > 0 {
            self.recent.push_back((o.seq, o.arrived));
        }
        self.trim(hold);
    }

    /// Names a message among those to forget with this window. `before` is the group's stored message before it.
    pub(super) fn claim(&mut self, seq: u64, before: Option<u64>) {
        match self.runs.last_mut() {
            Some(run) if Some(run.1) == before => run.1 = seq,
            _ => self.runs.push((seq, seq)),
        }
    }

    /// Takes in another window of the group.
    pub(super) fn merge(&mut self, other: Self, hold: Hold) {
        self.span.start = self.span.start.min(other.span.start);
        self.span.end = self.span.end.max(other.span.end);
        self.absorb(&other, hold);
        self.take_runs(other);
    }

    /// Counts what another window counted.
    pub(super) fn absorb(&mut self, other: &Self, hold: Hold) {
        self.opened = self.opened.min(other.opened);
        self.newest = self.newest.max(other.newest);
        self.messages += other.messages;
        self.bytes = self.bytes.saturating_add(other.bytes);
        let ascending = self.kept.back() <= other.kept.front();
        self.kept.extend(&other.kept);
        if !ascending {
            self.kept.make_contiguous().sort_unstable();
        }
        self.recent.extend(&other.recent);
        self.recent.make_contiguous().sort_unstable();
        self.trim(hold);
        for (mine, other) in self.facts.iter_mut().zip(&other.facts) {
            mine.merge(other);
        }
    }

    /// Names the messages among those to forget with this window that are to be forgotten with another.
    pub(super) fn take_runs(&mut self, other: Self) {
        self.runs.extend(other.runs);
        self.runs.sort_unstable();
    }

    fn trim(&mut self, hold: Hold) {
        self.kept.drain(..self.kept.len().saturating_sub(hold.kept));
        self.recent.drain(..self.recent.len().saturating_sub(hold.recent));
    }

    /// When the message came that is `back` messages before the newest one, in the order in which they came.
    pub(super) fn arrival_before(&self, back: usize) -> Option<Time> {
        let index = self.recent.len().checked_sub(back.checked_add(1)?)?;
        self.recent.get(index).map(|(_, arrived)| *arrived)
    }

    /// Its newest messages, what to forget, and the facts.
    pub(super) fn finish(self) -> (Vec<u64>, Vec<RangeInclusive<u64>>, Vec<FieldFacts>) {
        (
            self.kept.into_iter().map(|(_, seq)| seq).collect(),
            self.runs.into_iter().map(|(first, last)| first..=last).collect(),
            self.facts.iter().map(Accumulator::finish).collect(),
        )
    }
}
