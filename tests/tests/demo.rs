//! The demonstration runs to its end, and the README's picture shows what it says today.

#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;
use std::process::Command;

use phi_edge_tests::{demo_model, has_library, phi_edge};

/// What the demonstration says, without what differs from run to run or from machine to machine: numbers become `#`, and the
/// model's words are left out. Lines of no more than the picture's width are whole in both.
fn shape<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut shape = Vec::new();
    // Words go on until a line begins like this.
    let mut words_until: Option<&str> = None;
    for line in lines.map(str::trim_end).filter(|line| !line.is_empty()) {
        if words_until.is_some_and(|end| !line.starts_with(end)) {
            continue;
        }
        words_until = None;
        if line.starts_with("> ") {
            words_until = Some("  [");
            shape.push(line.to_owned());
        } else if line.starts_with("  words: ") {
            words_until = Some("The same by hand");
            shape.push("  words:".to_owned());
        } else {
            shape.push(without_numbers(line));
        }
    }
    shape
}

fn without_numbers(line: &str) -> String {
    let mut text = String::new();
    for letter in line.chars() {
        if !letter.is_ascii_digit() {
            text.push(letter);
        } else if !text.ends_with('#') {
            text.push('#');
        }
    }
    text
}

/// The lines of text of the picture.
fn picture() -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/picture/demo.svg");
    let svg = std::fs::read_to_string(path).unwrap();
    let texts = svg.lines().filter_map(|line| {
        let text = line.strip_prefix("<text ")?.strip_suffix("</text>")?;
        Some(text.split_once('>')?.1)
    });
    let escapes = [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&quot;", "\""),
        ("&#x27;", "'"),
        ("&amp;", "&"),
    ];
    texts
        .map(|text| {
            escapes
                .iter()
                .fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
        })
        .collect()
}

#[test]
fn the_picture_shows_what_the_demonstration_says() {
    if !has_library() {
        return;
    }
    let program = phi_edge().with_file_name(format!("phi-edge-demo{}", std::env::consts::EXE_SUFFIX));
    let output = Command::new(&program).arg(demo_model()).output();
    let output =
        output.unwrap_or_else(|error| panic!("{}: {error}: run cargo xtask test", program.display()));
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let picture = picture();
    let (command, shown) = picture.split_first().unwrap();
    assert_eq!(command, "$ cargo xtask demo");
    assert_eq!(
        shape(shown.iter().map(String::as_str)),
        shape(said.lines()),
        "docs/picture/make.py draws the picture"
    );
}

#[test]
fn what_differs_from_run_to_run_is_left_out() {
    let check = |text: &str, expected: &[&str]| assert_eq!(shape(text.lines()), expected);
    check(
        "> Who?\nI am\n30.\n  [3 + 4 tokens, 15 ms for the rest]\n\nPort 43579 …",
        &["> Who?", "  [# + # tokens, # ms for the rest]", "Port # …"],
    );
    check(
        "  facts: mean 75.525\n  words: A pump\nis 3 °C warm.\n\nThe same by hand:\n  it",
        &["  facts: mean #.#", "  words:", "The same by hand:", "  it"],
    );
}
