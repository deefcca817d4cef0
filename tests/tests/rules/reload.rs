//! Rules that come, change and go while the daemon runs.

use super::{Plant, counting, eventually, span};

#[tokio::test]
async fn a_reload_takes_rules_in_changes_them_and_leaves_their_topics() {
    let old = counting("\"plant/+/temperature\"", 3);
    let Some(mut plant) = Plant::with(&[("old", &old)]).await else {
        return;
    };
    // A window that is open when the rules are read again goes on.
    plant.read("mixer-07", [1]).await;
    plant.write("new", &counting("\"hall/+/temperature\"", 1));
    plant.daemon.signal("HUP");
    plant.broker_says(" 1 hall/+/temperature").await;
    plant.say("hall/2/temperature", "{\"temperature\":7}").await;
    assert_eq!(span(&plant.event("new").await), (7, 7, 1));
    plant.read("mixer-07", [2, 3]).await;
    assert_eq!(span(&plant.event("old").await), (1, 3, 3));

    // A bad one changes nothing, and the log says where the fault is.
    plant.write(
        "bad",
        "topics = [\"x\"]\nfacts_only = true\nwidow = { kind = \"count\", messages = 1 }\n",
    );
    plant.daemon.signal("HUP");
    plant
        .daemon_says("the configuration can't be used; the old one stays in effect")
        .await;
    plant.daemon_says("bad.toml").await;
    plant.daemon_says("widow").await;
    plant.read("mixer-07", [4, 5, 6]).await;
    assert_eq!(span(&plant.event("old").await), (4, 6, 3));
    plant.write("bad", "topics = [\"x\"]\nprompt = \"{% for %}\"\n");
    plant.daemon.signal("HUP");
    eventually("the second refusal", || {
        plant.daemon.log().matches("the old one stays in effect").count() == 2
    })
    .await;
    plant.remove("bad");

    // What is removed is left at the broker, and what its window held is told.
    plant.read("mixer-07", [7]).await;
    plant.remove("old");
    plant.daemon.signal("HUP");
    let last = plant.event("old").await;
    assert_eq!(
        (span(&last), &last["window"]["reason"]),
        ((7, 7, 1), &"reload".into())
    );
    plant.broker_says(" plant/+/temperature\n").await;
    // What is left is noted until the end, in case the broker was not told.
    let noted = plant.daemon.folder.path().join("rule-topics");
    assert_eq!(
        std::fs::read_to_string(&noted).unwrap(),
        "hall/+/temperature\nplant/+/temperature"
    );
    plant.daemon.signal("TERM");
    assert!(plant.daemon.wait().success());
    assert_eq!(std::fs::read_to_string(&noted).unwrap(), "hall/+/temperature");
}

#[tokio::test]
async fn a_rule_that_was_removed_during_a_restart_is_left_at_the_broker() {
    let rule = counting("\"plant/+/temperature\"", 3);
    let Some(mut plant) = Plant::with(&[("gone", &rule), ("here", &rule.replace("plant", "hall"))]).await
    else {
        return;
    };
    plant.broker_says(" 1 plant/+/temperature").await;
    let folder = plant.kill();
    plant.remove("gone");
    // The broker goes on taking messages for a subscription that is not wanted any more.
    plant.read("mixer-07", [1, 2, 3]).await;
    plant.start_again(folder).await;
    // The filter at the end of the line: so says the broker that it is left.
    let log = plant.broker.folder().join("mosquitto.log");
    eventually("the unsubscription", || {
        let text = std::fs::read_to_string(&log).unwrap();
        text.lines()
            .any(|line| line.ends_with(" plant/+/temperature") && !line.contains(" 1 plant/"))
    })
    .await;
    for value in 4..=6 {
        plant
            .say("hall/1/temperature", &format!("{{\"temperature\":{value}}}"))
            .await;
    }
    assert_eq!(span(&plant.event("here").await), (4, 6, 3));
}
