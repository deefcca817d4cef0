//! The state of an open window.

use std::collections::VecDeque;
use std::ops::RangeInclusive;

use super::WindowMessage;
use super::calendar::Span;
use crate::facts::{Accumulator, TextPool};
use crate::{FieldFacts, Time};

/// The state of an open window: its accumulators, and the numbers of its messages, of all as runs, of those to be shown one
/// by one.
#[derive(Debug)]
pub(super) struct OpenWindow {
    /// Its span. Those of sessions and counts move with their messages.
    pub(super) span: Span,
    /// When the first of its messages arrived.
    pub(super) opened: Time,
    /// The greatest timestamp of its messages.
    pub(super) newest: Time,
    pub(super) messages: u64,
    pub(super) bytes: u64,
    /// First and last numbers of unbroken runs of the group's stored messages, ascending.
    stored_runs: Vec<(u64, u64)>,
    kept: VecDeque<(Time, u64)>,
    /// The newest arrivals, as many as `early_rate` needs.
    recent: VecDeque<(u64, Time)>,
    facts: Vec<Accumulator>,
}

/// The most fields, shown messages and arrivals that a window holds.
#[derive(Debug, Clone, Copy)]
pub(super) struct RetentionLimits {
    pub(super) fields: usize,
    pub(super) kept: usize,
    /// Whether the first shown message is held beside the newest.
    pub(super) keeps_first: bool,
    pub(super) recent: usize,
}

impl OpenWindow {
    pub(super) fn new(span: Span, arrived: Time, limits: RetentionLimits) -> Self {
        Self {
            span,
            opened: arrived,
            newest: Time(i64::MIN),
            messages: 0,
            bytes: 0,
            // Most hopping windows are merged from slices of one message each.
            stored_runs: Vec::with_capacity(1),
            kept: VecDeque::with_capacity(limits.kept.min(1)),
            recent: VecDeque::new(),
            facts: vec![Accumulator::default(); limits.fields],
        }
    }

    /// Accumulates a message of timestamp `t`; its texts are interned in `pool`.
    pub(super) fn count(&mut self, o: &WindowMessage, t: Time, limits: RetentionLimits, pool: &mut TextPool) {
        self.messages += 1;
        self.bytes = self.bytes.saturating_add(o.bytes);
        self.opened = self.opened.min(o.arrived);
        self.newest = self.newest.max(t);
        for (field, value) in &o.values {
            if let Some(facts) = self.facts.get_mut(*field) {
                facts.add(t, o.seq, value, pool);
            }
        }
        if limits.kept > 0 {
            let place = (t, o.seq);
            let at = match self.kept.back() {
                Some(back) if *back > place => self.kept.partition_point(|kept| *kept < place),
                _ => self.kept.len(),
            };
            self.kept.insert(at, place);
        }
        if limits.recent > 0 {
            self.recent.push_back((o.seq, o.arrived));
        }
        self.trim(limits);
    }

    /// Adds a message to those that are removed from the store with this window. `before` is the group's stored message
    /// before it.
    pub(super) fn add_stored(&mut self, seq: u64, before: Option<u64>) {
        match self.stored_runs.last_mut() {
            Some(run) if Some(run.1) == before => run.1 = seq,
            _ => self.stored_runs.push((seq, seq)),
        }
    }

    /// Merges another window of the group into this one.
    pub(super) fn merge(&mut self, other: Self, limits: RetentionLimits) {
        self.span.start = self.span.start.min(other.span.start);
        self.span.end = self.span.end.max(other.span.end);
        self.accumulate(&other, limits);
        self.take_stored(other);
    }

    /// Accumulates what another window has accumulated.
    pub(super) fn accumulate(&mut self, other: &Self, limits: RetentionLimits) {
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
        self.trim(limits);
        for (mine, other) in self.facts.iter_mut().zip(&other.facts) {
            mine.merge(other);
        }
    }

    /// Takes over the stored messages of another window.
    pub(super) fn take_stored(&mut self, other: Self) {
        self.stored_runs.extend(other.stored_runs);
        self.stored_runs.sort_unstable();
    }

    fn trim(&mut self, limits: RetentionLimits) {
        let surplus = self.kept.len().saturating_sub(limits.kept);
        let from = usize::from(limits.keeps_first && limits.kept > 1).min(self.kept.len() - surplus);
        self.kept.drain(from..from + surplus);
        self.recent
            .drain(..self.recent.len().saturating_sub(limits.recent));
    }

    /// The arrival of the message that is `back` arrivals before the newest.
    pub(super) fn arrival_before(&self, back: usize) -> Option<Time> {
        let index = self.recent.len().checked_sub(back.checked_add(1)?)?;
        self.recent.get(index).map(|(_, arrived)| *arrived)
    }

    /// The numbers of the messages that are shown, ascending by timestamp, then number.
    pub(super) fn shown_seqs(&self) -> impl DoubleEndedIterator<Item = u64> + '_ {
        self.kept.iter().map(|(_, seq)| *seq)
    }

    /// The numbers of its newest messages, those of its stored messages, and the facts.
    pub(super) fn finish(self) -> (Vec<u64>, Vec<RangeInclusive<u64>>, Vec<FieldFacts>) {
        (
            self.kept.into_iter().map(|(_, seq)| seq).collect(),
            self.stored_runs
                .into_iter()
                .map(|(first, last)| first..=last)
                .collect(),
            self.facts.iter().map(Accumulator::finish).collect(),
        )
    }
}
