//! A naive window operator after the text of `phi_edge_rules`: every message is kept, and every window is computed from
//! all of them at each step.

use std::collections::BTreeMap;
use std::time::Duration;

use phi_edge_rules::{CloseReason, OVERFLOW_GROUP, Time, TimeSource, WindowKind, WindowMessage, WindowSpec};

use crate::expected::{Expected, Row, Span, facts};
use crate::periods::period_of;

#[derive(Debug, Default)]
struct State {
    closed_until: Option<Time>,
    /// Period and the start of its remainder.
    rests: Vec<(Span, Time)>,
    cool_until: Option<Time>,
    last_seen: Option<Time>,
    absent: bool,
    late: u64,
    empty_from: Option<Time>,
}

#[derive(Debug, Clone)]
struct Item {
    due: Time,
    group: String,
    class: u8,
    span: Span,
    reason: CloseReason,
}

pub(crate) struct Reference {
    spec: WindowSpec,
    fields: usize,
    keep: usize,
    grouped: bool,
    rows: Vec<Row>,
    groups: BTreeMap<String, State>,
    latest: Time,
    periods: Vec<Span>,
}

impl Reference {
    pub(crate) fn new(spec: WindowSpec, fields: usize, keep: usize, grouped: bool) -> Self {
        Self {
            spec,
            fields,
            keep,
            grouped,
            rows: Vec::new(),
            groups: BTreeMap::new(),
            latest: Time(i64::MIN),
            periods: Vec::new(),
        }
    }

    /// The windows that closed, and whether the message is assigned to one.
    pub(crate) fn ingest(&mut self, o: &WindowMessage) -> (Vec<Expected>, bool) {
        let mut ended = self.tick(o.arrived);
        let group = self.admit(&o.group);
        let time = self.timestamp_of(o);
        let state = self.groups.entry(group.clone()).or_default();
        state.last_seen = Some(o.arrived);
        state.absent = false;
        let inside = self.place(&group, time, o.arrived);
        let assigned = inside.is_some();
        let known_from = self.start_of_period(if assigned { time } else { o.arrived });
        let reports_empty = self.reports_empty();
        let state = self.groups.get_mut(&group).unwrap();
        if reports_empty && state.empty_from.is_none() {
            state.empty_from = Some(known_from);
        }
        if let Some(inside) = inside {
            self.rows.push(Row {
                o: o.clone(),
                group: group.clone(),
                time,
                inside,
                open: true,
            });
            ended.extend(self.triggered(&group));
        } else {
            state.late += 1;
        }
        (ended, assigned)
    }

    pub(crate) fn tick(&mut self, now: Time) -> Vec<Expected> {
        self.latest = self.latest.max(now);
        if !self.grouped && !self.groups.contains_key("") {
            let empty_from = self.reports_empty().then(|| self.start_of_period(now));
            let state = State {
                last_seen: Some(now),
                empty_from,
                ..State::default()
            };
            self.groups.insert(String::new(), state);
        }
        let mut ended = Vec::new();
        loop {
            let names: Vec<String> = self.groups.keys().cloned().collect();
            let mut items: Vec<Item> = names.iter().flat_map(|name| self.items(name, now)).collect();
            items.retain(|item| item.due <= now);
            items.sort_by_key(|item| (item.due, item.group.clone(), item.class, item.span));
            let Some(item) = items.first() else { return ended };
            ended.push(self.end(item));
        }
    }

    /// Whether something would happen at `now`.
    pub(crate) fn has_due(&mut self, now: Time) -> bool {
        let names: Vec<String> = self.groups.keys().cloned().collect();
        names
            .iter()
            .any(|name| self.items(name, now).iter().any(|item| item.due <= now))
    }

    pub(crate) fn set_back(&mut self, now: Time) -> Vec<Expected> {
        let latest = std::mem::replace(&mut self.latest, now);
        let names: Vec<String> = self.groups.keys().cloned().collect();
        let mut ended = Vec::new();
        for name in names {
            let lateness = self.lateness();
            let state = self.groups.get_mut(&name).unwrap();
            for (period, _) in state
                .rests
                .extract_if(.., |(period, _)| period.1.after(lateness) <= latest)
            {
                state.closed_until = state.closed_until.max(Some(period.1));
            }
            let reopens = state.closed_until.is_some_and(|until| until > now);
            state.rests.retain(|(period, _)| period.0 <= now);
            state
                .rests
                .iter_mut()
                .for_each(|(_, rest)| *rest = (*rest).min(now));
            for cut in [
                &mut state.closed_until,
                &mut state.cool_until,
                &mut state.last_seen,
                &mut state.empty_from,
            ] {
                *cut = cut.map(|time| time.min(now));
            }
            let windows = self.windows(&name);
            let after: Vec<Span> = windows.iter().copied().filter(|span| span.0 > now).collect();
            let all = matches!(self.spec.kind, WindowKind::Hopping { .. }) && (reopens || !after.is_empty());
            for span in if all { windows } else { after } {
                ended.push(self.end_now(&name, span, now, CloseReason::Clock));
            }
        }
        ended
    }

