//! `phi-edge ask` as a user runs it.

#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;
use std::process::{Command, Output};

use phi_edge_tests::{fixture, has_library, phi_edge};
use serde_json::Value;

fn ask(arguments: &[&str]) -> Output {
    Command::new(phi_edge())
        .arg("ask")
        .args(arguments)
        // What is tried of the models is remembered here, not among the user's files.
        .env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"))
        .output()
        .unwrap()
}

fn json(output: &Output) -> Value {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).lines().count(),
        1,
        "one line"
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

fn golden(folder: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join("golden.json")).unwrap()).unwrap()
}

#[test]
fn ids_and_conversations_give_the_golden_tokens() {
    let Some(folder) = fixture("phi3-mini-tiny-fp32") else {
        return;
    };
    if !has_library() {
        return;
    }
    let model = folder.to_str().unwrap();
    for case in golden(&folder)["cases"].as_array().unwrap() {
        let ids: Vec<String> = case["prompt_ids"]
            .as_array()
            .unwrap()
            .iter()
            .map(ToString::to_string)
            .collect();
        let max = case["max_new_tokens"].to_string();
        let got = json(&ask(&[
            "--model",
            model,
            "--ids",
            &ids.join(","),
            "--max-tokens",
            &max,
            "--json",
        ]));
        assert_eq!(got["tokens"], case["greedy_ids"], "{}", case["name"]);
        assert_eq!(got["usage"]["prompt_tokens"], case["prompt_len"]);
        if let Some([user]) = case["messages"].as_array().map(Vec::as_slice)
            && user["role"] == "user"
        {
            let prompt = user["content"].as_str().unwrap();
            let spoken = json(&ask(&[
                "--model",
                model,
                "--max-tokens",
                &max,
                "--json",
                "--",
                prompt,
            ]));
            assert_eq!(spoken["tokens"], case["greedy_ids"], "{}", case["name"]);
            assert_eq!(spoken["text"], got["text"]);
        }
    }
}

#[test]
fn ids_need_no_tokenizer() {
    let Some(folder) = fixture("phi3-mini-tiny-dml") else {
        return;
    };
    if !has_library() {
        return;
    }
    let model = folder.to_str().unwrap();
    let got = json(&ask(&[
        "--model",
        model,
        "--ids",
        "1,2,3",
        "--max-tokens",
        "4",
        "--json",
    ]));
    assert_eq!(got["tokens"].as_array().unwrap().len(), 4);
    let output = ask(&["--model", model, "Hello"]);
    assert_eq!(output.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&output.stderr).contains("tokenizer.json"));
}

#[test]
fn seeds_decide_the_text() {
    let Some(folder) = fixture("phi3-mini-tiny-int4") else {
        return;
    };
    if !has_library() {
        return;
    }
    let run = |seed: &str| {
        let model = folder.to_str().unwrap();
        let sampling = [
            "--temperature",
            "1.5",
            "--seed",
            seed,
            "--max-tokens",
            "12",
            "--json",
            "Hello",
        ];
        json(&ask(&[&["--model", model], sampling.as_slice()].concat()))["tokens"].clone()
    };
    assert_eq!(run("1"), run("1"));
    assert_ne!(run("1"), run("2"));
}

/// One line on standard error that says all of `words`, and the exit code.
fn refused(output: &Output, code: i32, words: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(words.iter().all(|word| stderr.contains(word)), "{stderr}");
    if code != 2 {
        assert_eq!(stderr.trim_end().lines().count(), 1, "{stderr}");
    }
}

#[test]
fn faults_are_one_line_with_the_right_exit_code() {
    refused(
        &ask(&["--model", "/nowhere", "Hello"]),
        78,
        &["/nowhere", "no such model directory"],
    );
    refused(&ask(&["--model", "/nowhere"]), 2, &["PROMPT"]);
    refused(
        &ask(&["--model", "/nowhere", "--temperature", "hot", "x"]),
        2,
        &["temperature"],
    );
    let Some(folder) = fixture("phi3-mini-tiny-fp32") else {
        return;
    };
    let model = folder.to_str().unwrap();
    refused(
        &ask(&["--model", model, "--library", "/nowhere.so", "x"]),
        69,
        &["/nowhere.so", "runtime.library"],
    );
    if !has_library() {
        return;
    }
    refused(
        &ask(&["--model", model, "--provider", "cuda", "x"]),
        69,
        &["cuda", "runtime.provider"],
    );
    refused(
        &ask(&["--model", model, "--ids", "99999"]),
        1,
        &["99999", "vocabulary"],
    );
}

