//! Links between documents of the checkout, as they hold in the packages.

use std::path::{Component, Path, PathBuf};

/// What the packages hold of the checkout: sources and places, as systemd/files.txt names them.
pub(super) type Listed = [(String, String)];

/// The Markdown `text` of `source`, for `place`: what is packaged is linked where it lies, and what is not becomes plain
/// text.
pub(super) fn packaged(text: &str, source: &Path, place: &Path, listed: &Listed) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(link) = next(rest) {
        out.push_str(link.before);
        let shown = match moved(link.target, source, place, listed) {
            Some(target) => format!("[{}]({target})", link.text),
            None => link.text.to_owned(),
        };
        out.push_str(&shown);
        rest = link.after;
    }
    out + rest
}

struct Link<'a> {
    before: &'a str,
    text: &'a str,
    target: &'a str,
    after: &'a str,
}

fn next(text: &str) -> Option<Link<'_>> {
    let middle = text.find("](")?;
    let begin = text[..middle].rfind('[')?;
    let end = middle + text[middle..].find(')')?;
    Some(Link {
        before: &text[..begin],
        text: &text[begin + 1..middle],
        target: &text[middle + 2..end],
        after: &text[end + 1..],
    })
}

/// The target as it is written at `place`; nothing if it is not packaged.
fn moved(target: &str, source: &Path, place: &Path, listed: &Listed) -> Option<String> {
    if target.contains("://") || target.starts_with('#') {
        return Some(target.to_owned());
    }
    let (path, fragment) = target.find('#').map_or((target, ""), |at| target.split_at(at));
    let wanted = normal(&source.parent()?.join(path));
    let lies = listed.iter().find_map(|(source, place)| {
        let below = wanted.strip_prefix(source.trim_end_matches('/')).ok()?;
        let whole = below.as_os_str().is_empty();
        let folder = source.ends_with('/');
        (whole || folder).then(|| {
            if whole {
                PathBuf::from(place)
            } else {
                Path::new(place).join(below)
            }
        })
    })?;
    let near = place.parent().and_then(|folder| lies.strip_prefix(folder).ok());
    Some(format!("{}{fragment}", near.unwrap_or(&lies).display()))
}

/// Without `.` and `..`, of a path that does not leave the checkout.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(normal.pop()),
            Component::CurDir => {}
            part => normal.push(part),
        }
    }
    normal
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_packaged_is_not_linked() {
        let listed = [
            ("docs/mqtt.md", "/usr/share/doc/phi-edge/mqtt.md"),
            ("docs/rules.md", "/usr/share/doc/phi-edge/rules.md"),
            ("examples/", "/usr/share/doc/phi-edge/examples/"),
            ("models/demo/", "/usr/share/phi-edge/demo-model/"),
        ]
        .map(|(source, place)| (source.to_owned(), place.to_owned()));
        for (written, expected) in [
            ("a [b](rules.md#c) d", "a [b](rules.md#c) d"),
            ("[x](https://a/b), [y](#z).", "[x](https://a/b), [y](#z)."),
            ("[e](../examples)", "[e](examples)"),
            (
                "[f](../models/demo/prompt.md)",
                "[f](/usr/share/phi-edge/demo-model/prompt.md)",
            ),
            (
                "[models/export](../models/export) has [g](none.md)",
                "models/export has g",
            ),
            ("none", "none"),
        ] {
            let place = Path::new("/usr/share/doc/phi-edge/mqtt.md");
            assert_eq!(
                packaged(written, Path::new("docs/mqtt.md"), place, &listed),
                expected
            );
        }
        let text = "see [docs/mqtt.md](../docs/mqtt.md) and [ask](rust/ask.rs)";
        let place = Path::new("/usr/share/doc/phi-edge/examples/README.md");
        assert_eq!(
            packaged(text, Path::new("examples/README.md"), place, &listed),
            "see [docs/mqtt.md](/usr/share/doc/phi-edge/mqtt.md) and [ask](rust/ask.rs)"
        );
    }
}
