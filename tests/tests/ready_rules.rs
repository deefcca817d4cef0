//! The ready rules at their recordings: the windows are those that `tests/fixtures/rules/make.py` computed from the
//! manual, and a model finds words for each.

#![allow(clippy::unwrap_used, missing_docs)]

use std::path::{Path, PathBuf};
use std::process::Command;

use jiff::Timestamp;
use phi_edge_tests::{demo_model, has_library, phi_edge};
use serde_json::Value;

/// Every rule that comes along: its language and its name.
const RULES: [(&str, &str); 14] = [
    ("en", "alarm-digest"),
    ("en", "cold-chain"),
    ("en", "door-digest"),
    ("en", "energy-summary"),
    ("en", "gate-digest"),
    ("en", "log-triage"),
    ("en", "shift-report"),
    ("de", "alarmuebersicht"),
    ("de", "energiebericht"),
    ("de", "kuehlkette"),
    ("de", "protokollsichtung"),
    ("de", "schichtbericht"),
    ("de", "toruebersicht"),
    ("de", "tuerenuebersicht"),
];

fn at(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The rules whose model must see pictures, which the demonstration's can't.
const WITH_PICTURES: [&str; 2] = ["gate-digest", "toruebersicht"];

/// What `phi-edge rules test` prints of a recording, an event a window.
fn replayed(language: &str, rule: &str, recording: &Path, further: &[&str]) -> Vec<Value> {
    let folder = at("../systemd/rules").join(language);
    let output = Command::new(phi_edge())
        .args(["rules", "test", rule, "--json", "--input"])
        .arg(recording)
        .args(["--set", &format!("node.rules_dir={}", folder.display())])
        .args(further)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let fault = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{rule}: {said}{fault}");
    said.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// What the replay says of a window, in the form and the order of what is expected.
fn facts(events: &[Value]) -> Vec<Value> {
    let mut facts: Vec<Value> = events
        .iter()
        .map(|event| {
            let window = &event["window"];
            let mut facts = window.clone();
            facts["group"] = event["group"].clone();
            facts["stats"] = event["stats"].clone();
            facts
        })
        .collect();
    in_order(&mut facts);
    facts
}

fn in_order(windows: &mut [Value]) {
    windows.sort_by_key(|window| {
        let text = |key: &str| window[key].as_str().unwrap_or_default().to_owned();
        (
            text("group"),
            moment(&window["start"]),
            moment(&window["end"]),
            text("reason"),
        )
    });
}

fn moment(value: &Value) -> Option<Timestamp> {
    value.as_str()?.parse().ok()
}

/// Whether what is expected is there: moments in any zone, numbers as far as two programs compute the same.
fn check(wanted: &Value, found: &Value, at: &str) {
    match wanted {
        Value::Object(members) => {
            for (key, wanted) in members {
                check(wanted, &found[key], &format!("{at}.{key}"));
            }
        }
        // The most frequent values, as pairs.
        Value::Array(pairs) => {
            for pair in pairs {
                let value = pair[0].as_str().unwrap();
                check(&pair[1], &found[value], &format!("{at}.{value}"));
            }
        }
        Value::Number(number) => {
            let (wanted, found) = (number.as_f64().unwrap(), found.as_f64());
            assert!(
                found.is_some_and(|found| (found - wanted).abs() <= 1e-9 * wanted.abs().max(1.0)),
                "{at}: {found:?} is not {wanted}"
            );
        }
        wanted => match moment(wanted) {
            Some(wanted) => assert_eq!(Some(wanted), moment(found), "{at}"),
            None => assert_eq!(wanted, found, "{at}"),
        },
    }
}

#[test]
fn recordings_give_the_windows_that_the_manual_promises() {
    for (language, rule) in RULES {
        let expected = std::fs::read(at(&format!("fixtures/rules/{rule}.expected.json"))).unwrap();
        let expected: Value = serde_json::from_slice(&expected).unwrap();
        let recording = at(&format!("fixtures/rules/{rule}.jsonl"));
        let events = replayed(language, rule, &recording, &["--no-model"]);
        // What is open when the recording ends is ended with it, before its time.
        let (ended, cut): (Vec<Value>, Vec<Value>) = events
            .into_iter()
            .partition(|event| event["window"]["reason"] != "reload");
        let mut wanted = expected["windows"].as_array().unwrap().clone();
        in_order(&mut wanted);
        let found = facts(&ended);
        assert_eq!(found.len(), wanted.len(), "{rule}: {found:#?}");
        for (number, (wanted, found)) in wanted.iter().zip(&found).enumerate() {
            check(wanted, found, &format!("{rule}, window {number}"));
        }
        let messages = |windows: &[Value], at: &dyn Fn(&Value) -> Option<u64>| {
            windows.iter().filter_map(at).sum::<u64>()
        };
        let open = expected["open"].as_array().unwrap();
        let hopping = matches!(rule, "energy-summary" | "energiebericht");
        if !hopping {
            assert_eq!(
                messages(&cut, &|event| event["window"]["messages"].as_u64()),
                messages(open, &|window| window["messages"].as_u64()),
                "{rule}"
            );
        }
    }
}

#[test]
fn a_model_finds_words_for_every_window() {
    if !has_library() {
        return;
    }
    let model = demo_model();
    // The demonstration model does not know these prompts: what counts is that each fits and is answered.
    let short = [
        "--set",
        "limits.max_tokens=12",
        "--model",
        model.to_str().unwrap(),
    ];
    let folder = tempfile::tempdir().unwrap();
    for (language, rule) in RULES
        .into_iter()
        .filter(|(_, rule)| !WITH_PICTURES.contains(rule))
    {
        // The beginning of a recording is enough, and takes seconds.
        let whole = std::fs::read_to_string(at(&format!("fixtures/rules/{rule}.jsonl"))).unwrap();
        let recording = folder.path().join("beginning.jsonl");
        let lines: Vec<&str> = whole.lines().take(24).collect();
        std::fs::write(&recording, lines.join("\n")).unwrap();
        for event in replayed(language, rule, &recording, &short) {
            assert_eq!(event["error"], Value::Null, "{rule}: {event}");
            assert!(event["text"].is_string(), "{rule}: {event}");
            assert!(
                event["usage"]["completion_tokens"].as_u64() > Some(0),
                "{rule}: {event}"
            );
        }
    }
}
