//! Rows by table on the real decoder: what rows share gives the bits that each gives alone, for both types of keys and
//! values; so do copies and saved rows.

#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::path::Path;

use phi_edge_engine::{
    DecodeError, Decoder, Input, Interrupt, KvType, Regime, Row, RowId, SharedSpan, Step, Symbol, TokenId,
    Wanted,
};
use phi_edge_models::ModelDir;
use phi_edge_onnx::{DecoderConfig, KvCache, OnnxDecoder};
use support::library;

/// A demonstration model with 8 rows; `None` where this machine can't have the type, or shares nothing.
fn decoder(kv_cache: KvCache) -> Option<OnnxDecoder> {
    let library = library()?;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo");
    let config = DecoderConfig {
        rows: 8,
        kv_cache,
        ..DecoderConfig::default()
    };
    let decoder = match OnnxDecoder::load(&library, &ModelDir::open(&folder).unwrap(), &config) {
        Ok(decoder) if decoder.caps().share_granularity.is_some() => decoder,
        Ok(_) => {
            println!("SKIPPED: this processor does not run the custom operator for attention");
            return None;
        }
        Err(error) => {
            assert!(kv_cache == KvCache::I8, "{error}");
            println!("SKIPPED: {error}");
            return None;
        }
    };
    Some(decoder)
}

fn tokens(seed: u32, count: usize) -> Vec<Symbol> {
    let spread = |at: u32| (at + 1).wrapping_mul(2_654_435_761).wrapping_add(seed * 7_919) >> 3;
    (0u32..)
        .take(count)
        .map(|at| Symbol::Token(TokenId(spread(at) % 640)))
        .collect()
}

fn row<'a>(id: u32, past: usize, shared: &'a [SharedSpan], input: &'a [Symbol], logits: Wanted) -> Row<'a> {
    Row {
        row: RowId(id),
        past,
        shared,
        input: Input::of(input),
        logits,
        regime: Regime::Short,
    }
}

