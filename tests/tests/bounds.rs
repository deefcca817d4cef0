//! The table of what is bounded (docs/reliability.md): each row names a test that is there.

#![allow(clippy::unwrap_used, reason = "test code")]

use std::path::Path;

#[test]
fn each_bound_has_a_test_that_fills_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let page = std::fs::read_to_string(root.join("docs/reliability.md")).unwrap();
    let table = page.split("<!-- bounds -->").nth(1).unwrap();
    let table = table.split("<!-- end of bounds -->").next().unwrap();
    let rows: Vec<&str> = table
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| what |"))
        .collect();
    assert!(rows.len() > 20, "{} rows", rows.len());
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        assert_eq!(cells.len(), 5, "{row}");
        let (file, test) = cells[4]
            .rsplit_once(' ')
            .unwrap_or_else(|| panic!("no test: {row}"));
        let source = std::fs::read_to_string(root.join(file.trim_matches('`')))
            .unwrap_or_else(|error| panic!("{file}: {error}: {row}"));
        assert!(
            source.contains(&format!("fn {test}(")),
            "no test {test} in {file}"
        );
    }
}
