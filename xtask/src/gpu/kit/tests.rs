//! The script, run on a kit of stand-ins: programs that answer at once, fail, crash or do not end.

#![allow(clippy::cast_possible_truncation, clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Output;

use serde_json::Value;

use super::*;

/// `phi-edge`: an object when it is loaded, and one for each line on standard input.
const PHI_EDGE: &str = r#"#!/bin/sh
case "$*" in *--scenario*) answer='{"total_s":1.5}' ;; *) answer='{"decode_tokens_per_s":20.5,"prefill_tokens_per_s":100}' ;; esac
case "$*" in *--turns*) echo '{"load_ms":1}'; while read -r line; do echo "$answer"; done ;; *) echo "$answer" ;; esac
"#;

/// A test binary of which one test passes, one fails and one crashes.
const DEVICE_ROWS: &str = r#"#!/bin/sh
case "$*" in
*--list*) printf 'good: test\nbad: test\ncrash: test\n' ;;
*bad*) printf 'thread panicked at file.rs:1:\nleft is "1"\tand right 2\n'; exit 101 ;;
*crash*) kill -SEGV $$ ;;
esac
"#;

/// A test binary that does not end.
const DEVICE_VISION: &str =
    "#!/bin/sh\ncase \"$*\" in *--list*) echo 'slow: test' ;; *) exec sleep 1000 ;; esac\n";

struct Kit {
    folder: tempfile::TempDir,
}

impl Kit {
    /// A kit of stand-ins in folders of little more than the scripts take.
    fn of_stand_ins() -> Self {
        let kit = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        let stage = kit.path("stage");
        for (name, text) in [
            ("phi-edge", PHI_EDGE),
            ("goldens/device_rows", DEVICE_ROWS),
            ("vision/device_vision", DEVICE_VISION),
            (
                "kit.json",
                r#"{"version":"1.2.3","commit":"abc","profile":"test"}"#,
            ),
            ("python/onnxruntime/capi/libonnxruntime.so.1", ""),
            (
                "models/small/model.onnx.data.recipe",
                "letters 5 1\nzeros 3 0\nletters 2 0\n",
            ),
            ("models/small/patterns/letters", "abc"),
            ("models/full/model.onnx.data", ""),
        ] {
            let file = stage.join(name);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(&file, text).unwrap();
            std::fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).unwrap();
        }
        // More than a folder holds, and nothing that becomes smaller.
        let mut state = 1_u64;
        let noise: Vec<u8> = (0..300_000)
            .map(|_| {
                // Knuth's linear congruential generator, MMIX.
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                (state >> 56) as u8
            })
            .collect();
        std::fs::write(stage.join("noise"), noise).unwrap();
        let folders = write(&stage, &kit.path("pack"), SCRIPT_BYTES + 4096).unwrap();
        assert!(folders > 2, "{folders}");
        kit
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs the script on the processor.
    fn check(&self, arguments: &[&str]) -> Output {
        self.script(arguments).env("PROVIDER", "cpu").output().unwrap()
    }

    fn script(&self, arguments: &[&str]) -> Command {
        let mut script = Command::new("bash");
        script
            .arg(self.path("pack/01/gpu-check.sh"))
            .args(arguments)
            .env("WORK", self.path("work"))
            .env("OUT", self.path("out"))
            .env("PYTHON", "/nonexistent/python")
            .env("STEP_SECONDS", "6")
            .env_remove("WEBGPU")
            .env_remove("DEVICE_MEMORY");
        script
    }

    fn report(&self) -> Value {
        serde_json::from_slice(&std::fs::read(self.path("out/gpu-check.json")).unwrap()).unwrap()
    }

    /// What came of a step in the last report.
    fn step(&self, name: &str) -> Value {
        let report = self.report();
        let steps = report["steps"].as_array().unwrap().clone();
        steps.into_iter().find(|step| step["step"] == name).unwrap()
    }
}

