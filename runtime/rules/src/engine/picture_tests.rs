//! Windows of pictures: which are shown, and of which the content is kept.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::tests::{START, after, rule_engine};
use super::*;
use crate::changes::RestoredRules;
use crate::{Field, PayloadFormat, PictureChoice, PromptSource, Selector, Value, WindowKind};

/// The beginning of a JPEG file, with a number as its content.
fn jpeg(number: u64) -> Vec<u8> {
    let mut file = b"\xFF\xD8\xFF\xE0".to_vec();
    file.extend(number.to_be_bytes());
    file.extend([0; 200]);
    file
}

fn number(file: &[u8]) -> u64 {
    u64::from_be_bytes(file[4..12].try_into().unwrap())
}

/// Windows of ten seconds of a gate's pictures.
fn gate(choice: PictureChoice, kind: WindowKind) -> Rule {
    let prompt = PromptSource::Text("{{ pictures|length }} of {{ window.messages }}".to_owned());
    let mut rule = Rule::new("r", "gate/#", kind, prompt);
    rule.payload = PayloadFormat::Image;
    rule.picture.choice = choice;
    rule.fields = ["bytes", "format"]
        .map(|name| Field {
            name: name.to_owned(),
            pointer: format!("/{name}"),
        })
        .into();
    rule
}

fn every_ten_seconds() -> WindowKind {
    WindowKind::Tumbling {
        every: Duration::from_secs(10),
    }
}

fn send(engine: &mut RuleEngine, payload: Vec<u8>, at: Time) -> Vec<RuleChange> {
    let message = RuleMessage {
        topic: "gate/1".to_owned(),
        payload,
        rules: vec!["r".into()],
        receipt: None,
        redelivered: false,
    };
    engine.ingest(&message, at)
}

/// The payloads in a store that applied the changes, by number.
#[derive(Default)]
struct Stored(BTreeMap<u64, Vec<u8>>);

impl Stored {
    fn apply(&mut self, changes: Vec<RuleChange>) {
        for change in changes {
            match change {
                RuleChange::KeepMessage(message) => {
                    self.0.insert(message.seq, message.payload);
                }
                RuleChange::CloseWindow(close) => self.0.retain(|seq, _| !close.forget.contains(seq)),
                RuleChange::ForgetMessages(seqs) => self.0.retain(|seq, _| !seqs.contains(seq)),
                _ => {}
            }
        }
    }

    /// The numbers of the pictures whose content it has.
    fn contents(&self) -> Vec<u64> {
        let files = self.0.values().filter(|payload| payload.starts_with(b"\xFF\xD8"));
        files.map(|file| number(file)).collect()
    }
}

fn shown(pending: &PendingEvent) -> Vec<u64> {
    pending
        .pictures
        .iter()
        .map(|picture| number(&picture.file))
        .collect()
}

#[test]
fn only_the_pictures_that_may_be_shown_are_kept() {
    for (choice, kept, ended) in [
        (PictureChoice::Newest, vec![6], vec![6]),
        (PictureChoice::First, vec![1], vec![1]),
        (PictureChoice::Sheet(3), vec![4, 5, 6], vec![4, 5, 6]),
    ] {
        let mut engine = rule_engine(gate(choice, every_ten_seconds()), QueueCapacity::DEFAULT);
        let mut stored = Stored::default();
        for n in 1..=6 {
            stored.apply(send(&mut engine, jpeg(n), after(n)));
        }
        assert_eq!(stored.contents(), kept, "{choice:?}");
        assert_eq!(stored.0.len(), 6);
        stored.apply(engine.tick(after(20)));
        assert!(stored.0.is_empty());
        let pending = engine.take_pending_summary().unwrap().pending;
        assert_eq!(shown(&pending), ended, "{choice:?}");
        assert_eq!(pending.event.window.messages, 6);
        assert_eq!(pending.messages[0].payload, "jpeg, 212 bytes");
        let (_, bytes) = &pending.event.stats[0];
        assert_eq!((bytes.count, bytes.min, bytes.max), (6, Some(212.0), Some(212.0)));
        let (_, format) = &pending.event.stats[1];
        assert_eq!(format.last, Some(Value::Text("jpeg".into())));
    }
}

