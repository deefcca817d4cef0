//! What an event holds, and what it says where the model can't.

use std::process::Command;

use super::{DIGEST, Plant};

#[tokio::test]
async fn readings_become_an_event_with_facts_and_words() {
    let Some(mut plant) = Plant::with(&[("digest", DIGEST)]).await else {
        return;
    };
    plant.read("pump-03", [41]).await;
    plant.read("mixer-07", [69, 82, 77]).await;
    let event = plant.event("digest").await;
    assert_eq!(
        (&event["rule"], &event["group"]),
        (&"digest".into(), &"mixer-07".into())
    );
    assert_eq!(event["window"]["messages"], 3);
    assert_eq!(event["window"]["reason"], "due");
    assert_eq!(event["window"]["closed_late"], false);
    let facts = &event["stats"]["temperature"];
    assert_eq!(
        (&facts["min"], &facts["max"], &facts["mean"]),
        (&69.0.into(), &82.0.into(), &76.0.into()),
        "{event}"
    );
    let text = event["text"].as_str().unwrap();
    assert!(text.contains("mixer-07") && text.contains("82.0"), "{text}");
    assert_eq!(event["error"], serde_json::Value::Null);
    assert_eq!(event["finish_reason"], "stop");
    assert!(
        event["usage"]["completion_tokens"].as_u64().unwrap() > 0,
        "{event}"
    );
    assert_eq!(event["node"], "test");
}

#[tokio::test]
async fn facts_come_without_words_where_the_model_is_too_slow() {
    let hurried = format!("deadline = \"1ms\"\n{DIGEST}");
    let Some(mut plant) = Plant::with(&[("hurried", &hurried)]).await else {
        return;
    };
    plant.read("mixer-07", [69, 82, 77]).await;
    let event = plant.event("hurried").await;
    assert!(event["text"].is_null(), "{event}");
    assert_eq!(event["stats"]["temperature"]["max"], 82.0);
    let code = event["error"]["code"].as_str().unwrap();
    assert!(matches!(code, "busy" | "expired" | "internal"), "{event}");
    assert!(!event["error"]["message"].as_str().unwrap().is_empty());
    plant.daemon_says("an event has facts only").await;
}

#[tokio::test]
async fn an_event_goes_where_its_rule_says_and_is_kept_as_long() {
    let elsewhere = format!(
        "output = {{ topic = \"site/{{node}}/{{rule}}/{{group}}/{{topic:2}}\", retain = true, expiry = \"1h\" }}\n{DIGEST}"
    );
    let Some(mut plant) = Plant::with(&[("elsewhere", &elsewhere)]).await else {
        return;
    };
    plant.client.subscribe("site/#").await.unwrap();
    plant.read("mixer-07", [69, 82, 77]).await;
    let topic = "site/test/elsewhere/mixer-07/temperature";
    let kind = phi_edge_tests::next(&mut plant.client, topic, |message| {
        (message.topic == topic).then(|| message.property("kind").map(str::to_owned))
    })
    .await;
    assert_eq!(kind.as_deref(), Some("event"));
    // Who subscribes later gets it from the broker.
    let output = Command::new("mosquitto_sub")
        .args(["-p", &plant.broker.port.to_string(), "-V", "mqttv5", "-q", "1"])
        .args(["-t", "site/#", "-C", "1", "-W", "60", "-F", "%t %r %q %E %C"])
        .output()
        .unwrap();
    let line = String::from_utf8(output.stdout).unwrap();
    let parts: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(&parts[..3], [topic, "1", "1"], "{line}");
    let expiry: u32 = parts[3].parse().unwrap();
    assert!((3_500..=3_600).contains(&expiry), "{line}");
    assert_eq!(parts[4], "application/json");
}

#[tokio::test]
async fn a_condition_ends_a_window_at_once() {
    let early = "topics = [\"plant/+/temperature\"]\ngroup_by = \"topic:1\"\nfields = { temperature = \"/temperature\" }\n\
                 facts_only = true\nwindow = { kind = \"tumbling\", every = \"1h\", early = \"temperature > 80\" }\n";
    let Some(mut plant) = Plant::with(&[("early", early)]).await else {
        return;
    };
    plant.read("mixer-07", [69, 75, 82]).await;
    let event = plant.event("early").await;
    assert_eq!(event["window"]["reason"], "early");
    assert_eq!(super::span(&event), (69, 82, 3));
}
