//! Runs over rows in blocks of a device: the tokens of all rows one behind the other, without padding.

use phi_edge_engine::{DecodeError, Interrupt, Regime, Row, Step};

use super::{OnnxDecoder, to_i64};
use crate::kv::KvMemory;
use crate::raw::{self, Element, View};

impl OnnxDecoder {
    /// Runs a step, without its idle rows. The wanted logits are those of `collect`.
    pub(super) fn run_packed(&mut self, step: &Step<'_>, interrupt: &Interrupt) -> Result<(), DecodeError> {
        let KvMemory::Paged(paged) = &mut self.kv else {
            return Err(DecodeError::Failed("rows that are not in blocks".into()));
        };
        let rows: Vec<Row<'_>> = step
            .rows
            .iter()
            .filter(|row| !row.input.is_empty())
            .copied()
            .collect();
        for row in &rows {
            paged
                .prepare_write(row.row.0 as usize, row.past, row.past + row.input.len())
                .map_err(DecodeError::from)?;
        }
        self.packed_inputs.fill(&rows, paged);
        self.run_inputs.fill_packed(&rows)?;
        let regime = rows.first().map_or(Regime::Short, |row| row.regime);
        self.bind_rows(&rows)
            .and_then(|()| self.bind_tables(regime))
            .and_then(|()| self.bind_run_inputs(1))
            .and_then(|()| self.bind_packed_inputs())
            .map_err(DecodeError::Failed)?;
        self.run_bound(interrupt)
    }

    /// Binds what only a run over blocks takes, behind its other inputs.
    fn bind_packed_inputs(&mut self) -> Result<(), String> {
        let (names, packed) = (&self.names, &mut self.packed_inputs);
        let rows = packed.past.len();
        let inputs: [(_, *mut i32, &[usize]); 4] = [
            (&names.row_starts, packed.starts.as_mut_ptr(), &[rows + 1]),
            (&names.past_lengths, packed.past.as_mut_ptr(), &[rows]),
            (
                &names.block_table,
                packed.table.as_mut_ptr(),
                &[rows, packed.table_columns],
            ),
            (&names.length_bounds, packed.bounds.as_mut_ptr(), &[3]),
        ];
        for (name, data, shape) in inputs {
            let shape: Vec<i64> = shape.iter().map(|dim| to_i64(*dim)).collect();
            // SAFETY: the buffer has `shape`'s elements (`PackedInputs::fill`) and is neither moved nor written before the next
            // run's inputs are filled.
            let view = unsafe { View::new(&self.host, data.cast(), &shape, Element::I32)? };
            raw::bind_input(&mut self.binding, name, &view)?;
            self.input_views.push(view);
        }
        Ok(())
    }
}
