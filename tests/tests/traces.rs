//! Traces: what a collector gets, and that none keeps nothing from being answered.

#![allow(clippy::unwrap_used, missing_docs)]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::process::Command;
use std::sync::mpsc;

use phi_edge_tests::{BASE, Daemon, Field, Mosquitto, TIMEOUT, demo_model, free_port, has_library, question};
use serde_json::Value;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// A collector: what is posted to it, as path and JSON.
fn collector() -> (u16, mpsc::Receiver<(String, Value)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (posts_tx, posts) = mpsc::channel();
    std::thread::spawn(move || {
        for connection in listener.incoming().map_while(Result::ok) {
            let mut reader = BufReader::new(connection);
            // A connection may carry several.
            loop {
                let mut head = String::new();
                if reader.read_line(&mut head).unwrap_or(0) == 0 {
                    break;
                }
                let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
                let mut length = 0;
                loop {
                    let mut line = String::new();
                    reader.read_line(&mut line).unwrap();
                    match line.trim().to_ascii_lowercase().split_once(": ") {
                        Some(("content-length", value)) => length = value.parse().unwrap(),
                        Some(_) => {}
                        None => break,
                    }
                }
                let mut body = vec![0; length];
                reader.read_exact(&mut body).unwrap();
                if posts_tx
                    .send((path, serde_json::from_slice(&body).unwrap()))
                    .is_err()
                {
                    return;
                }
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
                reader.get_mut().write_all(answer).unwrap();
            }
        }
    });
    (port, posts)
}

/// The attribute of a span, whatever its kind.
fn attribute<'a>(span: &'a Value, key: &str) -> Option<&'a Value> {
    let all = span["attributes"].as_array()?;
    let found = all.iter().find(|attribute| attribute["key"] == key)?;
    found["value"].as_object()?.values().next()
}

#[tokio::test]
async fn a_collector_gets_the_spans_of_each_job() {
    if !has_library() {
        return;
    }
    let Some(broker) = Mosquitto::start() else { return };
    let (port, posts) = collector();
    let endpoint = format!("traces.endpoint=http://127.0.0.1:{port}");
    let daemon = Daemon::start(broker.port, &demo_model(), &[endpoint.as_str()]);
    let mut field = Field::at(broker.port).await;
    field
        .listen_until("a ready daemon", |field| field.state() == "ready")
        .await;
    for (id, trace, flags) in [("traced", TRACE, "01"), ("unwanted", &"a".repeat(32), "00")] {
        let mut body = question(12);
        body["id"] = id.into();
        field.expect(id);
        let sent = Command::new("mosquitto_pub")
            .args(["-V", "mqttv5", "-q", "1", "-p", &broker.port.to_string()])
            .args(["-t", &format!("{BASE}/request"), "-m", &body.to_string()])
            .args(["-D", "publish", "user-property", "traceparent"])
            .arg(format!("00-{trace}-{PARENT}-{flags}"))
            .status()
            .unwrap();
        assert!(sent.success());
    }
    field.ask("of-its-own", question(12)).await;
    field.settle().await;
    daemon.signal("TERM");

    let mut spans: Vec<Value> = Vec::new();
    let wholes = |spans: &[Value]| spans.iter().filter(|span| span["kind"] == 2).count();
    while wholes(&spans) < 2 {
        let (path, body) = posts.recv_timeout(TIMEOUT).unwrap();
        assert_eq!(path, "/v1/traces");
        let resource = &body["resourceSpans"][0];
        assert_eq!(
            attribute(&resource["resource"], "service.name").unwrap(),
            "phi-edge"
        );
        let more = resource["scopeSpans"][0]["spans"].as_array().unwrap();
        spans.extend(more.iter().cloned());
    }
    let of = |id: &str| {
        let mut all = spans.iter();
        all.find(|span| attribute(span, "phi_edge.job.id").is_some_and(|own| own == id))
    };
    let whole = of("traced").unwrap();
    assert_eq!(
        (whole["traceId"].as_str(), whole["parentSpanId"].as_str()),
        (Some(TRACE), Some(PARENT))
    );
    let answer = field.outcome("traced");
    let tokens = answer["usage"]["completion_tokens"].as_u64().unwrap().to_string();
    assert_eq!(
        attribute(whole, "gen_ai.usage.output_tokens").unwrap(),
        tokens.as_str()
    );
    let time = |span: &Value, key: &str| span[key].as_str().unwrap().parse::<u128>().unwrap();
    let parts: Vec<&Value> = spans
        .iter()
        .filter(|span| span["parentSpanId"] == whole["spanId"])
        .collect();
    let names: Vec<&str> = parts.iter().map(|span| span["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["queue", "prefill", "decode"]);
    for part in parts {
        assert_eq!(part["traceId"], TRACE);
        assert!(time(part, "startTimeUnixNano") >= time(whole, "startTimeUnixNano"));
        assert!(time(part, "endTimeUnixNano") <= time(whole, "endTimeUnixNano"));
    }
    let own = of("of-its-own").unwrap();
    assert!(own["parentSpanId"].is_null());
    assert_eq!(own["traceId"].as_str().unwrap().len(), 32);
    assert!(
        of("unwanted").is_none(),
        "the origin of that trace does not keep it"
    );
}

#[tokio::test]
async fn a_collector_that_is_away_costs_a_line_and_no_answer() {
    if !has_library() {
        return;
    }
    let Some(broker) = Mosquitto::start() else { return };
    let endpoint = format!("traces.endpoint=http://127.0.0.1:{}", free_port());
    let daemon = Daemon::start(broker.port, &demo_model(), &[endpoint.as_str()]);
    let mut field = Field::at(broker.port).await;
    field
        .listen_until("a ready daemon", |field| field.state() == "ready")
        .await;
    for id in ["one", "two", "three"] {
        field.ask(id, question(12)).await;
    }
    field.settle().await;
    field
        .listen_until("the line", |_| daemon.log().contains("traces can't be sent"))
        .await;
    assert!(field.outcome("three")["text"].is_string());
}
