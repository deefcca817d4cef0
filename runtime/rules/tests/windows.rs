//! The window operator against a naive one, on 10,000 random streams, and its invariants.

// All of this is test code; clippy knows only functions marked as tests.
#![allow(clippy::unwrap_used)]

#[path = "windows/expected.rs"]
mod expected;
#[path = "windows/kinds.rs"]
mod kinds;
#[path = "windows/local.rs"]
mod local;
#[path = "windows/periods.rs"]
mod periods;
#[path = "windows/reference.rs"]
mod reference;
#[path = "windows/streams.rs"]
mod streams;

use std::collections::BTreeMap;

use expected::Expected;
use phi_edge_rules::{Checkpoint, CloseReason, ClosedWindow, OVERFLOW_GROUP, WindowMessage, WindowOperator};
use proptest::test_runner::{Config, TestRunner};
use reference::Reference;
use streams::{Kind, Plan, Step, plan};

/// A caller with a store: messages and checkpoints, kept as the operator demands.
struct Caller {
    plan: Plan,
    windows: WindowOperator,
    rows: BTreeMap<u64, WindowMessage>,
    checkpoints: BTreeMap<String, Checkpoint>,
}

impl Caller {
    fn new(plan: &Plan) -> Self {
        Self {
            plan: plan.clone(),
            windows: engine(plan),
            rows: BTreeMap::new(),
            checkpoints: BTreeMap::new(),
        }
    }

    fn ingest(&mut self, o: &WindowMessage) -> (Vec<Expected>, bool) {
        let outcome = self.windows.ingest(o);
        let group = if outcome.overflow {
            OVERFLOW_GROUP
        } else {
            &o.group
        };
        if outcome.assigned {
            self.rows.insert(
                o.seq,
                WindowMessage {
                    group: group.to_owned(),
                    ..o.clone()
                },
            );
        }
        let closed = self.take(outcome.closed);
        for evicted in &outcome.evicted {
            self.checkpoints.remove(evicted);
        }
        if !outcome.assigned {
            self.checkpoints
                .insert(group.to_owned(), self.windows.checkpoint(group).unwrap());
        }
        (closed, outcome.assigned)
    }

    fn take(&mut self, closed: Vec<ClosedWindow>) -> Vec<Expected> {
        closed.into_iter().map(|closed| self.take_one(closed)).collect()
    }

    fn take_one(&mut self, closed: ClosedWindow) -> Expected {
        let forget: Vec<u64> = self
            .rows
            .values()
            .filter(|row| row.group == closed.group)
            .map(|row| row.seq)
            .filter(|seq| closed.forget.iter().any(|range| range.contains(seq)))
            .collect();
        for seq in &forget {
            self.rows.remove(seq);
        }
        self.checkpoints.insert(closed.group.clone(), closed.checkpoint);
        Expected {
            group: closed.group,
            span: (closed.start, closed.end),
            reason: closed.reason,
            messages: closed.messages,
            bytes: closed.bytes,
            late: closed.late,
            seqs: closed.seqs,
            facts: closed.facts,
            forget,
        }
    }

    fn step(&mut self, step: &Step) -> Vec<Expected> {
        match step {
            Step::Message(o) => self.ingest(o).0,
            Step::Tick(now) => {
                let closed = self.windows.tick(*now);
                let closed = self.take(closed);
                // The only group of a rule without groups appears, which a store is not told.
                if !self.plan.grouped {
                    self.checkpoints
                        .insert(String::new(), self.windows.checkpoint("").unwrap());
                }
                closed
            }
            Step::SetBack(now) => {
                let closed = self.windows.set_back(*now);
                let closed = self.take(closed);
                self.checkpoints = self
                    .windows
                    .checkpoints()
                    .map(|(group, checkpoint)| (group.to_owned(), checkpoint))
                    .collect();
                closed
            }
        }
    }

    fn restart(&mut self) {
        self.windows = engine(&self.plan);
        for (group, checkpoint) in &self.checkpoints {
            self.windows.restore(group, checkpoint.clone());
        }
        for row in self.rows.values() {
            let outcome = self.windows.ingest(row);
            assert_eq!(outcome.closed, [], "a restart ends nothing");
            assert!(
                outcome.assigned && !outcome.overflow,
                "message {} is in a window again",
                row.seq
            );
        }
    }
}

fn engine(plan: &Plan) -> WindowOperator {
    WindowOperator::new(plan.spec.clone(), streams::FIELDS, plan.keep, plan.grouped)
}

