//! Holds the crates to ARCHITECTURE.md: what each must never know, from the members' manifests and Cargo.lock.
//!
//! Nothing here needs a package that is not part of the repository: Cargo.lock names those of all platforms, and a machine
//! has fetched only its own platform's.

#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// The members of the workspace, and what Cargo.lock resolves each package's dependencies to.
struct Workspace {
    members: HashMap<String, Member>,
    lock: Lock,
}

/// The names in a member's manifest, of all features and platforms.
struct Member {
    normal: HashSet<String>,
    /// Those of tests and build scripts as well.
    all: HashSet<String>,
}

/// The packages of Cargo.lock by key. A key is what the lock's lists of dependencies have: the name, followed by the version
/// where several versions are locked.
struct Lock {
    dependencies: HashMap<String, Vec<String>>,
}

impl Workspace {
    fn read() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        // Without dependencies cargo reads the members' manifests and nothing else.
        let output = Command::new(env!("CARGO"))
            .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
            .current_dir(root)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
        let members = metadata["packages"].as_array().unwrap().iter().map(|package| {
            let all = package["dependencies"].as_array().unwrap();
            let normal = all.iter().filter(|dependency| dependency["kind"].is_null());
            let member = Member {
                normal: normal.map(name).collect(),
                all: all.iter().map(name).collect(),
            };
            (name(package), member)
        });
        Self {
            members: members.collect(),
            lock: Lock::parse(&std::fs::read_to_string(root.join("Cargo.lock")).unwrap()),
        }
    }

    /// The names of all packages that a member's normal dependencies reach, on any platform. Beyond the members the lock
    /// does not part normal dependencies from those of build scripts: both count.
    fn reach(&self, member: &str) -> HashSet<String> {
        let mut open = vec![member.to_owned()];
        let mut seen = HashSet::new();
        while let Some(key) = open.pop() {
            for dependency in self.direct(&key) {
                if seen.insert(dependency.clone()) {
                    open.push(dependency);
                }
            }
        }
        seen.iter().map(|key| name_in(key).to_owned()).collect()
    }

    /// The keys of a package's dependencies.
    fn direct(&self, key: &str) -> Vec<String> {
        let mut locked = self.lock.of(key).to_vec();
        // A member's dependencies for tests stand in the lock, too.
        if let Some(member) = self.members.get(key) {
            locked.retain(|dependency| member.normal.contains(name_in(dependency)));
            let found: HashSet<String> = locked.iter().map(|key| name_in(key).to_owned()).collect();
            assert_eq!(
                found, member.normal,
                "Cargo.lock has not all dependencies of {key}"
            );
        }
        locked
    }
}

impl Lock {
    fn parse(text: &str) -> Self {
        let packages: Vec<&str> = text.split("[[package]]").skip(1).collect();
        let value = |package: &str, field: &str| {
            let mut lines = package.lines();
            let line =
                lines.find_map(|line| line.strip_prefix(field)?.strip_prefix(" = \"")?.strip_suffix('"'));
            line.unwrap_or_else(|| panic!("no {field} in {package}"))
                .to_owned()
        };
        let mut versions: HashMap<String, usize> = HashMap::new();
        for package in &packages {
            *versions.entry(value(package, "name")).or_default() += 1;
        }
        let key = |package: &str| {
            let name = value(package, "name");
            match versions[&name] {
                1 => name,
                _ => format!("{name} {}", value(package, "version")),
            }
        };
        let dependencies = |package: &str| -> Vec<String> {
            let listed = package
                .split_once("dependencies = [")
                .map_or("", |(_, rest)| rest);
            let listed = listed.split(']').next().unwrap_or_default().lines();
            let keys = listed.filter_map(|line| line.trim().strip_prefix('"')?.strip_suffix("\","));
            keys.map(str::to_owned).collect()
        };
        Self {
            dependencies: packages
                .iter()
                .map(|package| (key(package), dependencies(package)))
                .collect(),
        }
    }

    fn of(&self, key: &str) -> &[String] {
        self.dependencies
            .get(key)
            .unwrap_or_else(|| panic!("no package {key} in Cargo.lock"))
    }
}

fn name(described: &Value) -> String {
    described["name"].as_str().unwrap().to_owned()
}

fn name_in(key: &str) -> &str {
    key.split(' ').next().unwrap_or(key)
}

#[test]
fn no_crate_knows_what_it_must_never_know() {
    let workspace = Workspace::read();
    let never: [(&str, &[&str]); 7] = [
        (
            "phi-edge-engine",
            &["ort", "tokio", "rumqttc-v5-next", "mqtt5", "serde_json"],
        ),
        ("phi-edge-models", &["ort", "tokio", "rumqttc-v5-next", "mqtt5"]),
        ("phi-edge-onnx", &["tokio", "rumqttc-v5-next", "mqtt5"]),
        ("phi-edge-service", &["ort", "rumqttc-v5-next", "mqtt5"]),
        (
            "phi-edge-wire",
            &["ort", "rumqttc-v5-next", "mqtt5", "phi-edge-mqtt"],
        ),
        ("phi-edge-mqtt", &["ort"]),
        (
            "phi-edge-config",
            &[
                "ort",
                "tokio",
                "rumqttc-v5-next",
                "phi-edge-engine",
                "phi-edge-models",
            ],
        ),
    ];
    for (name, forbidden) in never {
        let reached = workspace.reach(name);
        for one in forbidden {
            assert!(!reached.contains(*one), "{name} must never know {one}");
        }
    }
}

/// What a crate reaches by way of the service all the same, and must not name itself.
#[test]
fn no_crate_names_what_it_must_never_name() {
    let workspace = Workspace::read();
    let never: [(&str, &[&str]); 2] = [
        (
            "phi-edge-wire",
            &["tokio", "phi-edge-engine", "phi-edge-models", "rusqlite", "url"],
        ),
        (
            "phi-edge-mqtt",
            &["phi-edge-engine", "phi-edge-models", "rusqlite"],
        ),
    ];
    for (name, forbidden) in never {
        for one in forbidden {
            let named = workspace.members[name].all.contains(*one);
            assert!(!named, "{name} must never name {one}");
        }
    }
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

#[test]
fn the_lock_is_read_as_cargo_writes_it() {
    let lock = Lock::parse(
        "version = 4\n\n[[package]]\nname = \"a\"\nversion = \"1.0.0\"\ndependencies = [\n \"b 1.0.0\",\n \"c\",\n]\n\n\
         [[package]]\nname = \"b\"\nversion = \"1.0.0\"\n\n[[package]]\nname = \"b\"\nversion = \"2.0.0\"\n\
         dependencies = [\n \"c\",\n]\n\n[[package]]\nname = \"c\"\nversion = \"0.1.0\"\n",
    );
    assert_eq!(lock.of("a"), ["b 1.0.0", "c"]);
    assert_eq!(lock.of("b 2.0.0"), ["c"]);
    assert!(lock.of("c").is_empty());
}
