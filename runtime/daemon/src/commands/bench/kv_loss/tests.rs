#![allow(clippy::unwrap_used, clippy::cast_precision_loss, clippy::float_cmp)]

use std::ops::Range;

use phi_edge_engine::{Caps, Interrupt, Logits, Regime, RowId, Step, TokenId, Wanted};

use super::*;

const VOCAB: usize = 8;

/// A decoder whose logits depend on all tokens of the row and on the regime, with a scripted error.
struct Scripted {
    caps: Caps,
    row: Vec<Symbol>,
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
        assert_eq!(row.past, self.row.len(), "each token is read once, in order");
        self.logits.clear();
        for symbol in row.input.symbols {
            self.row.push(*symbol);
            let sum: u32 = self.row.iter().filter_map(|symbol| Some(symbol.token()?.0)).sum();
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
        self.runs.push((row.input.len(), row.logits == Wanted::All));
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

fn text(tokens: u32) -> Vec<Symbol> {
    Symbol::of_tokens((0..tokens).map(|n| TokenId(n * 7 % 5)))
}

/// The report of comparing a decoder with the same one that does not err.
fn report(other: &mut Scripted, length: usize, chunk: usize) -> Value {
    let text = text_passages(&text(1100), Some(length), other).unwrap();
    let prompts = [
        vec![Symbol::Token(TokenId(1)); 40],
        vec![Symbol::Token(TokenId(2)); 1],
        vec![],
        vec![Symbol::Token(TokenId(3)); 5000],
    ];
    let end = AnswerEnd {
        max_tokens: 9,
        stop: vec![TokenId(7)],
    };
    let held = hold(
        &mut Reader {
            decoder: other,
            chunk,
        },
        &text,
        &prompts,
        &end,
    )
    .unwrap();
    let mut reference = Scripted::new(0, 0.0);
    let mut reader = Reader {
        decoder: &mut reference,
        chunk,
    };
    let divergences = compare(&mut reader, &text, &held).unwrap();
    let mut report = json!({ "passages": text.passages.len(), "prompt_tokens": passage_length(&text) });
    add_figures(&mut report, &text, &divergences);
    report
}

#[test]
fn a_decoder_does_not_diverge_from_itself() {
    let report = report(&mut Scripted::new(0, 0.0), 500, 64);
    assert_eq!(report["passages"], 2);
    assert_eq!(report["compared"], 1000);
    for figures in [&report, &report["answers"]] {
        assert_eq!(figures["top1_agreement"], 1.0);
        assert_eq!(figures["kl_p99"].as_f64().unwrap(), 0.0);
    }
    // The empty prompt and the one beyond the context are left out.
    assert_eq!(
        (&report["answers"]["answers"], &report["answers"]["answers_alike"]),
        (&json!(2), &json!(2))
    );
}

#[test]
fn an_error_appears_in_its_range_and_in_the_sum() {
    // From position 300 on another token is predicted.
    let report = report(&mut Scripted::new(300, 2.5), 600, 100);
    let past = report["past"].as_array().unwrap();
    let agreement: Vec<f64> = past
        .iter()
        .map(|figures| figures["top1_agreement"].as_f64().unwrap())
        .collect();
    assert_eq!(agreement, [1.0, 44.0 / 256.0, 0.0]);
    assert_eq!(report["top1_agreement"], 0.5);
    assert_eq!(report["decided_top1_agreement"], 0.5);
    assert_eq!(past[0]["kl_mean"].as_f64().unwrap(), 0.0);
    assert!(past[2]["kl_mean"].as_f64().unwrap() > 0.1);
    assert!(past[2]["logits_error"].as_f64().unwrap() > 0.1);
    assert_eq!(report["answers"]["top1_agreement"], 1.0);
}

#[test]
fn answers_are_those_of_the_decoder_that_errs() {
    let report = report(&mut Scripted::new(42, 2.5), 600, 100);
    let answers = &report["answers"];
    assert_eq!(
        (&answers["answers"], &answers["answers_alike"]),
        (&json!(2), &json!(1)),
        "{answers}"
    );
    // Prompts of 40 tokens and of one: the longer one's answer errs from its fourth token on.
    let agreement = answers["top1_agreement"].as_f64().unwrap();
    assert!(agreement > 0.0 && agreement < 1.0, "{answers}");
}

#[test]
fn an_answer_ends_at_a_stop_token_or_at_its_limit() {
    let mut decoder = Scripted::new(0, 0.0);
    let mut reader = Reader {
        decoder: &mut decoder,
        chunk: 3,
    };
    let prompt = [Symbol::Token(TokenId(1)); 4];
    let mut answer = |stop: Vec<TokenId>, max_tokens| {
        let mut visited = 0;
        let end = AnswerEnd { max_tokens, stop };
        let passage = reader
            .answer(&prompt, &end, &mut |_, _| {
                visited += 1;
                Ok(())
            })
            .unwrap();
        assert_eq!(passage.compared[0].positions, 3..3 + visited);
        assert_eq!(passage.tokens.len(), 3 + visited);
        passage.tokens[4..].to_vec()
    };
    // The sum of 4 predicts 4, the sum of 8 predicts 0 without end.
    let free = answer(vec![], 5);
    assert_eq!(free, [TokenId(4), TokenId(0), TokenId(0), TokenId(0)]);
    assert_eq!(answer(vec![TokenId(0)], 5), [TokenId(4)]);
    assert!(answer(vec![TokenId(4)], 5).is_empty());
}

#[test]
fn reading_an_answer_gives_the_logits_of_its_generation() {
    let mut decoder = Scripted::new(0, 0.0);
    let mut reader = Reader {
        decoder: &mut decoder,
        chunk: 3,
    };
    let end = AnswerEnd {
        max_tokens: 6,
        stop: vec![],
    };
    let (mut generated, mut read) = (Vec::new(), Vec::new());
    let passage = reader.answer(&[Symbol::Token(TokenId(3)); 7], &end, &mut |_, logits| {
        generated.extend_from_slice(logits);
        Ok(())
    });
    let passage = passage.unwrap();
    reader
        .read(&passage, &mut |_, logits| {
            read.extend_from_slice(logits);
            Ok(())
        })
        .unwrap();
    assert_eq!(generated.len(), 6 * VOCAB);
    assert_eq!(generated, read);
    assert_eq!(
        decoder
            .runs
            .iter()
            .filter(|(_, wanted)| *wanted)
            .map(|(tokens, _)| *tokens)
            .max(),
        Some(1)
    );
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
    let text_passages = TextPassages::of(&text(10), 25, VOCAB, usize::MAX).unwrap();
    let [passage] = text_passages.passages.as_slice() else {
        panic!("one passage")
    };
    assert_eq!(passage.tokens.len(), 25);
    assert_eq!(passage.tokens[..10], passage.tokens[10..20]);
    assert!(TextPassages::of(&[], 25, VOCAB, usize::MAX).is_none());
    assert!(TextPassages::of(&text(10), 0, VOCAB, usize::MAX).is_none());
}

#[test]
fn ranges_cover_the_passage_and_what_fits_is_compared() {
    let passages = TextPassages::of(&text(10), 3000, VOCAB, VOCAB * 500).unwrap();
    assert_eq!(
        passages.past,
        [0..256, 256..512, 512..1024, 1024..2048, 2048..3000]
    );
    let mut decoder = Scripted::new(0, 0.0);
    let mut reader = Reader {
        decoder: &mut decoder,
        chunk: 512,
    };
    let mut compared = 0;
    reader
        .read(&passages.passages[0], &mut |_, logits| {
            compared += logits.len() / VOCAB;
            Ok(())
        })
        .unwrap();
    assert_eq!(compared, 500, "a hundred positions of each of five ranges");
    let tokens = |of: &dyn Fn(bool) -> bool| -> usize {
        let runs = decoder.runs.iter().filter(|(_, wanted)| of(*wanted));
        runs.map(|(tokens, _)| tokens).sum()
    };
    assert_eq!((tokens(&|wanted| wanted), tokens(&|_| true)), (500, 3000));
}

#[test]
fn a_passage_beyond_the_rope_boundary_is_read_under_the_long_factors() {
    for (length, regime) in [(512, Regime::Short), (513, Regime::Long)] {
        let mut decoder = Scripted::new(0, 0.0);
        decoder.caps.rope_boundary = Some(512);
        let passages = text_passages(&text(1100), Some(length), &decoder).unwrap();
        let mut reader = Reader {
            decoder: &mut decoder,
            chunk: 100,
        };
        reader.read(&passages.passages[0], &mut |_, _| Ok(())).unwrap();
        assert!(decoder.regimes.iter().all(|seen| *seen == regime), "{length}");
    }
}

#[test]
fn bad_lengths_and_logits_are_refused() {
    let mut decoder = Scripted::new(0, f32::NAN);
    let fault = text_passages(&text(10), Some(5000), &decoder).err().unwrap();
    assert_eq!(fault.exit, Exit::Usage);
    assert!(
        fault.message.contains("4096") && fault.message.contains("5000"),
        "{fault}"
    );
    let passages = text_passages(&text(10), None, &decoder).unwrap();
    assert_eq!(passage_length(&passages), 2000);
    let mut reader = Reader {
        decoder: &mut decoder,
        chunk: 512,
    };
    assert!(reader.read(&passages.passages[0], &mut |_, _| Ok(())).is_err());
    assert!(reader.decoder.row.is_empty(), "the row is released");
}

#[test]
fn the_built_in_texts_are_long_enough_and_well_formed() {
    // A token of a large vocabulary takes about three bytes of such a text.
    assert!(TEXT.len() > 2000 * 5 / 2);
    assert!(PROMPTS.lines().count() >= 12);
    for line in PROMPTS.lines() {
        assert!(
            serde_json::from_str::<String>(line).is_ok_and(|prompt| prompt.contains("records:")),
            "{line}"
        );
    }
}

#[test]
fn the_table_has_a_line_for_each_range() {
    let table = table::table(&report(&mut Scripted::new(300, 0.5), 600, 100));
    assert_eq!(table.lines().count(), 3 + 1 + 3 + 2, "{table}");
    assert!(
        table.lines().last().unwrap().trim_start().starts_with("answers"),
        "{table}"
    );
}
