//! The folder of rule files: what a file may hold, whose rule holds, and what is refused.
#![allow(clippy::unwrap_used, reason = "a test may end at a fault")]

mod machine;

use std::fs;

use machine::Machine;
use phi_edge_config::Origin;

/// The keys of a rule, without its name.
fn keys(topic: &str) -> String {
    format!("topics = [\"{topic}\"]\nprompt = \"p\"\n")
}

/// A rule as it stands in any file.
fn named(name: &str, topic: &str) -> String {
    format!("[[rules]]\nname = \"{name}\"\n{}", keys(topic))
}

/// Names and first topics of the rules.
fn seen(machine: &Machine) -> Vec<(String, String)> {
    let rules = machine.loaded().config.rules.into_iter();
    rules.map(|mut rule| (rule.name, rule.topics.remove(0))).collect()
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    let owned = |(name, topic): &(&str, &str)| ((*name).to_owned(), (*topic).to_owned());
    expected.iter().map(owned).collect()
}

#[test]
fn a_file_holds_one_rule_or_several() {
    let machine = Machine::new()
        .file("etc/rules.d/20-b.toml", &keys("b"))
        .file(
            "etc/rules.d/10-a.toml",
            &(String::from("name = \"a\"\n") + &keys("a")),
        )
        .file("etc/rules.d/30-more.toml", &(named("c", "c") + &named("d", "d")))
        .file("etc/rules.d/40-off.toml", "# topics = [\"e\"]\n")
        .file("etc/rules.d/.50-hidden.toml", "nonsense")
        .file("etc/rules.d/50-note.txt", "nonsense");
    assert_eq!(
        seen(&machine),
        pairs(&[("a", "a"), ("20-b", "b"), ("c", "c"), ("d", "d")])
    );
    let loaded = machine.loaded();
    let origin = |name: &str, line| Origin::File {
        path: machine.path(name),
        line,
    };
    let origins: Vec<_> = loaded
        .config
        .rules
        .iter()
        .map(|rule| rule.origin.clone())
        .collect();
    assert_eq!(
        origins,
        [
            origin("etc/rules.d/10-a.toml", None),
            origin("etc/rules.d/20-b.toml", None),
            origin("etc/rules.d/30-more.toml", Some(1)),
            origin("etc/rules.d/30-more.toml", Some(5)),
        ]
    );
    let names: Vec<_> = loaded
        .files
        .iter()
        .map(|path| path.file_name().unwrap().to_owned())
        .collect();
    assert_eq!(names, ["10-a.toml", "20-b.toml", "30-more.toml", "40-off.toml"]);
}

#[test]
fn the_folder_comes_last() {
    let machine = Machine::new()
        .file("etc/config.toml", &(named("one", "main") + &named("two", "main")))
        .config(&(named("two", "mine") + &named("three", "mine")))
        .file("etc/rules.d/three.toml", &keys("folder"))
        .file(
            "etc/rules.d/a.toml",
            &(named("four", "folder") + &named("one", "folder")),
        );
    let expected = [
        ("one", "folder"),
        ("two", "mine"),
        ("three", "folder"),
        ("four", "folder"),
    ];
    assert_eq!(seen(&machine), pairs(&expected));
}

#[test]
fn the_folder_is_the_one_that_the_last_layer_names() {
    let machine = Machine::new()
        .file("etc/rules.d/system.toml", &keys("t"))
        .file("first/first.toml", "nonsense")
        .file("second/second.toml", &keys("t"))
        .config("node.rules_dir = \"first\"");
    let second = machine.path("second");
    let machine = machine.env("PHI_EDGE__NODE__RULES_DIR", second.to_str().unwrap());
    assert_eq!(seen(&machine), pairs(&[("second", "t")]));
    assert_eq!(machine.loaded().config.node.rules_dir, second);
}

#[test]
fn without_a_name_the_folder_is_the_systems() {
    let loaded = Machine::new().loaded();
    assert!(loaded.config.node.rules_dir.ends_with("etc/rules.d"));
    assert_eq!(
        loaded.origins["node.rules_dir"],
        Origin::Derived("the system's folder")
    );
}

