#![allow(clippy::unwrap_used)]

use std::path::Path;

use phi_edge_rules::changes::RuleChange;
use phi_edge_rules::{Output, ShownPicture, Time};

use super::*;
use crate::change::{Batch, Change};
use crate::clock::Clock;
use crate::event_row::PendingRow;
use crate::file::File;
use crate::test_changes::keep_message;
use crate::{LastEnd, StoreConfig};

const JPEG: [u8; 6] = [0xFF, 0xD8, 0xFF, 0xE0, 1, 2];

fn opened(folder: &Path) -> File {
    let config = StoreConfig {
        folder: folder.to_owned(),
        max_bytes: u64::MAX,
        memory_fallback: false,
    };
    let opened = File::open(&config, &Clock::of_this_process(), LastEnd::Innocent);
    opened.map_err(|trouble| trouble.to_string()).unwrap().0
}

fn write(file: &mut File, changes: Vec<RuleChange>) {
    let batch = Batch {
        number: 1,
        changes: changes.into_iter().map(Change::Rule).collect(),
        replaces: false,
        waiting: None,
    };
    let written = file.write(&[batch]);
    written.map_err(|trouble| trouble.to_string()).unwrap();
}

/// An event that waits for its text, about this number of pictures.
fn event(id: &str, pictures: usize) -> RuleChange {
    let row = serde_json::json!({"event_id":id,"rule":"r","group":"g","start":1,"end":2,"reason":"due","messages":1,
        "late":0,"left_out":0,"dropped":0,"closed_late":false,"stats":[],"text":null,"unsupported_numbers":null,
        "data":null,"error":null,"finish_reason":null,"prompt_tokens":0,"completion_tokens":0,"cached_tokens":0,
        "model":""});
    let row: PendingRow = serde_json::from_value(row).unwrap();
    let output = Output {
        topic: String::new(),
        qos: 0,
        expiry: None,
        retain: false,
    };
    let mut pending = row
        .pending(crate::event_row::OutputRow::of(&output), Vec::new())
        .unwrap();
    let picture = ShownPicture {
        time: Time(4),
        topic: "gate".to_owned(),
        file: JPEG.as_slice().into(),
    };
    pending.pictures = vec![picture; pictures];
    RuleChange::AddPendingEvent(Box::new(pending))
}

#[test]
fn pictures_of_windows_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let mut file = opened(folder.path());
    let kept = [
        keep_message(1, &JPEG),
        keep_message(2, b"21.5"),
        keep_message(3, b"{\"format\":\"jpeg\"}"),
    ];
    write(&mut file, kept.to_vec());
    write(&mut file, vec![event("a", 2), event("b", 0)]);
    file.close();
    let held = inspect(folder.path()).unwrap();
    assert_eq!((held.rule_messages, held.rule_events), (3, 2));
    assert_eq!((held.rule_pictures, held.rule_picture_bytes), (3, 18));
    assert_eq!((held.images, held.image_bytes), (0, 0));
}

#[test]
fn a_store_in_use_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let file = opened(folder.path());
    for said in [
        inspect(folder.path()).unwrap_err().to_string(),
        purge(folder.path(), Purge::All).unwrap_err().to_string(),
    ] {
        assert!(said.contains("stop the daemon first"), "{said}");
        assert!(!said.contains("give each its own"), "{said}");
    }
    file.close();
    assert!(inspect(folder.path()).is_ok());
}
