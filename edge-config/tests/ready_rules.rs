//! The ready rules of systemd/rules: a copy of each is a valid rule.
#![allow(clippy::unwrap_used, reason = "a test may end at a fault")]

mod machine;

use std::fs;
use std::path::{Path, PathBuf};

use machine::Machine;

fn files(language: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../systemd/rules")
        .join(language);
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files
}

#[test]
fn each_is_a_rule_with_a_recording() {
    let recordings = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/rules");
    for language in ["en", "de"] {
        let files = files(language);
        assert_eq!(files.len(), 7, "{language}");
        for file in files {
            let name = file.file_stem().unwrap().to_str().unwrap();
            let machine = Machine::new().file(
                &format!("etc/rules.d/{name}.toml"),
                &fs::read_to_string(&file).unwrap(),
            );
            let rules = machine.loaded().config.rules;
            assert_eq!(rules.len(), 1, "{name}");
            assert_eq!(rules[0].name, name);
            for kind in ["jsonl", "expected.json"] {
                let recording = recordings.join(format!("{name}.{kind}"));
                assert!(recording.is_file(), "{} is missing", recording.display());
            }
        }
    }
}

#[test]
fn all_of_a_language_go_together() {
    for language in ["en", "de"] {
        let mut machine = Machine::new();
        for file in files(language) {
            let name = file.file_name().unwrap().to_str().unwrap();
            machine = machine.file(
                &format!("etc/rules.d/{name}"),
                &fs::read_to_string(&file).unwrap(),
            );
        }
        assert_eq!(machine.loaded().config.rules.len(), 7);
    }
}
