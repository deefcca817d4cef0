//! Metrics, health, dashboard and alerts, with a live daemon and Debian's Prometheus.

#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use phi_edge_mqtt::Client;
use phi_edge_tests::{
    BASE, Daemon, Mosquitto, Prometheus, TIMEOUT, client, demo_model, free_port, has_library, http, json,
    next, state,
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};
use tempfile::TempDir;

const RULES: &str = r#"
[[rules]]
name = "alarms"
topics = ["plant/+/alarm"]
window = { kind = "count", messages = 2 }
prompt = "Alarms: {% for m in messages %}{{ m.payload }} {% endfor %}"
max_tokens = 8

# Its words can't succeed: no prompt is that short.
[[rules]]
name = "tight"
topics = ["plant/+/alarm"]
window = { kind = "count", messages = 2 }
prompt = "Alarms: {% for m in messages %}{{ m.payload }} {% endfor %}"
max_prompt_tokens = 1
"#;

/// A node that has all there is to be watched, TLS and rules among it.
struct Watched {
    broker: Mosquitto,
    daemon: Daemon,
    client: Client,
    port: u16,
    _folder: TempDir,
}

impl Watched {
    async fn start() -> Option<Self> {
        if !has_library() {
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let (rules, tls) = (folder.path().join("rules.d"), folder.path().join("tls"));
        for made in [&rules, &tls] {
            std::fs::create_dir(made).unwrap();
        }
        std::fs::write(rules.join("rules.toml"), RULES).unwrap();
        certificates(&tls);
        let secured = free_port();
        let broker = Mosquitto::with(
            &format!(
                "allow_anonymous true\nlistener {secured} 127.0.0.1\ncertfile {0}/localhost.pem\nkeyfile \
                 {0}/localhost.key\n",
                tls.display()
            ),
            |_| {},
        )?;
        let settings = [
            format!("mqtt.port={secured}"),
            format!("mqtt.tls.ca={}", tls.join("ca.pem").display()),
            format!("node.rules_dir={}", rules.display()),
            format!("audit.path={}", folder.path().join("audit.jsonl").display()),
            "metrics.listen=127.0.0.1:0".to_owned(),
            "runtime.slots=1".to_owned(),
        ];
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        let daemon = Daemon::start(broker.port, &demo_model(), &settings);
        let port = metrics_port(&daemon);
        let mut client = client(broker.port).await;
        state(&mut client, "ready").await;
        client.subscribe(&format!("{BASE}/response/#")).await.unwrap();
        client.subscribe(&format!("{BASE}/event/#")).await.unwrap();
        Some(Self {
            broker,
            daemon,
            client,
            port,
            _folder: folder,
        })
    }

    fn get(&self, path: &str) -> (u16, String) {
        http(self.port, &format!("GET {path} HTTP/1.1\r\nHost: localhost")).unwrap()
    }

    /// Answers, an answer that comes too late, a refusal, a window with words and one without.
    async fn work(&mut self, round: u32) {
        let id = |what: &str| format!("{what}-{round}");
        for (id, body) in [
            (
                id("long"),
                json!({"prompt": "Who are you? Say it twice.", "max_tokens": 64}),
            ),
            (id("late"), json!({"prompt": "Hello", "deadline_ms": 1})),
            (id("bad"), json!({"prompt": "Hello", "max_tokens": 0})),
            (
                id("short"),
                json!({"prompt": "Who are you? Say it twice.", "max_tokens": 4}),
            ),
        ] {
            let mut body = body;
            body["id"] = id.into();
            self.publish(&format!("{BASE}/request"), body.to_string()).await;
        }
        for n in 0..2 {
            self.publish("plant/7/alarm", format!("press 7 stops, {round} {n}"))
                .await;
        }
        let mut open = vec![id("long"), id("late"), id("bad"), id("short")];
        let mut events = 2;
        next(&mut self.client, "all outcomes and events", |message| {
            let body = json(message);
            match message.property("kind") {
                Some("final" | "error") => open.retain(|id| body["id"] != *id),
                Some("event") => events -= 1,
                _ => {}
            }
            (open.is_empty() && events <= 0).then_some(())
        })
        .await;
    }

    async fn publish(&mut self, topic: &str, payload: String) {
        self.client.publish(topic, payload, None).await.unwrap();
    }
}

/// Where the metrics are served: the log says it.
fn metrics_port(daemon: &Daemon) -> u16 {
    let deadline = Instant::now() + TIMEOUT;
    while Instant::now() < deadline {
        let log = daemon.log();
        let line = log.lines().find(|line| line.contains("metrics are served"));
        if let Some(port) = line.and_then(|line| line.rsplit_once(':')?.1.trim().parse().ok()) {
            return port;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("no metrics are served:\n{}", daemon.log());
}

/// An authority and the broker's certificate for `localhost`.
fn certificates(folder: &Path) {
    let key = KeyPair::generate().unwrap();
    let mut authority = CertificateParams::new(Vec::<String>::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority
        .distinguished_name
        .push(DnType::CommonName, "test authority");
    std::fs::write(folder.join("ca.pem"), authority.self_signed(&key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(authority, key);
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    std::fs::write(folder.join("localhost.pem"), certificate.pem()).unwrap();
    std::fs::write(folder.join("localhost.key"), key.serialize_pem()).unwrap();
}

#[tokio::test]
async fn three_paths_are_served_and_nothing_else() {
    let Some(mut node) = Watched::start().await else {
        return;
    };
    assert_eq!(node.get("/healthz"), (200, "ok\n".to_owned()));
    assert_eq!(node.get("/readyz"), (200, "ok\n".to_owned()));
    assert_eq!(node.get("/").0, 404);
    node.work(0).await;
    let (status, text) = node.get("/metrics");
    assert_eq!(status, 200);
    for line in [
        "# TYPE gen_ai_server_time_to_first_token_seconds histogram",
        "# TYPE phi_edge_jobs_total counter",
        "phi_edge_link_up 1",
        "phi_edge_state{state=\"ready\"} 1",
        "phi_edge_jobs_total{outcome=\"expired\",source=\"client\"} 1",
        "phi_edge_refused_total{code=\"bad_request\"} 1",
        "phi_edge_rule_events_total{rule=\"alarms\",outcome=\"ok\"} 1",
        "phi_edge_rule_events_total{rule=\"tight\",outcome=\"context_overflow\"} 1",
        "phi_edge_audit_lost_total 0",
    ] {
        assert!(
            text.lines().any(|known| known == line),
            "no line {line:?} in\n{text}"
        );
    }
    let ask = |head: &str| http(node.port, head).unwrap();
    assert_eq!(ask("HEAD /metrics HTTP/1.1"), (200, String::new()));
    assert_eq!(ask("POST /metrics HTTP/1.1").0, 405);
    assert_eq!(ask("nonsense").0, 400);
    // Ends without an empty line where the limit is.
    let endless = "X-Filler: 0123456789\r\n".repeat(480);
    let answer = http(node.port, &format!("GET /metrics HTTP/1.1\r\n{endless}"));
    // The answer may be cut off by the reset of a connection that had more to send.
    assert!(answer.is_err() || answer.is_ok_and(|(status, _)| status == 431));
    assert_eq!(node.get("/healthz").0, 200);
}

#[tokio::test]
async fn clients_that_say_nothing_keep_none_out() {
    let Some(node) = Watched::start().await else {
        return;
    };
    let mut idle = Vec::new();
    for n in 0..200 {
        let mut stream = TcpStream::connect(("127.0.0.1", node.port)).unwrap();
        if n % 2 == 0 {
            // One that never comes to the end of its request.
            let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\nX: ");
        }
        idle.push(stream);
        if n % 20 == 0 {
            let begun = Instant::now();
            assert_eq!(node.get("/healthz").0, 200);
            let took = begun.elapsed();
            assert!(took < Duration::from_secs(2), "{n} idle connections: {took:?}");
        }
    }
    assert_eq!(node.get("/metrics").0, 200);
}

#[tokio::test]
async fn a_node_that_ends_is_healthy_and_not_ready() {
    let Some(mut node) = Watched::start().await else {
        return;
    };
    node.work(0).await;
    // A broker that does not answer keeps the end from being over at once.
    node.broker.signal("STOP");
    node.daemon.signal("TERM");
    let deadline = Instant::now() + TIMEOUT;
    let reason = loop {
        let (status, reason) = node.get("/readyz");
        if status == 503 {
            break reason;
        }
        assert!(Instant::now() < deadline, "it stays ready");
    };
    assert_eq!(reason, "draining: stopped\n");
    assert_eq!(node.get("/healthz").0, 200);
    node.broker.signal("CONT");
}

#[tokio::test]
async fn every_panel_and_every_alert_finds_data() {
    let Some(mut node) = Watched::start().await else {
        return;
    };
    let rules = root("systemd/prometheus/phi-edge.rules.yml");
    let Some(prometheus) = Prometheus::start(node.port, &rules) else {
        return;
    };
    let checked = Command::new("promtool")
        .args(["check", "rules"])
        .arg(&rules)
        .output()
        .unwrap();
    assert!(
        checked.status.success(),
        "{}",
        String::from_utf8_lossy(&checked.stderr)
    );

    let mut missing: BTreeMap<String, String> = panels().into_iter().chain(alerts(&prometheus)).collect();
    assert!(missing.len() > 50, "{missing:?}");
    if std::fs::read_dir("/sys/class/thermal").is_ok_and(|zones| zones.count() == 0)
        || !Path::new("/sys/class/thermal").exists()
    {
        println!("this machine tells no temperature");
        missing.retain(|_, expression| !expression.contains("temperature"));
    }
    let deadline = Instant::now() + TIMEOUT;
    for round in 0.. {
        node.work(round).await;
        missing.retain(|what, expression| {
            let found = prometheus
                .query(expression)
                .unwrap_or_else(|error| panic!("{what}: {error}"));
            found.is_empty()
        });
        if missing.is_empty() {
            break;
        }
        assert!(
            Instant::now() < deadline,
            "no data for {missing:#?}\n{}",
            node.get("/metrics").1
        );
    }
}

/// The queries of the dashboard by their panels, variables filled in.
fn panels() -> Vec<(String, String)> {
    let text = std::fs::read_to_string(root("systemd/grafana/phi-edge.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let mut found = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().unwrap() {
            let expression = target["expr"]
                .as_str()
                .unwrap()
                .replace("$job", "phi-edge")
                .replace("$instance", ".*")
                .replace("$__rate_interval", "1m");
            assert!(!expression.contains('$'), "{expression}");
            found.push((
                format!("panel {} {}", panel["title"], target["refId"]),
                expression,
            ));
        }
    }
    found
}

/// The left sides of the alerts' conditions, as Prometheus has read them.
fn alerts(prometheus: &Prometheus) -> Vec<(String, String)> {
    let answer = prometheus.get("/api/v1/rules").unwrap();
    let rules = answer["data"]["groups"][0]["rules"].as_array().unwrap();
    rules
        .iter()
        .map(|rule| {
            let condition = rule["query"].as_str().unwrap();
            let (left, _) = [" == ", " > ", " < "]
                .iter()
                .filter_map(|sign| condition.rsplit_once(sign))
                .min_by_key(|(left, _)| condition.len() - left.len())
                .unwrap();
            (format!("alert {}", rule["name"]), left.to_owned())
        })
        .collect()
}

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}
