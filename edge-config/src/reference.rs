//! The reference of all keys, generated from the default file.

use std::fmt::Write as _;

use crate::DEFAULT_FILE;

const PREFACE: &str = "\
<!-- Made from edge-config/default.toml by `cargo xtask docs`; change it there. -->

# Configuration

";

/// The reference of all keys as Markdown: docs/config.md.
pub fn reference() -> String {
    let mut page = Page {
        out: PREFACE.to_owned(),
        ..Page::default()
    };
    for line in DEFAULT_FILE.lines() {
        page.line(line);
    }
    page.flush_prose();
    page.out
}

#[derive(Default)]
struct Page {
    out: String,
    /// The comment read so far, of the next key or of none.
    comment: Vec<String>,
    /// The prefix of the section, such as `mqtt.`; empty at the top level.
    section: String,
    in_table: bool,
}

impl Page {
    fn line(&mut self, line: &str) {
        if line == "#[[rules]]" {
            self.flush_prose();
            self.head("[[rules]]", "");
        } else if let Some(name) = line.strip_prefix("#[rules.") {
            let name = name.trim_end_matches(']');
            self.head(&format!("[rules.{name}]"), name);
        } else if let Some(name) = line.strip_prefix('[') {
            self.flush_prose();
            let name = name.trim_end_matches(']');
            self.head(&format!("[{name}]"), name);
        } else if line.is_empty() {
            self.flush_prose();
        } else if line == "#" {
            self.comment.push(String::new());
        } else if let Some(text) = line.strip_prefix("# ") {
            self.comment.push(text.to_owned());
        } else if let Some((name, value)) = line.trim_start_matches('#').split_once(" = ") {
            self.key(name, value);
        }
    }

    fn head(&mut self, title: &str, section: &str) {
        if std::mem::take(&mut self.in_table) {
            self.out.push('\n');
        }
        section.clone_into(&mut self.section);
        if !section.is_empty() {
            self.section.push('.');
        }
        // Writing to a String can't fail.
        let _ = writeln!(self.out, "## `{title}`\n");
    }

    /// A comment that belongs to no key.
    fn flush_prose(&mut self) {
        if self.comment.is_empty() {
            return;
        }
        if self.in_table {
            self.out.push('\n');
            self.in_table = false;
        }
        let comment = std::mem::take(&mut self.comment);
        for paragraph in comment.split(String::is_empty) {
            let code = paragraph.first().is_some_and(|line| line.starts_with("[["));
            for line in paragraph {
                let _ = writeln!(self.out, "{}{line}", if code { "    " } else { "" });
            }
            self.out.push('\n');
        }
    }

    fn key(&mut self, name: &str, value: &str) {
        if !self.in_table {
            self.out
                .push_str("| key | meaning | unit | default | example |\n|---|---|---|---|---|\n");
            self.in_table = true;
        }
        let mut comment = std::mem::take(&mut self.comment);
        let last = comment.pop().unwrap_or_default();
        let (unit, default) = last
            .strip_prefix("Unit: ")
            .and_then(|rest| rest.split_once(". Default: "))
            .unwrap_or((last.as_str(), ""));
        // A default in words comes with an example, any other is the value itself.
        let (default, example) = if default == value {
            (format!("`{}`", cell(default)), String::new())
        } else {
            (cell(default.trim_end_matches('.')), format!("`{}`", cell(value)))
        };
        let section = &self.section;
        let _ = writeln!(
            self.out,
            "| `{section}{name}` | {} | {} | {default} | {example} |",
            cell(&comment.join(" ")),
            cell(unit)
        );
    }
}

/// Text for a cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}
