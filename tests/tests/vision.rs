//! Requests with pictures, as clients at a broker make them, with a small model that takes images.

#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use phi_edge_engine::TokenId;
use phi_edge_models::ModelDir;
use phi_edge_mqtt::Client;
use phi_edge_service::inspect;
use phi_edge_tests::{
    BASE, Daemon, Mosquitto, TIMEOUT, client, free_port, has_library, http, json, next, phi_edge, state,
    vision_model,
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The tokens of a square picture at 4 crops.
const SQUARE: u64 = 757;

/// The settings that give the goldens' numbers.
const EXACT: [&str; 2] = ["model.vision_weights=f32", "runtime.kv_cache=f32"];

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/vision")
}

fn picture(name: &str) -> PathBuf {
    fixtures().join("images").join(name)
}

fn base64(name: &str) -> String {
    BASE64_STANDARD.encode(std::fs::read(picture(name)).unwrap())
}

/// A broker, a daemon that is ready, and a client of its responses.
struct Node {
    model: TempDir,
    daemon: Daemon,
    client: Client,
    /// Stopped last.
    broker: Mosquitto,
}

impl Node {
    async fn start(settings: &[&str]) -> Option<Self> {
        if !has_library() {
            return None;
        }
        let broker = Mosquitto::start()?;
        let model = vision_model();
        let daemon = Daemon::start(broker.port, model.path(), &[&EXACT, settings].concat());
        let client = connected(broker.port).await;
        Some(Self {
            model,
            daemon,
            client,
            broker,
        })
    }

    async fn publish(&mut self, body: &Value) {
        let topic = format!("{BASE}/request");
        self.client.publish(&topic, body.to_string(), None).await.unwrap();
    }

    async fn ask(&mut self, body: Value) -> Value {
        self.publish(&body).await;
        outcome(&mut self.client, body["id"].as_str().unwrap()).await
    }
}

async fn connected(port: u16) -> Client {
    let mut client = client(port).await;
    client.subscribe(&format!("{BASE}/response/#")).await.unwrap();
    let status = state(&mut client, "ready").await;
    assert!(
        status["features"].as_array().unwrap().contains(&json!("image")),
        "{status}"
    );
    assert_eq!(status["limits"]["images"], 8);
    assert!(status["limits"]["image_pixels"].as_u64().unwrap() >= 1_000_000);
    client
}

async fn outcome(client: &mut Client, id: &str) -> Value {
    next(client, id, |message| {
        let reply = json(message);
        let last = matches!(message.property("kind"), Some("final" | "error"));
        (last && reply["id"] == id).then_some(reply)
    })
    .await
}

fn count(reply: &Value, what: &str) -> u64 {
    reply["usage"][what]
        .as_u64()
        .unwrap_or_else(|| panic!("{what}: {reply}"))
}

/// The question of the goldens about `gate.png` and its like.
const GERMAN: &str = "Was ist auf dem Bild zu sehen?";

/// The golden answer to a prompt about one picture, as text, and the number of tokens of its prompt.
fn golden(model: &Path, picture: &str) -> (String, u64) {
    let goldens = std::fs::read(fixtures().join("golden-cpu.json")).unwrap();
    let goldens: Value = serde_json::from_slice(&goldens).unwrap();
    let cases = goldens["cases"].as_array().unwrap();
    let case = cases
        .iter()
        .find(|case| case["images"] == json!([picture]))
        .unwrap();
    let mut detokenizer = ModelDir::open(model).unwrap().text().unwrap().detokenizer();
    let mut text = String::new();
    for id in case["greedy_ids"].as_array().unwrap() {
        text.push_str(&detokenizer.push(TokenId(u32::try_from(id.as_u64().unwrap()).unwrap())));
    }
    text.push_str(&detokenizer.finish());
    let runs = case["input_ids_rle"].as_array().unwrap();
    (text, runs.iter().map(|run| run[1].as_u64().unwrap()).sum())
}

#[tokio::test]
async fn a_picture_in_json_is_answered_as_the_reference_does_and_the_same_one_again_costs_nothing() {
    let metrics = free_port();
    let listen = format!("metrics.listen=127.0.0.1:{metrics}");
    let Some(mut node) = Node::start(&[&listen]).await else {
        return;
    };
    let request = |id: &str| json!({"id":id,"prompt":GERMAN,"images":[base64("gate.png")],"max_tokens":8});
    let first = node.ask(request("first")).await;
    let (text, prompt_tokens) = golden(node.model.path(), "gate.png");
    assert_eq!(first["text"], text, "{first}");
    assert_eq!(count(&first, "prompt_tokens"), prompt_tokens);
    assert_eq!(count(&first, "image_tokens"), SQUARE);
    let crops = || {
        let (_, body) = http(metrics, "GET /metrics HTTP/1.1").unwrap();
        let mut lines = body.lines();
        let line = lines.find_map(|line| line.strip_prefix("phi_edge_image_crops_encoded_total "));
        line.unwrap_or_else(|| panic!("{body}")).parse::<f64>().unwrap()
    };
    let encoded = crops();
    assert!((encoded - 5.0).abs() < 0.1, "{encoded} crops");

    let again = node.ask(request("again")).await;
    assert_eq!(again["text"], text);
    assert!(count(&again, "cached_tokens") >= SQUARE, "{again}");
    // In another prompt its keys and values are computed again, of the features that are kept.
    let other = json!({"id":"other","messages":[{"role":"user","content":[
        {"type":"text","text":"Look at this: "}, {"type":"image","data":base64("gate.png")}]}],"max_tokens":8});
    let other = node.ask(other).await;
    assert_eq!(count(&other, "image_tokens"), SQUARE, "{other}");
    assert!((crops() - encoded).abs() < 0.1);
    let text_only = node
        .ask(json!({"id":"text","prompt":"Hello","max_tokens":4}))
        .await;
    assert!(text_only["usage"].get("image_tokens").is_none(), "{text_only}");
}

