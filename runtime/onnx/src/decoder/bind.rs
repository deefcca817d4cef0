//! Binding a run's inputs (keys and values, rope tables, integers), and its logits.

use std::ffi::CString;

use phi_edge_engine::{DecodeError, Input, Interrupt, Regime, Row, RowId, Step, Symbol, Wanted};

use super::{BoundRows, BoundTable, OnnxDecoder, to_i64};
use crate::interruptible::interruptible;
use crate::kv::{KvMemory, Side};
use crate::raw::{self, Element, View};
use crate::run_inputs::RopeFactors;

impl OnnxDecoder {
    /// Binds the KV memory of the rows: past and present to the same views, or all blocks. Kept until others are needed.
    pub(super) fn bind_rows(&mut self, rows: &[Row<'_>]) -> Result<(), String> {
        let first = rows.first().map_or(0, |row| row.row.0 as usize);
        let count = rows.len();
        let bound = match self.kv {
            KvMemory::Slab(_) => BoundRows::Slab { first, count },
            KvMemory::Blocks(_) => BoundRows::Blocks,
            KvMemory::Device(_) => BoundRows::Group(self.group_of(rows)?),
            KvMemory::Paged(_) => BoundRows::Pool,
        };
        if self.bound_rows == Some(bound) {
            return Ok(());
        }
        self.bound_rows = None;
        self.kv_views.clear();
        match &self.kv {
            KvMemory::Slab(_) | KvMemory::Device(_) | KvMemory::Paged(_) => {
                for (index, (past, present)) in self.names.kv.iter().enumerate() {
                    let side = if index % 2 == 0 { Side::Key } else { Side::Value };
                    let view = match (&self.kv, bound) {
                        (KvMemory::Slab(slab), _) => slab.view(index / 2, side, first, count)?,
                        (KvMemory::Device(device), BoundRows::Group(group)) => {
                            device.view(group, index / 2, side)?
                        }
                        (KvMemory::Paged(paged), _) => paged.view(index)?,
                        _ => return Err("another form of KV memory than was bound".into()),
                    };
                    raw::bind_input(&mut self.binding, past, &view)?;
                    raw::bind_output(&mut self.binding, present, &view)?;
                    self.kv_views.push(view);
                }
            }
            KvMemory::Blocks(blocks) => {
                let view = blocks.view()?;
                raw::bind_input(&mut self.binding, &self.names.kv_blocks, &view)?;
                self.kv_views.push(view);
            }
        }
        self.bound_rows = Some(bound);
        Ok(())
    }

    /// Binds the rope tables, where they are inputs: both, or the one of the run's regime.
    pub(super) fn bind_tables(&mut self, regime: Regime) -> Result<(), String> {
        let Some(tables) = &mut self.tables else {
            return Ok(());
        };
        let (table, from, rows) = match (self.rope.factors, regime) {
            (RopeFactors::Offset(_), _) => (BoundTable::Joined, 0, tables.short + tables.long),
            (_, Regime::Short) => (BoundTable::Of(regime), 0, tables.short),
            (_, Regime::Long) => (BoundTable::Of(regime), tables.short, tables.long),
        };
        if self.bound_table == Some(table) {
            return Ok(());
        }
        self.bound_table = None;
        self.table_views.clear();
        let shape = [rows, tables.width].map(to_i64);
        let start = from * tables.width * tables.element.bytes();
        for (name, data) in tables.names.iter().zip(&mut tables.data) {
            let name = CString::new(name.as_str()).map_err(|error| error.to_string())?;
            let rows = data.get_mut(start..).ok_or("the rope tables are too short")?;
            // SAFETY: the tables hold `short + long` rows of `width` elements (`RopeTables::limit` keeps it so), which
            // nothing moves or writes while the decoder lives.
            let view = unsafe { View::new(&self.host, rows.as_mut_ptr().cast(), &shape, tables.element)? };
            raw::bind_input(&mut self.binding, &name, &view)?;
            self.table_views.push(view);
        }
        self.bound_table = Some(table);
        Ok(())
    }

    pub(super) fn bind_run_inputs(&mut self, rows: usize) -> Result<(), String> {
        let narrow = [rows, self.run_inputs.width].map(to_i64);
        let wide = [rows, self.run_inputs.mask_width].map(to_i64);
        let chosen = self.run_inputs.logits_rows.len();
        let run_inputs = &mut self.run_inputs;
        let mut inputs = vec![
            (
                &self.names.ids,
                run_inputs.ids.as_mut_ptr().cast(),
                &narrow[..],
                Element::I64,
            ),
            (
                &self.names.mask,
                run_inputs.mask.as_mut_ptr().cast(),
                &wide,
                Element::I64,
            ),
        ];
        if let Some(name) = &self.names.positions {
            inputs.push((
                name,
                run_inputs.positions.as_mut_ptr().cast(),
                &narrow,
                Element::I64,
            ));
        }
        if let Some(name) = &self.names.lengths {
            inputs.push((
                name,
                run_inputs.lengths.as_mut_ptr().cast(),
                &narrow[..1],
                Element::I32,
            ));
        }
        let table = [rows, run_inputs.table_columns].map(to_i64);
        if matches!(self.kv, KvMemory::Blocks(_)) {
            let data = run_inputs.table.as_mut_ptr().cast();
            inputs.push((&self.names.kv_table, data, &table, Element::I32));
        }
        let vector = [to_i64(chosen)];
        if self.chooses_logits {
            let rows = run_inputs.logits_rows.as_mut_ptr().cast();
            inputs.push((&self.names.logits_rows, rows, &vector, Element::I64));
        }
        let features = [run_inputs.feature_rows(), run_inputs.feature_width.unwrap_or(0)].map(to_i64);
        if let (Some(name), Some(element)) = (&self.names.image_features, self.image_features) {
            let data = if element == Element::F16 {
                self.f16_features.clear();
                self.f16_features.extend(
                    run_inputs
                        .features
                        .iter()
                        .map(|value| half::f16::from_f32(*value)),
                );
                self.f16_features.as_mut_ptr().cast()
            } else {
                run_inputs.features.as_mut_ptr().cast()
            };
            inputs.push((name, data, &features, element));
        }
        self.input_views.clear();
        for (name, data, shape, element) in inputs {
            // SAFETY: the buffer has `shape`'s elements (`RunInputs::fill`) and is neither moved nor written
            // before the next `bind_run_inputs`, which comes before the next run.
            let view = unsafe { View::new(&self.host, data, shape, element)? };
            raw::bind_input(&mut self.binding, name, &view)?;
            self.input_views.push(view);
        }
        let vocab = to_i64(self.caps.vocab_size);
        let (shape, tokens) = if self.chooses_logits {
            ([1, vector[0], vocab], chosen)
        } else {
            ([narrow[0], narrow[1], vocab], rows * self.run_inputs.width)
        };
        let elements = tokens * self.caps.vocab_size;
        let data = if self.logits_element == Element::F16 {
            self.f16_logits.resize(elements, half::f16::ZERO);
            self.f16_logits.as_mut_ptr().cast()
        } else {
            self.f32_logits.resize(elements, 0.0);
            self.f32_logits.as_mut_ptr().cast()
        };
        // SAFETY: the buffer has just been made large enough, and only this run writes it.
        let view = unsafe { View::new(&self.host, data, &shape, self.logits_element)? };
        raw::bind_output(&mut self.binding, &self.names.logits, &view)?;
        self.input_views.push(view);
        Ok(())
    }

    /// Runs one row without the checks and the choice of logits, for [`crate::baseline`].
    pub(crate) fn run_plain(
        &mut self,
        symbols: &[Symbol],
        past: usize,
        interrupt: &Interrupt,
    ) -> Result<(), DecodeError> {
        let regime = match self.rope.boundary {
            Some(boundary) if past + symbols.len() > boundary => Regime::Long,
            _ => Regime::Short,
        };
        let row = Row {
            row: RowId(0),
            past,
            shared: &[],
            input: Input::of(symbols),
            logits: Wanted::Last,
            regime,
        };
        if let KvMemory::Paged(_) = self.kv {
            return self.run_packed(&Step { rows: &[row] }, interrupt);
        }
        self.gather_rows(&[row])?;
        self.bind_rows(&[row])
            .and_then(|()| self.bind_tables(regime))
            .and_then(|()| self.bind_run_inputs(1))
            .map_err(DecodeError::Failed)?;
        self.run_bound(interrupt)
    }

    pub(super) fn run_bound(&mut self, interrupt: &Interrupt) -> Result<(), DecodeError> {
        interruptible(&self.options, interrupt, |options| {
            raw::run(&mut self.session, options, &self.binding)
        })
    }

    /// The wanted logits as one run of floats.
    pub(super) fn collect(&mut self, step: &Step<'_>) -> &[f32] {
        let (vocab, width) = (self.caps.vocab_size, self.run_inputs.width);
        if self.chooses_logits {
            let wanted = step.rows.iter().map(Row::logits_count).sum::<usize>() * vocab;
            if self.logits_element != Element::F16 {
                return &self.f32_logits[..wanted];
            }
            self.wanted.clear();
            self.wanted
                .extend(self.f16_logits[..wanted].iter().map(|value| value.to_f32()));
            return &self.wanted;
        }
        let mut ranges = Vec::with_capacity(step.rows.len());
        for (index, row) in step.rows.iter().enumerate() {
            let start = index * width;
            let end = start + row.input.len();
            match row.logits {
                Wanted::None => {}
                Wanted::Last => ranges.push((end - 1) * vocab..end * vocab),
                Wanted::All => ranges.push(start * vocab..end * vocab),
            }
        }
        if self.logits_element != Element::F16
            && let [range] = ranges.as_slice()
        {
            return &self.f32_logits[range.clone()];
        }
        self.wanted.clear();
        for range in ranges {
            match self.logits_element {
                Element::F16 => self
                    .wanted
                    .extend(self.f16_logits[range].iter().map(|value| value.to_f32())),
                _ => self.wanted.extend_from_slice(&self.f32_logits[range]),
            }
        }
        &self.wanted
    }
}
