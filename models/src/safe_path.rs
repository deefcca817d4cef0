//! Paths of files that come from elsewhere: listings, archives, manifests.

/// Whether a path of a listing or an archive stays below the folder it is written to, on every system, and clear of
/// the names that partial files have.
pub(crate) fn is_safe(path: &str) -> bool {
    let part_is_safe = |part: &str| {
        let plain = !part.is_empty() && part != "." && part != "..";
        plain && !part.contains(['\\', ':', '\0']) && !part.chars().any(char::is_control)
    };
    let partial = [".part", ".part.json"].iter().any(|end| path.ends_with(end));
    path.len() <= 1024 && path.split('/').all(part_is_safe) && !partial
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_escape_are_refused() {
        for good in ["a", "a/b.onnx", "model.onnx.data", ".gitattributes"] {
            assert!(is_safe(good), "{good}");
        }
        for bad in [
            "",
            "/a",
            "a/../b",
            "..",
            "a//b",
            "c:\\x",
            "a\\b",
            "a/",
            "x.part",
            "x.part.json",
            "a\nb",
        ] {
            assert!(!is_safe(bad), "{bad}");
        }
    }
}
