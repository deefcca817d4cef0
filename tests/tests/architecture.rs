//! Holds the crates to ARCHITECTURE.md: what each must never know.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "architecture/document.rs"]
mod document;
#[path = "architecture/proofs.rs"]
mod proofs;
mod source;
#[path = "architecture/workspace.rs"]
mod workspace;

use std::collections::BTreeSet;

use proofs::proofs;
use source::Source;
use workspace::Workspace;

#[test]
fn the_table_names_all_crates() {
    let workspace = Workspace::read();
    let rows = document::crates(&document::text());
    let listed: BTreeSet<(String, String)> = rows
        .into_iter()
        .filter_map(|row| Some((row.folder, row.package?)))
        .collect();
    let members: BTreeSet<(String, String)> = workspace
        .members
        .iter()
        .map(|(name, member)| (member.folder.clone(), name.clone()))
        .collect();
    assert_eq!(listed, members);
}

#[test]
fn no_crate_knows_what_it_must_never_know() {
    let (workspace, source) = (Workspace::read(), Source::read());
    let mut violations = Vec::new();
    for row in document::crates(&document::text()) {
        let Some(package) = row.package else {
            assert!(row.never.is_empty(), "{} holds no crate", row.folder);
            continue;
        };
        for word in row.never {
            let Some(proofs) = proofs(&word, &package, &workspace) else {
                violations.push(format!("nothing proves that {package} does not know {word:?}"));
                continue;
            };
            for proof in proofs {
                let found = proof.contradictions(&package, &workspace, &source);
                violations.extend(
                    found
                        .iter()
                        .map(|one| format!("{package} must never know {word}: {one}")),
                );
            }
        }
    }
    assert!(violations.is_empty(), "\n{}\n", violations.join("\n"));
}

#[test]
fn the_paths_of_the_document_exist() {
    let text = document::text();
    let missing: Vec<&str> = document::paths(&text)
        .into_iter()
        .filter(|path| !source::root().join(path).exists())
        .collect();
    assert!(
        missing.is_empty(),
        "ARCHITECTURE.md names:\n{}\n",
        missing.join("\n")
    );
}

#[test]
fn a_change_opens_at_most_three_files() {
    let text = document::text();
    let changes = document::table(&text, "| to change | open |");
    assert!(changes.len() >= 20, "{} changes", changes.len());
    for cells in &changes {
        let files = document::paths(&cells[1]).len();
        assert!((1..=3).contains(&files), "{}: {files} files", cells[0]);
    }
    let terms = document::table(&text, "| term | meaning | where |");
    // With the head of the table and its line.
    assert!(terms.len() + 2 <= 40, "{} terms", terms.len());
    for cells in &terms {
        assert!(!document::paths(&cells[2]).is_empty(), "{}", cells[0]);
    }
}

/// A proof that holds for every crate would prove nothing.
#[test]
fn each_proof_fails_for_a_crate_that_knows() {
    let (workspace, source) = (Workspace::read(), Source::read());
    for (word, package) in [
        ("ort", "phi-edge-onnx"),
        ("tokio", "phi-edge-mqtt"),
        ("rusqlite", "phi-edge-store"),
        ("JSON", "phi-edge-models"),
        ("MQTT", "phi-edge-mqtt"),
        ("MQTT client types", "phi-edge"),
        ("the engine", "phi-edge-onnx"),
        ("engine internals", "phi-edge-onnx"),
        ("model internals", "phi-edge-onnx"),
        ("store internals", "phi-edge-service"),
        ("files", "phi-edge-onnx"),
        ("clocks", "phi-edge-service"),
        ("HTTP", "phi-edge-models"),
        ("topics", "phi-edge-mqtt"),
        ("everything else", "phi-edge"),
    ] {
        let all = proofs(word, package, &workspace).unwrap().into_iter();
        let found: Vec<String> = all
            .flat_map(|proof| proof.contradictions(package, &workspace, &source))
            .collect();
        assert!(!found.is_empty(), "{package} knows {word}");
    }
    assert!(proofs("patience", "phi-edge", &workspace).is_none());
}

#[test]
fn one_crate_each_names_ort_and_rumqttc() {
    let workspace = Workspace::read();
    for (library, owner) in [
        ("ort", "phi-edge-onnx"),
        ("rumqttc-v5-next", "phi-edge-mqtt"),
        ("mqtt5", "phi-edge-mqtt"),
    ] {
        let users = workspace.members.iter();
        let users: Vec<&String> = users
            .filter(|(_, member)| member.all.contains(library))
            .map(|(name, _)| name)
            .collect();
        assert_eq!(users, [owner], "{library}");
    }
}

#[test]
fn what_the_program_links_is_reached() {
    let reached = Workspace::read().reach("phi-edge");
    // Of other platforms, of an optional feature, of a dependency's dependency.
    for one in ["ort", "windows-sys", "mqtt5", "ring", "phi-edge-engine", "sha2"] {
        assert!(reached.contains(one), "{one}");
    }
    assert!(!reached.contains("rcgen"), "a dependency of tests alone");
}
