//! docs/config.md is what the default file says.
#![allow(clippy::unwrap_used, reason = "a test may end at a fault")]

use phi_edge_config::{known_keys, reference, rule_keys};

#[test]
fn the_reference_is_up_to_date() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/config.md");
    let written = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        written == reference(),
        "docs/config.md is stale: run `cargo xtask docs`"
    );
}

#[test]
fn the_reference_has_every_key_once() {
    let reference = reference();
    for key in known_keys().iter().chain(rule_keys()) {
        let row = format!("\n| `{}` | ", key.path);
        assert_eq!(reference.matches(&row).count(), 1, "{}", key.path);
    }
    let rows = reference.lines().filter(|line| line.starts_with("| `")).count();
    assert_eq!(rows, known_keys().len() + rule_keys().len());
}
