//! The tables of ARCHITECTURE.md.

use super::source::root;

/// A row of the table of crates.
pub(crate) struct Row {
    pub(crate) folder: String,
    /// `None` for a folder that holds no crate.
    pub(crate) package: Option<String>,
    /// The words of its "never" column.
    pub(crate) never: Vec<String>,
}

pub(crate) fn text() -> String {
    std::fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md")
}

/// The cells of the rows of the table with this head.
pub(crate) fn table(text: &str, head: &str) -> Vec<Vec<String>> {
    let mut lines = text.lines().skip_while(|line| !line.starts_with(head));
    assert!(lines.next().is_some(), "ARCHITECTURE.md has no table {head}");
    let rows = lines.skip(1).take_while(|line| line.starts_with('|'));
    rows.map(|row| {
        let cells = row.trim_matches('|').split('|');
        cells.map(|cell| cell.trim().to_owned()).collect()
    })
    .collect()
}

/// The table of crates.
pub(crate) fn crates(text: &str) -> Vec<Row> {
    let rows = table(text, "| folder | crate |");
    let named = |cell: &str| (cell != "–").then(|| cell.trim_matches('`').to_owned());
    rows.iter()
        .map(|cells| Row {
            folder: cells[0].trim_matches('`').to_owned(),
            package: named(&cells[1]),
            never: named(&cells[3])
                .map(|words| words.split(", ").map(str::to_owned).collect())
                .unwrap_or_default(),
        })
        .collect()
}

/// The paths from the repository's root that a text names, in backticks.
pub(crate) fn paths(text: &str) -> Vec<&str> {
    const FOLDERS: [&str; 9] = [
        "demo/",
        "docs/",
        "edge-config/",
        "examples/",
        "models/",
        "runtime/",
        "systemd/",
        "tests/",
        "xtask/",
    ];
    let quoted = text.split('`').skip(1).step_by(2);
    quoted
        .filter(|path| FOLDERS.iter().any(|folder| path.starts_with(folder)))
        .collect()
}