fn run(decoder: &mut OnnxDecoder, rows: &[Row<'_>]) -> Vec<Vec<u32>> {
    let logits = decoder.run(&Step { rows }, &Interrupt::new()).unwrap();
    let bits = |row: &[f32]| row.iter().map(|value| value.to_bits()).collect();
    (0..logits.rows())
        .map(|at| bits(logits.row(at).unwrap()))
        .collect()
}

fn span(row: u32, end: usize) -> SharedSpan {
    SharedSpan { row: RowId(row), end }
}

fn sharing(kv_cache: KvCache) {
    let Some(mut decoder) = decoder(kv_cache) else {
        return;
    };
    let unit = decoder.caps().share_granularity.unwrap();
    let (first, second) = (2 * unit, 3 * unit);
    let common = tokens(1, first);
    let middle = tokens(2, second - first);
    let tails = [tokens(3, 9), tokens(4, 40), tokens(5, 1)];
    // Row 0 holds the beginning, row 1 what comes behind it in two of three texts.
    run(&mut decoder, &[row(0, 0, &[], &common, Wanted::None)]);
    run(
        &mut decoder,
        &[row(1, first, &[span(0, first)], &middle, Wanted::None)],
    );
    let chains = [
        vec![span(0, first), span(1, second)],
        vec![span(0, first), span(1, second)],
        vec![span(0, first)],
    ];
    let whole = |at: usize| match at {
        2 => [common.as_slice(), &tails[at]].concat(),
        _ => [common.as_slice(), &middle, &tails[at]].concat(),
    };
    let past = |at: usize| chains[at].last().unwrap().end;
    let ids = [4, 2, 3];
    // All three in one run, in an order that is not that of their rows.
    let rows: Vec<Row<'_>> = (0..3)
        .map(|at| row(ids[at], past(at), &chains[at], &tails[at], Wanted::Last))
        .collect();
    let together = run(&mut decoder, &rows);
    // And each one's next token, alone and in company.
    let next = tokens(6, 1);
    let rows: Vec<Row<'_>> = (0..3)
        .map(|at| row(ids[at], whole(at).len(), &chains[at], &next, Wanted::Last))
        .collect();
    let continued = run(&mut decoder, &rows);
    for at in 0..3 {
        let text = whole(at);
        decoder.release(RowId(6));
        let alone = run(&mut decoder, &[row(6, 0, &[], &text, Wanted::Last)]);
        assert_eq!(together[at], alone[0], "{kv_cache}, text {at}");
        // Batched matmuls round as those of one row do only where the operator computes them: compared in company.
        let rows = [
            row(6, text.len(), &[], &next, Wanted::Last),
            row(4, whole(0).len(), &chains[0], &next, Wanted::Last),
            row(2, whole(1).len(), &chains[1], &next, Wanted::Last),
        ];
        assert_eq!(
            run(&mut decoder, &rows)[0],
            continued[at],
            "{kv_cache}, text {at}"
        );
    }
}

#[test]
fn rows_that_share_give_what_each_gives_alone() {
    sharing(KvCache::F32);
    sharing(KvCache::I8);
}

#[test]
fn copies_and_saved_rows_go_on_as_the_row_itself() {
    for kv_cache in [KvCache::F32, KvCache::I8] {
        let Some(mut decoder) = decoder(kv_cache) else {
            return;
        };
        let unit = decoder.caps().share_granularity.unwrap();
        // Neither a whole tile nor a whole block.
        let text = tokens(1, 2 * unit + 21);
        let (next, other) = (tokens(6, 3), tokens(7, text.len() + 40));
        run(&mut decoder, &[row(0, 0, &[], &text, Wanted::None)]);
        let saved = decoder.save(RowId(0), text.len()).unwrap();
        let expected = run(&mut decoder, &[row(0, text.len(), &[], &next, Wanted::All)]);
        for used in [false, true] {
            for id in [1, 2, 3] {
                decoder.release(RowId(id));
                if used {
                    // What a row held before leaves no trace.
                    run(&mut decoder, &[row(id, 0, &[], &other, Wanted::None)]);
                }
            }
            decoder.copy(RowId(0), RowId(1), 0..text.len()).unwrap();
            assert_eq!(decoder.load(RowId(2), &saved).unwrap(), text.len());
            decoder.copy(RowId(0), RowId(3), unit..text.len()).unwrap();
            let shared = [span(0, unit)];
            for (id, shared) in [(1, &[][..]), (2, &[]), (3, &shared)] {
                let got = run(&mut decoder, &[row(id, text.len(), shared, &next, Wanted::All)]);
                assert_eq!(got, expected, "{kv_cache}, row {id}, used {used}");
            }
        }
    }
}

#[test]
fn steps_that_can_not_be_are_refused() {
    let Some(mut decoder) = decoder(KvCache::Auto) else {
        return;
    };
    assert!([KvType::F32, KvType::I8].contains(&decoder.caps().kv_type));
    let unit = decoder.caps().share_granularity.unwrap();
    let token = tokens(1, 1);
    let refused = |decoder: &mut OnnxDecoder, rows: &[Row<'_>]| {
        let outcome = decoder.run(&Step { rows }, &Interrupt::new());
        assert!(matches!(outcome, Err(DecodeError::Unsupported(_))), "{rows:?}");
    };
    for (shared, past) in [
        (span(8, unit), unit),
        (span(0, unit - 1), unit),
        (span(0, unit), unit - 1),
        (span(0, 0), unit),
    ] {
        refused(&mut decoder, &[row(1, past, &[shared], &token, Wanted::Last)]);
    }
    refused(&mut decoder, &[row(8, 0, &[], &token, Wanted::Last)]);
    let twice = row(1, 0, &[], &token, Wanted::Last);
    refused(&mut decoder, &[twice, twice]);
}
