//! The steps of a trial: short sequences in runs of all forms that the decoder takes.

use phi_edge_engine::{
    DecodeError, Decoder, Input, Interrupt, Regime, Row, RowId, Step, Symbol, TokenId, Wanted,
};

use crate::decoder::OnnxDecoder;

/// The tokens of each row in each step of the trial.
const STEP_LENGTHS: [[usize; 3]; 4] = [[7, 3, 0], [2, 5, 4], [3, 0, 2], [2, 3, 4]];

/// Runs three sequences that enter, go on and pause; returns their logits one after the other. Where the decoder
/// takes rows of any length in one run, they share their runs, those of one regime at least; else each has its own.
///
/// Two tokens at least: kernels for quantised weights round differently for a single one.
pub(super) fn steps(decoder: &mut OnnxDecoder) -> Result<Vec<f32>, DecodeError> {
    let long = if decoder.caps().rope_boundary.is_some() {
        Regime::Long
    } else {
        Regime::Short
    };
    steps_of(decoder, [Regime::Short, long, Regime::Short])
}

/// The same of sequences of these regimes.
pub(super) fn steps_of(decoder: &mut OnnxDecoder, regimes: [Regime; 3]) -> Result<Vec<f32>, DecodeError> {
    let caps = decoder.caps();
    let ragged = caps.ragged_chunks && caps.idle_rows;
    let mixed = caps.mixed_regimes;
    let vocab = u32::try_from(caps.vocab_size).unwrap_or(u32::MAX);
    let mut past = [0usize; 3];
    let mut logits = Vec::new();
    for (index, lengths) in STEP_LENGTHS.iter().enumerate() {
        let tokens: Vec<Vec<Symbol>> = (0u32..3)
            .zip(lengths)
            .map(|(row, &length)| some_tokens(row, past[row as usize], length, vocab))
            .collect();
        let rows: Vec<Row<'_>> = (0u32..3)
            .zip(&tokens)
            .map(|(row, tokens)| Row {
                row: RowId(row),
                past: past[row as usize],
                shared: &[],
                input: Input::of(tokens),
                logits: match (tokens.is_empty(), index % 2) {
                    (true, _) => Wanted::None,
                    (false, 0) => Wanted::All,
                    (false, _) => Wanted::Last,
                },
                regime: regimes[row as usize],
            })
            .collect();
        let interrupt = Interrupt::new();
        let mut of_rows = vec![Vec::new(); rows.len()];
        for run in runs(&rows, ragged, mixed) {
            let together: Vec<Row<'_>> = run.iter().map(|&index| rows[index]).collect();
            let found = decoder.run(&Step { rows: &together }, &interrupt)?;
            let mut at = 0..found.rows();
            for index in run {
                let these = at.by_ref().take(rows[index].logits_count());
                of_rows[index] = these
                    .filter_map(|row| found.row(row))
                    .flatten()
                    .copied()
                    .collect();
            }
        }
        logits.extend(of_rows.into_iter().flatten());
        past.iter_mut()
            .zip(lengths)
            .for_each(|(past, length)| *past += length);
    }
    Ok(logits)
}

/// The rows that run together, by index, in several runs. `ragged`: rows of any length may, of one regime alone unless they may be
/// `mixed`.
fn runs(rows: &[Row<'_>], ragged: bool, mixed: bool) -> Vec<Vec<usize>> {
    let with_input = |index: &usize| !rows[*index].input.is_empty();
    if !ragged {
        return (0..rows.len())
            .filter(with_input)
            .map(|index| vec![index])
            .collect();
    }
    if mixed {
        return vec![(0..rows.len()).collect()];
    }
    let of = |regime| -> Vec<usize> {
        (0..rows.len())
            .filter(|&index| rows[index].regime == regime)
            .collect()
    };
    let runs = [Regime::Short, Regime::Long].map(of).into_iter();
    runs.filter(|run| run.iter().any(with_input)).collect()
}

/// Arbitrary tokens: spread over the vocabulary, and different for each row and position.
fn some_tokens(row: u32, past: usize, length: usize, vocab: u32) -> Vec<Symbol> {
    let past = u32::try_from(past).unwrap_or(0);
    (0u32..)
        .take(length)
        .map(|at| {
            TokenId(
                (past + at + 1)
                    .wrapping_mul(2_654_435_761)
                    .wrapping_add(row * 7_919)
                    % vocab.max(1),
            )
        })
        .map(Symbol::Token)
        .collect()
}
