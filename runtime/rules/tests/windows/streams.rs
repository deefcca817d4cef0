//! Random rules and streams of messages for them.

use std::time::Duration;

use jiff::civil::time;
use jiff::tz::TimeZone;
use phi_edge_rules::{Time, TimeSource, Value, Weekdays, WindowKind, WindowMessage, WindowSpec};
use proptest::collection::vec;
use proptest::option::{of, weighted};
use proptest::prelude::*;

/// How many fields the rules have.
pub(crate) const FIELDS: usize = 2;

/// How many groups the messages have at most.
pub(crate) const GROUPS: usize = 5;

/// Half a minute before clocks in Berlin are put forward (2024-03-31T01:00:00Z).
const SPRING: i64 = 1_711_846_770_000;

/// Half a minute before a Monday in Berlin (2024-06-02T22:00:00Z).
const MIDNIGHT: i64 = 1_717_365_570_000;

/// A rule and the steps of its stream.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) spec: WindowSpec,
    pub(crate) keep: usize,
    pub(crate) grouped: bool,
    pub(crate) steps: Vec<Step>,
    /// When each step is.
    pub(crate) times: Vec<Time>,
    /// The step before which the operator is restored.
    pub(crate) restart: usize,
    /// When everything is closed.
    pub(crate) end: Time,
}

#[derive(Debug, Clone)]
pub(crate) enum Step {
    Message(WindowMessage),
    Tick(Time),
    SetBack(Time),
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    Tumbling,
    Hopping,
    Session,
    Count,
    Schedule,
}

/// A step before its moment is known. Spans are milliseconds; those of schedules are longer.
#[derive(Debug, Clone)]
struct Draft {
    wait: i64,
    act: Act,
}

#[derive(Debug, Clone)]
enum Act {
    Message {
        group: usize,
        behind: Option<i64>,
        bytes: u64,
        early: bool,
        values: Vec<Option<Value>>,
    },
    Tick,
    SetBack(i64),
}

fn span(choices: &'static [u64]) -> impl Strategy<Value = Duration> {
    proptest::sample::select(choices).prop_map(Duration::from_millis)
}

fn kind(of: Kind) -> BoxedStrategy<WindowKind> {
    let every = span(&[700, 1_000, 7_000, 10_000, 60_000, 86_400_000, 604_800_000]);
    match of {
        Kind::Tumbling => every.prop_map(|every| WindowKind::Tumbling { every }).boxed(),
        Kind::Hopping => (span(&[1_000, 3_000, 10_000, 86_400_000]), 100_u32..350)
            .prop_map(|(every, percent)| WindowKind::Hopping {
                every,
                length: every * percent / 100,
            })
            .boxed(),
        Kind::Session => span(&[1, 300, 2_000, 9_000])
            .prop_map(|gap| WindowKind::Session { gap })
            .boxed(),
        Kind::Count => (1_u64..9)
            .prop_map(|messages| WindowKind::Count { messages })
            .boxed(),
        Kind::Schedule => {
            let times = [
                time(0, 0, 0, 0),
                time(0, 1, 0, 0),
                time(1, 59, 50, 0),
                time(3, 0, 20, 0),
                time(4, 0, 0, 0),
            ];
            let days = prop_oneof![Just(Weekdays::ALL), (1_u8..128).prop_map(Weekdays)];
            (proptest::sample::subsequence(times.to_vec(), 1..=5), days)
                .prop_map(|(at, days)| WindowKind::Schedule { at, days })
                .boxed()
        }
    }
}

fn spec(of_kind: Kind) -> impl Strategy<Value = WindowSpec> {
    let time = prop_oneof![
        Just(TimeSource::Arrival),
        span(&[0, 500, 4_000, 70_000]).prop_map(|lateness| TimeSource::Field {
            pointer: String::new(),
            lateness
        }),
    ];
    let zone = prop_oneof![Just("UTC"), Just("Europe/Berlin")]
        .prop_map(|name| TimeZone::get(name).unwrap_or(TimeZone::UTC));
    let caps = (weighted(0.3, 1_u64..8), weighted(0.2, 1_u64..300));
    let early = (
        weighted(0.3, (1_u64..4, span(&[200, 1_000, 5_000]))),
        span(&[0, 0, 1_500, 20_000]),
    );
    let silence = (
        weighted(0.3, span(&[500, 5_000, 30_000])),
        weighted(0.3, span(&[300, 2_500, 40_000])),
        any::<bool>(),
    );
    let groups = prop_oneof![1_usize..4, Just(GROUPS + 1)];
    (kind(of_kind), time, zone, caps, early, silence, groups).prop_map(
        |(kind, time, zone, caps, early, silence, max_groups)| WindowSpec {
            kind,
            time,
            zone,
            empty: silence.2,
            max_messages: caps.0,
            max_bytes: caps.1,
            early: Some(String::from("alarm")),
            early_rate: early.0,
            cool_down: early.1,
            max_age: silence.0,
            absence: silence.1,
            max_groups,
        },
    )
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        (-9_i32..100).prop_map(|x| Value::Number(f64::from(x))),
        "[a-c]".prop_map(Value::Text),
    ]
}