    pub(crate) fn close_all(&mut self, now: Time, reason: CloseReason) -> Vec<Expected> {
        let names: Vec<String> = self.groups.keys().cloned().collect();
        let mut ended = Vec::new();
        for name in names {
            for span in self.windows(&name) {
                ended.push(self.end_now(&name, span, now, reason));
            }
        }
        ended
    }

    fn lateness(&self) -> Duration {
        match self.spec.time {
            TimeSource::Arrival => Duration::ZERO,
            TimeSource::Field { lateness, .. } => lateness,
        }
    }

    fn timestamp_of(&self, o: &WindowMessage) -> Time {
        let ahead = self.lateness().max(Duration::from_mins(1));
        match (&self.spec.time, o.event_time) {
            (TimeSource::Field { .. }, Some(event_time)) if event_time <= o.arrived.after(ahead) => {
                event_time
            }
            _ => o.arrived,
        }
    }

    fn has_periods(&self) -> bool {
        !matches!(
            self.spec.kind,
            WindowKind::Session { .. } | WindowKind::Count { .. }
        )
    }

    fn reports_empty(&self) -> bool {
        self.spec.empty && self.has_periods()
    }

    fn start_of_period(&mut self, t: Time) -> Time {
        if self.has_periods() { self.period(t).0 } else { t }
    }

    fn admit(&mut self, group: &str) -> String {
        if self.groups.contains_key(group) || group == OVERFLOW_GROUP {
            return group.to_owned();
        }
        let counted = self.groups.keys().filter(|name| *name != OVERFLOW_GROUP).count();
        if counted < self.spec.max_groups {
            return group.to_owned();
        }
        let idle = self
            .groups
            .iter()
            .filter(|(name, state)| {
                *name != OVERFLOW_GROUP
                    && self.windows(name).is_empty()
                    && (self.spec.absence.is_none() || state.absent)
                    && !self.reports_empty()
            })
            .min_by_key(|(name, state)| (state.last_seen, (*name).clone()))
            .map(|(name, _)| name.clone());
        let Some(idle) = idle else {
            return OVERFLOW_GROUP.to_owned();
        };
        self.groups.remove(&idle);
        group.to_owned()
    }

    /// The windows of a message; none if it is late.
    fn place(&mut self, group: &str, time: Time, arrived: Time) -> Option<Vec<Span>> {
        let lateness = self.lateness();
        let closed_until = self.groups[group].closed_until.unwrap_or(Time(i64::MIN));
        match self.spec.kind.clone() {
            WindowKind::Count { .. } => Some(Vec::new()),
            WindowKind::Session { gap } => {
                let near = |row: &Row| row.time == time || row.time.0.abs_diff(time.0) < ms(gap);
                let joins = self.open(group).any(near);
                let late = time.after(gap).after(lateness) <= arrived || time < closed_until;
                (joins || !late).then(Vec::new)
            }
            WindowKind::Hopping { length, .. } => {
                let mut inside = Vec::new();
                let mut start = self.period(time).0;
                while start.after(length) > time {
                    let end = start.after(length);
                    if end > closed_until && end.after(lateness) > arrived {
                        inside.push((start, end));
                    }
                    start = self.period(Time(start.0 - 1)).0;
                }
                (!inside.is_empty()).then_some(inside)
            }
            WindowKind::Tumbling { .. } | WindowKind::Schedule { .. } => {
                let period = self.period(time);
                let floor = self.floor(group, period);
                (period.1.after(lateness) > arrived && time >= floor).then(|| vec![(floor, period.1)])
            }
        }
    }

    fn floor(&self, group: &str, period: Span) -> Time {
        let state = &self.groups[group];
        let rests = state
            .rests
            .iter()
            .filter(|(of, _)| *of == period)
            .map(|(_, rest)| *rest);
        rests.chain(state.closed_until).fold(period.0, Time::max)
    }

