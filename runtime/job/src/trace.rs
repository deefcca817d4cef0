//! The trace that a request is part of (W3C Trace Context, level 1).

use std::fmt;

/// A valid `traceparent`: `00-` trace id `-` parent id `-` flags, in lower-case hexadecimal digits.
#[derive(Clone, PartialEq, Eq)]
pub struct TraceParent(Box<str>);

/// The lengths of version, trace id, parent id and flags.
const PART_LENGTHS: [usize; 4] = [2, 32, 16, 2];

impl TraceParent {
    /// Parses a `traceparent`; `None` for an invalid one, which is to be ignored (section 3.2.2.3 of the specification).
    pub fn parse(text: &str) -> Option<Self> {
        let parts: Vec<&str> = text.split('-').collect();
        let digits = |part: &str| part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let zero = |part: &str| part.bytes().all(|byte| byte == b'0');
        // A later version may go on behind these four; of version 0 that would be a fault. "ff" is no version.
        let whole =
            parts.len() == PART_LENGTHS.len() || (parts.len() > PART_LENGTHS.len() && parts[0] != "00");
        let valid = whole
            && parts
                .iter()
                .zip(PART_LENGTHS)
                .all(|(part, len)| part.len() == len && digits(part))
            && parts[0] != "ff"
            && !zero(parts[1])
            && !zero(parts[2]);
        // Longer than any that is defined: not worth keeping.
        (valid && text.len() <= 128).then(|| Self(text.into()))
    }

    /// Returns the text as it came.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the trace's id, 32 digits.
    pub fn trace_id(&self) -> &str {
        &self.0[3..35]
    }
}

impl fmt::Debug for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_specification_allows_is_taken() {
        let id = "4bf92f3577b34da6a3ce929d0e0e4736";
        let good = format!("00-{id}-00f067aa0ba902b7-01");
        assert_eq!(TraceParent::parse(&good).expect("valid").trace_id(), id);
        assert!(TraceParent::parse(&format!("01-{id}-00f067aa0ba902b7-01-more")).is_some());
        for bad in [
            String::new(),
            format!("00-{id}-00f067aa0ba902b7"),
            format!("00-{id}-00f067aa0ba902b7-01-more"),
            format!("ff-{id}-00f067aa0ba902b7-01"),
            format!("00-{}-00f067aa0ba902b7-01", id.to_uppercase()),
            format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)),
            format!("00-{id}-{}-01", "0".repeat(16)),
            "00-ä".to_owned(),
        ] {
            assert!(TraceParent::parse(&bad).is_none(), "{bad:?}");
        }
    }
}
