//! TLS with client certificates, against Debian's mosquitto.

#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;
use std::process::Command;

use phi_edge_mqtt::{Client, ClientOptions, TlsFiles};
use phi_edge_tests::{BASE, Daemon, Mosquitto, demo_model, has_library, next, phi_edge};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use serde_json::Value;
use tempfile::TempDir;

/// An authority, the broker's certificate for `localhost`, and a client's.
fn certificates(folder: &Path) {
    let key = KeyPair::generate().unwrap();
    let mut authority = CertificateParams::new(Vec::<String>::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority
        .distinguished_name
        .push(DnType::CommonName, "phi-edge test authority");
    std::fs::write(folder.join("ca.pem"), authority.self_signed(&key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(authority, key);
    for (name, purpose) in [
        ("localhost", ExtendedKeyUsagePurpose::ServerAuth),
        ("node", ExtendedKeyUsagePurpose::ClientAuth),
    ] {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages.push(purpose);
        let certificate = params.signed_by(&key, &issuer).unwrap();
        std::fs::write(folder.join(format!("{name}.pem")), certificate.pem()).unwrap();
        std::fs::write(folder.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
}

const LISTENER: &str = "allow_anonymous true
cafile {folder}/ca.pem
certfile {folder}/localhost.pem
keyfile {folder}/localhost.key
require_certificate true
";

fn setup() -> Option<(Mosquitto, TempDir)> {
    if !has_library() {
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    certificates(folder.path());
    let broker = Mosquitto::with(LISTENER, |own| {
        for name in ["ca.pem", "localhost.pem", "localhost.key"] {
            std::fs::copy(folder.path().join(name), own.join(name)).unwrap();
        }
    })?;
    Some((broker, folder))
}

fn files(folder: &Path) -> TlsFiles {
    TlsFiles {
        ca: folder.join("ca.pem"),
        identity: Some((folder.join("node.pem"), folder.join("node.key"))),
    }
}

fn settings(folder: &Path) -> [String; 3] {
    [("ca", "ca.pem"), ("cert", "node.pem"), ("key", "node.key")]
        .map(|(key, file)| format!("mqtt.tls.{key}={}", folder.join(file).display()))
}

#[tokio::test]
async fn node_and_client_show_their_certificates() {
    let Some((broker, folder)) = setup() else { return };
    let settings = settings(folder.path());
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let _daemon = Daemon::start(broker.port, &demo_model(), &settings);
    let mut client = Client::connect(ClientOptions {
        host: "localhost".into(),
        port: broker.port,
        client_id: "tls-test".into(),
        credentials: None,
        tls: Some(files(folder.path())),
        session: None,
    })
    .await
    .unwrap();
    phi_edge_tests::state(&mut client, "ready").await;
    client.subscribe(&format!("{BASE}/response/#")).await.unwrap();
    client
        .publish(&format!("{BASE}/request"), "Who are you?", None)
        .await
        .unwrap();
    let reply: Value = next(&mut client, "the answer", |m| {
        (m.property("kind") == Some("final")).then(|| phi_edge_tests::json(m))
    })
    .await;
    assert!(reply["text"].as_str().unwrap().contains("demonstration"));
}

#[tokio::test]
async fn renewed_certificates_are_taken_over_on_reload() {
    let Some((broker, folder)) = setup() else { return };
    let file = folder.path().join("phi-edge.toml");
    std::fs::write(&file, "[limits]\nmax_tokens = 100\n").unwrap();
    let settings = settings(folder.path());
    let config = format!("--config={}", file.display());
    let settings: Vec<&str> = settings.iter().chain([&config]).map(String::as_str).collect();
    let daemon = Daemon::start(broker.port, &demo_model(), &settings);
    let mut client = Client::connect(ClientOptions {
        host: "localhost".into(),
        port: broker.port,
        client_id: "tls-test".into(),
        credentials: None,
        tls: Some(files(folder.path())),
        session: None,
    })
    .await
    .unwrap();
    phi_edge_tests::state(&mut client, "ready").await;
    client.subscribe(&format!("{BASE}/response/#")).await.unwrap();
    let reload = |until: &str, times: usize| {
        daemon.signal("HUP");
        let begun = std::time::Instant::now();
        while daemon.log().matches(until).count() < times {
            assert!(
                begun.elapsed() < phi_edge_tests::TIMEOUT,
                "waited for {until}: {}",
                daemon.log()
            );
            std::thread::yield_now();
        }
    };
    // A key that does not go with the certificate: the link goes on as it is.
    let key = std::fs::read(folder.path().join("node.key")).unwrap();
    std::fs::copy(
        folder.path().join("localhost.key"),
        folder.path().join("node.key"),
    )
    .unwrap();
    std::fs::write(&file, "[limits]\nmax_tokens = 8\n").unwrap();
    reload("does not go with the certificate", 1);
    // Nothing else of the reload is in effect.
    client
        .publish(
            &format!("{BASE}/request"),
            r#"{"id": "still", "prompt": "Who are you?", "max_tokens": 60}"#,
            None,
        )
        .await
        .unwrap();
    let still: String = next(&mut client, "the answer under the old limits", |m| {
        m.property("kind")
            .filter(|kind| *kind != "chunk")
            .map(str::to_owned)
    })
    .await;
    assert_eq!(still, "final", "{}", daemon.log());
    std::fs::write(&file, "[limits]\nmax_tokens = 100\n").unwrap();
    // The other certificate of the same authority, with its key.
    std::fs::write(folder.path().join("node.key"), key).unwrap();
    let chain = std::fs::read_to_string(folder.path().join("node.pem")).unwrap();
    std::fs::write(folder.path().join("node.pem"), format!("{chain}\n")).unwrap();
    reload("reconnecting with renewed certificates", 1);
    client
        .publish(&format!("{BASE}/request"), "Who are you?", None)
        .await
        .unwrap();
    let reply: Value = next(&mut client, "the answer", |m| {
        (m.property("kind") == Some("final")).then(|| phi_edge_tests::json(m))
    })
    .await;
    assert!(reply["text"].as_str().unwrap().contains("demonstration"));
}

#[test]
fn faults_of_certificates_are_named() {
    let Some((broker, folder)) = setup() else { return };
    let port = format!("mqtt.port={}", broker.port);
    let model = format!("model.path={}", demo_model().display());
    let strangers = tempfile::tempdir().unwrap();
    certificates(strangers.path());
    let check = |tls: &[String], host: &str| {
        let host = format!("mqtt.host={host}");
        let mut command = Command::new(phi_edge());
        command.args(["check", "--set", &port, "--set", &model, "--set", &host]);
        for setting in tls {
            command.args(["--set", setting]);
        }
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let own = settings(folder.path());
    assert_eq!(
        check(&own, "localhost").0,
        Some(0),
        "{}",
        check(&own, "localhost").1
    );
    let (code, said) = check(&settings(strangers.path()), "localhost");
    assert_eq!(code, Some(69));
    assert!(said.contains("mqtt.tls.ca does not hold the authority"), "{said}");
    let (code, said) = check(&own, "127.0.0.1");
    assert_eq!(code, Some(69));
    assert!(said.contains("not a name in the broker's certificate"), "{said}");
    // The key of another certificate.
    let mut mixed = own.clone();
    mixed[2] = format!("mqtt.tls.key={}", strangers.path().join("node.key").display());
    let (code, said) = check(&mixed, "localhost");
    assert_eq!(code, Some(78));
    assert!(said.contains("does not go with the certificate"), "{said}");
    let (code, said) = check(&own[..1], "localhost");
    assert_eq!(code, Some(69), "{said}");
    assert!(said.contains("certificate"), "{said}");
}