#[test]
fn damaged_models_are_named() {
    let Some(folder) = fixture("phi3-mini-tiny-fp32") else {
        return;
    };
    if !has_library() {
        return;
    }
    let check = |change: &dyn Fn(&Path), words: &[&str]| {
        let copy = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(&folder).unwrap().map(Result::unwrap) {
            std::fs::write(
                copy.path().join(entry.file_name()),
                std::fs::read(entry.path()).unwrap(),
            )
            .unwrap();
        }
        change(copy.path());
        refused(
            &ask(&["--model", copy.path().to_str().unwrap(), "--ids", "1,2"]),
            78,
            words,
        );
    };
    let edit = |folder: &Path, from: &str, to: &str| {
        let path = folder.join("genai_config.json");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from));
        std::fs::write(path, text.replace(from, to)).unwrap();
    };
    check(
        &|f| std::fs::remove_file(f.join("model.onnx.data")).unwrap(),
        &["model.onnx.data", "weights is missing. Copy or export"],
    );
    #[cfg(unix)]
    check(
        &|f| {
            std::fs::remove_file(f.join("model.onnx.data")).unwrap();
            std::os::unix::fs::symlink("../blobs/1f", f.join("model.onnx.data")).unwrap();
        },
        &[
            "model.onnx.data",
            "the link points to ../blobs/1f, which does not exist",
        ],
    );
    check(
        &|f| std::fs::write(f.join("model.onnx"), [0xff; 999]).unwrap(),
        &["model.onnx", "no ONNX graph"],
    );
    check(
        &|f| std::fs::write(f.join("model.onnx.data"), "short").unwrap(),
        &["model.onnx"],
    );
    check(
        &|f| edit(f, "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3"),
        &["model.onnx", "past_key_values.2.key"],
    );
    check(
        &|f| edit(f, "\"num_key_value_heads\": 4", "\"num_key_value_heads\": 2"),
        &["model.onnx", "KV heads"],
    );
    check(
        &|f| edit(f, "\"logits\": \"logits\"", "\"logits\": \"scores\""),
        &["model.onnx", "scores"],
    );
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_it_with_what_there_is() {
    use std::io::Read as _;
    let Some(folder) = fixture("phi3-mini-tiny-int4") else {
        return;
    };
    if !has_library() {
        return;
    }
    let mut process = Command::new(phi_edge())
        .args([
            "ask",
            "--model",
            folder.to_str().unwrap(),
            "--max-tokens",
            "1900",
            "--json",
            "x",
        ])
        .env("RUST_LOG", "debug,ort=warn")
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // The log says when the answer begins.
    let mut stderr = process.stderr.take().unwrap();
    let mut log = Vec::new();
    let mut byte = [0];
    while !String::from_utf8_lossy(&log).contains("the prompt is encoded") {
        assert_eq!(
            stderr.read(&mut byte).unwrap(),
            1,
            "{}",
            String::from_utf8_lossy(&log)
        );
        log.push(byte[0]);
    }
    phi_edge_tests::signal(&process, "INT");
    let output = process.wait_with_output().unwrap();
    // The signal may come a moment before it is listened for: then it ends the process as it always does.
    if let Some(code) = output.status.code() {
        assert_eq!(code, 1);
        let reply: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(reply["finish_reason"], "cancelled");
    }
}

#[test]
fn a_prompt_that_is_too_long_is_an_error_or_is_cut() {
    if !has_library() {
        return;
    }
    let model = phi_edge_tests::demo_model();
    let model = model.to_str().unwrap();
    let long = format!("Who are you? {} Who are you?", "word ".repeat(3000));
    let run = |truncation: &str| {
        ask(&[
            "--model",
            model,
            "--json",
            "--max-tokens",
            "9",
            "--truncation",
            truncation,
            &long,
        ])
    };
    let refused = run("error");
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(
        said.contains("2048") && said.contains("--truncation middle"),
        "{said}"
    );
    let cut = run("middle");
    let usage = json(&cut)["usage"].clone();
    let count = |what: &str| usage[what].as_u64().unwrap_or_else(|| panic!("{usage}"));
    assert!((2030..=2039).contains(&count("prompt_tokens")), "{usage}");
    assert!(count("left_out_tokens") > 900, "{usage}");
    assert!(String::from_utf8_lossy(&cut.stderr).contains("a part of it is left out"));
    // Nothing else can be left out of one prompt.
    assert_eq!(run("oldest_messages").status.code(), Some(2));
    assert_eq!(run("latest").status.code(), Some(2));
}
