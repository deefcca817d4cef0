//! The integer inputs of a run: ids, mask, positions.

use std::ops::Range;
use std::sync::Arc;

use phi_edge_engine::{DecodeError, ImageFeatures, Regime, Row, Symbol, Wanted};

/// The id of a place of an image in the graph's input: any that is negative.
const IMAGE_PLACE: i64 = -1;

/// Buffers that the bound tensors point into. They are refilled before each run, and never while one is
/// under way.
#[derive(Debug, Default)]
pub(crate) struct RunInputs {
    /// `[rows, width]`, row-major.
    pub(crate) ids: Vec<i64>,
    /// `[places, feature_width]`: the features at the run's places of images, in the order of `ids`.
    pub(crate) features: Vec<f32>,
    /// The width of the features; `None`: the graph takes no images.
    pub(crate) feature_width: Option<usize>,
    /// `[rows, width]`; used only by graphs that ask for positions.
    pub(crate) positions: Vec<i64>,
    /// `[rows]`: tokens of each row; used only by graphs that take rows of different numbers.
    pub(crate) lengths: Vec<i32>,
    /// `[rows, mask_width]`.
    pub(crate) mask: Vec<i64>,
    /// `[rows, table_columns]`: the KV row of each, then another row and the end of what it holds of this one, for each
    /// shared span; zeros behind them. Used only by graphs that take rows by table.
    pub(crate) table: Vec<i32>,
    pub(crate) table_columns: usize,
    /// Indices of the tokens whose logits are wanted, into the run's `rows * width` tokens; never empty.
    pub(crate) logits_rows: Vec<i64>,
    /// Tokens a row has in this run, a pad token included.
    pub(crate) width: usize,
    mask_is_ones: bool,
    /// Columns of the mask: past and input of the longest row, or wide enough for the long factors.
    pub(crate) mask_width: usize,
}

/// The selection of a run's rope factors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RopeForm {
    /// Sequences of more tokens are computed under the long factors.
    pub(crate) boundary: Option<usize>,
    pub(crate) factors: RopeFactors,
}

/// The input that selects a run's rope factors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RopeFactors {
    /// The mask's width.
    MaskWidth,
    /// The largest of the graph's own `position_ids`.
    OwnPositions,
    /// The table that is bound for the run.
    Table,
    /// Each token's position in the joined tables; those of the long factors start at this one.
    Offset(usize),
}

impl RunInputs {
    /// Empty buffers for a graph that takes features of this width; `None`: it takes none.
    pub(crate) fn new(feature_width: Option<usize>) -> Self {
        Self {
            feature_width,
            ..Self::default()
        }
    }

