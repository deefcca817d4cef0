#![allow(clippy::unwrap_used, clippy::cast_precision_loss)]

use std::ops::Range;

use phi_edge_engine::{Caps, Input, Interrupt, Logits, Regime, RowId, Step, Wanted};

use super::*;

const VOCAB: usize = 8;

/// A decoder whose logits depend on all tokens of the row and on the regime, with a scripted error.
struct Scripted {
    caps: Caps,
    row: Vec<TokenId>,
    logits: Vec<f32>,
    /// Added to the largest logit and taken from the others, for tokens at and after this position.
    error_from: usize,
    error: f32,
    /// Tokens of each run, and whether their logits were wanted.
    runs: Vec<(usize, bool)>,
    regimes: Vec<Regime>,
}

impl Scripted {
    fn new(error_from: usize, error: f32) -> Self {
        Self {
            caps: Caps {
                context_length: 4096,
                ..Caps::plain(1, VOCAB)
            },
            row: Vec::new(),
            logits: Vec::new(),
            error_from,
            error,
            runs: Vec::new(),
            regimes: Vec::new(),
        }
    }
}

impl Decoder for Scripted {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn run(&mut self, step: &Step<'_>, _: &Interrupt) -> Result<Logits<'_>, DecodeError> {
        let [row] = step.rows else { panic!("one row") };
        let Input::Tokens(ids) = row.input else {
            panic!("tokens")
        };
        assert_eq!(row.past, self.row.len(), "each token is read once, in order");
        self.logits.clear();
        for id in ids {
            self.row.push(*id);
            let sum: u32 = self.row.iter().map(|id| id.0).sum();
            if row.logits == Wanted::All {
                let top = sum as usize % VOCAB;
                let error = if self.row.len() > self.error_from {
                    self.error
                } else {
                    0.0
                };
                self.logits
                    .extend((0..VOCAB).map(|n| if n == top { 2.0 - error } else { n as f32 / 100.0 }));
            }
        }
        self.runs.push((ids.len(), row.logits == Wanted::All));
        self.regimes.push(row.regime);
        Ok(Logits::new(&self.logits, VOCAB))
    }

    fn ensure(&mut self, _: RowId, len: usize) -> Result<(), DecodeError> {
        assert!(len <= self.caps.context_length);
        Ok(())
    }

    fn copy(&mut self, _: RowId, _: RowId, _: Range<usize>) -> Result<(), DecodeError> {
        Err(DecodeError::Unsupported("copy".to_owned()))
    }

    fn truncate(&mut self, _: RowId, len: usize) {
        self.row.truncate(len);
    }

    fn release(&mut self, _: RowId) {
        self.row.clear();
    }

    fn save(&mut self, _: RowId, _: usize) -> Result<Vec<u8>, DecodeError> {
        Err(DecodeError::Unsupported("save".to_owned()))
    }

    fn load(&mut self, _: RowId, _: &[u8]) -> Result<usize, DecodeError> {
        Err(DecodeError::Unsupported("load".to_owned()))
    }
}

fn text(tokens: u32) -> Vec<TokenId> {
    (0..tokens).map(|n| TokenId(n * 7 % 5)).collect()
}

/// The report of comparing a decoder with the same one that errs.
fn report(other: &mut Scripted, length: usize, chunk: usize) -> Value {
    let text = text(1100);
    let passages = passages(&text, Some(length), other).unwrap();
    let held = hold(&passages, other, chunk).unwrap();
    let mut reference = Scripted::new(0, 0.0);
    let divergences = compare(&passages, &mut reference, chunk, &held).unwrap();
    let mut report = json!({ "passages": passages.count(), "prompt_tokens": passages.length() });
    add_figures(&mut report, &passages, &divergences);
    report
}

#[test]
fn a_decoder_does_not_diverge_from_itself() {
    let report = report(&mut Scripted::new(0, 0.0), 500, 64);
    assert_eq!(report["passages"], 2);
    assert_eq!(report["compared"], 1000);
    assert_eq!(report["top1_agreement"], 1.0);
    assert_eq!(report["kl_p99"].as_f64().unwrap(), 0.0);
}

#[test]
fn an_error_appears_in_its_band_and_in_the_sum() {
    // From position 300 on another token is predicted.
    let report = report(&mut Scripted::new(300, 2.5), 600, 100);
    let bands = report["past"].as_array().unwrap();
    let agreement: Vec<f64> = bands
        .iter()
        .map(|band| band["top1_agreement"].as_f64().unwrap())
        .collect();
    assert_eq!(agreement, [1.0, 44.0 / 256.0, 0.0]);
    assert_eq!(report["top1_agreement"], 0.5);
    assert_eq!(report["decided_top1_agreement"], 0.5);
    assert_eq!(bands[0]["kl_mean"].as_f64().unwrap(), 0.0);
    assert!(bands[2]["kl_mean"].as_f64().unwrap() > 0.1);
    assert!(bands[2]["logits_error"].as_f64().unwrap() > 0.1);
}

#[test]
fn chunks_change_nothing_and_stay_within_their_bound() {
    let whole = report(&mut Scripted::new(300, 0.5), 700, 1000);
    for chunk in [1, 7, 256] {
        let mut other = Scripted::new(300, 0.5);
        assert_eq!(report(&mut other, 700, chunk), whole, "{chunk}");
        assert!(other.runs.iter().all(|(tokens, _)| *tokens <= chunk));
    }
}

#[test]
fn a_text_that_is_too_short_is_repeated() {
    let passages = Passages::of(&text(10), 25, VOCAB, usize::MAX).unwrap();
    assert_eq!((passages.count(), passages.length()), (1, 25));
    assert!(Passages::of(&[], 25, VOCAB, usize::MAX).is_none());
    assert!(Passages::of(&text(10), 0, VOCAB, usize::MAX).is_none());
}

#[test]
fn bands_cover_the_passage_and_compare_what_fits() {
    let passages = Passages::of(&text(10), 3000, VOCAB, VOCAB * 500).unwrap();
    let past: Vec<_> = passages.bands().iter().map(|band| band.past.clone()).collect();
    assert_eq!(past, [0..256, 256..512, 512..1024, 1024..2048, 2048..3000]);
    let mut decoder = Scripted::new(0, 0.0);
    let held = hold(&passages, &mut decoder, 512).unwrap();
    assert_eq!(
        held.len(),
        500 * VOCAB,
        "a hundred positions of each of five bands"
    );
    let wanted: usize = decoder
        .runs
        .iter()
        .filter(|(_, wanted)| *wanted)
        .map(|(tokens, _)| tokens)
        .sum();
    let all: usize = decoder.runs.iter().map(|(tokens, _)| tokens).sum();
    assert_eq!((wanted, all), (500, 3000));
}

#[test]
fn a_passage_beyond_the_rope_boundary_is_read_under_the_long_factors() {
    for (length, regime) in [(512, Regime::Short), (513, Regime::Long)] {
        let mut decoder = Scripted::new(0, 0.0);
        decoder.caps.rope_boundary = Some(512);
        let passages = passages(&text(1100), Some(length), &decoder).unwrap();
        hold(&passages, &mut decoder, 100).unwrap();
        assert!(decoder.regimes.iter().all(|seen| *seen == regime), "{length}");
    }
}

#[test]
fn bad_lengths_and_logits_are_refused() {
    let mut decoder = Scripted::new(0, f32::NAN);
    let fault = passages(&text(10), Some(5000), &decoder).err().unwrap();
    assert_eq!(fault.exit, Exit::Usage);
    assert!(
        fault.message.contains("4096") && fault.message.contains("5000"),
        "{fault}"
    );
    let passages = passages(&text(10), None, &decoder).unwrap();
    assert_eq!(passages.length(), 2000);
    assert!(hold(&passages, &mut decoder, 512).is_err());
}

#[test]
fn the_text_is_long_enough_and_the_table_has_a_line_for_each_band() {
    // A token of a large vocabulary takes three to four bytes of such a text.
    assert!(TEXT.len() > 2000 * 2);
    let mut report = report(&mut Scripted::new(300, 0.5), 600, 100);
    report["kv_bytes_per_token"] = json!(2);
    report["kv_bytes_per_token_f32"] = json!(8);
    let table = table(&report);
    assert_eq!(table.lines().count(), 2 + 1 + 3 + 1, "{table}");
    assert!(
        table.lines().last().unwrap().trim_start().starts_with("all"),
        "{table}"
    );
}
