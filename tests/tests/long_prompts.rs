//! Prompts that are too long for the context, or take long, as clients at a broker meet them.

#![allow(clippy::unwrap_used, missing_docs)]

use phi_edge_mqtt::Client;
use phi_edge_tests::{BASE, Daemon, Mosquitto, client, demo_model, has_library, json, next, state};
use serde_json::{Value, json};

/// The context of the demonstration model, in tokens.
const CONTEXT: u64 = 2048;

async fn ready(settings: &[&str]) -> Option<(Mosquitto, Daemon, Client)> {
    if !has_library() {
        return None;
    }
    let broker = Mosquitto::start()?;
    let daemon = Daemon::start(broker.port, &demo_model(), settings);
    let mut client = client(broker.port).await;
    client.subscribe(&format!("{BASE}/response/#")).await.unwrap();
    state(&mut client, "ready").await;
    Some((broker, daemon, client))
}

/// The outcome of a request, and the chunks before it.
async fn ask(client: &mut Client, body: Value) -> (Value, Vec<Value>) {
    client
        .publish(&format!("{BASE}/request"), body.to_string(), None)
        .await
        .unwrap();
    let mut chunks = Vec::new();
    let outcome = next(client, body["id"].as_str().unwrap(), |message| {
        let reply = json(message);
        if reply["id"] != body["id"] {
            return None;
        }
        if message.property("kind") == Some("chunk") {
            chunks.push(reply);
            return None;
        }
        Some(reply)
    })
    .await;
    (outcome, chunks)
}

fn count(reply: &Value, what: &str) -> u64 {
    reply["usage"][what].as_u64().unwrap_or_else(|| panic!("{reply}"))
}

fn turn(role: &str, content: &str) -> Value {
    json!({"role": role, "content": content})
}

#[tokio::test]
async fn a_prompt_that_is_too_long_is_made_to_fit_as_the_request_says() {
    let Some((_broker, daemon, mut client)) = ready(&[]).await else {
        return;
    };
    let long = "word ".repeat(3000);
    let (error, _) = ask(&mut client, json!({"id":"error","prompt":long,"max_tokens":9})).await;
    assert_eq!(error["error"]["code"], "context_overflow");
    let message = error["error"]["message"].as_str().unwrap();
    for says in ["tokens, and max_tokens asks for 9 more", "2048", "truncation"] {
        assert!(message.contains(says), "{message}");
    }

    let middle = json!({"id":"middle","prompt":format!("Who are you? {long} Who are you?"),"max_tokens":9,
        "truncation":"middle"});
    let (middle, _) = ask(&mut client, middle).await;
    let given = count(&middle, "prompt_tokens");
    assert!((CONTEXT - 9 - 8..=CONTEXT - 9).contains(&given), "{middle}");
    assert!(count(&middle, "left_out_tokens") > 3000 - given, "{middle}");

    let half = "Old words. ".repeat(400);
    let talk = [
        turn("system", "Be brief."),
        turn("user", &half),
        turn("assistant", &half),
        turn("user", "What is a sensor?"),
        turn("assistant", "A device."),
        turn("user", "Who are you?"),
    ];
    let oldest = json!({"id":"oldest","messages":talk,"max_tokens":9,"truncation":"oldest_messages"});
    let (oldest, _) = ask(&mut client, oldest).await;
    let rest = [&talk[..1], &talk[3..]].concat();
    let (alone, _) = ask(&mut client, json!({"id":"alone","messages":rest,"max_tokens":9})).await;
    assert_eq!(oldest["text"], alone["text"]);
    assert_eq!(count(&oldest, "prompt_tokens"), count(&alone, "prompt_tokens"));
    assert!(count(&oldest, "left_out_tokens") > 800, "{oldest}");
    assert!(alone["usage"].get("left_out_tokens").is_none(), "{alone}");

    let unfit = json!({"id":"unfit","messages":[turn("user", "old"), turn("user", &long)],"max_tokens":9,
        "truncation":"oldest_messages"});
    let (unfit, _) = ask(&mut client, unfit).await;
    assert_eq!(unfit["error"]["code"], "context_overflow");
    let message = unfit["error"]["message"].as_str().unwrap();
    assert!(message.contains("that truncation may leave out"), "{message}");
    assert!(!daemon.log().contains("panicked"));
}

#[tokio::test]
async fn a_session_goes_on_without_its_oldest_turns() {
    let Some((_broker, _daemon, mut client)) = ready(&[]).await else {
        return;
    };
    let mut left_out = 0;
    for n in 0..6 {
        let prompt = format!("Question {n}: {}", "Is it warm? ".repeat(150));
        let request = json!({"id":n.to_string(),"session":"talk","system":if n == 0 { json!("Be brief.") } else { Value::Null },
            "prompt":prompt,"max_tokens":9,"truncation":"oldest_messages"});
        let (reply, _) = ask(&mut client, request).await;
        assert!(count(&reply, "prompt_tokens") <= CONTEXT - 9, "{reply}");
        left_out += reply["usage"]["left_out_tokens"].as_u64().unwrap_or(0);
    }
    assert!(left_out > 1000, "{left_out}");
}

#[tokio::test]
async fn the_progress_of_a_prompt_is_told_to_those_that_ask() {
    let Some((_broker, _daemon, mut client)) = ready(&["runtime.prefill_chunk=64"]).await else {
        return;
    };
    let status = state(&mut client, "ready").await;
    assert!(
        status["features"]
            .as_array()
            .unwrap()
            .contains(&json!("progress"))
    );
    for (id, stream) in [("alone", false), ("with-text", true)] {
        let prompt = format!("{id} {}", "How warm is it? ".repeat(120));
        let request = json!({"id":id,"prompt":prompt,"max_tokens":20,"progress":true,"stream":stream});
        let (reply, chunks) = ask(&mut client, request).await;
        let total = count(&reply, "prompt_tokens");
        let mut text = String::new();
        let mut done = 0;
        for (n, chunk) in chunks.iter().enumerate() {
            assert_eq!(
                (&chunk["attempt"], &chunk["seq"]),
                (&json!(1), &json!(n)),
                "{chunk}"
            );
            let delta = chunk["delta"].as_str().unwrap();
            text.push_str(delta);
            if chunk["progress"].is_null() {
                assert!(stream && !delta.is_empty(), "{chunk}");
                continue;
            }
            let now = chunk["progress"]["done"].as_u64().unwrap();
            assert!(
                now > done && now <= total && text.is_empty(),
                "{chunk} after {done}"
            );
            assert_eq!(chunk["progress"]["total"], total, "{chunk}");
            done = now;
        }
        // The first part is told at once, whatever the machine's speed.
        assert!(done > 0, "{chunks:?}");
        if stream {
            assert_eq!(reply["text"], text);
        }
        // What the prefix cache holds counts as done.
        let longer = json!({"id":format!("{id}-again"),"prompt":format!("{prompt} {}", "And now? ".repeat(40)),"max_tokens":2,
            "progress":true});
        let (again, chunks) = ask(&mut client, longer).await;
        let first = chunks[0]["progress"]["done"].as_u64().unwrap();
        assert!(first > count(&again, "cached_tokens"), "{again} {chunks:?}");
        assert!(count(&again, "cached_tokens") > total / 2, "{again}");
    }
    let (_, chunks) = ask(&mut client, json!({"id":"no","prompt":"How warm is it?"})).await;
    assert!(chunks.is_empty());
}
