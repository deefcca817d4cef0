//! Models in one file.

use phi_edge_tests::demo_model;

use crate::check;

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
