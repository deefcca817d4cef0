//! What a step must be for this decoder.

use phi_edge_engine::{DecodeError, RowId, Step, Wanted};

use super::OnnxDecoder;

impl OnnxDecoder {
    /// Fails where the step asks for what the capabilities exclude.
    pub(super) fn check(&self, step: &Step<'_>) -> Result<(), DecodeError> {
        let unsupported = |what: &str| Err(DecodeError::Unsupported(what.to_owned()));
        let Some(first) = step.rows.first() else {
            return unsupported("a step without rows");
        };
        for (index, row) in step.rows.iter().enumerate() {
            if self.caps.contiguous_rows && row.row.0 as usize != first.row.0 as usize + index {
                return unsupported("rows that are no neighbours in ascending order");
            }
            if row.row.0 as usize >= self.caps.rows || !self.shares(row) {
                return unsupported("rows outside the KV memory");
            }
            if step.rows[..index].iter().any(|other| other.row == row.row) {
                return unsupported("a row twice");
            }
            if row.input.is_empty() && (!self.caps.idle_rows || row.logits == Wanted::Last) {
                return unsupported("a row without input");
            }
            if step.rows.len() > 1 && row.input.len() > 1 && !self.caps.ragged_chunks {
                return unsupported("several rows of several tokens");
            }
            if row.regime != first.regime && !self.caps.mixed_regimes {
                return unsupported("rows of both rope regimes");
            }
            if row.past + row.input.len() > self.caps.context_length {
                return unsupported("more tokens than the context holds");
            }
        }
        if step.rows.iter().all(|row| row.input.is_empty()) {
            return unsupported("a step without input");
        }
        Ok(())
    }

    /// Fails where a row of `len` tokens is longer than the context.
    pub(super) fn fits(&self, len: usize) -> Result<(), DecodeError> {
        if len > self.caps.context_length {
            return Err(DecodeError::OutOfMemory(format!(
                "{len} tokens in a row of {}",
                self.caps.context_length
            )));
        }
        Ok(())
    }

    /// Fails where there is no such row.
    pub(super) fn known(&self, row: RowId) -> Result<(), DecodeError> {
        if (row.0 as usize) < self.caps.rows {
            Ok(())
        } else {
            Err(DecodeError::Unsupported(format!(
                "row {} of {}",
                row.0, self.caps.rows
            )))
        }
    }
}
