//! Runs over rows in device memory: a step is run in parts, each over the rows of one group.

use std::collections::BTreeMap;

use phi_edge_engine::{DecodeError, Input, Interrupt, Regime, Row, Step, Wanted};

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
        let limits = self.run_limits;
        let parts = if !limits.several_rows {
            (0..ends.len()).map(|index| vec![index]).collect()
        } else if limits.several_lengths {
            device.partition(&ends)
        } else {
            of_one_length(&ends)
        };
        for part in parts {
            for part in self.groups(step, part)? {
                let rows: Vec<Row<'_>> = part.iter().map(|&index| step.rows[index]).collect();
                let computed = self.run_group(&rows, interrupt)?;
                let mut computed = computed.as_slice();
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
                tracing::debug!(
                    fault,
                    rows = part.len(),
                    "Rows run one by one for lack of device memory."
                );
                Ok(part.into_iter().map(|index| vec![index]).collect())
            }
            Err(error) => Err(error),
        }
    }

    /// Runs the rows of one group, in the order of their places; returns the wanted logits.
    fn run_group(&mut self, rows: &[Row<'_>], interrupt: &Interrupt) -> Result<Vec<f32>, DecodeError> {
        if let [row] = rows
            && !self.run_limits.several_tokens
        {
            return self.run_tokens(row, interrupt);
        }
        self.run_whole(rows, interrupt)
    }

    /// Runs one row token by token.
    fn run_tokens(&mut self, row: &Row<'_>, interrupt: &Interrupt) -> Result<Vec<f32>, DecodeError> {
        let mut logits = Vec::with_capacity(row.logits_count() * self.caps.vocab_size);
        for (at, symbols) in row.input.symbols.chunks(1).enumerate() {
            let is_last = at + 1 == row.input.len();
            let one = Row {
                past: row.past + at,
                input: Input { symbols, ..row.input },
                logits: match row.logits {
                    Wanted::Last if !is_last => Wanted::None,
                    Wanted::All => Wanted::Last,
                    wanted => wanted,
                },
                ..*row
            };
            logits.extend(self.run_whole(&[one], interrupt)?);
        }
        Ok(logits)
    }

    fn run_whole(&mut self, rows: &[Row<'_>], interrupt: &Interrupt) -> Result<Vec<f32>, DecodeError> {
        // Of rows that run one by one, the group is made only now.
        self.gather_rows(rows)?;
        let regime = rows.first().map_or(Regime::Short, |row| row.regime);
        self.bind_rows(rows)
            .and_then(|()| self.bind_tables(regime))
            .and_then(|()| self.bind_run_inputs(rows.len()))
            .map_err(DecodeError::Failed)?;
        self.run_bound(interrupt)?;
        Ok(self.collect(&Step { rows }).to_vec())
    }

    /// Fills the inputs of a run and makes a group of its rows, with room for what the run writes, where they are on a device.
    pub(super) fn gather_rows(&mut self, rows: &[Row<'_>]) -> Result<(), DecodeError> {
        self.run_inputs.fill(rows, self.rope)?;
        let KvMemory::Device(device) = &mut self.kv else {
            return Ok(());
        };
        let most = |of: fn(&Row<'_>) -> usize| rows.iter().map(of).max().unwrap_or(0);
        let longest = most(|row| row.past + row.input.len());
        let pads = self.run_inputs.width - most(|row| row.input.len());
        let limits = self.run_limits;
        if (!limits.several_lengths && self.run_inputs.mask_width > longest + pads)
            || (!limits.several_tokens && pads > 0)
        {
            return Err(DecodeError::Unsupported(format!(
                "\"{}\" computes this form of graph wrongly for the beginning of a text beyond its rope boundary",
                self.provider()
            )));
        }
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

/// The rows of a step, by index, in parts of one length each.
fn of_one_length(lengths: &[usize]) -> Vec<Vec<usize>> {
    let mut parts: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (index, length) in lengths.iter().enumerate() {
        parts.entry(*length).or_default().push(index);
    }
    parts.into_values().collect()
}
