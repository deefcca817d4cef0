//! The runs that a provider computes rightly, found by trial when the model is loaded.
//!
//! Kernels of attention differ by provider and driver: some take rows of one length only, and some are wrong for several tokens
//! of a row on one driver and right on another. Both would go unnoticed, so runs of these forms are compared with those of one
//! row and one token, which decoding needs anyway.

use phi_edge_engine::{DecodeError, Input, Interrupt, Regime, Row, RowId, Step, Symbol, TokenId, Wanted};

use super::OnnxDecoder;
use crate::kv::KvMemory;
use crate::logit_difference::LogitDifference;

/// The tokens of the trial's longer row: more than a kernel takes at once.
const TRIAL_TOKENS: usize = 40;

/// The largest accepted difference of a logit, as a share of the largest. Kernels for several tokens round otherwise than those
/// for one: 6e-3 were seen for int4. Wrong kernels make 6e-2 and more.
const TOLERANCE: f32 = 3e-2;

/// The runs that a provider computes rightly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RunLimits {
    /// Several tokens of a row.
    pub(super) several_tokens: bool,
    /// Rows of different lengths, or a mask that is wider than the rows.
    pub(super) several_lengths: bool,
    /// Several rows.
    pub(super) several_rows: bool,
}

impl RunLimits {
    /// No limits.
    pub(super) const NONE: Self = Self {
        several_tokens: true,
        several_lengths: true,
        several_rows: true,
    };
}

impl OnnxDecoder {
    /// Tries the runs that a provider may compute wrongly, and leaves those out from now on that it does. Its rows are empty
    /// before and after it.
    pub(super) fn find_run_limits(&mut self) -> Result<(), DecodeError> {
        let KvMemory::Device(_) = &self.kv else {
            return Ok(());
        };
        let context = self.caps.context_length;
        let boundary = self.caps.rope_boundary.unwrap_or(context);
        // Two rows of them fit the memory.
        let tokens = TRIAL_TOKENS.min(context / 3).min(boundary);
        let vocab = u32::try_from(self.caps.vocab_size).unwrap_or(u32::MAX).max(1);
        let symbols: Vec<Symbol> = (0_u32..)
            .take(tokens)
            .map(|index| Symbol::Token(TokenId((37 * index + 11) % vocab)))
            .collect();
        let outcome = self.try_runs(&symbols);
        for row in 0..self.caps.rows.min(2) {
            self.kv.shrink(row, 0);
        }
        let limits = outcome?;
        if !limits.several_tokens {
            tracing::warn!(
                provider = self.provider().as_str(),
                "This provider computes several tokens of a row wrongly: prompts are computed token by token."
            );
        }
        if !limits.several_rows {
            tracing::warn!(
                provider = self.provider().as_str(),
                "This provider computes several rows in one run wrongly: each has a run of its own."
            );
        } else if !limits.several_lengths {
            tracing::info!(
                provider = self.provider().as_str(),
                "This provider runs rows of the same length together only."
            );
        }
        self.run_limits = limits;
        Ok(())
    }

    fn try_runs(&mut self, symbols: &[Symbol]) -> Result<RunLimits, DecodeError> {
        let (Some((last, head)), true) = (symbols.split_last(), symbols.len() > 3) else {
            return Ok(RunLimits::NONE);
        };
        let last = std::slice::from_ref(last);
        for (past, symbol) in head.iter().enumerate() {
            self.run_trial(&[(0, past, std::slice::from_ref(symbol))])?;
        }
        let long = self.run_trial(&[(0, head.len(), last)])?;
        let (first, rest) = symbols.split_at(symbols.len() / 2);
        let chunks = self
            .run_trial(&[(0, 0, first)])
            .and_then(|_| self.run_trial(&[(0, first.len(), rest)]));
        let several_tokens = agree(&chunks, &long);
        // The longer row again, and a shorter one.
        for (past, symbol) in head.iter().enumerate() {
            self.run_trial(&[(0, past, std::slice::from_ref(symbol))])?;
        }
        let short = 2 * head.len() / 3;
        for (past, symbol) in head[..short].iter().enumerate() {
            self.run_trial(&[(1, past, std::slice::from_ref(symbol))])?;
        }
        let mut alone = self.run_trial(&[(1, short, last)])?;
        let together = self.run_trial(&[(1, short, last), (0, head.len(), last)]);
        alone.extend(long);
        let several_lengths = agree(&together, &alone) && self.ran_together();
        Ok(RunLimits {
            several_tokens,
            several_lengths,
            several_rows: several_lengths || self.try_rows_of_one_length(head, short, last)?,
        })
    }