    /// Fills the buffers. Rows may differ in their number of tokens and in their regime if tokens choose their factors
    /// themselves ([`RopeFactors::Offset`]).
    pub(crate) fn fill(&mut self, rows: &[Row<'_>], rope: RopeForm) -> Result<(), DecodeError> {
        let long = rows.iter().any(|row| row.regime == Regime::Long);
        let input = rows.iter().map(|row| row.input.len()).max().unwrap_or(0);
        let ends = rows.iter().map(|row| row.past + row.input.len());
        let (shortest, longest) =
            ends.fold((usize::MAX, 0), |(low, high), end| (low.min(end), high.max(end)));
        // A graph that looks at positions takes the long factors only when one of them lies beyond the
        // boundary. A row that is still short gets a pad token at such a position behind its own: causal
        // attention keeps it from them, and the next run overwrites its keys.
        let pad = match rope.boundary {
            Some(boundary) if rope.factors == RopeFactors::OwnPositions && long && longest <= boundary => {
                if rows.len() > 1 {
                    return Err(DecodeError::Unsupported(
                        "several short rows of the long regime in one run".into(),
                    ));
                }
                Some(boundary)
            }
            _ => None,
        };
        self.width = input + usize::from(pad.is_some());
        self.mask_width = longest + usize::from(pad.is_some());
        if let Some(boundary) = rope
            .boundary
            .filter(|_| long && rope.factors == RopeFactors::MaskWidth)
        {
            // The mask's width alone chooses the factors; its sum still says how long a row is.
            self.mask_width = self.mask_width.max(boundary + 1);
        }
        self.fill_ids(rows, rope.factors, pad)?;
        self.fill_mask(rows, pad, shortest);
        self.fill_logits_rows(rows);
        self.fill_table(rows);
        Ok(())
    }

    /// Fills the buffers for rows that stand one behind the other, without padding. What else the graph needs of them is in
    /// [`crate::packed_inputs`]; nothing looks at the mask.
    pub(crate) fn fill_packed(&mut self, rows: &[Row<'_>]) -> Result<(), DecodeError> {
        self.ids.clear();
        self.features.clear();
        self.logits_rows.clear();
        for row in rows {
            let start = self.ids.len();
            self.fill_symbols(row.input.symbols, row.input.features)?;
            let end = self.ids.len();
            self.logits_rows.extend(wanted(row, start, end).map(to_i64));
        }
        if self.logits_rows.is_empty() {
            self.logits_rows.push(0);
        }
        self.width = self.ids.len();
        self.mask_is_ones = false;
        self.mask.clear();
        self.mask.push(1);
        self.mask_width = 1;
        Ok(())
    }

    fn fill_table(&mut self, rows: &[Row<'_>]) {
        let spans = rows.iter().map(|row| row.shared.len()).max().unwrap_or(0);
        self.table_columns = 1 + 2 * spans;
        self.table.clear();
        for (index, row) in rows.iter().enumerate() {
            self.table.push(i32::try_from(row.row.0).unwrap_or(i32::MAX));
            for span in row.shared {
                let end = i32::try_from(span.end).unwrap_or(i32::MAX);
                self.table
                    .extend([i32::try_from(span.row.0).unwrap_or(i32::MAX), end]);
            }
            self.table.resize((index + 1) * self.table_columns, 0);
        }
    }

    fn fill_ids(
        &mut self,
        rows: &[Row<'_>],
        factors: RopeFactors,
        pad: Option<usize>,
    ) -> Result<(), DecodeError> {
        self.ids.clear();
        self.positions.clear();
        self.lengths.clear();
        self.features.clear();
        for row in rows {
            let offset = match (factors, row.regime) {
                (RopeFactors::Offset(offset), Regime::Long) => offset,
                _ => 0,
            };
            let start = offset + row.past;
            let count = row.input.len();
            self.fill_symbols(row.input.symbols, row.input.features)?;
            self.positions.extend((start..start + count).map(to_i64));
            self.lengths.push(i32::try_from(count).unwrap_or(i32::MAX));
            if let Some(boundary) = pad {
                self.ids.push(0);
                self.positions.push(to_i64(boundary));
            }
            // Shorter rows are filled up; the lengths say what counts.
            let filled = self.lengths.len() * self.width;
            self.ids.resize(filled, 0);
            self.positions.resize(filled, 0);
        }
        Ok(())
    }

    /// Appends ids, and the features of places of images.
    fn fill_symbols(
        &mut self,
        symbols: &[Symbol],
        features: &[Arc<ImageFeatures>],
    ) -> Result<(), DecodeError> {
        let unsupported = |what: &str| DecodeError::Unsupported(what.to_owned());
        for symbol in symbols {
            match *symbol {
                Symbol::Token(id) => self.ids.push(i64::from(id.0)),
                Symbol::Image { image, index } => {
                    let width = self
                        .feature_width
                        .ok_or_else(|| unsupported("this model takes no images"))?;
                    let of = features.iter().find(|features| features.id == image);
                    let of = of.ok_or_else(|| unsupported("an image without features"))?;
                    let start = usize::try_from(index)
                        .ok()
                        .and_then(|index| index.checked_mul(width));
                    let row = start.and_then(|start| of.data.get(start..start.checked_add(width)?));
                    let row = row.filter(|_| of.width == width);
                    self.features.extend_from_slice(
                        row.ok_or_else(|| unsupported("a place outside of its image's features"))?,
                    );
                    self.ids.push(IMAGE_PLACE);
                }
            }
        }
        Ok(())
    }

    /// Rows of `features`.
    pub(crate) fn feature_rows(&self) -> usize {
        self.features.len() / self.feature_width.unwrap_or(1).max(1)
    }

    fn fill_logits_rows(&mut self, rows: &[Row<'_>]) {
        self.logits_rows.clear();
        for (index, row) in rows.iter().enumerate() {
            let start = index * self.width;
            let end = start + row.input.len();
            self.logits_rows.extend(wanted(row, start, end).map(to_i64));
        }
        if self.logits_rows.is_empty() {
            // A matrix product of no rows is not what kernels are tested with.
            self.logits_rows.push(0);
        }
    }

    fn fill_mask(&mut self, rows: &[Row<'_>], pad: Option<usize>, shortest: usize) {
        let pad = usize::from(pad.is_some());
        if rows.len() == 1 && shortest + pad == self.mask_width {
            // One row without zeros: the last run's ones are reused, so that a decode step writes one.
            if !self.mask_is_ones {
                self.mask.clear();
                self.mask_is_ones = true;
            }
            self.mask.resize(self.mask_width, 1);
            return;
        }
        self.mask_is_ones = false;
        self.mask.clear();
        for row in rows {
            // An idle row of nothing has one all the same: a length of 0 is refused, and nothing is computed of it.
            let ones = (row.past + row.input.len() + pad).max(1);
            self.mask.extend(std::iter::repeat_n(1, ones));
            self.mask.extend(std::iter::repeat_n(0, self.mask_width - ones));
        }
    }
}

/// Those of a row's tokens `start..end` whose logits are wanted.
fn wanted(row: &Row<'_>, start: usize, end: usize) -> Range<usize> {
    match row.logits {
        Wanted::None => end..end,
        Wanted::Last => end.max(start + 1) - 1..end,
        Wanted::All => start..end,
    }
}

fn to_i64(position: usize) -> i64 {
    i64::try_from(position).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use phi_edge_engine::{Input, RowId, Symbol, TokenId};

    use super::*;

    fn token(id: u32) -> Symbol {
        Symbol::Token(TokenId(id))
    }

    fn row(past: usize, input: &[Symbol], regime: Regime) -> Row<'_> {
        Row {
            row: RowId(0),
            past,
            shared: &[],
            input: Input::of(input),
            logits: Wanted::Last,
            regime,
        }
    }

    const MASKED: RopeForm = RopeForm {
        boundary: Some(8),
        factors: RopeFactors::MaskWidth,
    };
    const POSITIONED: RopeForm = RopeForm {
        boundary: Some(8),
        factors: RopeFactors::OwnPositions,
    };

    #[test]
    fn a_plain_row() {
        let mut inputs = RunInputs::default();
        inputs
            .fill(&[row(2, &[token(7), token(9)], Regime::Short)], MASKED)
            .unwrap();
        assert_eq!((inputs.ids.as_slice(), inputs.width), ([7, 9].as_slice(), 2));
        assert_eq!(
            (inputs.mask.as_slice(), inputs.mask_width),
            ([1; 4].as_slice(), 4)
        );
        assert_eq!(inputs.positions, [2, 3]);
    }

    #[test]
    fn a_short_row_of_the_long_regime_widens_the_mask_or_gets_a_pad() {
        let mut inputs = RunInputs::default();
        inputs
            .fill(&[row(1, &[token(7), token(9)], Regime::Long)], MASKED)
            .unwrap();
        assert_eq!(inputs.mask, [1, 1, 1, 0, 0, 0, 0, 0, 0]);
        inputs
            .fill(&[row(1, &[token(7), token(9)], Regime::Long)], POSITIONED)
            .unwrap();
        assert_eq!(
            (inputs.ids.as_slice(), inputs.positions.as_slice()),
            ([7, 9, 0].as_slice(), [1, 2, 8].as_slice())
        );
        assert_eq!(inputs.mask, [1; 4]);
        // Beyond the boundary nothing needs help.
        inputs
            .fill(&[row(8, &[token(7)], Regime::Long)], POSITIONED)
            .unwrap();
        assert_eq!(
            (inputs.positions.as_slice(), inputs.mask.len()),
            ([8].as_slice(), 9)
        );
    }

    #[test]
    fn rows_of_any_length_and_regime_share_a_run() {
        let joined = RopeForm {
            boundary: Some(8),
            factors: RopeFactors::Offset(8),
        };
        let mut inputs = RunInputs::default();
        let (two, one) = ([token(7), token(9)], [token(5)]);
        let idle = Row {
            logits: Wanted::None,
            ..row(0, &[], Regime::Short)
        };
        let rows = [row(1, &two, Regime::Short), idle, row(3, &one, Regime::Long)];
        inputs.fill(&rows, joined).unwrap();
        assert_eq!(inputs.ids, [7, 9, 0, 0, 5, 0]);
        assert_eq!(inputs.positions, [1, 2, 0, 0, 11, 0]);
        assert_eq!(inputs.lengths, [2, 0, 1]);
        assert_eq!(inputs.mask, [1, 1, 1, 0, 1, 0, 0, 0, 1, 1, 1, 1]);
        assert_eq!(inputs.logits_rows, [1, 4]);
    }

    #[test]
    fn masks_of_earlier_runs_leave_no_trace() {
        let mut inputs = RunInputs::default();
        let one = [token(1)];
        inputs.fill(&[row(1, &one, Regime::Long)], MASKED).unwrap();
        inputs.fill(&[row(3, &one, Regime::Short)], MASKED).unwrap();
        assert_eq!(inputs.mask, [1; 4]);
        inputs.fill(&[row(1, &one, Regime::Short)], MASKED).unwrap();
        assert_eq!(inputs.mask, [1; 2]);
        inputs
            .fill(
                &[row(1, &one, Regime::Short), row(3, &one, Regime::Short)],
                MASKED,
            )
            .unwrap();
        assert_eq!(inputs.mask, [1, 1, 0, 0, 1, 1, 1, 1]);
    }
}
