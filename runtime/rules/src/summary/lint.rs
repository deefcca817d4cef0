//! The check of a template's names: rendering would report an unknown one only when a window closes.

use std::collections::BTreeSet;

use minijinja::{Environment, context};

use super::error::SummaryError;
use super::window_facts::{FACT_ATTRIBUTES, PART_ATTRIBUTES, WINDOW_ATTRIBUTES};
use crate::Field;

const VARIABLES: [&str; 8] = [
    "rule", "group", "window", "stats", "messages", "pictures", "part", "parts",
];

/// Reports the first unknown name of `source` as an error with its line.
pub(super) fn check(
    environment: &Environment<'_>,
    name: &str,
    source: &str,
    fields: &[Field],
) -> Result<(), SummaryError> {
    let tokens = tag_tokens(source);
    let template = environment
        .get_template(name)
        .map_err(|error| SummaryError::of_template(&error))?;
    let paths: BTreeSet<String> = template.undeclared_variables(true).into_iter().collect();
    for path in &paths {
        let steps: Vec<&str> = path.split('.').collect();
        if let Some((token, message)) = unknown_step(environment, &steps, fields) {
            return Err(fault(&tokens, token, message));
        }
    }
    let exists = |test: &'static str, name: &str| {
        environment
            .compile_expression(test)
            .and_then(|expression| expression.eval(context! { n => name }))
            .is_ok_and(|found| found.is_true())
    };
    for three in tokens.windows(3) {
        let [before, token, after] = three else { continue };
        let (kind, at) = match (before.text, token.text) {
            ("|", _) if token.name && !exists("n is filter", token.text) => ("filter", token),
            ("is", "not") if after.name && !exists("n is test", after.text) => ("test", after),
            ("is", text) if before.name && token.name && text != "not" && !exists("n is test", text) => {
                ("test", token)
            }
            ("include", name) if before.name && token.string && environment.get_template(name).is_err() => {
                ("template", token)
            }
            _ => continue,
        };
        return Err(SummaryError::Template {
            line: at.line,
            message: format!("there is no {kind} {}", at.text),
        });
    }
    Ok(())
}

/// The unknown name among a variable and its attributes, and the error's message.
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
        ["window", attribute, ..] => known(attribute, &WINDOW_ATTRIBUTES, "window has no"),
        ["part", attribute, ..] => known(attribute, &PART_ATTRIBUTES, "part has no"),
        ["stats", field, ref rest @ ..] => {
            if !fields.iter().any(|known| known.name == field) {
                return Some((field, format!("the rule has no field {field}")));
            }
            rest.first()
                .and_then(|fact| known(fact, &FACT_ATTRIBUTES, "facts have no"))
        }
        [variable, ..] => known(variable, &VARIABLES, "there is no variable"),
        [] => None,
    }
}

fn fault(tokens: &[TagToken<'_>], name: &str, message: String) -> SummaryError {
    let line = tokens
        .iter()
        .find(|token| token.name && token.text == name)
        .map_or(1, |token| token.line);
    SummaryError::Template { line, message }
}

/// A token within a tag.
#[derive(Debug)]
struct TagToken<'a> {
    text: &'a str,
    line: usize,
    /// Whether it is an identifier.
    name: bool,
    /// Whether it was in quotes.
    string: bool,
}

/// The tokens of all tags, in order, without comments, raw blocks and the text between tags. Two empty ones end them.
fn tag_tokens(source: &str) -> Vec<TagToken<'_>> {
    let mut tokens = Vec::new();
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
        let first = tokens.len();
        at = tokenize_tag(source, open + 2, &mut tokens);
        if tokens.get(first).is_some_and(|token| token.text == "raw") {
            at = source[at..].find("endraw").map_or(source.len(), |end| at + end);
        }
    }
    for _ in 0..2 {
        tokens.push(TagToken {
            text: "",
            line: 0,
            name: false,
            string: false,
        });
    }
    tokens
}

/// Reads the tokens of one tag, from behind its opening, and returns its end.
fn tokenize_tag<'a>(source: &'a str, start: usize, tokens: &mut Vec<TagToken<'a>>) -> usize {
    let mut at = start;
    while let Some(c) = source[at..].chars().next() {
        let rest = &source[at..];
        if rest.starts_with("}}") || rest.starts_with("%}") {
            return at + 2;
        }
        let line = 1 + source[..at].matches('\n').count();
        let mut push = |text, name, string| {
            tokens.push(TagToken {
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