#[tokio::test]
async fn a_file_as_payload_is_answered_while_a_text_streams() {
    let Some(mut node) = Node::start(&[]).await else {
        return;
    };
    node.publish(&json!({"id":"long","prompt":"Tell me more.","stream":true,"max_tokens":400}))
        .await;
    let sent = Command::new("mosquitto_pub")
        .args(["-V", "mqttv5", "-q", "1", "-p", &node.broker.port.to_string()])
        .args(["-t", &format!("{BASE}/request"), "-f"])
        .arg(picture("gate.png"))
        .args(["-D", "publish", "content-type", "image/png"])
        .args(["-D", "publish", "user-property", "prompt", GERMAN])
        .args([
            "-D",
            "publish",
            "response-topic",
            &format!("{BASE}/response/gate"),
        ])
        .status()
        .unwrap();
    assert!(sent.success());
    let (mut text, mut long) = (None, None);
    while text.is_none() || long.is_none() {
        let (topic, reply) = next(&mut node.client, "both answers", |message| {
            (message.property("kind") == Some("final")).then(|| (message.topic.clone(), json(message)))
        })
        .await;
        if topic == format!("{BASE}/response/gate") {
            text = Some(reply);
        } else if reply["id"] == "long" {
            long = Some(reply);
        }
    }
    // The golden answer ends after 8 tokens, this one later.
    let (text, (begin, _)) = (text.unwrap(), golden(node.model.path(), "gate.png"));
    assert!(text["text"].as_str().unwrap().starts_with(&begin), "{text}");
    assert_eq!(count(&text, "image_tokens"), SQUARE);
}

#[tokio::test]
async fn a_session_goes_on_about_the_picture_of_its_first_turn() {
    let Some(mut node) = Node::start(&[]).await else {
        return;
    };
    let turn = |id: &str, prompt: &str| json!({"id":id,"session":"s","prompt":prompt,"max_tokens":8});
    let mut first = turn("1", GERMAN);
    first["images"] = json!([base64("gate.png")]);
    let first = node.ask(first).await;
    let second = node.ask(turn("2", "And what colour is it?")).await;
    assert_eq!(count(&second, "image_tokens"), SQUARE, "{second}");
    assert!(count(&second, "cached_tokens") >= SQUARE, "{second}");
    // The whole conversation given again is the same prompt.
    let whole = json!({"id":"3","max_tokens":8,"messages":[
        {"role":"user","content":[{"type":"image","data":base64("gate.png")},{"type":"text","text":format!("\n{GERMAN}")}]},
        {"role":"assistant","content":first["text"]},
        {"role":"user","content":"And what colour is it?"}]});
    let whole = node.ask(whole).await;
    assert_eq!(count(&whole, "image_tokens"), SQUARE, "{whole}");
}

#[tokio::test]
async fn a_killed_daemon_answers_once_after_its_restart_and_keeps_no_picture() {
    let Some(mut node) = Node::start(&[]).await else {
        return;
    };
    let body = json!({"id":"once","prompt":GERMAN,"images":[base64("gate.png")],"max_tokens":8});
    let (expected, _) = golden(node.model.path(), "gate.png");
    // Several others before it, so that it is on its way when the process ends.
    for n in 0..6 {
        let other = json!({"id":format!("other-{n}"),"prompt":"Tell me more.","images":[base64("seal.png")],
            "max_tokens":200,"detail":"low"});
        node.publish(&other).await;
    }
    node.publish(&body).await;
    while !node.daemon.log().contains("job.id=\"once\"") {
        tokio::task::yield_now().await;
    }
    let Node {
        model,
        daemon,
        broker,
        mut client,
    } = node;
    let folder = daemon.kill();
    let held = inspect(folder.path()).unwrap();
    assert!(
        held.open > 0 && held.images > 0 && held.image_bytes > 0,
        "{held:?}"
    );
    let mut daemon = Daemon::start_in(folder, broker.port, model.path(), &EXACT);
    // By reply id: what was published just before the end may be published again.
    let mut outcomes: BTreeMap<String, BTreeMap<String, Value>> = BTreeMap::new();
    while outcomes.len() < 7 {
        let reply = next(&mut client, "all outcomes", |message| {
            (message.property("kind") == Some("final")).then(|| json(message))
        })
        .await;
        let member = |name: &str| reply[name].as_str().unwrap().to_owned();
        outcomes
            .entry(member("id"))
            .or_default()
            .insert(member("reply_id"), reply.clone());
    }
    assert!(
        outcomes.values().all(|replies| replies.len() == 1),
        "{outcomes:?}"
    );
    let once = outcomes["once"].values().next().unwrap();
    assert_eq!(once["text"], expected, "{once}");
    daemon.signal("TERM");
    assert!(daemon.wait().success());
    let held = inspect(daemon.folder.path()).unwrap();
    assert_eq!((held.open, held.images, held.image_bytes), (0, 0, 0), "{held:?}");
}

