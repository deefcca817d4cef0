//! What happens to the daemon.

use std::time::Duration;

use phi_edge_tests::{Daemon, Field, NODE, demo_model, question};
use serde_json::json;

use super::support::{Copies, Stage, rounds};

/// A prompt that takes its time.
fn long_question() -> serde_json::Value {
    let mut question = question(300);
    let lines = "press 3 stopped, oven 1 at 212 degrees, ".repeat(12);
    question["prompt"] = json!(format!("Summarise: {lines}"));
    question["stream"] = json!(true);
    question
}

async fn ask_some(stage: &mut Stage) {
    for n in 0..5 {
        stage.field.ask(&format!("q{n}"), long_question()).await;
    }
}

#[tokio::test]
async fn it_is_killed_while_it_receives() {
    rounds("daemon kill -9 in receive", Copies::Allowed, async || {
        let mut stage = Stage::new(&["runtime.slots=2"]).await?;
        ask_some(&mut stage).await;
        tokio::time::sleep(stage.chance.ms(15)).await;
        stage.kill_and_restart().await;
        Some(stage.field.settle().await)
    })
    .await;
}

#[tokio::test]
async fn it_is_killed_in_prefill() {
    rounds("daemon kill -9 in prefill", Copies::Allowed, async || {
        let mut stage = Stage::new(&["runtime.slots=2", "runtime.prefill_chunk=16"]).await?;
        ask_some(&mut stage).await;
        while !stage.daemon().log().contains("job accepted") {
            stage.field.listen(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(stage.chance.ms(60)).await;
        stage.kill_and_restart().await;
        Some(stage.field.settle().await)
    })
    .await;
}

#[tokio::test]
async fn it_is_killed_in_decode() {
    rounds("daemon kill -9 in decode", Copies::Allowed, async || {
        let mut stage = Stage::new(&["runtime.slots=2"]).await?;
        ask_some(&mut stage).await;
        stage
            .field
            .listen_until("a chunk", |field| {
                (0..5).any(|n| field.chunks(&format!("q{n}")) > 0)
            })
            .await;
        tokio::time::sleep(stage.chance.ms(50)).await;
        stage.kill_and_restart().await;
        Some(stage.field.settle().await)
    })
    .await;
}

#[tokio::test]
async fn it_is_killed_in_reply() {
    rounds("daemon kill -9 in reply", Copies::Allowed, async || {
        let mut stage = Stage::new(&["runtime.slots=4"]).await?;
        ask_some(&mut stage).await;
        stage
            .field
            .listen_until("a first answer", |field| field.answered() > 0)
            .await;
        tokio::time::sleep(stage.chance.ms(4)).await;
        stage.kill_and_restart().await;
        Some(stage.field.settle().await)
    })
    .await;
}

#[tokio::test]
async fn its_session_is_taken_over() {
    rounds("session taken over", Copies::Allowed, async || {
        let mut stage = Stage::new(&["runtime.slots=1", "mqtt.client_id=one-of-us"]).await?;
        ask_some(&mut stage).await;
        let moment = stage.chance.ms(100);
        stage.field.listen(moment).await;
        // Another node of the same client id, with a store of its own.
        let name = format!("node.name={NODE}");
        let other = Daemon::start(
            stage.broker.port,
            &demo_model(),
            &["mqtt.client_id=one-of-us", name.as_str()],
        );
        let status = stage.daemon().wait();
        assert_eq!(status.code(), Some(77), "{}", stage.daemon().log());
        // Once the other is gone, what the first has accepted goes on.
        stage.field.listen(Duration::from_millis(500)).await;
        drop(other);
        let folder = stage.daemon.take().unwrap().kill();
        stage.start(folder);
        stage.ready().await;
        let tally = stage.field.settle().await;
        // Two stores, no common memory: a request that the broker gave to both has an outcome from each.
        Some(phi_edge_tests::Tally {
            differing: 0,
            ..tally
        })
    })
    .await;
}

#[tokio::test]
async fn twenty_messages_are_unacknowledged() {
    rounds("20 unacknowledged messages", Copies::Allowed, async || {
        let mut stage = Stage::new(&["runtime.slots=2"]).await?;
        stage.daemon().signal("STOP");
        for n in 0..24 {
            stage.field.ask(&format!("q{n}"), question(8)).await;
        }
        let moment = stage.chance.ms(100);
        stage.field.listen(moment).await;
        stage.kill_and_restart().await;
        Some(stage.field.settle().await)
    })
    .await;
}

#[tokio::test]
async fn a_job_that_crashes_it_is_given_up() {
    rounds("job alone at three crashes", Copies::Allowed, async || {
        let mut stage = Stage::new(&["runtime.slots=2"]).await?;
        stage.field.ask("poison", long_question()).await;
        for crash in 0..3 {
            stage
                .field
                .listen_until("a chunk", |field| {
                    field.chunks("poison") > crash || field.has("poison")
                })
                .await;
            if stage.field.has("poison") {
                // It was quicker than the signal: it is no poison.
                return Some(stage.field.settle().await);
            }
            stage.daemon().signal("ABRT");
            stage.daemon().wait();
            let folder = stage.daemon.take().unwrap().kill();
            stage.start(folder);
            stage.ready().await;
        }
        let tally = stage.field.settle().await;
        let outcome = stage.field.outcome("poison");
        if outcome["error"].is_object() {
            assert_eq!(outcome["error"]["code"], "internal", "{outcome}");
        }
        Some(tally)
    })
    .await;
}

#[tokio::test]
async fn what_outlives_the_grace_time_resumes() {
    rounds("shutdown without grace", Copies::Forbidden, async || {
        let mut stage = Stage::new(&["runtime.slots=1", "limits.drain_grace=0s"]).await?;
        ask_some(&mut stage).await;
        stage
            .field
            .listen_until("a chunk", |field: &Field| {
                (0..5).any(|n| field.chunks(&format!("q{n}")) > 0)
            })
            .await;
        stage.daemon().signal("TERM");
        assert!(stage.daemon().wait().success());
        let folder = stage.daemon.take().unwrap().kill();
        stage.start(folder);
        stage.ready().await;
        Some(stage.field.settle().await)
    })
    .await;
}