fn act() -> impl Strategy<Value = Act> {
    let behind = prop_oneof![
        4 => Just(0_i64),
        4 => 0_i64..3_000,
        2 => -3_000_i64..20_000,
        1 => -90_000_i64..150_000,
    ];
    let message = (
        0..GROUPS,
        of(behind),
        0_u64..60,
        prop::bool::weighted(0.1),
        vec(of(value()), FIELDS),
    );
    prop_oneof![
        12 => message.prop_map(|(group, behind, bytes, early, values)| {
            Act::Message { group, behind, bytes, early, values }
        }),
        4 => Just(Act::Tick),
        1 => (0_i64..20_000).prop_map(Act::SetBack),
    ]
}

impl Draft {
    /// With all spans in multiples of one, so that messages meet at the ends of windows.
    fn grained(&self, grain: i64) -> Self {
        let whole = |span: i64| span - span.rem_euclid(grain);
        let act = match self.act.clone() {
            Act::Message {
                group,
                behind,
                bytes,
                early,
                values,
            } => Act::Message {
                group,
                behind: behind.map(whole),
                bytes,
                early,
                values,
            },
            Act::Tick => Act::Tick,
            Act::SetBack(by) => Act::SetBack(whole(by)),
        };
        Self {
            wait: whole(self.wait),
            act,
        }
    }
}

fn draft() -> impl Strategy<Value = Draft> {
    let wait = prop_oneof![
        4 => Just(0_i64),
        6 => 0_i64..400,
        6 => 0_i64..3_000,
        2 => 0_i64..12_000,
        1 => 0_i64..80_000,
    ];
    (wait, act()).prop_map(|(wait, act)| Draft { wait, act })
}

/// Rules of a kind, and streams of up to 40 steps.
pub(crate) fn plan(kind: Kind) -> impl Strategy<Value = Plan> {
    let start = prop_oneof![Just(SPRING), Just(MIDNIGHT)];
    (
        spec(kind),
        0_usize..6,
        any::<bool>(),
        1..=GROUPS,
        start,
        (proptest::sample::select(&[1_i64, 100, 500]), vec(draft(), 1..40)),
        any::<prop::sample::Index>(),
    )
        .prop_map(|(spec, keep, grouped, groups, start, (grain, drafts), restart)| {
            let mut now = start;
            let mut seq = 0;
            let (mut steps, mut times) = (Vec::new(), Vec::new());
            for draft in drafts.iter().map(|draft| draft.grained(grain)) {
                now += match draft.act {
                    Act::SetBack(by) => -by,
                    _ => draft.wait,
                };
                seq += 1;
                steps.push(step(&draft, now, seq, if grouped { groups } else { 0 }));
                times.push(Time(now));
            }
            let restart = restart.index(steps.len());
            Plan {
                spec,
                keep,
                grouped,
                steps,
                times,
                restart,
                end: Time(now + 1_000),
            }
        })
}

fn step(draft: &Draft, now: i64, seq: u64, groups: usize) -> Step {
    match &draft.act {
        Act::Tick => Step::Tick(Time(now)),
        Act::SetBack(_) => Step::SetBack(Time(now)),
        Act::Message {
            group,
            behind,
            bytes,
            early,
            values,
        } => Step::Message(WindowMessage {
            seq,
            arrived: Time(now),
            event_time: behind.map(|behind| Time(now - behind)),
            group: if groups == 0 {
                String::new()
            } else {
                format!("g{}", group % groups)
            },
            bytes: *bytes,
            early: *early,
            values: values
                .iter()
                .enumerate()
                .filter_map(|(index, value)| Some((index, value.clone()?)))
                .collect(),
        }),
    }
}
