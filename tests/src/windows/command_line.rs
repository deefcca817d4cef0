//! The commands that need no broker: check, ask, rules, pull, models.

use anyhow::{Result, ensure};
use phi_edge_tests::demo_model;
use phi_edge_tests::hub::{Faults, HubFile, HubServer, Manners, Repository};
use serde_json::json as object;

use crate::wine::{Wine, output, said, staged};

const RULE: &str = r#"
topics = ["plant/+/temperature"]
group_by = "topic:1"
fields = { temperature = "/temperature" }
template = "demo-digest"
window = { kind = "count", messages = 3 }
"#;

pub(crate) fn run(wine: &Wine) -> Result<()> {
    check(wine)?;
    ask(wine)?;
    rules(wine)?;
    pull(wine)?;
    refusals(wine)
}

fn check(wine: &Wine) -> Result<()> {
    let model = format!("model.path={}", staged("models/demo"));
    let report = wine.run(&["check", "--offline", "--set", &model])?;
    for part in [r"onnxruntime.dll", "cpu"] {
        ensure!(report.contains(part), "{part} in: {report}");
    }
    println!("ok   check: the library is loaded, the model runs on the processor");
    let folders = wine.run(&["config"])?;
    for part in [
        r"C:\\ProgramData\\phi-edge\\model",
        r"C:\\ProgramData\\phi-edge\\store",
        r"C:\\ProgramData\\phi-edge\\rules.d",
    ] {
        ensure!(
            folders.contains(part) || folders.contains(&part.replace(r"\\", r"\")),
            "{part} in: {folders}"
        );
    }
    println!("ok   config: model, store and rules are below ProgramData");
    Ok(())
}

fn ask(wine: &Wine) -> Result<()> {
    let model = staged("models/demo");
    let answer = wine.run(&["ask", "--model", &model, "Who are you?"])?;
    ensure!(answer.contains("demonstration model"), "{answer}");
    println!("ok   ask: {}", answer.lines().next().unwrap_or_default());
    Ok(())
}

fn rules(wine: &Wine) -> Result<()> {
    let (folder, there) = wine.folder("rules")?;
    std::fs::write(folder.join("digest.toml"), RULE)?;
    let recording: Vec<String> = [69, 82, 77]
        .iter()
        .enumerate()
        .map(|(second, celsius)| {
            let message = object!({
                "time": format!("2026-01-05T06:00:0{second}Z"),
                "topic": "plant/mixer-07/temperature",
                "payload": format!("{{\"temperature\":{celsius}}}"),
            });
            message.to_string()
        })
        .collect();
    let (recordings, recorded) = wine.folder("recordings")?;
    std::fs::write(recordings.join("sample.jsonl"), recording.join("\n"))?;
    let input = format!(r"{recorded}\sample.jsonl");
    let folder = format!("node.rules_dir={there}");
    let model = staged("models/demo");
    let event = wine.run(&[
        "rules", "test", "digest", "--input", &input, "--json", "--model", &model, "--set", &folder,
    ])?;
    ensure!(event.contains("82.0") && event.contains("mixer-07"), "{event}");
    println!("ok   rules test: a window, its facts and the model's text");
    Ok(())
}

fn pull(wine: &Wine) -> Result<()> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(demo_model())? {
        let path = entry?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if path.is_file() {
            files.push(HubFile {
                large: name.contains(".onnx"),
                bytes: std::fs::read(&path)?,
                path: name,
            });
        }
    }
    let repository = Repository {
        name: "org/demo-onnx".to_owned(),
        commit: "89abcdef".repeat(5),
        licence: Some("mit".to_owned()),
        files: files.clone(),
    };
    let hub = HubServer::start(repository, Manners::default(), Faults::default());
    let (folder, there) = wine.folder("pulled")?;
    let link = format!(r"model.path={there}\model");
    let address = hub.repository();
    let pulled = wine.run(&["pull", &address, "--name", "demo", "--set", &link])?;
    ensure!(pulled.contains("every file verified"), "{pulled}");
    // The manifest is written again, with where the files came from.
    for file in files.iter().filter(|file| file.path != "manifest.json") {
        let stored = std::fs::read(folder.join("models/demo").join(&file.path))?;
        ensure!(stored == file.bytes, "{} differs", file.path);
    }
    let verified = wine.run(&["models", "verify", "demo", "--set", &link])?;
    let answer = wine.run(&["ask", "--model", &format!(r"{there}\models\demo"), "Who are you?"])?;
    ensure!(answer.contains("demonstration model"), "{verified}{answer}");
    println!(
        "ok   pull: {} files from a hub, verified, and the model answers",
        files.len()
    );
    Ok(())
}

/// What is wrong ends with one line and its exit code.
fn refusals(wine: &Wine) -> Result<()> {
    let (_, empty) = wine.folder("empty")?;
    let model = format!("model.path={}", staged("models/demo"));
    let library = format!("runtime.library={empty}");
    for (arguments, code, part) in [
        (&["check", "--set", "limits.queue=none"][..], 78, "limits.queue"),
        (
            &["check", "--offline", "--set", &model, "--set", &library],
            69,
            "runtime.library",
        ),
        (&["service", "run"], 2, "phi-edge run"),
    ] {
        let output = output(&mut wine.phi_edge(arguments))?;
        let said = said(&output);
        ensure!(
            output.status.code() == Some(code) && said.contains(part),
            "{arguments:?}: {}: {said}",
            output.status
        );
    }
    println!(
        "ok   refusals: 78 for the configuration, 69 for the library, 2 for a service without its manager"
    );
    Ok(())
}
