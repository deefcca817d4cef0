//! Changes of rows in the random schedules of the tests of block tables and of groups.

use std::ops::Range;

use proptest::prelude::Strategy;
use proptest::prop_oneof;

/// A change of what rows hold, without new tokens.
#[derive(Debug, Clone)]
pub(super) enum RowChange {
    /// `to` holds the first `tokens` of `from`, or all of them where these are fewer.
    Copy { from: usize, to: usize, tokens: usize },
    /// The row holds at most its first `tokens`.
    Truncate { row: usize, tokens: usize },
    /// The row holds nothing.
    Release { row: usize },
}

/// A change of one of `rows` rows, with a number of tokens of `tokens`.
pub(super) fn row_change(rows: usize, tokens: Range<usize>) -> impl Strategy<Value = RowChange> {
    let row = 0..rows;
    let copied = tokens.start.max(1)..tokens.end;
    prop_oneof![
        2 => (row.clone(), row.clone(), copied).prop_map(|(from, to, tokens)| RowChange::Copy { from, to, tokens }),
        1 => (row.clone(), tokens).prop_map(|(row, tokens)| RowChange::Truncate { row, tokens }),
        1 => row.prop_map(|row| RowChange::Release { row }),
    ]
}