fn check(cases: u32, kind: Kind, property: impl Fn(&Plan)) {
    let config = Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    };
    let mut runner = TestRunner::new(config);
    let outcome = runner.run(&plan(kind), |plan| {
        property(&plan);
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}

/// Operator and reference agree at each step.
fn agrees(plan: &Plan) {
    let mut caller = Caller::new(plan);
    let mut reference = Reference::new(plan.spec.clone(), streams::FIELDS, plan.keep, plan.grouped);
    for (index, step) in plan.steps.iter().enumerate() {
        let expected = match step {
            Step::Message(o) => {
                let (expected, assigned) = reference.ingest(o);
                let (closed, was_assigned) = caller.ingest(o);
                assert_eq!(closed, expected, "step {index}: {step:?}");
                assert_eq!(was_assigned, assigned, "step {index}: {step:?}");
                continue;
            }
            Step::Tick(now) => {
                let due = caller.windows.due().is_some_and(|due| due <= *now);
                assert_eq!(due, reference.has_due(*now), "due at step {index}: {step:?}");
                reference.tick(*now)
            }
            Step::SetBack(now) => reference.set_back(*now),
        };
        assert_eq!(caller.step(step), expected, "step {index}: {step:?}");
    }
    let expected = reference.close_all(plan.end, CloseReason::Reload);
    let closed = caller.windows.close_all(plan.end, CloseReason::Reload);
    assert_eq!(caller.take(closed), expected);
    assert_eq!(caller.rows.len(), 0, "nothing is stored for ever");
}

/// Messages of kinds that do not overlap are in exactly one window, or late.
fn counts_once(plan: &Plan) {
    let mut caller = Caller::new(&Plan {
        keep: usize::MAX,
        ..plan.clone()
    });
    let mut seen: BTreeMap<u64, u32> = BTreeMap::new();
    let (mut late, mut reported_late) = (0, 0);
    let mut count = |closed: Vec<Expected>| {
        for closed in closed {
            assert_eq!(closed.messages, closed.seqs.len() as u64);
            closed
                .seqs
                .iter()
                .for_each(|seq| *seen.entry(*seq).or_default() += 1);
            reported_late += closed.late;
        }
    };
    for step in &plan.steps {
        if let Step::Message(o) = step {
            let (closed, assigned) = caller.ingest(o);
            count(closed);
            late += u64::from(!assigned);
        } else {
            count(caller.step(step));
        }
    }
    let closed = caller.windows.close_all(plan.end, CloseReason::Reload);
    count(caller.take(closed));
    let unreported: u64 = caller
        .windows
        .checkpoints()
        .map(|(_, checkpoint)| checkpoint.late)
        .sum();
    let messages = plan
        .steps
        .iter()
        .filter(|step| matches!(step, Step::Message(_)))
        .count() as u64;
    assert!(seen.values().all(|times| *times == 1));
    assert_eq!(seen.len() as u64 + late, messages);
    assert!(
        reported_late + unreported <= late,
        "what is forgotten of a group may be lost, never doubled"
    );
    if plan.spec.max_groups > streams::GROUPS {
        assert_eq!(reported_late + unreported, late);
    }
}

/// A restart at any step changes nothing.
fn survives(plan: &Plan) {
    let mut whole = Caller::new(plan);
    let mut parted = Caller::new(plan);
    for (index, step) in plan.steps.iter().enumerate() {
        if index == plan.restart {
            parted.restart();
            // The clock goes on: a daemon looks at it before anything else.
            if index > 0 {
                assert_eq!(parted.step(&Step::Tick(plan.times[index - 1])), []);
                assert_eq!(whole.step(&Step::Tick(plan.times[index - 1])), []);
            }
            assert_eq!(parted.windows.due(), whole.windows.due());
        }
        assert_eq!(
            parted.step(step),
            whole.step(step),
            "step {index}: {step:?}, after {}",
            plan.restart
        );
    }
    let (left, right) = (
        parted.windows.close_all(plan.end, CloseReason::Reload),
        whole.windows.close_all(plan.end, CloseReason::Reload),
    );
    assert_eq!(parted.take(left), whole.take(right));
}

#[test]
fn tumbling_windows_are_as_the_text_says() {
    check(2_000, Kind::Tumbling, agrees);
}

#[test]
fn hopping_windows_are_as_the_text_says() {
    check(2_000, Kind::Hopping, agrees);
}

#[test]
fn session_windows_are_as_the_text_says() {
    check(2_000, Kind::Session, agrees);
}

#[test]
fn count_windows_are_as_the_text_says() {
    check(2_000, Kind::Count, agrees);
}

#[test]
fn scheduled_windows_are_as_the_text_says() {
    check(2_000, Kind::Schedule, agrees);
}

#[test]
fn messages_count_once_or_are_late() {
    for kind in [Kind::Tumbling, Kind::Session, Kind::Count, Kind::Schedule] {
        check(250, kind, counts_once);
    }
}

#[test]
fn restarts_change_nothing() {
    for kind in [
        Kind::Tumbling,
        Kind::Hopping,
        Kind::Session,
        Kind::Count,
        Kind::Schedule,
    ] {
        check(520, kind, survives);
    }
}
