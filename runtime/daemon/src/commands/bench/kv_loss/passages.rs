//! The passages that are read, and their positions whose predictions are compared.

use std::ops::Range;

use phi_edge_engine::{DecodeError, Decoder, Input, Interrupt, Regime, Row, RowId, Step, TokenId, Wanted};

/// The end of the first band; each further one ends at twice the end of the band before.
const FIRST_BAND_TOKENS: usize = 256;
/// The most positions of a band that are compared: its last ones.
const MAX_COMPARED: usize = 1024;

/// Passages of equal length, each read from an empty row.
pub(super) struct Passages {
    tokens: Vec<TokenId>,
    length: usize,
    /// The compared positions of a passage, by ascending past lengths.
    bands: Vec<Band>,
}

/// The compared positions of a passage within a range of past lengths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Band {
    /// The past lengths that it stands for.
    pub(super) past: Range<usize>,
    /// The positions that are compared: the last ones of `past`.
    pub(super) compared: Range<usize>,
}

impl Passages {
    /// The passages of `length` tokens in `text`; one of the text repeated where the text is shorter. Of each band as many
    /// positions are compared as let the logits of all take at most `max_logits` floats, but at least one.
    ///
    /// `None`: `text` has no tokens, or `length` is 0.
    pub(super) fn of(text: &[TokenId], length: usize, vocab_size: usize, max_logits: usize) -> Option<Self> {
        if text.is_empty() || length == 0 {
            return None;
        }
        let count = (text.len() / length).max(1);
        let tokens = text.iter().copied().cycle().take(count * length).collect();
        let ranges = past_ranges(length);
        let positions = (max_logits / vocab_size.max(1) / count / ranges.len()).clamp(1, MAX_COMPARED);
        let bands = ranges.into_iter().map(|past| Band {
            compared: past.end - past.len().min(positions)..past.end,
            past,
        });
        Some(Self {
            tokens,
            length,
            bands: bands.collect(),
        })
    }

    /// Tokens of a passage.
    pub(super) fn length(&self) -> usize {
        self.length
    }

    /// The number of passages.
    pub(super) fn count(&self) -> usize {
        self.tokens.len() / self.length
    }

    /// The bands of each passage.
    pub(super) fn bands(&self) -> &[Band] {
        &self.bands
    }

    /// Runs `decoder` over the passages, at most `chunk` tokens in a run, and hands the logits after each compared token to
    /// `visit`, with the index of the band. The order is the same for each decoder.
    pub(super) fn read<D: Decoder>(
        &self,
        decoder: &mut D,
        chunk: usize,
        visit: &mut dyn FnMut(usize, &[f32]) -> Result<(), DecodeError>,
    ) -> Result<(), DecodeError> {
        for passage in self.tokens.chunks_exact(self.length) {
            let outcome = self.read_one(decoder, passage, chunk.max(1), visit);
            decoder.release(ROW);
            outcome?;
        }
        Ok(())
    }

    fn read_one<D: Decoder>(
        &self,
        decoder: &mut D,
        passage: &[TokenId],
        chunk: usize,
        visit: &mut dyn FnMut(usize, &[f32]) -> Result<(), DecodeError>,
    ) -> Result<(), DecodeError> {
        let boundary = decoder.caps().rope_boundary;
        let regime = match boundary {
            Some(boundary) if passage.len() > boundary => Regime::Long,
            _ => Regime::Short,
        };
        let mut past = 0;
        for (index, band) in self.bands.iter().enumerate() {
            // Chunks end where a band's compared positions begin: a run's logits are wanted all or not at all.
            for (end, logits) in [
                (band.compared.start, Wanted::None),
                (band.compared.end, Wanted::All),
            ] {
                while past < end {
                    let next = end.min(past + chunk);
                    let row = Row {
                        row: ROW,
                        past,
                        shared: &[],
                        input: Input::Tokens(passage.get(past..next).unwrap_or_default()),
                        logits,
                        regime,
                    };
                    decoder.ensure(ROW, next)?;
                    let logits = decoder.run(&Step { rows: &[row] }, &Interrupt::new())?;
                    for position in 0..row.logits_count() {
                        let missing = || DecodeError::Failed("logits are missing".to_owned());
                        visit(index, logits.row(position).ok_or_else(missing)?)?;
                    }
                    past = next;
                }
            }
        }
        Ok(())
    }
}

const ROW: RowId = RowId(0);

/// Ranges of past lengths that cover `length`: each ends at twice the end of the one before, the last at `length`.
fn past_ranges(length: usize) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    let (mut start, mut end) = (0, FIRST_BAND_TOKENS);
    while start < length {
        ranges.push(start..end.min(length));
        (start, end) = (end, end.saturating_mul(2));
    }
    ranges
}
