//! `cargo xtask test` and `cargo xtask lint`.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::advisories;
use crate::library;
use crate::node;
use crate::plugins;
use crate::process::{cargo, on_ci, root, run, works};
use crate::python;
use crate::tools::tool;

/// The version of cargo-deny that CI runs.
const CARGO_DENY: &str = "0.20.2";

/// Sets everything up and runs every test.
pub(crate) fn test(arguments: &[String]) -> Result<()> {
    let mut all = vec!["--workspace"];
    all.extend(arguments.iter().map(String::as_str));
    some(&all, &[])
}

/// Sets everything up and runs `cargo test` with these arguments and variables.
pub(crate) fn some(arguments: &[&str], environment: &[(&str, &str)]) -> Result<()> {
    let library = library::for_this_machine()?;
    packages()?;
    // The end-to-end tests run the daemon's own binary and an example, which `cargo test` alone does not always build.
    run(cargo().args(["build", "--workspace", "--bins", "--examples", "--locked"]))?;
    let mut tests = cargo();
    tests
        .args(["test", "--locked"])
        .args(arguments)
        .envs(environment.iter().copied())
        .env("ORT_DYLIB_PATH", library);
    match python::environment("test-tools") {
        Ok(interpreter) => {
            tests.env("PHI_EDGE_TEST_PYTHON", interpreter);
        }
        Err(error) if on_ci() => return Err(error),
        Err(error) => eprintln!("Tests with the Python client will skip: {error:#}"),
    }
    match plugins::for_tests() {
        Ok(variables) => {
            tests.envs(variables);
        }
        Err(error) if on_ci() => return Err(error),
        Err(error) => eprintln!("Tests with plugin providers will skip: {error:#}"),
    }
    match node::modules("node-tools") {
        Ok(modules) => {
            tests.env("PHI_EDGE_TEST_NODE_MODULES", modules);
        }
        Err(error) if on_ci() => return Err(error),
        Err(error) => eprintln!("Tests with Node.js clients will skip: {error:#}"),
    }
    run(&mut tests)
}

/// The binary of a package's integration test, built.
pub(crate) fn binary(package: &str, name: &str) -> Result<PathBuf> {
    let output = cargo()
        .args(["test", "-p", package, "--test", name, "--no-run", "--locked"])
        .arg("--message-format=json")
        .stderr(Stdio::inherit())
        .output()
        .context("cargo can't be started")?;
    ensure!(
        output.status.success(),
        "the tests {name} of {package} were not built"
    );
    let text = String::from_utf8_lossy(&output.stdout);
    let messages = text
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let built = messages.filter(|message| message["target"]["name"] == name);
    built
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .next_back()
        .with_context(|| format!("cargo named no binary of the tests {name}"))
}

/// What the tests need of Debian: the broker and its clients, a clock that can be set, network namespaces, Prometheus,
/// Node.js. Installed where that is possible without asking anybody.
pub(crate) fn packages() -> Result<()> {
    let mut packages = vec![
        "mosquitto",
        "mosquitto-clients",
        "libfaketime",
        "iproute2",
        "prometheus",
    ];
    // Those of others than Debian bring npm along.
    let has_node = works("node", "--version") && works("npm", "--version");
    if !has_node {
        packages.extend(["nodejs", "npm"]);
    }
    let there = || {
        works("mosquitto", "-h")
            && works("mosquitto_rr", "--help")
            && works("ip", "-V")
            && works("promtool", "--version")
            && has_node
            && std::fs::exists("/usr/share/doc/libfaketime").unwrap_or(false)
    };
    if there() {
        return Ok(());
    }
    if on_ci() {
        let apt = || -> Result<()> {
            run(Command::new("apt-get").args(["-qq", "update"]))?;
            run(Command::new("apt-get")
                .args(["-qq", "install", "-y", "--no-install-recommends"])
                .args(&packages))
        };
        return apt().context("the tests' packages could not be installed");
    }
    eprintln!(
        "Some tests will skip: install the packages {} to run them all.",
        packages.join(", ")
    );
    Ok(())
}

/// Formatting, lints, dependency rules, advisories.
pub(crate) fn lint() -> Result<()> {
    run(cargo().args(["fmt", "--all", "--check"]))?;
    run(cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--locked",
        "--quiet",
        "--",
        "-D",
        "warnings",
    ]))?;
    let deny = tool("cargo-deny", CARGO_DENY)?;
    run(Command::new(&deny).current_dir(root()).args([
        "--log-level",
        "warn",
        "check",
        "bans",
        "licenses",
        "sources",
    ]))?;
    advisories::check(&deny)
}