#[test]
fn a_missing_folder_has_no_rules() {
    let machine = Machine::new().config("node.rules_dir = \"absent\"");
    assert!(machine.loaded().config.rules.is_empty());
}

#[test]
fn loading_again_sees_what_has_changed() {
    let machine = Machine::new().file("etc/rules.d/a.toml", &keys("old"));
    assert_eq!(seen(&machine), pairs(&[("a", "old")]));
    let machine = machine
        .file("etc/rules.d/a.toml", &keys("new"))
        .file("etc/rules.d/b.toml", &keys("b"));
    assert_eq!(seen(&machine), pairs(&[("a", "new"), ("b", "b")]));
    fs::remove_dir_all(machine.path("etc/rules.d")).unwrap();
    assert_eq!(seen(&machine), []);
}

fn check_fault(text: &str, expected: &str) {
    let machine = Machine::new().file("etc/rules.d/r.toml", text);
    assert_eq!(machine.fault(), expected, "{text}");
}

#[test]
fn faults_name_file_line_and_rule() {
    check_fault(
        "topics = [\"t\"]",
        "etc/rules.d/r.toml: rule \"r\": says nothing of its words; give `prompt` (a template's text), `template` (the name \
         of a built-in one) or `facts_only = true`",
    );
    check_fault(
        "topics = [\"t\"]\n\nprompt = 1",
        "etc/rules.d/r.toml:3: rule \"r\": `prompt` must be a text that is not blank, but is 1",
    );
    check_fault(
        "topics = [\"t\"]\nprompt = \"p\"\n[limits]\nqueue = 3",
        "etc/rules.d/r.toml:4: rule \"r\": unknown key `limits.queue`; the nearest known one is `limits.store`",
    );
    check_fault(
        "name = \"a b\"\ntopics = [\"t\"]",
        "etc/rules.d/r.toml:1: rule \"r\": `name` must be 1 to 64 of A-Z a-z 0-9 . _ -",
    );
    check_fault(
        "topics = [\"t\"",
        "etc/rules.d/r.toml:1: not valid TOML (column 14): unclosed array, expected `]`",
    );
    check_fault(
        "[[rules]]\nname = \"a\"\ntopics = [\"t\"]\nprompts = 1",
        "etc/rules.d/r.toml:4: rule \"a\": unknown key `prompts`; the nearest known one is `prompt`",
    );
    check_fault(
        "topics = [\"t\"]\n[[rules]]\nname = \"a\"",
        "etc/rules.d/r.toml:1: rule \"r\": `topics` stands beside [[rules]], but a rule file holds either the keys of one rule \
         or [[rules]]; move it below the line [[rules]] of its rule",
    );
    let machine = Machine::new().file("etc/rules.d/a b.toml", &keys("t"));
    assert_eq!(
        machine.fault(),
        "etc/rules.d/a b.toml: rule \"a b\": is named by its file, which is not 1 to 64 of A-Z a-z 0-9 . _ -; give it a \
         `name` or rename the file"
    );
}

#[test]
fn two_files_with_a_rule_of_one_name_are_both_named() {
    let machine = Machine::new()
        .file("etc/rules.d/a.toml", &keys("t"))
        .file("etc/rules.d/b.toml", &named("a", "t"));
    let expected =
        "etc/rules.d/b.toml:1: rule \"a\": its name is taken by the rule at etc/rules.d/a.toml; rename one";
    assert_eq!(machine.fault().replace('\\', "/"), expected);
}

#[test]
fn what_can_not_be_read_is_named() {
    let machine = Machine::new().config("node.rules_dir = \"my.toml\"");
    assert!(
        machine
            .fault()
            .starts_with("my.toml: can't read the configuration"),
        "{}",
        machine.fault()
    );
    let machine = Machine::new().file("etc/rules.d/a.toml/x", "");
    assert!(
        machine
            .fault()
            .starts_with("etc/rules.d/a.toml: can't read the configuration"),
        "{}",
        machine.fault()
    );
    let machine = Machine::new().file("etc/rules.d/a.toml", "");
    fs::write(machine.path("etc/rules.d/a.toml"), b"topics = [\"\xff\"]").unwrap();
    assert!(
        machine.fault().starts_with("etc/rules.d/a.toml: can't read"),
        "{}",
        machine.fault()
    );
}
