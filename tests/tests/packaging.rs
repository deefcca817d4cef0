//! The unit and the packages' metadata against the code: what is named there must exist, and mean the same.

#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use phi_edge_tests::phi_edge;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_path_buf()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The settings of a unit's `[Service]` section; a key may come several times.
fn service(path: &str) -> BTreeMap<String, Vec<String>> {
    let mut settings: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut section = String::new();
    for line in read(path).lines() {
        if line.starts_with('[') {
            line.clone_into(&mut section);
        } else if let Some((key, value)) = line.split_once('=')
            && section == "[Service]"
            && !line.starts_with('#')
        {
            settings.entry(key.to_owned()).or_default().push(value.to_owned());
        }
    }
    settings
}

fn seconds(value: &str) -> Duration {
    let (number, unit) = value.split_at(value.find(|c: char| !c.is_ascii_digit()).unwrap());
    let number: u64 = number.parse().unwrap();
    match unit {
        "s" => Duration::from_secs(number),
        "min" => Duration::from_mins(number),
        other => panic!("{other} is no unit of this test"),
    }
}

fn config(arguments: &[&str]) -> std::process::Output {
    Command::new(phi_edge())
        .arg("config")
        .args(arguments)
        .output()
        .unwrap()
}

/// The text of `phi-edge config` has `key = value` below its section.
fn effective(key: &str) -> Option<String> {
    let output = config(&[]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let (wanted_section, wanted) = key.rsplit_once('.').unwrap();
    let mut section = String::new();
    for line in text.lines() {
        let line = line.trim().trim_start_matches('#');
        if let Some(name) = line.strip_prefix('[') {
            name.split(']').next().unwrap().clone_into(&mut section);
        } else if let Some((name, value)) = line.split_once('=')
            && section == wanted_section
            && name.trim() == wanted
        {
            return Some(
                value
                    .split('#')
                    .next()
                    .unwrap()
                    .trim()
                    .trim_matches('"')
                    .to_owned(),
            );
        }
    }
    None
}

#[test]
fn no_restart_follows_the_exit_codes_that_a_restart_does_not_mend() {
    let service = service("systemd/phi-edge.service");
    let prevented: BTreeSet<u8> = service["RestartPreventExitStatus"][0]
        .split_whitespace()
        .map(|code| code.parse().unwrap())
        .collect();
    let exits = read("runtime/daemon/src/exit.rs");
    let code = |name: &str| -> u8 {
        let line = exits
            .lines()
            .find_map(|line| line.trim().strip_prefix(&format!("{name} = ")))
            .unwrap_or_else(|| panic!("no exit code {name}"));
        line.trim_end_matches(',').parse().unwrap()
    };
    assert_eq!(prevented, BTreeSet::from([code("TakenOver"), code("Config")]));
    // The process that proves it for one of them.
    let output = config(&["--set", "limits.queue=none"]);
    assert_eq!(output.status.code(), Some(i32::from(code("Config"))));
}

#[test]
fn the_unit_gives_the_daemon_the_time_it_needs() {
    let service = service("systemd/phi-edge.service");
    let grace = effective("limits.drain_grace").expect("phi-edge config shows limits.drain_grace");
    assert!(
        seconds(&service["TimeoutStopSec"][0]) >= seconds(&grace) + Duration::from_secs(30),
        "TimeoutStopSec= is no longer than what an orderly end takes: {grace} and thirty seconds"
    );
    // 512 tokens (runtime.prefill_chunk) at five a second.
    assert!(seconds(&service["WatchdogSec"][0]) >= Duration::from_secs(512 / 5));
    assert_eq!(service["Type"], ["notify"]);
}

#[test]
fn the_unit_calls_commands_that_exist() {
    let service = service("systemd/phi-edge.service");
    for key in ["ExecStartPre", "ExecStart", "ExecStopPost"] {
        let line = service[key][0].trim_start_matches('-');
        let mut words = line.split_whitespace();
        assert_eq!(words.next(), Some("/usr/bin/phi-edge"), "{key}");
        let output = Command::new(phi_edge())
            .args(words)
            .arg("--help")
            .output()
            .unwrap();
        assert!(output.status.success(), "{key}={line}");
    }
    assert_eq!(service["ExecReload"], ["/bin/kill -HUP $MAINPID"]);
}

#[test]
fn keys_that_units_and_documents_name_exist() {
    let documented = read("edge-config/default.toml");
    let mut known = BTreeSet::new();
    let mut section = String::new();
    for line in documented.lines() {
        let line = line.trim_start_matches('#');
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            name.trim_matches(['[', ']']).clone_into(&mut section);
        } else if let Some((key, _)) = line.split_once(" = ")
            && !key.contains(' ')
        {
            known.insert(format!("{section}.{key}"));
        }
    }
    let sections: BTreeSet<&str> = known.iter().filter_map(|key| key.split('.').next()).collect();
    for file in [
        "systemd/phi-edge.service",
        "systemd/phi-edge-cuda.conf",
        "systemd/phi-edge-webgpu.conf",
        "systemd/phi-edge-plugin.conf",
        "docs/install.md",
        "docs/gpu.md",
    ] {
        let text = read(file);
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/')));
        for word in words.map(|word| word.trim_matches('.')) {
            let named = word
                .split_once('.')
                .is_some_and(|(first, rest)| sections.contains(first) && !rest.contains('/'));
            // Names of files and of the folder rules.d look like keys.
            if named && !["toml", "md", "d"].contains(&word.rsplit('.').next().unwrap()) {
                assert!(
                    known.contains(word),
                    "{file} names {word}, which is no key of the configuration"
                );
            }
        }
    }
    let unit = read("systemd/phi-edge.service");
    assert!(unit.contains("mqtt.password_file") && known.contains("mqtt.password_file"));
}