    /// Whether two rows of the same length are computed rightly in one run. Row 1 holds the first `length` tokens of `head`; row 0
    /// comes to hold as many others.
    fn try_rows_of_one_length(
        &mut self,
        head: &[Symbol],
        length: usize,
        last: &[Symbol],
    ) -> Result<bool, DecodeError> {
        let others = &head[head.len() - length..];
        for (past, symbol) in others.iter().enumerate() {
            self.run_trial(&[(0, past, std::slice::from_ref(symbol))])?;
        }
        let mut alone = self.run_trial(&[(1, length, last)])?;
        alone.extend(self.run_trial(&[(0, length, last)])?);
        let together = self.run_trial(&[(1, length, last), (0, length, last)]);
        Ok(agree(&together, &alone) && self.ran_together())
    }

    /// Whether the rows of the trial are one group.
    fn ran_together(&self) -> bool {
        match &self.kv {
            KvMemory::Device(device) => device.group_of(&[1, 0]).is_ok(),
            KvMemory::Slab(_) | KvMemory::Blocks(_) | KvMemory::Paged(_) => false,
        }
    }

    /// The logits after the last token of each row: `(row, past, input)`.
    fn run_trial(&mut self, rows: &[(u32, usize, &[Symbol])]) -> Result<Vec<f32>, DecodeError> {
        let rows: Vec<Row<'_>> = rows
            .iter()
            .map(|&(row, past, symbols)| Row {
                row: RowId(row),
                past,
                shared: &[],
                input: Input::of(symbols),
                logits: Wanted::Last,
                regime: Regime::Short,
            })
            .collect();
        self.run_in_groups(&Step { rows: &rows }, &Interrupt::new())
    }
}

/// Whether a run has given the expected logits. One that has failed has not.
fn agree(got: &Result<Vec<f32>, DecodeError>, expected: &[f32]) -> bool {
    match got {
        Ok(got) => LogitDifference::of(got, expected).is_within(TOLERANCE),
        Err(error) => {
            tracing::debug!(%error, "A run of the trial has failed.");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use phi_edge_engine::Decoder;
    use phi_edge_models::ModelDir;

    use super::*;
    use crate::decoder::DecoderConfig;
    use crate::library::Library;
    use crate::provider::Provider;

    /// The repository's own model with its rows as on a device.
    fn decoder() -> Option<OnnxDecoder> {
        let library = Library::for_tests()?;
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo");
        let config = DecoderConfig {
            provider: Provider::Cpu,
            threads: Some(1),
            rows: 3,
            device_rows: true,
            kv_memory: Some(64 << 20),
            ..DecoderConfig::default()
        };
        Some(OnnxDecoder::load(&library, &ModelDir::open(&folder).unwrap(), &config).unwrap())
    }

    #[test]
    fn the_processor_has_no_limits() {
        let Some(mut decoder) = decoder() else { return };
        assert_eq!(decoder.run_limits, RunLimits::NONE);
        let symbols = Symbol::of_tokens((3_u32..).take(TRIAL_TOKENS).map(TokenId));
        assert_eq!(decoder.try_runs(&symbols).unwrap(), RunLimits::NONE);
        // What is tried only where the lengths do not go together.
        let (last, head) = symbols.split_last().unwrap();
        let short = 2 * head.len() / 3;
        assert!(
            decoder
                .try_rows_of_one_length(head, short, std::slice::from_ref(last))
                .unwrap()
        );
    }

    #[test]
    fn under_any_limits_a_step_gives_the_same_logits() {
        let Some(mut decoder) = decoder() else { return };
        let prompts: [Vec<Symbol>; 3] = [9, 5, 9]
            .map(|length: u32| Symbol::of_tokens((0..length).map(|at| TokenId(7 * at + 3 * length))));
        let mut expected: Option<Vec<f32>> = None;
        for (several_tokens, several_lengths, several_rows) in [
            (true, true, true),
            (true, false, true),
            (true, false, false),
            (false, false, false),
        ] {
            decoder.run_limits = RunLimits {
                several_tokens,
                several_lengths,
                several_rows,
            };
            let limits = decoder.run_limits;
            for (row, prompt) in (0..).zip(&prompts) {
                decoder.release(RowId(row));
                decoder
                    .run_trial(&[(row, 0, &prompt[..prompt.len() - 1])])
                    .unwrap();
            }
            let rows = [2_u32, 0, 1].map(|row| {
                let prompt = &prompts[row as usize];
                (row, prompt.len() - 1, &prompt[prompt.len() - 1..])
            });
            let got = decoder.run_trial(&rows).unwrap();
            let KvMemory::Device(device) = &decoder.kv else {
                panic!("rows on the host")
            };
            // Rows 2 and 0 are of one length, row 1 is not.
            assert_eq!(
                device.group_of(&[2, 0]).is_ok(),
                several_rows && !several_lengths,
                "{limits:?}"
            );
            assert_eq!(device.group_of(&[1]).is_ok(), !several_lengths, "{limits:?}");
            let expected = expected.get_or_insert_with(|| got.clone());
            assert!(
                LogitDifference::of(&got, expected).is_within(TOLERANCE),
                "{limits:?}"
            );
        }
    }
}
