//! The partition of a run's attention into units of work, each for one head at a time.

use super::layout::RowTable;

/// The most query vectors of a part of a row. All are scored against a tile of keys while it is in the first caches.
const MAX_PART_VECTORS: usize = 64;

/// Rows, or a part of one, whose queries pass over the same keys together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unit {
    /// By what they share: rows with the same first spans are neighbours.
    pub(crate) rows: Vec<usize>,
    /// The first query vector of each row.
    pub(crate) first: usize,
    /// The most query vectors of each row.
    pub(crate) vectors: usize,
    whole: bool,
}

impl Unit {
    /// Whether it has all query vectors of its rows.
    pub(crate) fn is_whole(&self) -> bool {
        self.whole
    }
}

/// The units of rows of these lengths, each with `group` query vectors a token. Rows without tokens are in none.
pub(crate) fn units(lengths: &[usize], group: usize, table: &RowTable) -> Vec<Unit> {
    let mut together: Vec<usize> = Vec::new();
    let mut units = Vec::new();
    for (row, length) in lengths.iter().enumerate().filter(|(_, length)| **length > 0) {
        let vectors = length * group;
        if vectors <= MAX_PART_VECTORS {
            together.push(row);
            continue;
        }
        units.extend((0..vectors).step_by(MAX_PART_VECTORS).map(|first| Unit {
            rows: vec![row],
            first,
            vectors: MAX_PART_VECTORS,
            whole: false,
        }));
    }
    together.sort_by(|a, b| table.shared[*a].cmp(&table.shared[*b]));
    let alike = |a: &usize, b: &usize| {
        let first = |row: &usize| table.shared[*row].first();
        first(a).is_some() && first(a) == first(b)
    };
    units.extend(together.chunk_by(alike).map(|rows| Unit {
        rows: rows.to_vec(),
        first: 0,
        vectors: MAX_PART_VECTORS,
        whole: true,
    }));
    units
}