#[test]
fn what_is_no_picture_counts_and_is_not_shown() {
    let mut engine = rule_engine(
        gate(PictureChoice::Newest, every_ten_seconds()),
        QueueCapacity::DEFAULT,
    );
    let mut stored = Stored::default();
    stored.apply(send(&mut engine, jpeg(1), after(1)));
    // It looks like what is kept of a picture without its content.
    stored.apply(send(
        &mut engine,
        br#"{"bytes":7,"format":"jpeg","digest":""}"#.to_vec(),
        after(2),
    ));
    assert_eq!(stored.contents(), [1]);
    let mut again = rule_engine(
        gate(PictureChoice::Newest, every_ten_seconds()),
        QueueCapacity::DEFAULT,
    );
    again.restore(engine.all(), after(3));
    for engine in [&mut engine, &mut again] {
        engine.tick(after(60));
        let pending = engine.take_pending_summary().unwrap().pending;
        assert_eq!(shown(&pending), [1]);
        let formats = &pending.event.stats[1].1.values;
        assert!(formats.contains(&("unknown".into(), 1)), "{formats:?}");
        assert_eq!(pending.event.stats[0].1.min, Some(39.0));
    }
}

#[test]
fn repeats_of_a_picture_count_once() {
    let mut rule = gate(PictureChoice::Newest, every_ten_seconds());
    rule.dedupe = Some(Selector::Field("/digest".to_owned()));
    let mut engine = rule_engine(rule, QueueCapacity::DEFAULT);
    for (seconds, n) in [(1, 5), (2, 5), (3, 6)] {
        send(&mut engine, jpeg(n), after(seconds));
    }
    engine.tick(after(20));
    let pending = engine.take_pending_summary().unwrap().pending;
    assert_eq!(pending.event.window.messages, 2);
}

#[test]
fn without_a_summary_no_content_is_kept() {
    let mut rule = gate(PictureChoice::Newest, every_ten_seconds());
    rule.summary.prompt = PromptSource::None;
    let mut engine = rule_engine(rule, QueueCapacity::DEFAULT);
    let mut stored = Stored::default();
    stored.apply(send(&mut engine, jpeg(1), after(1)));
    assert_eq!((stored.0.len(), stored.contents()), (1, vec![]));
    assert!(engine.counters().held_bytes < 500);
}

fn kinds() -> impl Strategy<Value = WindowKind> {
    prop_oneof![
        Just(every_ten_seconds()),
        Just(WindowKind::Hopping {
            every: Duration::from_secs(5),
            length: Duration::from_secs(15),
        }),
        Just(WindowKind::Session {
            gap: Duration::from_secs(4),
        }),
        Just(WindowKind::Count { messages: 5 }),
    ]
}

fn choices() -> impl Strategy<Value = PictureChoice> {
    prop_oneof![
        Just(PictureChoice::Newest),
        Just(PictureChoice::First),
        (2..5_usize).prop_map(PictureChoice::Sheet),
    ]
}

proptest! {
    /// Of every window those pictures are shown that a rule which keeps all of them would choose, over restarts, too.
    #[test]
    fn a_window_shows_what_it_would_with_all_contents(
        kind in kinds(),
        choice in choices(),
        steps in prop::collection::vec((0..7_u64, prop::bool::weighted(0.1)), 1..40),
    ) {
        let all = PictureChoice::Sheet(usize::MAX);
        let mut chosen = rule_engine(gate(choice, kind.clone()), QueueCapacity::UNBOUNDED);
        let mut whole = rule_engine(gate(all, kind.clone()), QueueCapacity::UNBOUNDED);
        let mut stored = Stored::default();
        let mut clock = 0;
        let (mut found, mut expected) = (Vec::new(), Vec::new());
        for (n, (wait, restart)) in steps.into_iter().enumerate() {
            clock += wait;
            if restart {
                let state: RestoredRules = chosen.all();
                chosen = rule_engine(gate(choice, kind.clone()), QueueCapacity::UNBOUNDED);
                stored.apply(chosen.restore(state, after(clock)));
                stored.apply(chosen.tick(after(clock)));
                whole.tick(after(clock));
            }
            stored.apply(send(&mut chosen, jpeg(n as u64), after(clock)));
            send(&mut whole, jpeg(n as u64), after(clock));
            for (engine, seen) in [(&mut chosen, &mut found), (&mut whole, &mut expected)] {
                while let Some(pending) = engine.take_pending_summary() {
                    engine.complete_event(&pending.pending.event);
                    seen.push((pending.pending.event.window.start, shown(&pending.pending)));
                }
            }
            let kept: u64 = engine_pictures(&chosen);
            prop_assert_eq!(stored.contents().len() as u64, kept);
        }
        let expected: Vec<_> = expected
            .into_iter()
            .map(|(start, pictures)| (start, choice.of(pictures.into_iter())))
            .collect();
        prop_assert!(START < after(1));
        prop_assert_eq!(found, expected);
    }
}

/// The number of pictures whose content the engine holds.
fn engine_pictures(engine: &RuleEngine) -> u64 {
    let state = engine.all();
    let with_content = state
        .messages
        .iter()
        .filter(|message| message.payload.starts_with(b"\xFF\xD8"));
    with_content.count() as u64
}
