//! Runs over rows in device memory: a step is run in parts, each over the rows of one group.

use phi_edge_engine::{DecodeError, Interrupt, Regime, Row, Step};

use super::OnnxDecoder;
use crate::kv::{GroupId, KvError, KvMemory};

impl OnnxDecoder {
    /// Runs a step in as many parts as its rows differ in length; returns the wanted logits in the order of the step. Where the
    /// memory does not hold a part's rows together, each of them runs alone.
    pub(super) fn run_in_groups(
        &mut self,
        step: &Step<'_>,
        interrupt: &Interrupt,
    ) -> Result<Vec<f32>, DecodeError> {
        let vocab = self.caps.vocab_size;
        let mut starts = Vec::with_capacity(step.rows.len());
        let mut total = 0;
        for row in step.rows {
            starts.push(total * vocab);
            total += row.logits_count();
        }
        let mut logits = vec![0.0; total * vocab];
        let KvMemory::Device(device) = &self.kv else {
            return Err(DecodeError::Failed("rows that are not on a device".into()));
        };
        let ends: Vec<usize> = step.rows.iter().map(|row| row.past + row.input.len()).collect();
        for part in device.partition(&ends) {
            for part in self.groups(step, part)? {
                let rows: Vec<Row<'_>> = part.iter().map(|&index| step.rows[index]).collect();
                self.run_group(&rows, interrupt)?;
                let mut computed = self.collect(&Step { rows: &rows });
                for &index in &part {
                    let wanted = step.rows[index].logits_count() * vocab;
                    let (these, rest) = computed.split_at(wanted);
                    logits[starts[index]..starts[index] + wanted].copy_from_slice(these);
                    computed = rest;
                }
            }
        }
        Ok(logits)
    }

    /// The groups that run for `part`, of indices into the rows of `step`, each in the order of its places.
    fn groups(&mut self, step: &Step<'_>, mut part: Vec<usize>) -> Result<Vec<Vec<usize>>, DecodeError> {
        let rows: Vec<Row<'_>> = part.iter().map(|&index| step.rows[index]).collect();
        match self.gather_rows(&rows) {
            Ok(()) => {
                if let KvMemory::Device(device) = &self.kv {
                    part.sort_by_key(|&index| device.index(step.rows[index].row.0 as usize));
                }
                Ok(vec![part])
            }
            Err(DecodeError::OutOfMemory(fault)) if part.len() > 1 => {
                tracing::debug!(fault, rows = part.len(), "Rows run one by one for lack of device memory.");
                Ok(part.into_iter().map(|index| vec![index]).collect())
            }
            Err(error) => Err(error),
        }
    }

    /// Runs the rows of one group, in the order of their places.
    fn run_group(&mut self, rows: &[Row<'_>], interrupt: &Interrupt) -> Result<(), DecodeError> {
        // Of rows that run one by one, the group is made only now.
        self.gather_rows(rows)?;
        let regime = rows.first().map_or(Regime::Short, |row| row.regime);
        self.bind_rows(rows)
            .and_then(|()| self.bind_tables(regime))
            .and_then(|()| self.bind_run_inputs(rows.len()))
            .map_err(DecodeError::Failed)?;
        self.run_bound(interrupt)
    }

    /// Fills the inputs of a run and makes a group of its rows, with room for what the run writes, where they are on a device.
    pub(super) fn gather_rows(&mut self, rows: &[Row<'_>]) -> Result<(), DecodeError> {
        self.run_inputs.fill(rows, self.rope)?;
        let KvMemory::Device(device) = &mut self.kv else {
            return Ok(());
        };
        let ends = rows.iter().map(|row| row.past + row.input.len());
        let rows: Vec<(usize, usize)> = rows.iter().map(|row| row.row.0 as usize).zip(ends).collect();
        // The mask may be wider than any row, and keys and values have to be as wide.
        device
            .group(&rows, self.run_inputs.mask_width)
            .map_err(KvError::into)
    }

    /// The group that the rows of a run are.
    pub(super) fn group_of(&self, rows: &[Row<'_>]) -> Result<GroupId, String> {
        let KvMemory::Device(device) = &self.kv else {
            return Err("rows that are not on a device".into());
        };
        let rows: Vec<usize> = rows.iter().map(|row| row.row.0 as usize).collect();
        device.group_of(&rows)
    }
}
