//! Names in a template that there are not: strictness would find them only when a window ends.

use std::collections::BTreeSet;

use minijinja::{Environment, context};

use super::error::WordsError;
use super::template::report;
use super::window_facts::{FACTS, PART, WINDOW};
use crate::Field;

const VARIABLES: [&str; 7] = ["rule", "group", "window", "stats", "messages", "part", "parts"];

/// The first name of `source` that is not known, as an error with its line.
pub(super) fn check(
    environment: &Environment<'_>,
    name: &str,
    source: &str,
    fields: &[Field],
) -> Result<(), WordsError> {
    let words = words(source);
    let template = environment.get_template(name).map_err(|error| report(&error))?;
    let paths: BTreeSet<String> = template.undeclared_variables(true).into_iter().collect();
    for path in &paths {
        let steps: Vec<&str> = path.split('.').collect();
        if let Some((word, message)) = unknown_step(environment, &steps, fields) {
            return Err(fault(&words, word, message));
        }
    }
    let exists = |test: &'static str, name: &str| {
        environment
            .compile_expression(test)
            .and_then(|expression| expression.eval(context! { n => name }))
            .is_ok_and(|found| found.is_true())
    };
    for three in words.windows(3) {
        let [before, word, after] = three else { continue };
        let (kind, at) = match (before.text, word.text) {
            ("|", _) if word.name && !exists("n is filter", word.text) => ("filter", word),
            ("is", "not") if after.name && !exists("n is test", after.text) => ("test", after),
            ("is", text) if before.name && word.name && text != "not" && !exists("n is test", text) => {
                ("test", word)
            }
            ("include", name) if before.name && word.string && environment.get_template(name).is_err() => {
                ("template", word)
            }
            _ => continue,
        };
        return Err(WordsError::Template {
            line: at.line,
            message: format!("there is no {kind} {}", at.text),
        });
    }
    Ok(())
}

/// What is wrong with a variable and the attributes behind it, and the name at fault.
fn unknown_step<'a>(
    environment: &Environment<'_>,
    steps: &[&'a str],
    fields: &[Field],
) -> Option<(&'a str, String)> {
    let known = |step: &'a str, names: &[&str], message: &str| {
        (!names.contains(&step)).then(|| (step, format!("{message} {step}; there are {}", names.join(", "))))
    };
    match *steps {
        [variable, ..] if environment.globals().any(|(global, _)| global == variable) => None,
        ["window", attribute, ..] => known(attribute, &WINDOW, "window has no"),
        ["part", attribute, ..] => known(attribute, &PART, "part has no"),
        ["stats", field, ref rest @ ..] => {
            if !fields.iter().any(|known| known.name == field) {
                return Some((field, format!("the rule has no field {field}")));
            }
            rest.first().and_then(|fact| known(fact, &FACTS, "facts have no"))
        }
        [variable, ..] => known(variable, &VARIABLES, "there is no variable"),
        [] => None,
    }
}

fn fault(words: &[Word<'_>], name: &str, message: String) -> WordsError {
    let line = words
        .iter()
        .find(|word| word.name && word.text == name)
        .map_or(1, |word| word.line);
    WordsError::Template { line, message }
}

/// A word within a tag.
#[derive(Debug)]
struct Word<'a> {
    text: &'a str,
    line: usize,
    /// It is an identifier.
    name: bool,
    /// It stood in quotes.
    string: bool,
}

/// The words of all tags, in order; of comments, raw blocks and text between tags none. Two empty ones end them.
fn words(source: &str) -> Vec<Word<'_>> {
    let mut words = Vec::new();
    let mut at = 0;
    let opening = |text: &str| ["{{", "{%", "{#"].iter().filter_map(|tag| text.find(tag)).min();
    while let Some(found) = opening(&source[at..]) {
        let open = at + found;
        if source[open..].starts_with("{#") {
            at = source[open..]
                .find("#}")
                .map_or(source.len(), |end| open + end + 2);
            continue;
        }
        let first = words.len();
        at = tag(source, open + 2, &mut words);
        if words.get(first).is_some_and(|word| word.text == "raw") {
            at = source[at..].find("endraw").map_or(source.len(), |end| at + end);
        }
    }
    for _ in 0..2 {
        words.push(Word {
            text: "",
            line: 0,
            name: false,
            string: false,
        });
    }
    words
}

/// Takes the words of one tag, from behind its opening, and says where it ends.
fn tag<'a>(source: &'a str, start: usize, words: &mut Vec<Word<'a>>) -> usize {
    let mut at = start;
    while let Some(c) = source[at..].chars().next() {
        let rest = &source[at..];
        if rest.starts_with("}}") || rest.starts_with("%}") {
            return at + 2;
        }
        let line = 1 + source[..at].matches('\n').count();
        let mut push = |text, name, string| {
            words.push(Word {
                text,
                line,
                name,
                string,
            });
        };
        if c == '"' || c == '\'' {
            let inner = &rest[1..];
            let mut escaped = false;
            let end = inner
                .find(|d: char| {
                    let ends = d == c && !escaped;
                    escaped = d == '\\' && !escaped;
                    ends
                })
                .unwrap_or(inner.len());
            push(&inner[..end], false, true);
            at = (at + end + 2).min(source.len());
        } else if c.is_alphabetic() || c == '_' {
            let end = rest
                .find(|d: char| !d.is_alphanumeric() && d != '_')
                .unwrap_or(rest.len());
            push(&rest[..end], true, false);
            at += end;
        } else {
            let end = c.len_utf8();
            if !c.is_whitespace() && c != '-' && c != '+' {
                push(&rest[..end], false, false);
            }
            at += end;
        }
    }
    at
}
