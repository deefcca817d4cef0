//! `phi-edge pull` and `phi-edge models` as commands: killed and gone on with, through a proxy, from a stick, and what
//! they say.

#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use phi_edge_tests::hub::{Faults, HubFile, HubServer, Lasting, Manners, Random, Repository, Tunnel};
use phi_edge_tests::{PATIENCE, demo_model, free_port, phi_edge};

const MIB: u64 = 1 << 20;

fn repository(weights: u64) -> Repository {
    let mut random = Random(7);
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
    let mut random = Random(20_26);
    let mut kills = 0;
    let mut target = 0;
    while server.sent_in_all() < total {
        target = server.sent_in_all().max(target) + random.below(2 * MIB);
        let mut process = phi(folder.path(), &arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + PATIENCE;
        // Until the server has sent enough, or the pull is through.
        while !server.wait_for(target, Duration::from_millis(20)) && process.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "the pull stands still");
        }
        let ended = process.try_wait().unwrap().is_some();
        let _ = process.kill();
        let _ = process.wait();
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

#[test]
fn a_stick_carries_a_model() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let demo = demo_model();
    let stick = folder.join("demo.tar");
    let stick_text = stick.to_str().unwrap();
    check(
        folder,
        &["models", "export", "--from", demo.to_str().unwrap(), stick_text],
        0,
        &["demo.tar"],
    );
    check(
        folder,
        &["models", "import", stick_text, "--use"],
        0,
        &["every file verified", "is switched"],
    );
    let place = folder.join("models/phi-edge-demo");
    for name in ["model.onnx.data", "tokenizer.json", "genai_config.json"] {
        assert_eq!(
            std::fs::read(place.join(name)).unwrap(),
            std::fs::read(demo.join(name)).unwrap(),
            "{name}"
        );
    }
    let manifest = std::fs::read_to_string(place.join("manifest.json")).unwrap();
    assert!(manifest.contains("\"demonstration\": true"), "{manifest}");
    check(folder, &["models", "verify"], 0, &["as it came"]);
    // The same model makes the same archive.
    let again = folder.join("again.tar");
    check(
        folder,
        &["models", "export", "phi-edge-demo", again.to_str().unwrap()],
        0,
        &[],
    );
    let bytes = std::fs::read(&again).unwrap();
    assert!(bytes == std::fs::read(&stick).unwrap(), "the archives differ");
    // Damage anywhere is found, and nothing is switched.
    let bad = folder.join("bad.tar");
    let import = [
        "models",
        "import",
        bad.to_str().unwrap(),
        "--name",
        "phi-edge-demo",
    ];
    let mut flipped = bytes.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    for (bytes, says) in [
        (&flipped[..], "sha256"),
        (&bytes[..bytes.len() / 3], "ends within model.onnx.data"),
        (&b"x"[..], "archive"),
        (b"", "empty"),
    ] {
        std::fs::write(&bad, bytes).unwrap();
        let said = check(folder, &import, 1, &["nothing was taken in"]);
        assert!(said.contains(says), "{says}: {said}");
    }
    std::fs::write(folder.join("models/phi-edge-demo/model.onnx"), "x").unwrap();
    check(
        folder,
        &["models", "export", "phi-edge-demo", bad.to_str().unwrap()],
        78,
        &["model.onnx"],
    );
    check(folder, &["models", "import", again.to_str().unwrap()], 0, &[]);
    check(folder, &["models", "verify", "phi-edge-demo"], 0, &[]);
    assert_eq!(
        std::fs::read_dir(folder.join("models/.partial")).unwrap().count(),
        1,
        "only the lock is left"
    );
}

#[test]
fn archives_that_escape_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let hash = "a948904f2f0f479b8f8197694b30184b0d2ed1c1cd2a1ec0fb85d299a192a447"; // of "hello world\n"
    let manifest =
        |path: &str| format!(r#"{{"name":"evil","files":{{"{path}":{{"sha256":"{hash}","size":12}}}}}}"#);
    let archive = |manifest: &str, entries: &[(&str, tar::EntryType)]| {
        let mut archive = tar::Builder::new(Vec::new());
        let mut add = |path: &str, kind, bytes: &[u8]| {
            let mut header = tar::Header::new_gnu();
            // By hand, since the library refuses to write such names.
            header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
            header.set_entry_type(kind);
            header.set_size(bytes.len() as u64);
            if kind == tar::EntryType::Symlink {
                header.set_link_name("/etc/passwd").unwrap();
            }
            header.set_cksum();
            archive.append(&header, bytes).unwrap();
        };
        add("manifest.json", tar::EntryType::Regular, manifest.as_bytes());
        for (path, kind) in entries {
            let bytes: &[u8] = if *kind == tar::EntryType::Regular {
                b"hello world\n"
            } else {
                b""
            };
            add(path, *kind, bytes);
        }
        archive.into_inner().unwrap()
    };
    let file = tar::EntryType::Regular;
    let path = folder.join("evil.tar");
    for (bytes, says) in [
        (
            archive(&manifest("../../evil"), &[("../../evil", file)]),
            "path below",
        ),
        (
            archive(&manifest("/tmp/evil"), &[("/tmp/evil", file)]),
            "path below",
        ),
        (archive(&manifest("good"), &[("../evil", file)]), "does not name"),
        (
            archive(&manifest("good"), &[("good", tar::EntryType::Symlink)]),
            "no plain file",
        ),
        (
            archive(&manifest("good"), &[("good", tar::EntryType::Link)]),
            "no plain file",
        ),
        (
            archive(&manifest("good"), &[("good", file), ("good", file)]),
            "twice",
        ),
        (archive(&manifest("good"), &[]), "ends without good"),
        (archive("{}", &[("good", file)]), "names no files"),
        (archive("[", &[]), "no JSON"),
    ] {
        std::fs::write(&path, bytes).unwrap();
        check(
            folder,
            &["models", "import", path.to_str().unwrap()],
            1,
            &[says, "nothing was taken in"],
        );
        assert!(!folder.join("models/evil").exists() && !folder.join("evil").exists());
    }
    std::fs::write(&path, archive(&manifest("good"), &[("good", file)])).unwrap();
    check(folder, &["models", "import", path.to_str().unwrap()], 0, &[]);
    assert_eq!(
        std::fs::read(folder.join("models/evil/good")).unwrap(),
        b"hello world\n"
    );
}
