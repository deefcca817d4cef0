//! `phi-edge pull` and `phi-edge models` as commands: killed and gone on with, through a proxy, from a stick, and what
//! they say.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "pull_commands/stick.rs"]
mod stick;
#[path = "pull_commands/tls.rs"]
mod tls;

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use phi_edge_tests::hub::{Faults, HubFile, HubServer, Lasting, Manners, Repository, Tunnel};
use phi_edge_tests::{Chance, TIMEOUT, demo_model, free_port, phi_edge};

const MIB: u64 = 1 << 20;

fn repository(weights: u64) -> Repository {
    let mut random = Chance::seeded(7);
    let mut file = |path: &str, size: u64, large: bool| HubFile {
        path: path.to_owned(),
        bytes: random.bytes(usize::try_from(size).unwrap()),
        large,
    };
    Repository {
        name: "org/Phi-test-onnx".to_owned(),
        commit: "89abcdef".repeat(5),
        licence: Some("mit".to_owned()),
        files: vec![
            file("LICENSE", 1000, false),
            file("genai_config.json", 300, false),
            file("model.onnx", weights / 2 + 77, true),
            file("model.onnx.data", weights, true),
            file("more.onnx.data", weights / 2 + 4321, true),
        ],
    }
}

/// The command in `folder`, whose models are in `models` and whose link is `model`; the environment's own proxies and
/// tokens are none of the test's business.
fn phi(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(phi_edge());
    command
        .args(arguments)
        .args(["--set", &format!("model.path={}", folder.join("model").display())]);
    for name in [
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "NO_PROXY",
        "HF_TOKEN",
        "PHI_EDGE_HUB",
    ] {
        command.env_remove(name).env_remove(name.to_lowercase());
    }
    command
}

fn check(folder: &Path, arguments: &[&str], code: i32, says: &[&str]) -> String {
    let output = phi(folder, arguments).output().unwrap();
    expect(&output, code, says)
}

fn expect(output: &Output, code: i32, says: &[&str]) -> String {
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(output.status.code(), Some(code), "{said}");
    for part in says {
        assert!(said.contains(part), "{part:?} in: {said}");
    }
    said
}

/// How many bytes of a file are on the disk.
fn arrived(folder: &Path, file: &HubFile, commit: &str) -> u64 {
    let staging = folder.join("models/.partial").join(format!("m@{commit}"));
    let length = |path: &Path| path.metadata().map_or(0, |metadata| metadata.len());
    let part = format!("{}.part", file.path);
    [
        staging.join(&file.path),
        staging.join(part),
        folder.join("models/m").join(&file.path),
    ]
    .iter()
    .map(|path| length(path))
    .max()
    .unwrap_or(0)
}

#[test]
fn a_killed_pull_goes_on_with_no_byte_fetched_twice_beyond_one_chunk_a_file() {
    let repository = repository(6 * MIB);
    let manners = Manners {
        pace: Duration::from_millis(1),
        ..Manners::default()
    };
    let server = HubServer::start(repository.clone(), manners, Faults::default());
    let folder = tempfile::tempdir().unwrap();
    let address = server.repository();
    let arguments = [
        "pull",
        address.as_str(),
        "--name",
        "m",
        "--chunk",
        "1",
        "--jobs",
        "3",
    ];
    let total: u64 = repository.files.iter().map(|file| file.bytes.len() as u64).sum();
    let mut random = Chance::seeded(20_26);
    let mut kills = 0;
    let mut target = 0;
    while server.sent_in_all() < total {
        target = server.sent_in_all().max(target) + random.below(2 * MIB);
        let before: Vec<(u64, usize)> = repository
            .files
            .iter()
            .map(|file| {
                (
                    arrived(folder.path(), file, &repository.commit),
                    server.begins(&file.path).len(),
                )
            })
            .collect();
        let mut process = phi(folder.path(), &arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + TIMEOUT;
        // Until the server has sent enough, or the pull is through.
        while !server.wait_for(target, Duration::from_millis(20)) && process.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "the pull stands still");
        }
        let ended = process.try_wait().unwrap().is_some();
        let _ = process.kill();
        let _ = process.wait();
        // Each file was gone on with at the very byte where the last process left it, and lost nothing.
        for (file, (had, requests)) in repository.files.iter().zip(before) {
            let begin = server.begins(&file.path).get(requests).copied();
            assert!(
                begin.is_none_or(|begin| begin == had),
                "{}: {begin:?} of {had}",
                file.path
            );
            assert!(
                ended || arrived(folder.path(), file, &repository.commit) >= had,
                "{}",
                file.path
            );
        }
        if ended {
            break;
        }
        kills += 1;
        assert!(!folder.path().join("models/m").exists() || server.sent_in_all() >= total);
    }
    check(folder.path(), &arguments, 0, &["every file verified"]);
    for file in &repository.files {
        let (size, sent) = (file.bytes.len() as u64, server.sent(&file.path));
        println!("{}: {sent} of {size} bytes sent, {kills} kills", file.path);
        assert!(
            sent >= size && sent <= size + kills * MIB,
            "{}: {sent} of {size}",
            file.path
        );
        let got = std::fs::read(folder.path().join("models/m").join(&file.path)).unwrap();
        assert_eq!(got, file.bytes);
    }
    assert!(kills >= 5, "{kills} kills");
    check(
        folder.path(),
        &["models", "verify", "m"],
        0,
        &["every file is as it came"],
    );
}

