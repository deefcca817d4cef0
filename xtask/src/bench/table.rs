//! Tables of docs/benchmarks.md.

use std::path::Path;

use serde_json::Value;

/// The document with the report of `name` in its place.
pub(crate) fn section(old: &str, name: &str, report: &str) -> String {
    between(
        old,
        &format!("cargo xtask bench --only {name}"),
        &format!("end of {name}"),
        report,
    )
}

/// The document with `report` between two comments; at its end where there are none.
pub(crate) fn between(old: &str, begin: &str, end: &str, report: &str) -> String {
    let (begin, end) = (format!("<!-- {begin} -->"), format!("<!-- {end} -->"));
    match (old.find(&begin), old.find(&end)) {
        (Some(from), Some(to)) if from < to => {
            format!("{}{begin}\n\n{}\n\n{}", &old[..from], report.trim(), &old[to..])
        }
        _ => format!("{}\n\n{begin}\n\n{}\n\n{end}\n", old.trim_end(), report.trim()),
    }
}

/// A number of a report.
pub(crate) fn number(value: &Value, key: &str) -> f64 {
    key.split('.')
        .fold(value, |value, key| &value[key])
        .as_f64()
        .unwrap_or(f64::NAN)
}

/// The median, with the least and the greatest where there are several.
pub(crate) fn spread(mut values: Vec<f64>, digits: usize) -> String {
    values.sort_by(f64::total_cmp);
    let (n, median) = (values.len(), median(&values));
    match n {
        0 => "–".to_owned(),
        1 => format!("{median:.digits$}"),
        _ => format!(
            "{median:.digits$} ({:.digits$}–{:.digits$})",
            values[0],
            values[n - 1]
        ),
    }
}

/// The middle of values in ascending order.
pub(crate) fn median(sorted: &[f64]) -> f64 {
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

/// This machine's processor.
pub(crate) fn processor() -> String {
    let info = std::fs::read_to_string(Path::new("/proc/cpuinfo")).unwrap_or_default();
    let name = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    name.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_replaces_its_own_only() {
        let first = section("# Benchmarks\n", "one", "a table\n");
        let both = section(&first, "many", "another\n");
        let again = section(&both, "one", "a newer table\n");
        assert!(again.contains("a newer table") && again.contains("another"));
        assert!(!again.contains("a table"), "{again}");
        assert_eq!(section(&again, "one", "a newer table"), again);
    }

    #[test]
    fn spreads_name_their_ends() {
        assert_eq!(spread(vec![3.0, 1.0, 2.0], 1), "2.0 (1.0–3.0)");
        assert_eq!(spread(vec![3.0], 2), "3.00");
        assert_eq!(spread(vec![], 2), "–");
    }
}
