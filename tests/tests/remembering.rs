//! What the daemon remembers from one request to the next, and over a restart.

#![allow(clippy::unwrap_used, missing_docs)]

use phi_edge_mqtt::Client;
use phi_edge_tests::{BASE, Daemon, Mosquitto, client, demo_model, has_library, json, next, state};
use serde_json::{Value, json};

async fn ask(client: &mut Client, body: Value) -> Value {
    client
        .publish(&format!("{BASE}/request"), body.to_string(), None)
        .await
        .unwrap();
    next(client, body["id"].as_str().unwrap(), |message| {
        let reply = json(message);
        let last = matches!(message.property("kind"), Some("final" | "error"));
        (last && reply["id"] == body["id"]).then_some(reply)
    })
    .await
}

async fn connected(port: u16) -> Client {
    let mut client = client(port).await;
    client.subscribe(&format!("{BASE}/response/#")).await.unwrap();
    state(&mut client, "ready").await;
    client
}

#[tokio::test]
async fn a_session_goes_on_where_it_was() {
    if !has_library() {
        return;
    }
    let Some(broker) = Mosquitto::start() else { return };
    let _daemon = Daemon::start(broker.port, &demo_model(), &[]);
    let mut client = connected(broker.port).await;
    let first = ask(
        &mut client,
        json!({"id":"1","session":"talk","prompt":"Who are you?","max_tokens":20}),
    )
    .await;
    let said = count(&first, "prompt_tokens") + count(&first, "completion_tokens");
    let second = ask(
        &mut client,
        json!({"id":"2","session":"talk","prompt":"And what can you do?","max_tokens":20}),
    )
    .await;
    // All that was said but for the answer's last token, which was never computed further, is found again.
    assert!(count(&second, "prompt_tokens") > said, "{second}");
    assert!(count(&second, "cached_tokens") >= said - 1, "{first} {second}");
    let alone = ask(
        &mut client,
        json!({"id":"3","prompt":"And what can you do?","max_tokens":20}),
    )
    .await;
    assert!(
        count(&alone, "prompt_tokens") + said <= count(&second, "prompt_tokens") + 1,
        "{alone} {second}"
    );
    // The whole conversation given again is the same prompt.
    let messages = json!([
        {"role":"user","content":"Who are you?"}, {"role":"assistant","content":first["text"]},
        {"role":"user","content":"And what can you do?"},
    ]);
    let whole = ask(&mut client, json!({"id":"4","messages":messages,"max_tokens":20})).await;
    assert_eq!(whole["text"], second["text"]);
    // Of another client's session of that name nothing is known.
    let refused = ask(&mut client, json!({"id":"5","session":"a b","prompt":"x"})).await;
    assert!(
        refused["error"]["message"].as_str().unwrap().contains("session"),
        "{refused}"
    );
}

#[tokio::test]
async fn a_system_prompt_is_kept_over_restarts_and_damage_is_noticed() {
    if !has_library() {
        return;
    }
    let Some(broker) = Mosquitto::start() else { return };
    let system = "You watch over a cold store and answer in one short sentence";
    let setting = format!("runtime.system_prompts={system}");
    let request = |id: &str| json!({"id":id,"system":system,"prompt":"Who are you?","max_tokens":8});
    let mut texts = Vec::new();
    let mut folder = tempfile::tempdir().unwrap();
    for (start, expected) in [
        (0, "loaded=false"),
        (1, "loaded=true"),
        (2, "it is damaged"),
        (3, "loaded=true"),
    ] {
        let mut daemon = Daemon::start_in(folder, broker.port, &demo_model(), &[&setting]);
        let mut client = connected(broker.port).await;
        let reply = ask(&mut client, request(&format!("a{start}"))).await;
        assert!(count(&reply, "cached_tokens") > 10, "start {start}: {reply}");
        texts.push(reply["text"].as_str().unwrap().to_owned());
        let log = daemon.log();
        let this_start = &log[log.rfind("phi-edge starts").unwrap()..];
        assert!(this_start.contains(expected), "start {start}: {this_start}");
        daemon.signal("TERM");
        assert!(daemon.wait().success());
        folder = std::mem::replace(&mut daemon.folder, tempfile::tempdir().unwrap());
        if start == 1 {
            let kept = folder.path().join("prefixes");
            let file = std::fs::read_dir(kept).unwrap().next().unwrap().unwrap().path();
            let mut bytes = std::fs::read(&file).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            std::fs::write(&file, bytes).unwrap();
        }
    }
    assert!(texts.iter().all(|text| *text == texts[0]), "{texts:?}");
}

fn count(reply: &Value, what: &str) -> u64 {
    reply["usage"][what].as_u64().unwrap_or_else(|| panic!("{reply}"))
}

#[tokio::test]
async fn what_a_rules_prompts_begin_with_is_kept_over_restarts() {
    if !has_library() {
        return;
    }
    let Some(broker) = Mosquitto::start() else { return };
    let rules = tempfile::tempdir().unwrap();
    let rule = "topics = [\"plant/+/alarm\"]\ntemplate = \"alarm-digest\"\nwindow = { kind = \"count\", messages = 1 }\n\
                deadline = \"5m\"\nmax_tokens = 8\n";
    std::fs::write(rules.path().join("alarms.toml"), rule).unwrap();
    let setting = format!("node.rules_dir={}", rules.path().display());
    let mut folder = tempfile::tempdir().unwrap();
    for loaded in [false, true] {
        let mut daemon = Daemon::start_in(folder, broker.port, &demo_model(), &[&setting]);
        let mut client = connected(broker.port).await;
        let topic = format!("{BASE}/event/alarms");
        client.subscribe(&topic).await.unwrap();
        client
            .publish("plant/mixer-07/alarm", "overheated".to_owned(), None)
            .await
            .unwrap();
        let event = next(&mut client, "an event", |message| {
            (message.topic == topic).then(|| json(message))
        })
        .await;
        assert!(count(&event, "cached_tokens") > 30, "{event}");
        let log = daemon.log();
        let this_start = &log[log.rfind("phi-edge starts").unwrap()..];
        let kept = this_start
            .lines()
            .find(|line| line.contains("prefix kept"))
            .unwrap();
        assert!(
            kept.contains("rule \\\"alarms\\\"") && kept.contains(&format!("loaded={loaded}")),
            "{kept}"
        );
        daemon.signal("TERM");
        assert!(daemon.wait().success());
        folder = std::mem::replace(&mut daemon.folder, tempfile::tempdir().unwrap());
    }
}
