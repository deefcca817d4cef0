//! What proves the words of ARCHITECTURE.md's "never" column.

use super::source::imports::mentions;
use super::source::{Source, Target};
use super::workspace::Workspace;

/// The packages that speak MQTT.
const MQTT: [&str; 3] = ["rumqttc-v5-next", "mqtt5", "phi-edge-mqtt"];

/// What shows that a crate does not know something.
#[derive(Debug, Clone)]
pub(crate) enum Proof {
    /// None of these packages is among those that its normal dependencies reach.
    Unreached(Vec<String>),
    /// None of these packages is among its own dependencies, those of tests included.
    Undeclared(&'static [&'static str]),
    /// No path in its source begins like one of these.
    Unnamed(&'static [&'static str]),
    /// No path in its source to what is not its own ends with one of these.
    Uncalled(&'static [&'static str]),
    /// No module, type, function or constant has this in its name.
    Undefined(&'static str),
}

/// What proves that a package does not know what a word stands for; `None` for a word that nothing proves.
pub(crate) fn proofs(word: &str, package: &str, workspace: &Workspace) -> Option<Vec<Proof>> {
    let unreached = |packages: &[&str]| {
        let packages = packages.iter().filter(|name| **name != package);
        Proof::Unreached(packages.map(|&name| name.to_owned()).collect())
    };
    Some(match word {
        "ort" => vec![unreached(&["ort", "ort-sys"])],
        "tokio" => vec![unreached(&["tokio"])],
        "rusqlite" => vec![unreached(&["rusqlite", "libsqlite3-sys"])],
        "JSON" => vec![unreached(&["serde_json"])],
        "MQTT" | "MQTT client types" => vec![unreached(&MQTT)],
        "the engine" => vec![unreached(&["phi-edge-engine"])],
        // A dependency may know the engine; its types are named nowhere.
        "engine internals" => vec![
            Proof::Undeclared(&["phi-edge-engine"]),
            Proof::Unnamed(&["phi_edge_engine"]),
        ],
        "model internals" => vec![
            Proof::Undeclared(&["phi-edge-models"]),
            Proof::Unnamed(&["phi_edge_models"]),
        ],
        "store internals" => vec![
            Proof::Undeclared(&["phi-edge-store", "rusqlite"]),
            Proof::Unnamed(&["phi_edge_store"]),
        ],
        "files" => vec![
            unreached(&["memmap2", "tempfile"]),
            Proof::Unnamed(&["std::fs", "std::path", "std::env", "std::os"]),
        ],
        "clocks" => vec![
            unreached(&["rustix"]),
            Proof::Unnamed(&[
                "std::time::Instant",
                "std::time::SystemTime",
                "std::time::UNIX_EPOCH",
                "std::thread::sleep",
            ]),
            // Of `Instant`, `Timestamp`, `Zoned` and whatever else tells the time.
            Proof::Uncalled(&["now"]),
        ],
        "HTTP" => vec![
            Proof::Undeclared(&["ureq", "hyper", "http", "axum", "reqwest", "url"]),
            Proof::Unnamed(&["std::net"]),
        ],
        "topics" => vec![Proof::Undefined("topic")],
        "everything else" => {
            let others = workspace.members.keys().map(String::as_str);
            let all: Vec<&str> = others.chain(["ort", "tokio", "rusqlite"]).chain(MQTT).collect();
            vec![unreached(&all)]
        }
        _ => return None,
    })
}

impl Proof {
    /// What stands against it, by package or place; nothing where it holds.
    pub(crate) fn contradictions(
        &self,
        package: &str,
        workspace: &Workspace,
        source: &Source,
    ) -> Vec<String> {
        match self {
            Self::Unreached(packages) => {
                let reached = workspace.reach(package);
                packages
                    .iter()
                    .filter(|one| reached.contains(*one))
                    .cloned()
                    .collect()
            }
            Self::Undeclared(packages) => {
                let declared = &workspace.members[package].all;
                let packages = packages.iter().filter(|one| declared.contains(**one));
                packages.map(|&one| one.to_owned()).collect()
            }
            Self::Unnamed(beginnings) => paths(package, source, |path, _| {
                let mut beginnings = beginnings.iter();
                beginnings.any(|one| path == *one || path.starts_with(&format!("{one}::")))
            }),
            Self::Uncalled(ends) => paths(package, source, |path, is_own| {
                !is_own && ends.iter().any(|end| path.ends_with(&format!("::{end}")))
            }),
            Self::Undefined(part) => definitions(package, source, part),
        }
    }
}

/// The library and the programs of a package, without its examples.
fn targets<'a>(package: &'a str, source: &'a Source) -> impl Iterator<Item = &'a Target> {
    let of_package = source
        .targets
        .iter()
        .filter(move |target| target.package == package);
    of_package.filter(|target| !target.main.starts_with("examples/"))
}

/// Where a path stands in a package's source, outside tests, that is one of the wanted: by its text, and whether it names an
/// item of the package itself.
fn paths(package: &str, source: &Source, wanted: impl Fn(&str, bool) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for target in targets(package, source) {
        for (file, mentions) in mentions(target, &source.files) {
            for mention in mentions {
                let path = mention.path.join("::");
                let is_own = target.resolve(&mention.scope, &mention.path).is_some();
                if wanted(&path, is_own) {
                    found.push(format!("{file}:{}: {path}", mention.line));
                }
            }
        }
    }
    found
}

/// Where a package's source, outside tests, defines what has this in its name.
fn definitions(package: &str, source: &Source, part: &str) -> Vec<String> {
    let mut found = Vec::new();
    for target in targets(package, source) {
        for file in target.files() {
            let definitions = source.files[file].definitions.iter();
            let named = definitions.filter(|one| !one.is_test && one.name.to_lowercase().contains(part));
            found.extend(named.map(|one| format!("{file}:{}: {}", one.line, one.name)));
        }
    }
    found
}