#[test]
fn a_proxy_carries_everything_and_no_proxy_spares() {
    let repository = repository(100_000);
    let names = Some(("http://hub.invalid".to_owned(), "http://files.invalid".to_owned()));
    let server = HubServer::start(
        repository,
        Manners {
            names,
            page: 2,
            ..Manners::default()
        },
        Faults::default(),
    );
    let (hub, cdn) = server.sockets();
    let proxy = Tunnel::start(vec![
        ("hub.invalid:80".to_owned(), hub),
        ("files.invalid:80".to_owned(), cdn),
    ]);
    let folder = tempfile::tempdir().unwrap();
    let address = "http://hub.invalid/org/Phi-test-onnx";
    let output = phi(folder.path(), &["pull", address])
        .env("http_proxy", proxy.url())
        .output()
        .unwrap();
    expect(&output, 0, &["licence: mit", "every file verified"]);
    let (opened, refused) = proxy.counts();
    assert!(opened >= 2 && refused == 0, "{opened} {refused}");
    // The mirror in place of the hub, reached directly in spite of a proxy that is not there.
    let dead = format!("http://127.0.0.1:{}", free_port());
    let server = HubServer::start(self::repository(100_000), Manners::default(), Faults::default());
    let output = phi(
        folder.path(),
        &["pull", "https://hub.invalid/org/Phi-test-onnx", "--name", "n"],
    )
    .env("PHI_EDGE_HUB", server.base())
    .env("ALL_PROXY", &dead)
    .env("NO_PROXY", "localhost,127.0.0.1")
    .output()
    .unwrap();
    expect(&output, 0, &["every file verified"]);
    let output = phi(folder.path(), &["pull", address, "--tries", "1"])
        .env("ALL_PROXY", &dead)
        .output()
        .unwrap();
    expect(&output, 69, &["given up after 1 tries"]);
}

