//! The stop matcher: it ends a text before the first stop string, however the pieces cut it.

/// The match state of one text.
#[derive(Debug)]
pub(crate) struct StopMatcher {
    strings: Vec<String>,
    /// Text that is held back: it may be the beginning of a stop string.
    held: String,
}

/// The result of [`StopMatcher::push`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Released {
    /// Text that no stop string can take back.
    pub(crate) text: String,
    /// Whether a stop string is complete, after which nothing follows.
    pub(crate) stopped: bool,
}

impl StopMatcher {
    /// A matcher for `strings`. Empty ones are ignored: they would end every text before it begins.
    pub(crate) fn new(strings: &[String]) -> Self {
        let strings = strings.iter().filter(|s| !s.is_empty()).cloned().collect();
        Self {
            strings,
            held: String::new(),
        }
    }

    /// Adds the next piece. Works a character at a time, so that the result never depends on how the text was cut
    /// into pieces: the first string to be complete ends the text, the longest if several are complete at once.
    pub(crate) fn push(&mut self, piece: &str) -> Released {
        if self.strings.is_empty() {
            return Released {
                text: piece.to_owned(),
                stopped: false,
            };
        }
        let mut text = String::new();
        for character in piece.chars() {
            self.held.push(character);
            let complete = self
                .strings
                .iter()
                .filter(|s| self.held.ends_with(s.as_str()))
                .map(String::len)
                .max();
            if let Some(length) = complete {
                text.push_str(&self.held[..self.held.len() - length]);
                self.held.clear();
                return Released { text, stopped: true };
            }
            let keep = self.longest_beginning();
            text.extend(self.held.drain(..self.held.len() - keep));
        }
        Released { text, stopped: false }
    }

    /// Ends the text and returns what was held back.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// The number of bytes at the end of `held` that begin a stop string.
    fn longest_beginning(&self) -> usize {
        self.held
            .char_indices()
            .map(|(start, _)| &self.held[start..])
            .find(|tail| self.strings.iter().any(|s| s.starts_with(*tail)))
            .map_or(0, str::len)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(strings: &[&str], pieces: &[&str], expected: &str, stopped: bool) {
        let strings: Vec<String> = strings.iter().map(|s| (*s).to_owned()).collect();
        let mut matcher = StopMatcher::new(&strings);
        let mut text = String::new();
        let mut ended = false;
        for piece in pieces {
            let released = matcher.push(piece);
            text.push_str(&released.text);
            if released.stopped {
                ended = true;
                break;
            }
        }
        if !ended {
            text.push_str(&matcher.finish());
        }
        assert_eq!(
            (text.as_str(), ended),
            (expected, stopped),
            "{strings:?} in {pieces:?}"
        );
    }

    #[test]
    fn stops() {
        check(&["END"], &["abc EN", "D def"], "abc ", true);
        check(&["END"], &["abc EN", "x"], "abc ENx", false);
        check(&["END"], &["EENE", "ND"], "EENE".strip_suffix('E').unwrap(), true);
        check(&["aab"], &["aa", "ab"], "a", true);
        check(&["über"], &["x ü", "ber"], "x ", true);
        check(&["abc", "b"], &["abc"], "a", true);
        check(&["abc", "c"], &["abc"], "", true);
        check(&[""], &["abc"], "abc", false);
        check(&[], &["abc"], "abc", false);
    }

    proptest! {
        #[test]
        fn the_cut_does_not_matter(text in "[abc]{0,30}", stops in prop::collection::vec("[abc]{1,4}", 0..3), cuts in prop::collection::vec(0usize..31, 0..6)) {
            let run = |pieces: &[&str]| {
                let mut matcher = StopMatcher::new(&stops);
                let mut out = String::new();
                for piece in pieces {
                    let released = matcher.push(piece);
                    out.push_str(&released.text);
                    // Nothing given out may contain a stop string.
                    assert!(stops.iter().all(|s| !out.contains(s.as_str())));
                    if released.stopped {
                        return (out, true);
                    }
                }
                out.push_str(&matcher.finish());
                (out, false)
            };
            let mut at: Vec<usize> = cuts.into_iter().map(|c| c.min(text.len())).collect();
            at.push(0);
            at.push(text.len());
            at.sort_unstable();
            let pieces: Vec<&str> = at.windows(2).map(|w| &text[w[0]..w[1]]).collect();
            prop_assert_eq!(run(&pieces), run(&[text.as_str()]));
        }
    }
}
