//! Who else may want a node's session or its store: another node, a path that closes connections, a second process.

#![allow(clippy::unwrap_used, missing_docs)]

use std::process::Command;
use std::time::{Duration, Instant};

use phi_edge_tests::{
    Daemon, Field, Mosquitto, NODE, TIMEOUT, demo_model, has_library, http, phi_edge, question,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Waits for what is not reported, such as a line in a log.
async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < TIMEOUT, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn ready(field: &mut Field) {
    field
        .listen_until("a ready node", |field| field.state() == "ready")
        .await;
}

#[tokio::test]
async fn of_two_nodes_with_one_client_id_exactly_one_ends() {
    if !has_library() {
        return;
    }
    let Some(broker) = Mosquitto::start() else { return };
    let twin = || Daemon::start(broker.port, &demo_model(), &["mqtt.client_id=twin"]);
    let mut first = twin();
    let mut field = Field::at(broker.port).await;
    ready(&mut field).await;
    let mut second = twin();
    eventually("the end of one", || !first.runs() || !second.runs()).await;
    let (ended, other) = if first.runs() {
        (&mut second, &mut first)
    } else {
        (&mut first, &mut second)
    };
    assert_eq!(ended.wait().code(), Some(77), "{}", ended.log());
    assert!(ended.log().contains("another client took over the session"));
    ready(&mut field).await;
    field.ask("after", question(8)).await;
    field.settle().await;
    assert!(other.runs(), "{}", other.log());
}

/// A way to the broker that can end every connection a while after it was made.
struct Path {
    port: u16,
    life: watch::Sender<Option<Duration>>,
}

impl Path {
    async fn to(broker: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (life, lives) = watch::channel(None);
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut life = lives.clone();
                tokio::spawn(async move {
                    let Ok(mut far) = TcpStream::connect(("127.0.0.1", broker)).await else {
                        return;
                    };
                    let ends = async {
                        let Ok(life) = life.wait_for(Option::is_some).await.map(|life| *life) else {
                            return;
                        };
                        tokio::time::sleep(life.unwrap_or_default()).await;
                    };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        () = ends => {}
                    }
                });
            }
        });
        Self { port, life }
    }
}

#[tokio::test]
async fn a_path_that_ends_connections_degrades_the_node_and_nothing_more() {
    if !has_library() {
        return;
    }
    let Some(broker) = Mosquitto::start() else { return };
    let path = Path::to(broker.port).await;
    let mut daemon = Daemon::start(path.port, &demo_model(), &["metrics.listen=127.0.0.1:0"]);
    let mut field = Field::at(broker.port).await;
    ready(&mut field).await;
    let log = daemon.log();
    let line = log.lines().find(|line| line.contains("metrics are served"));
    let port = line
        .and_then(|line| line.rsplit_once(':')?.1.trim().parse().ok())
        .unwrap();
    let is_ready = || http(port, "GET /readyz HTTP/1.1\r\nHost: localhost").unwrap();

    path.life.send_replace(Some(Duration::from_millis(200)));
    eventually("a node that is degraded", || {
        let (status, reason) = is_ready();
        status == 503 && reason.contains("connections to the broker end again and again after a short time")
    })
    .await;
    assert!(daemon.runs(), "{}", daemon.log());
    assert!(
        daemon
            .log()
            .contains("connections to the broker end again and again after a short time")
    );

    path.life.send_replace(None);
    eventually("a node that is ready again", || is_ready().0 == 200).await;
    field.ask("after", question(8)).await;
    field.settle().await;
    assert!(daemon.runs(), "{}", daemon.log());
}

#[tokio::test]
async fn a_second_process_on_one_store_ends_and_touches_nothing() {
    if !has_library() {
        return;
    }
    let Some(broker) = Mosquitto::start() else { return };
    let mut first = Daemon::start(broker.port, &demo_model(), &[]);
    let mut field = Field::at(broker.port).await;
    ready(&mut field).await;
    let folder = first.folder.path().to_owned();
    let marker = || std::fs::read(folder.join("running")).unwrap();
    let before = marker();

    let mut second = Command::new(phi_edge());
    second.arg("run");
    for setting in [
        format!("mqtt.port={}", broker.port),
        format!("node.name={NODE}"),
        "runtime.provider=cpu".to_owned(),
        format!("model.path={}", demo_model().display()),
        format!("store.path={}", folder.display()),
    ] {
        second.args(["--set", &setting]);
    }
    let output = tokio::task::spawn_blocking(move || second.output().unwrap())
        .await
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    let holder = format!("another phi-edge (process {})", first.id());
    for part in [folder.to_str().unwrap(), &holder, "store.path"] {
        assert!(said.contains(part), "{part:?} is not said:\n{said}");
    }
    assert!(!said.contains("connected"), "{said}");

    assert_eq!(marker(), before);
    field.ask("after", question(8)).await;
    field.settle().await;
    assert!(first.runs());
    let connections = first.log().matches(": connected").count();
    assert_eq!(connections, 1, "{}", first.log());

    // A crash is still noticed, and leaves the store free.
    first.signal("ABRT");
    first.wait();
    let folder = first.kill();
    let again = Daemon::start_in(folder, broker.port, &demo_model(), &[]);
    eventually("the next start", || {
        again.log().matches("ready model=").count() == 2
    })
    .await;
    assert!(
        again.log().contains("the process before this one crashed"),
        "{}",
        again.log()
    );
}