#[tokio::test]
async fn an_answered_picture_is_soon_in_no_file_of_the_store_while_the_daemon_runs() {
    let Some(mut node) = Node::start(&[]).await else {
        return;
    };
    let file = std::fs::read(picture("gate.png")).unwrap();
    let is_stored = |node: &Node| {
        let files = std::fs::read_dir(node.daemon.folder.path()).unwrap();
        files.flatten().any(|entry| {
            let bytes = std::fs::read(entry.path()).unwrap_or_default();
            bytes.windows(64).any(|part| part == &file[64..128])
        })
    };
    // In the queue behind others, so that it is seen in the store.
    for n in 0..4 {
        node.publish(&json!({"id":format!("long-{n}"),"prompt":"Tell me more.","max_tokens":200}))
            .await;
    }
    node.publish(&json!({"id":"gate","prompt":GERMAN,"images":[base64("gate.png")],"max_tokens":8}))
        .await;
    let begun = Instant::now();
    while !is_stored(&node) {
        assert!(
            begun.elapsed() < TIMEOUT,
            "the picture of an open request is stored"
        );
        tokio::task::yield_now().await;
    }
    outcome(&mut node.client, "gate").await;
    let begun = Instant::now();
    while is_stored(&node) {
        assert!(begun.elapsed() < TIMEOUT, "the picture is still stored");
        tokio::task::yield_now().await;
    }
}

/// A PNG file of this size without pixels.
fn header(width: u32, height: u32) -> Vec<u8> {
    let mut chunk = b"IHDR".to_vec();
    chunk.extend([width.to_be_bytes(), height.to_be_bytes()].concat());
    chunk.extend([8, 2, 0, 0, 0]);
    // CRC-32 of ISO 3309, bit by bit.
    let sum = chunk.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            (sum >> 1) ^ (0xEDB8_8320 * (sum & 1))
        })
    });
    let mut file = b"\x89PNG\r\n\x1a\n\0\0\0\x0D".to_vec();
    file.extend(chunk);
    file.extend((!sum).to_be_bytes());
    // A decoder reads on to the first chunk of pixels.
    file.extend(b"\0\0\0\x01IDAT\0\0\0\0\0");
    file
}

#[tokio::test]
async fn damaged_and_large_pictures_get_one_error_each() {
    let Some(mut node) = Node::start(&["limits.image_pixels=1200000"]).await else {
        return;
    };
    let mut cut = std::fs::read(picture("gate.png")).unwrap();
    cut.truncate(cut.len() / 2);
    let cut = BASE64_STANDARD.encode(cut);
    let bomb = BASE64_STANDARD.encode(header(40_000, 40_000));
    for (id, images, code) in [
        ("cut", json!([base64("gate.png"), cut]), "bad_request"),
        (
            "text",
            json!([BASE64_STANDARD.encode("no picture")]),
            "bad_request",
        ),
        ("bomb", json!([bomb]), "too_large"),
    ] {
        let reply = node.ask(json!({"id":id,"prompt":"What?","images":images})).await;
        assert_eq!(reply["error"]["code"], code, "{reply}");
        let message = reply["error"]["message"].as_str().unwrap();
        assert!(message.contains("images["), "{message}");
    }
    let after = node
        .ask(json!({"id":"after","prompt":GERMAN,"images":[base64("gate.png")],"max_tokens":8}))
        .await;
    assert_eq!(after["text"], golden(node.model.path(), "gate.png").0);
}

#[test]
fn the_command_answers_about_a_picture_in_its_own_process() {
    if !has_library() {
        return;
    }
    let model = vision_model();
    let ask = |more: &[&str]| {
        let output = Command::new(phi_edge())
            .args([
                "ask",
                "--provider",
                "cpu",
                "--kv-cache",
                "f32",
                "--max-tokens",
                "8",
                "--json",
            ])
            .arg("--model")
            .arg(model.path())
            .arg("--image")
            .arg(picture("gate.png"))
            .args(more)
            .arg(GERMAN)
            .env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"))
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{error}");
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let reply = ask(&[]);
    assert_eq!(reply["text"], golden(model.path(), "gate.png").0, "{reply}");
    assert_eq!(count(&reply, "image_tokens"), SQUARE);
    assert_eq!(count(&ask(&["--num-crops", "1"]), "image_tokens"), 313);
}