    fn open(&self, group: &str) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(move |row| row.open && row.group == group)
    }

    /// The open windows of a group, by their start.
    fn windows(&self, group: &str) -> Vec<Span> {
        let mut times: Vec<Time> = self.open(group).map(|row| row.time).collect();
        times.sort_unstable();
        let mut spans: Vec<Span> = match self.spec.kind {
            WindowKind::Count { .. } => times
                .first()
                .map(|first| (*first, times[times.len() - 1]))
                .into_iter()
                .collect(),
            WindowKind::Session { gap } => {
                let mut spans: Vec<Span> = Vec::new();
                for time in times {
                    match spans.last_mut() {
                        Some(span) if time < span.1 => span.1 = time.after(gap),
                        _ => spans.push((time, time.after(gap))),
                    }
                }
                spans
            }
            _ => self
                .open(group)
                .flat_map(|row| row.inside.iter().copied())
                .collect(),
        };
        spans.sort_unstable();
        spans.dedup();
        spans
    }

    fn in_window(&self, group: &str, span: Span) -> Vec<&Row> {
        let has_periods = self.has_periods();
        let count = matches!(self.spec.kind, WindowKind::Count { .. });
        self.open(group)
            .filter(|row| {
                if has_periods {
                    row.inside.contains(&span)
                } else {
                    count || (span.0 <= row.time && row.time < span.1)
                }
            })
            .collect()
    }

    /// The due items of a group; of empty windows, the last that is due.
    fn items(&mut self, name: &str, now: Time) -> Vec<Item> {
        let lateness = self.lateness();
        let count = matches!(self.spec.kind, WindowKind::Count { .. });
        let item = |due, class, span, reason| Item {
            due,
            group: name.to_owned(),
            class,
            span,
            reason,
        };
        let mut items = Vec::new();
        for span in self.windows(name) {
            let opened = self
                .in_window(name, span)
                .iter()
                .map(|row| row.o.arrived)
                .min()
                .unwrap();
            let aged = self
                .spec
                .max_age
                .filter(|_| !self.has_periods())
                .map(|age| opened.after(age));
            let due = span.1.after(lateness);
            match aged {
                Some(aged) if count || aged < due => items.push(item(aged, 0, span, CloseReason::Full)),
                _ if count => {}
                _ => items.push(item(due, 0, span, CloseReason::Due)),
            }
        }
        if let Some(from) = self.groups[name].empty_from.filter(|_| self.reports_empty()) {
            let mut period = self.period(from);
            let mut last = None;
            loop {
                let span = match self.spec.kind {
                    WindowKind::Hopping { length, .. } => (period.0, period.0.after(length)),
                    _ => (self.floor(name, period), period.1),
                };
                if span.1.after(lateness) > now {
                    break;
                }
                let occupied = self
                    .windows(name)
                    .iter()
                    .any(|w| period.0 <= w.0 && w.0 < period.1);
                if !occupied {
                    last = Some(item(span.1.after(lateness), 1, span, CloseReason::Due));
                }
                period = self.period(period.1);
            }
            items.extend(last);
        }
        let state = &self.groups[name];
        if let (Some(absence), Some(seen), false) = (self.spec.absence, state.last_seen, state.absent) {
            items.push(item(
                seen.after(absence),
                2,
                (seen, seen.after(absence)),
                CloseReason::Absence,
            ));
        }
        items
    }

    fn end(&mut self, item: &Item) -> Expected {
        if item.class == 2 {
            self.groups.get_mut(&item.group).unwrap().absent = true;
        }
        if item.class > 0 {
            if item.class == 1 {
                self.pass(&item.group, item.span);
            }
            return self.report(&item.group, item.span, item.reason, &[]);
        }
        let newest = self
            .in_window(&item.group, item.span)
            .iter()
            .map(|row| row.time)
            .max()
            .unwrap();
        let (end, rest) = match item.reason {
            CloseReason::Full => (item.due.max(newest).min(item.span.1), newest),
            _ => (item.span.1, item.span.1),
        };
        self.close(item, end, Some(rest))
    }

    /// Everything of that window, and of its period, is over.
    fn pass(&mut self, group: &str, span: Span) {
        let next = self.period(span.0).1;
        let state = self.groups.get_mut(group).unwrap();
        state.closed_until = state.closed_until.max(Some(span.1));
        state.empty_from = state.empty_from.map(|from| from.max(next));
    }

    fn end_now(&mut self, group: &str, span: Span, now: Time, reason: CloseReason) -> Expected {
        let newest = self
            .in_window(group, span)
            .iter()
            .map(|row| row.time)
            .max()
            .unwrap();
        let rest = (reason != CloseReason::Clock).then(|| newest.min(now).max(span.0));
        let item = Item {
            due: now,
            group: group.to_owned(),
            class: 0,
            span,
            reason,
        };
        self.close(&item, now.max(newest).min(span.1), rest)
    }

    fn triggered(&mut self, group: &str) -> Option<Expected> {
        if matches!(self.spec.kind, WindowKind::Hopping { .. }) {
            return None;
        }
        let last = self.rows.last().unwrap().clone();
        let span = self.windows(group).into_iter().find(|span| {
            self.in_window(group, *span)
                .iter()
                .any(|row| row.o.seq == last.o.seq)
        })?;
        let rows = self.in_window(group, span);
        let bytes: u64 = rows.iter().map(|row| row.o.bytes).sum();
        let too_many = self.spec.early_rate.is_some_and(|(most, within)| {
            let most = usize::try_from(most).unwrap();
            rows.len() > most && last.o.arrived < rows[rows.len() - 1 - most].o.arrived.after(within)
        });
        let calm = self.groups[group]
            .cool_until
            .is_none_or(|until| last.o.arrived >= until);
        let messages = rows.len() as u64;
        let reason = if calm && (last.o.early || too_many) {
            CloseReason::Early
        } else if self.spec.max_messages.is_some_and(|most| messages >= most)
            || self.spec.max_bytes.is_some_and(|most| bytes >= most)
        {
            CloseReason::Full
        } else if matches!(self.spec.kind, WindowKind::Count { messages: most } if messages >= most) {
            CloseReason::Due
        } else {
            return None;
        };
        let item = Item {
            due: last.o.arrived,
            group: group.to_owned(),
            class: 0,
            span,
            reason,
        };
        Some(self.close(&item, Time(last.time.0 + 1).min(span.1), Some(last.time)))
    }

    fn close(&mut self, item: &Item, end: Time, rest: Option<Time>) -> Expected {
        let rows: Vec<Row> = self
            .in_window(&item.group, item.span)
            .into_iter()
            .cloned()
            .collect();
        for row in &mut self.rows {
            if rows.iter().any(|closed| closed.o.seq == row.o.seq) {
                row.inside.retain(|span| *span != item.span);
                row.open = !row.inside.is_empty();
            }
        }
        match (&self.spec.kind, rest) {
            (WindowKind::Tumbling { .. } | WindowKind::Schedule { .. }, Some(rest)) if rest < item.span.1 => {
                let period = self.period(rest);
                self.groups
                    .get_mut(&item.group)
                    .unwrap()
                    .rests
                    .push((period, rest));
            }
            (WindowKind::Tumbling { .. } | WindowKind::Schedule { .. }, Some(_)) => {
                self.pass(&item.group, item.span);
            }
            (WindowKind::Hopping { .. }, _) if item.reason == CloseReason::Due => {
                self.pass(&item.group, item.span)
            }
            (WindowKind::Session { .. }, Some(rest)) => {
                let state = self.groups.get_mut(&item.group).unwrap();
                state.closed_until = state.closed_until.max(Some(rest));
            }
            _ => {}
        }
        let state = self.groups.get_mut(&item.group).unwrap();
        state.cool_until = state.cool_until.max(Some(item.due.after(self.spec.cool_down)));
        let newest = rows.iter().map(|row| row.time).max().unwrap();
        let end = if matches!(self.spec.kind, WindowKind::Count { .. }) {
            newest
        } else {
            end
        };
        self.report(&item.group, (item.span.0, end), item.reason, &rows)
    }

    fn report(&mut self, group: &str, span: Span, reason: CloseReason, rows: &[Row]) -> Expected {
        let mut rows = rows.to_vec();
        rows.sort_by_key(|row| (row.time, row.o.seq));
        let seqs: Vec<u64> = rows.iter().map(|row| row.o.seq).collect();
        let gone = |seq: &u64| self.rows.iter().any(|row| row.o.seq == *seq && !row.open);
        let mut forget: Vec<u64> = seqs.iter().copied().filter(gone).collect();
        forget.sort_unstable();
        Expected {
            group: group.to_owned(),
            span,
            reason,
            messages: rows.len() as u64,
            bytes: rows.iter().map(|row| row.o.bytes).sum(),
            late: std::mem::take(&mut self.groups.get_mut(group).unwrap().late),
            seqs: seqs[seqs.len().saturating_sub(self.keep)..].to_vec(),
            facts: (0..self.fields).map(|field| facts(&rows, field)).collect(),
            forget,
        }
    }

    fn period(&mut self, t: Time) -> Span {
        if let Some(known) = self.periods.iter().rev().find(|span| span.0 <= t && t < span.1) {
            return *known;
        }
        let period = period_of(&self.spec, t);
        self.periods.push(period);
        period
    }
}

fn ms(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap()
}