#[test]
fn faults_have_their_exit_codes() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    check(
        folder,
        &["pull", "phi-9"],
        2,
        &["phi-9: is neither a short name (phi-3.5-mini, phi-3.5-vision)"],
    );
    check(
        folder,
        &["pull", "https://hub.invalid/x"],
        2,
        &["https://host/organisation/repository"],
    );
    let dead = format!("http://127.0.0.1:{}", free_port());
    let gone = check(
        folder,
        &["pull", "phi-3.5-mini", "--mirror", &dead, "--tries", "2"],
        69,
        &["given up after 2 tries"],
    );
    assert!(
        gone.lines()
            .last()
            .unwrap()
            .starts_with("phi-edge: microsoft/Phi-3.5-mini-instruct-onnx"),
        "{gone}"
    );
    let server = HubServer::start(repository(1000), Manners::default(), Faults::default());
    check(
        folder,
        &["pull", "phi-3.5-mini", "--mirror", &server.base()],
        1,
        &["HTTP 404"],
    );
    check(
        folder,
        &["pull", &server.repository(), "--revision", "v9"],
        1,
        &["at v9", "HTTP 404"],
    );
    check(
        folder,
        &["pull", &server.repository(), "--name", "a/b"],
        2,
        &["no name of a model"],
    );
    let folder_address = format!("{}/tree/main/cuda", server.repository());
    check(
        folder,
        &["pull", &folder_address],
        1,
        &["cuda", "genai_config.json"],
    );
    let lasting = Some(Lasting::Wrong("model.onnx.data".to_owned()));
    let wrong = HubServer::start(
        repository(1000),
        Manners::default(),
        Faults { seed: None, lasting },
    );
    let says = [
        "model.onnx.data: wrong content, expected sha256 ",
        "found sha256 ",
        "nothing was switched",
    ];
    check(folder, &["pull", &wrong.repository(), "--tries", "3"], 1, &says);
    check(
        folder,
        &["models", "verify", "nowhere"],
        78,
        &["nowhere: there is no such model"],
    );
    check(folder, &["models", "verify"], 78, &["no such model directory"]);
    check(folder, &["models", "export", "x"], 2, &[]);
    check(
        folder,
        &["models", "list"],
        0,
        &["no models in", "phi-3.5-mini, phi-3.5-vision"],
    );
}

#[test]
fn models_are_taken_in_used_rolled_back_and_removed() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let demo = demo_model();
    let demo = demo.to_str().unwrap();
    check(
        folder,
        &["pull", demo, "--name", "demo", "--use"],
        0,
        &["demo is there, every file verified"],
    );
    check(
        folder,
        &["pull", demo, "--name", "other"],
        0,
        &["models use other"],
    );
    let said = check(
        folder,
        &["models", "list"],
        0,
        &["demo", "other", "licence not stated"],
    );
    let in_use: Vec<&str> = said.lines().filter(|line| line.contains("(in use)")).collect();
    assert!(in_use.len() == 1 && in_use[0].starts_with("demo"), "{said}");
    assert_eq!(
        std::fs::read_link(folder.join("model")).unwrap(),
        Path::new("models/demo")
    );
    check(folder, &["models", "verify"], 0, &["as it came"]);
    check(folder, &["models", "remove", "demo"], 1, &["in use"]);
    check(
        folder,
        &["models", "rollback"],
        1,
        &["no model was in use before"],
    );
    check(folder, &["models", "use", "other"], 0, &["is switched"]);
    check(folder, &["models", "rollback"], 0, &["models/demo"]);
    check(folder, &["models", "rollback"], 0, &["models/other"]);
    check(
        folder,
        &["models", "use", "third"],
        78,
        &["third: there is no such model"],
    );
    // Damage is named, file by file.
    std::fs::write(folder.join("models/other/model.onnx"), "x").unwrap();
    std::fs::remove_file(folder.join("models/other/tokenizer.json")).unwrap();
    std::fs::write(folder.join("models/other/stray"), "x").unwrap();
    let says = [
        "model.onnx is wrong",
        "tokenizer.json is missing",
        "stray does not belong",
        "3 files differ",
    ];
    check(folder, &["models", "verify", "other"], 78, &says);
    check(
        folder,
        &["models", "rollback", "other"],
        1,
        &["no version before"],
    );
    check(folder, &["pull", demo, "--name", "other"], 0, &[]);
    check(folder, &["models", "verify", "other"], 0, &[]);
    check(folder, &["models", "rollback", "other"], 0, &[]);
    check(folder, &["models", "verify", "other"], 78, &[]);
    check(folder, &["models", "remove", "demo"], 0, &["demo is removed"]);
    check(folder, &["models", "rollback"], 1, &["is gone"]);
    check(folder, &["models", "remove", "demo"], 78, &["no such model"]);
    // A link that is a folder is left alone.
    std::fs::remove_file(folder.join("model")).unwrap();
    std::fs::create_dir(folder.join("model")).unwrap();
    check(
        folder,
        &["models", "use", "other"],
        1,
        &["is a folder and no link"],
    );
}
