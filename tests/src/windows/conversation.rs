//! `phi-edge run` in a console, and a client that talks to it over a broker of this machine.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use phi_edge_mqtt::Client;
use phi_edge_tests::{BASE, Mosquitto, NODE, client, json, next, state};
use serde_json::{Value, json as object};

use crate::wine::{Process, Wine, staged};

pub(crate) async fn run(wine: &Wine) -> Result<()> {
    let broker = Mosquitto::start().context("mosquitto is needed")?;
    let (folder, there) = wine.folder("state")?;
    let daemon = daemon(wine, broker.port, &folder, &there)?;
    let mut client = client(broker.port).await;
    let ready = state(&mut client, "ready").await;
    ensure!(ready["provider"] == "cpu", "{ready}");
    let answer = ask(&mut client, "first").await?;
    println!("ok   run: {}", answer["text"].as_str().unwrap_or_default());

    daemon.interrupt();
    state(&mut client, "draining").await;
    let code = daemon.exit_code().await?;
    ensure!(code == 0, "Ctrl-C ends it with {code}: {}", log(&folder));
    ensure!(
        !folder.join("store/running").exists(),
        "an orderly end leaves no crash marker"
    );
    println!("ok   Ctrl-C: an orderly end");

    let daemon = self::daemon(wine, broker.port, &folder, &there)?;
    state(&mut client, "ready").await;
    daemon.kill()?;
    // What the broker has kept must not be taken for the next one's.
    state(&mut client, "offline").await;
    ensure!(
        folder.join("store/running").is_file(),
        "a kill leaves the crash marker"
    );
    let daemon = self::daemon(wine, broker.port, &folder, &there)?;
    state(&mut client, "ready").await;
    ensure!(
        log(&folder).contains("the process before this one crashed"),
        "{}",
        log(&folder)
    );
    ask(&mut client, "second").await?;
    daemon.interrupt();
    daemon.exit_code().await?;
    println!("ok   crash: noticed at the next start, which answers");
    Ok(())
}

fn daemon(wine: &Wine, port: u16, here: &Path, there: &str) -> Result<Process> {
    let settings = [
        "mqtt.host=127.0.0.1".to_owned(),
        format!("mqtt.port={port}"),
        format!("node.name={NODE}"),
        "runtime.provider=cpu".to_owned(),
        format!("model.path={}", staged("models/demo")),
        format!(r"store.path={there}\store"),
        format!(r"log.path={there}\phi-edge.log"),
    ];
    let mut arguments = vec!["run"];
    for setting in &settings {
        arguments.extend(["--set", setting]);
    }
    Process::start(wine.phi_edge(&arguments), &here.join("stderr"))
}

/// Asks the node and returns its final reply.
pub(crate) async fn ask(client: &mut Client, id: &str) -> Result<Value> {
    client.subscribe(&format!("{BASE}/response/#")).await?;
    let body = object!({"id": id, "prompt": "Who are you?"}).to_string();
    client.publish(&format!("{BASE}/request"), body, None).await?;
    let reply = next(client, id, |message| {
        let reply = json(message);
        let is_final = matches!(message.property("kind"), Some("final" | "error"));
        (is_final && reply["id"] == id).then_some(reply)
    })
    .await;
    let text = reply["text"].as_str().unwrap_or_default();
    ensure!(text.contains("demonstration model"), "{reply}");
    Ok(reply)
}

fn log(folder: &Path) -> String {
    std::fs::read_to_string(folder.join("phi-edge.log")).unwrap_or_default()
}