#[test]
fn each_step_is_done_whatever_comes_of_others_and_the_report_names_what_failed() {
    let kit = Kit::of_stand_ins();
    let output = kit.check(&[]);
    let told =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    for (step, outcome, reason) in [
        ("machine", "passed", ""),
        ("goldens", "failed", "bad (failed)"),
        ("vision", "failed", "not done within 6 s, in the test slow"),
        ("webgpu", "skipped", "GPU"),
        ("weights", "passed", ""),
        ("speed", "passed", ""),
        ("bare", "skipped", "Python"),
        ("genai", "skipped", "Python"),
        ("context", "passed", ""),
    ] {
        let found = kit.step(step);
        assert_eq!(found["outcome"], outcome, "{found}\n{told}");
        assert!(
            found["reason"].as_str().unwrap_or_default().contains(reason),
            "{found}"
        );
    }
    let goldens = kit.step("goldens");
    let tests = goldens["data"]["tests"].as_array().unwrap();
    let outcomes: Vec<&str> = tests.iter().filter_map(|test| test["outcome"].as_str()).collect();
    assert_eq!(outcomes, ["passed", "failed", "crashed with status 139"]);
    assert_eq!(tests[1]["message"], "left is \"1\" and right 2");
    let speed = kit.step("speed");
    assert_eq!(speed["data"]["4"][1]["decode_tokens_per_s"], 20.5, "{speed}");
    assert_eq!(kit.step("machine")["data"]["kit"]["version"], "1.2.3");
    assert_eq!(kit.step("context")["data"]["tokens"], 8192);
    let data = std::fs::read(kit.path("work/kit/models/small/model.onnx.data")).unwrap();
    assert_eq!(data, b"bcabc\0\0\0ab");
    let table = std::fs::read_to_string(kit.path("out/gpu-check.md")).unwrap();
    for line in [
        "| goldens | failed |",
        "| 4 | 100 | 20.5 | 1 |",
        "| bad | failed |",
        "| tokens of context, at least | 8192 | 8192 | met |",
    ] {
        assert!(table.contains(line), "{line}\n{table}");
    }
    // A step by itself; what was found before stays.
    assert_eq!(kit.check(&["machine"]).status.code(), Some(0));
    assert_eq!(kit.step("goldens"), goldens);
}

/// A card of 24 GiB and CUDA's libraries are stand-ins, too.
#[test]
fn on_cuda_the_context_follows_from_the_cards_memory() {
    let kit = Kit::of_stand_ins();
    let folder = kit.path("cuda");
    std::fs::create_dir(&folder).unwrap();
    for library in [
        "libcuda.so.1",
        "libcublasLt.so.13",
        "libcublas.so.13",
        "libcudart.so.13",
        "libcurand.so.10",
    ] {
        std::fs::write(folder.join(library), "").unwrap();
    }
    let nvidia_smi = folder.join("nvidia-smi");
    let answers = "#!/bin/sh\ncase \"$*\" in *name,*) echo 'Card, 24576 MiB' ;; *memory*) echo 24576 ;; *) echo 580 ;; esac\n";
    std::fs::write(&nvidia_smi, answers).unwrap();
    std::fs::set_permissions(&nvidia_smi, PermissionsExt::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
    let run = kit
        .script(&["machine", "context"])
        .env("PROVIDER", "cuda")
        .env("LD_LIBRARY_PATH", &folder)
        .env("PATH", path)
        .output();
    assert_eq!(run.unwrap().status.code(), Some(1));
    let machine = kit.step("machine");
    assert_eq!(machine["outcome"], "passed", "{machine}");
    assert_eq!(machine["data"]["card"], "Card, 24576 MiB");
    // 16 GiB of 480 KiB a token: not the whole context, which is a failure that the report explains.
    let context = kit.step("context");
    assert_eq!(context["data"]["tokens"], 34952, "{context}");
    assert_eq!(context["outcome"], "failed");
    assert!(context["reason"].as_str().unwrap().contains("34952 tokens work"));
}

#[test]
fn a_damaged_part_and_a_wrong_step_are_told() {
    let kit = Kit::of_stand_ins();
    let wrong = kit.check(&["golden"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("there is no step \"golden\""));
    std::fs::write(kit.path("pack/02/part-02"), "short").unwrap();
    let damaged = kit.check(&["machine"]);
    assert_eq!(damaged.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&damaged.stderr).contains("missing or damaged"));
}

#[test]
fn the_scripts_are_sound() {
    let check = |program: &str, arguments: &[&str]| {
        let done = Command::new(program)
            .args(arguments)
            .current_dir("gpu")
            .output()
            .unwrap();
        let told =
            String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{told}");
    };
    for script in SCRIPTS {
        check("bash", &["-n", script]);
    }
    if crate::process::works("shellcheck", "--version") {
        let all: Vec<&str> = std::iter::once("--external-sources").chain(SCRIPTS).collect();
        check("shellcheck", &all);
    }
}
