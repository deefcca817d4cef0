//! Which messages count: overlapping filters, what the node itself says, and what the broker had kept.

use std::collections::BTreeMap;
use std::process::Command;

use phi_edge_tests::{BASE, Mosquitto, has_library, json, next};

use super::{Plant, TALKATIVE, counting, span};

#[tokio::test]
async fn overlapping_filters_count_a_message_once_for_each_rule() {
    let both = counting("\"plant/+/temperature\", \"plant/#\", \"plant/mixer-07/+\"", 3);
    let one = counting("\"plant/#\"", 3);
    let other = counting("\"plant/+/temperature\"", 3);
    let Some(mut plant) = Plant::with(&[("both", &both), ("one", &one), ("other", &other)]).await else {
        return;
    };
    // mosquitto sends a copy for each of the three subscriptions: a window that counted two would end too soon.
    plant.read("mixer-07", 1..=9).await;
    let base = format!("{BASE}/event/");
    let mut seen: BTreeMap<String, Vec<_>> = BTreeMap::new();
    while seen.values().map(Vec::len).sum::<usize>() < 9 {
        let event = next(&mut plant.client, "nine events", |message| {
            message.topic.starts_with(&base).then(|| json(message))
        })
        .await;
        let rule = event["rule"].as_str().unwrap().to_owned();
        seen.entry(rule).or_default().push(span(&event));
    }
    for rule in ["both", "one", "other"] {
        assert_eq!(seen[rule], [(1, 3, 3), (4, 6, 3), (7, 9, 3)], "{rule}");
    }
}

#[tokio::test]
async fn what_the_node_says_is_no_input_of_its_rules() {
    let all = counting("\"#\"", 3);
    let Some(mut plant) = Plant::with(&[("all", &all)]).await else {
        return;
    };
    let foreign = format!("{BASE}/event/foreign");
    let request = format!("{BASE}/request");
    for round in 0..3_u32 {
        // Of a rule that took its own events, statuses, stats and replies, the next window would begin with them.
        plant.say(&foreign, "{\"temperature\":1000}").await;
        plant
            .say(&request, "{\"prompt\":\"Hello\",\"max_tokens\":2}")
            .await;
        let first = round * 10 + 1;
        plant.read("mixer-07", first..first + 3).await;
        let first = u64::from(first);
        assert_eq!(span(&plant.event("all").await), (first, first + 2, 3));
    }
}

#[tokio::test]
async fn messages_of_quality_0_count_too() {
    let rule = counting("\"plant/+/temperature\"", 3);
    let Some(mut plant) = Plant::with(&[("zero", &rule)]).await else {
        return;
    };
    for value in 1..=3 {
        let status = Command::new("mosquitto_pub")
            .args(["-p", &plant.broker.port.to_string(), "-q", "0"])
            .args(["-t", "plant/mixer-07/temperature", "-m"])
            .arg(format!("{{\"temperature\":{value}}}"))
            .status()
            .unwrap();
        assert!(status.success());
    }
    assert_eq!(span(&plant.event("zero").await), (1, 3, 3));
}

#[tokio::test]
async fn what_the_broker_kept_from_before_does_not_count() {
    if !has_library() {
        return;
    }
    let Some(broker) = Mosquitto::with(TALKATIVE, |_| {}) else {
        return;
    };
    let retain = |port: u16, value: u32| {
        let status = Command::new("mosquitto_pub")
            .args([
                "-p",
                &port.to_string(),
                "-q",
                "1",
                "-r",
                "-t",
                "plant/mixer-07/temperature",
                "-m",
            ])
            .arg(format!("{{\"temperature\":{value}}}"))
            .status()
            .unwrap();
        assert!(status.success());
    };
    retain(broker.port, 1);
    let rule = counting("\"plant/+/temperature\"", 2);
    let mut plant = Plant::at(broker, &[("new", &rule)]).await;
    // One that is published now counts, retained or not.
    retain(plant.broker.port, 2);
    plant.read("mixer-07", [3]).await;
    let first = plant.event("new").await;
    assert_eq!(span(&first), (2, 3, 2));
    // A restart subscribes again, and is not given the old one either.
    let folder = plant.kill();
    plant.start_again(folder).await;
    plant.read("mixer-07", [4, 5]).await;
    let mut next = plant.event("new").await;
    if next["event_id"] == first["event_id"] {
        // It was killed before it could note that the broker has it.
        next = plant.event("new").await;
    }
    assert_eq!(span(&next), (4, 5, 2));
}
