//! The packages of the workspace and what they depend on, from the members' manifests and Cargo.lock.
//!
//! Nothing here needs a package that is not part of the repository: Cargo.lock names those of all platforms, and a machine
//! has fetched only its own platform's.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// The members of the workspace, and what Cargo.lock resolves each package's dependencies to.
pub(crate) struct Workspace {
    pub(crate) members: HashMap<String, Member>,
    lock: Lock,
}

/// The names in a member's manifest, of all features and platforms.
pub(crate) struct Member {
    /// Its folder, relative to the workspace.
    pub(crate) folder: String,
    pub(crate) normal: HashSet<String>,
    /// Those of tests and build scripts as well.
    pub(crate) all: HashSet<String>,
}

/// The packages of Cargo.lock by key. A key is what the lock's lists of dependencies have: the name, followed by the version
/// where several versions are locked.
pub(crate) struct Lock {
    dependencies: HashMap<String, Vec<String>>,
}

impl Workspace {
    pub(crate) fn read() -> Self {
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
            let manifest = Path::new(package["manifest_path"].as_str().unwrap());
            let folder = manifest.parent().unwrap().strip_prefix(root).unwrap();
            let member = Member {
                folder: folder.to_string_lossy().replace('\\', "/"),
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
    pub(crate) fn reach(&self, member: &str) -> HashSet<String> {
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
    pub(crate) fn direct(&self, key: &str) -> Vec<String> {
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
    pub(crate) fn parse(text: &str) -> Self {
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

    pub(crate) fn of(&self, key: &str) -> &[String] {
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
