//! What clients do.

use std::time::Duration;

use phi_edge_mqtt::{Client, ClientOptions};
use phi_edge_tests::{BASE, client, json, next, question};
use serde_json::json;

use super::support::{Copies, Stage, rounds};

#[tokio::test]
async fn a_request_comes_twice_before_its_reply() {
    rounds("duplicate before the reply", Copies::Forbidden, async || {
        let mut stage = Stage::new(&["runtime.slots=1"]).await?;
        for n in 0..4 {
            stage.field.ask(&format!("q{n}"), question(200)).await;
        }
        tokio::time::sleep(stage.chance.ms(20)).await;
        // The last one waits still.
        stage.field.ask_again("q3").await;
        Some(stage.field.settle().await)
    })
    .await;
}

#[tokio::test]
async fn a_request_comes_again_after_its_reply() {
    rounds("duplicate after the reply", Copies::Allowed, async || {
        let mut stage = Stage::new(&[]).await?;
        stage.field.ask("q", question(20)).await;
        stage.field.settle().await;
        if stage.chance.below(2) == 0 {
            stage.kill_and_restart().await;
        }
        stage.field.ask_again("q").await;
        stage
            .field
            .listen_until("the stored reply", |field| field.tally().copies > 0)
            .await;
        let tally = stage.field.settle().await;
        assert_eq!(tally.copies, 1, "asked twice, told twice");
        Some(tally)
    })
    .await;
}

#[tokio::test]
async fn a_request_expires_in_the_queue() {
    rounds("request expiring in the queue", Copies::Forbidden, async || {
        let mut stage = Stage::new(&["runtime.slots=1"]).await?;
        for n in 0..3 {
            stage.field.ask(&format!("q{n}"), question(300)).await;
        }
        let mut late = question(8);
        late["deadline_ms"] = json!(1 + stage.chance.below(5));
        stage.field.ask("late", late).await;
        let tally = stage.field.settle().await;
        let outcome = stage.field.outcome("late");
        assert_eq!(outcome["error"]["code"], "expired", "{outcome}");
        Some(tally)
    })
    .await;
}

#[tokio::test]
async fn requests_and_answers_are_too_large() {
    rounds("oversize both ways", Copies::Forbidden, async || {
        let settings = ["limits.max_payload=1KiB", "mqtt.max_packet=16KiB"];
        let mut stage = Stage::with_broker("max_packet_size 1600\n", &settings).await?;
        let size = 1024 + stage.chance.below(200) as usize;
        let body = json!({"id": "large", "prompt": "x".repeat(size)}).to_string();
        stage.field.expect("large");
        let topic = format!("{BASE}/request");
        let response = format!("{BASE}/response/large");
        let mut other = client(stage.broker.port).await;
        other.subscribe(&response).await.unwrap();
        other
            .publish(&topic, body, Some((&response, b"c")))
            .await
            .unwrap();
        let refusal = next(&mut other, "a refusal", |message| {
            (message.topic == response).then(|| json(message))
        })
        .await;
        assert_eq!(refusal["error"]["code"], "too_large", "{refusal}");
        stage.field.ask("small", question(8)).await;
        // The refusal names an id of its own: the request was not read.
        stage.field.forget("large");
        // An answer of random tokens ends by chance: one of these is more than this broker carries.
        let mut refused = false;
        for n in 0..50 {
            let id = format!("long{n}");
            stage.field.ask(&id, question(1000)).await;
            stage
                .field
                .listen_until("an outcome", |field| field.has(&id))
                .await;
            refused |= stage.field.outcome(&id)["error"]["code"] == "too_large";
            if refused {
                break;
            }
        }
        assert!(refused, "no answer was too large for the broker");
        Some(stage.field.settle().await)
    })
    .await;
}

#[tokio::test]
async fn requests_can_not_be_read() {
    rounds("malformed UTF-8 and JSON", Copies::Forbidden, async || {
        let mut stage = Stage::new(&[]).await?;
        let topic = format!("{BASE}/request");
        let response = format!("{BASE}/response/malformed");
        let mut other = client(stage.broker.port).await;
        other.subscribe(&response).await.unwrap();
        for payload in [
            &b"{\"id\":\"x\",\"prompt\":"[..],
            b"\xff\xfe\x00prompt",
            b"{\"id\":7}",
        ] {
            other
                .publish(&topic, payload.to_vec(), Some((&response, b"c")))
                .await
                .unwrap();
            let refusal = next(&mut other, "a refusal", |message| {
                (message.topic == response).then(|| json(message))
            })
            .await;
            assert_eq!(refusal["error"]["code"], "bad_request", "{refusal}");
        }
        stage.field.ask("good", question(8)).await;
        Some(stage.field.settle().await)
    })
    .await;
}

#[tokio::test]
async fn a_request_is_retained() {
    rounds("retained request", Copies::Forbidden, async || {
        let mut stage = Stage::new(&[]).await?;
        let body = json!({"id": "kept", "prompt": "Who are you?"}).to_string();
        stage.field.expect("kept");
        let port = stage.broker.port.to_string();
        let topic = format!("{BASE}/request");
        let sent = std::process::Command::new("mosquitto_pub")
            .args([
                "-p", &port, "-V", "mqttv5", "-q", "1", "-r", "-t", &topic, "-m", &body,
            ])
            .status()
            .unwrap();
        assert!(sent.success());
        stage.field.settle().await;
        assert_eq!(stage.field.outcome("kept")["error"]["code"], "bad_request");
        // Not asked again at the next start.
        stage.kill_and_restart().await;
        stage.field.ask("next", question(8)).await;
        Some(stage.field.settle().await)
    })
    .await;
}

#[tokio::test]
async fn a_client_takes_its_replies_slowly() {
    rounds("slow consumer", Copies::Forbidden, async || {
        let mut stage = Stage::new(&["runtime.slots=4"]).await?;
        for n in 0..30 {
            let mut body = question(8);
            body["stream"] = json!(true);
            stage.field.ask(&format!("q{n}"), body).await;
        }
        // Reads nothing while they are answered.
        tokio::time::sleep(Duration::from_millis(500)).await;
        Some(stage.field.settle().await)
    })
    .await;
}

#[tokio::test]
async fn a_client_is_gone_before_its_reply() {
    rounds("client gone before its reply", Copies::Forbidden, async || {
        let mut stage = Stage::new(&["runtime.slots=1"]).await?;
        let options = || ClientOptions {
            host: "127.0.0.1".into(),
            port: stage.broker.port,
            client_id: "passer-by".into(),
            ..ClientOptions::default()
        };
        let mut passer_by = Client::connect(options()).await.unwrap();
        let body = json!({"id": "forgotten", "prompt": "Who are you?"}).to_string();
        stage.field.expect("forgotten");
        passer_by
            .publish(&format!("{BASE}/request"), body, None)
            .await
            .unwrap();
        drop(passer_by);
        stage.field.ask("q", question(20)).await;
        let moment = stage.chance.ms(100);
        stage.field.listen(moment).await;
        // The one that keeps accounts is away too; its session is not.
        stage.field.leave();
        tokio::time::sleep(Duration::from_millis(200)).await;
        Some(stage.field.settle().await)
    })
    .await;
}
