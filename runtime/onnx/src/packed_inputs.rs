//! The integer inputs of a run whose rows stand one behind the other, without padding, and have their keys and values in blocks.

use phi_edge_engine::Row;

use crate::kv::PagedRows;

/// Buffers that the bound tensors point into, refilled before each run.
#[derive(Debug, Default)]
pub(crate) struct PackedInputs {
    /// `[rows + 1]`: where rows begin among the run's tokens, and the end.
    pub(crate) starts: Vec<i32>,
    /// `[rows]`: the tokens that each holds already.
    pub(crate) past: Vec<i32>,
    /// `[rows, table_columns]`: the blocks of each, -1 behind them.
    pub(crate) table: Vec<i32>,
    pub(crate) table_columns: usize,
    /// The most tokens that a row appends; the most that one holds then, at most and at least.
    pub(crate) bounds: [i32; 3],
}

impl PackedInputs {
    /// Fills the buffers for `rows`, which all append tokens.
    pub(crate) fn fill(&mut self, rows: &[Row<'_>], paged: &PagedRows) {
        let block_tokens = paged.shape().block_tokens;
        let end = |row: &Row<'_>| row.past + row.input.len();
        let longest = rows.iter().map(end).max().unwrap_or(0);
        let appended = rows.iter().map(|row| row.input.len()).max().unwrap_or(0);
        self.bounds = [appended, longest, longest].map(to_i32);
        self.table_columns = longest.div_ceil(block_tokens).max(1);
        self.starts.clear();
        self.past.clear();
        self.table.clear();
        let mut start = 0;
        self.starts.push(0);
        for (index, row) in rows.iter().enumerate() {
            start += row.input.len();
            self.starts.push(to_i32(start));
            self.past.push(to_i32(row.past));
            let blocks = paged.blocks(row.row.0 as usize).iter().take(self.table_columns);
            self.table
                .extend(blocks.map(|block| i32::try_from(*block).unwrap_or(-1)));
            self.table.resize((index + 1) * self.table_columns, -1);
        }
    }
}

fn to_i32(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}
