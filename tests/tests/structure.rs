//! Holds the source to its rules of size, dependence and naming. Each test prints all violations, not the first.

#![allow(missing_docs)]

mod source;

#[path = "structure/circles.rs"]
mod circles;
#[path = "structure/names.rs"]
mod names;

use std::collections::{BTreeMap, BTreeSet};

use source::file::Kind;
use source::imports::{Uses, uses};
use source::{Source, Target};

const MAX_FILE_LINES: usize = 450;
const MAX_FUNCTION_LINES: usize = 100;

/// The folder that was split, and the bound of its lines, tests included.
const SERVICE: &str = "runtime/service/src/";
const MAX_SERVICE_LINES: usize = 8_500;

fn assert_none(rule: &str, violations: &[String]) {
    assert!(
        violations.is_empty(),
        "{rule}: {} violations\n{}\n",
        violations.len(),
        violations.join("\n")
    );
}

#[test]
fn files_are_short_or_say_why_not() {
    let source = Source::read();
    let production = source.files.iter().filter(|(path, _)| !source.is_test(path));
    let long = production.filter(|(_, file)| file.lines > MAX_FILE_LINES && !file.has_reason());
    let violations: Vec<String> = long
        .map(|(path, file)| format!("{path}: {} lines", file.lines))
        .collect();
    assert_none(
        "A file has at most 450 lines, or a line `//! Length: reason.` in its head",
        &violations,
    );
}

#[test]
fn functions_are_short_or_say_why_not() {
    let source = Source::read();
    let mut violations = Vec::new();
    for (path, file) in source.files.iter().filter(|(path, _)| !source.is_test(path)) {
        for function in &file.functions {
            if function.lines > MAX_FUNCTION_LINES && !function.is_test && !function.has_reason {
                let (line, name, lines) = (function.line, &function.name, function.lines);
                violations.push(format!("{path}:{line}: fn {name} has {lines} lines"));
            }
        }
    }
    assert_none(
        "A function has at most 100 lines, or `#[allow(clippy::too_many_lines, reason = \"…\")]` above it",
        &violations,
    );
}

#[test]
fn every_file_belongs_to_a_target() {
    let source = Source::read();
    let violations: Vec<String> = source.orphans().into_iter().cloned().collect();
    assert_none("Every Rust file is a module of a target", &violations);
}

#[test]
fn service_is_one_part_among_others() {
    let source = Source::read();
    let files = source.files.iter();
    let files = files.filter(|(path, _)| path.starts_with(SERVICE));
    let lines: usize = files.map(|(_, file)| file.lines).sum();
    assert!(
        lines < MAX_SERVICE_LINES,
        "{SERVICE} has {lines} lines: the bound is {MAX_SERVICE_LINES}"
    );
}

#[test]
fn no_two_files_import_each_other() {
    let violations = in_each_target(|target, uses| {
        let module_of = circles::modules(target);
        circles::between_files(&module_of, uses)
    });
    assert_none(
        "Files of a crate import each other in no circle, other than a module and those within it",
        &violations,
    );
}

#[test]
fn no_two_top_folders_import_each_other() {
    let violations = in_each_target(circles::between_top_folders);
    assert_none(
        "The top folders of a crate's source import each other in no circle",
        &violations,
    );
}

/// The circles of each target, one text each: the members, then the imports that make the circle.
fn in_each_target(find: impl Fn(&Target, &Uses) -> Vec<BTreeSet<String>>) -> Vec<String> {
    let source = Source::read();
    let mut violations = Vec::new();
    for target in &source.targets {
        let uses = uses(target, &source.files);
        for circle in find(target, &uses) {
            let members: Vec<&str> = circle.iter().map(String::as_str).collect();
            let mut text = format!("{}: {}", target.package, members.join(", "));
            for line in imports_within(&circle, &uses) {
                text.push_str("\n    ");
                text.push_str(&line);
            }
            violations.push(text);
        }
    }
    violations
}

/// The imports from one member of a circle to another; a member is a file, or a folder with all its files.
fn imports_within(circle: &BTreeSet<String>, uses: &Uses) -> Vec<String> {
    let member = |file: &str| {
        let mut members = circle.iter();
        members.find(|member| {
            file == member.as_str() || (member.ends_with('/') && file.starts_with(member.as_str()))
        })
    };
    let mut lines = Vec::new();
    for (user, used) in uses {
        for (file, place) in used {
            if let (Some(from), Some(to)) = (member(user), member(file))
                && from != to
            {
                lines.push(format!("{user}:{}: {} of {file}", place.line, place.path));
            }
        }
    }
    lines
}

#[test]
fn nothing_bears_an_old_name() {
    let source = Source::read();
    let mut violations = Vec::new();
    for old in names::OLD {
        for (path, file) in source.files.iter().filter(|(path, _)| old.applies_to(path)) {
            if old.is_file(path) {
                violations.push(format!("{path}: {}", old.advice()));
            }
            for definition in &file.definitions {
                if old.is(definition) {
                    violations.push(format!("{path}:{}: {}", definition.line, old.advice()));
                }
            }
        }
    }
    violations.sort();
    assert_none(
        "No module, type, function or constant bears an old name",
        &violations,
    );
}

#[test]
fn a_crate_gives_a_name_once() {
    let source = Source::read();
    let mut violations = Vec::new();
    for target in source.targets.iter().filter(|target| is_crate(target)) {
        let mut places: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
        for path in target.files() {
            let definitions = source.files[path].definitions.iter();
            let named = |kind| kind == Kind::Type || kind == Kind::Module;
            for definition in definitions.filter(|one| named(one.kind) && !one.is_test) {
                let place = format!("{path}:{}", definition.line);
                places.entry(&definition.name).or_default().insert(place);
            }
        }
        for (name, places) in places {
            if places.len() > 1 && !names::MAY_RECUR.contains(&(&target.package, name)) {
                let places: Vec<String> = places.into_iter().collect();
                violations.push(format!("{}: {name}: {}", target.package, places.join(", ")));
            }
        }
    }
    assert_none(
        "No two modules and no two types of a crate have one name",
        &violations,
    );
}

/// True for the libraries and programs outside tests; an example is a program by itself.
fn is_crate(target: &Target) -> bool {
    !target.main.starts_with("tests/") && !target.main.starts_with("examples/")
}

#[test]
fn circles_are_found_and_hierarchies_are_none() {
    circles::check();
}