#[test]
fn what_the_packages_name_exists_and_lies_where_the_program_looks() {
    let mut places = BTreeMap::new();
    for line in read("systemd/files.txt")
        .lines()
        .filter(|line| !line.starts_with('#'))
    {
        let mut words = line.split_whitespace();
        let (source, place) = (words.next().unwrap(), words.next().unwrap());
        assert_eq!(words.next(), None, "{line}");
        let (optional, source) = source
            .strip_prefix('?')
            .map_or((false, source), |source| (true, source));
        let path = root().join(source);
        assert!(
            optional || path.exists(),
            "systemd/files.txt: {source} is not there"
        );
        if path.exists() {
            assert_eq!(
                path.is_dir(),
                source.ends_with('/') && place.ends_with('/'),
                "{line}"
            );
        }
        assert!(
            place.starts_with("/usr/") || place.starts_with("/etc/phi-edge/"),
            "{line}"
        );
        assert!(
            places.insert(place.to_owned(), source.to_owned()).is_none(),
            "{place} twice"
        );
    }
    // A document that another one links to comes along.
    for source in places.values().filter(|source| source.starts_with("docs/")) {
        let text = read(source);
        for link in text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split([')', '#']).next())
        {
            let beside = !link.is_empty() && !link.contains('/');
            assert!(
                !beside || places.contains_key(&format!("/usr/share/doc/phi-edge/{link}")),
                "{source} links to {link}, which is not packaged"
            );
        }
    }
    assert_eq!(places["/etc/phi-edge/config.toml"], "edge-config/default.toml");
    for (place, source) in places.iter().filter(|(place, _)| place.starts_with("/etc/")) {
        let listed = format!("conf-files = [\"{place}\"]");
        assert!(
            read("runtime/daemon/Cargo.toml").contains(&listed),
            "{source} is no conffile"
        );
    }
    assert!(read("runtime/onnx/src/library.rs").contains("\"/usr/lib/phi-edge\""));
    for script in [
        "systemd/debian/postrm",
        "systemd/rpm/post.sh",
        "systemd/rpm/preun.sh",
        "systemd/rpm/postun.sh",
    ] {
        assert!(!read(script).contains("[["), "{script} is for a POSIX shell");
    }
}

#[test]
fn user_and_folders_are_the_same_everywhere() {
    let service = service("systemd/phi-edge.service");
    let user = &service["User"][0];
    let field = |path: &str, n: usize| -> Vec<String> {
        read(path)
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| line.split_whitespace().nth(n).unwrap().to_owned())
            .collect()
    };
    assert_eq!(field("systemd/phi-edge.sysusers", 1), [user.as_str()]);
    let folders = field("systemd/phi-edge.tmpfiles", 1);
    let state = format!("/var/lib/{}", service["StateDirectory"][0]);
    let logs = format!("/var/log/{}", service["LogsDirectory"][0]);
    assert_eq!(
        (&service["StateDirectoryMode"], &service["LogsDirectoryMode"]),
        (&vec!["0750".to_owned()], &vec!["0750".to_owned()])
    );
    let purged = read("systemd/debian/postrm");
    let purged: Vec<&str> = purged.split_whitespace().collect();
    for folder in [&state, &logs] {
        assert!(folders.contains(folder), "{folder} is not in the tmpfiles");
        assert!(
            purged.contains(&folder.as_str()),
            "{folder} would be left after a purge"
        );
    }
    for key in ["store.path", "model.path"] {
        let path = effective(key).unwrap_or_else(|| panic!("phi-edge config does not show {key}"));
        assert!(
            path.starts_with(&state),
            "{key} = {path} is not below {state}, all that the unit may write"
        );
    }
    assert!(folders.contains(&"/etc/phi-edge/rules.d".to_owned()));
    assert_eq!(
        effective("node.rules_dir").as_deref(),
        Some("/etc/phi-edge/rules.d")
    );
}
