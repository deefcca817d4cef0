//! Paged attention: the goldens of the CUDA form with keys and values in blocks, on the processor, where an operator of the tests
//! stands in for ONNX Runtime's `PagedAttention`.

#![allow(clippy::cast_possible_truncation, clippy::unwrap_used, missing_docs)]

#[path = "support/paged_attention.rs"]
mod paged_attention;
mod support;

use std::path::{Path, PathBuf};

use paged_attention::{STAND_IN, WRONG};
use parking_lot::{Mutex, MutexGuard};
use phi_edge_engine::{
    DecodeError, Decoder, Engine, EngineConfig, Interrupt, KvType, Row, RowId, Step, Symbol, TokenId, Wanted,
};
use phi_edge_models::ModelDir;
use phi_edge_onnx::{DecoderConfig, Level, Library, OnnxDecoder, Prepare, Provider, ProviderSettings};
use support::golden::{Golden, check_ids, goldens, logits_after};
use support::rows::{check_prefixes, row, run_alone as run};
use support::{fixture, generate, library};

/// Sessions with domains of custom operators are opened one at a time: the library adds each domain to a list of the process.
static OPENING: Mutex<()> = Mutex::new(());

/// The tiny model in the form for CUDA and the library, where both are there.
fn tiny() -> Option<(PathBuf, Library, MutexGuard<'static, ()>)> {
    Some((fixture("phi3-mini-tiny-cuda")?, library()?, OPENING.lock()))
}

fn config() -> DecoderConfig {
    DecoderConfig {
        provider: Provider::Cpu,
        threads: Some(2),
        rows: 1,
        prepare: Prepare::form(Level::Paged),
        paged_stand_in: Some(STAND_IN),
        provider_settings: ProviderSettings {
            device_memory: Some(16 << 20),
            ..ProviderSettings::default()
        },
        ..DecoderConfig::default()
    }
}

fn load(library: &Library, folder: &Path, adapt: impl FnOnce(&mut DecoderConfig)) -> OnnxDecoder {
    let mut config = config();
    adapt(&mut config);
    let model = ModelDir::open(folder).unwrap();
    let decoder = OnnxDecoder::load(library, &model, &config).unwrap();
    assert_eq!(decoder.prepared(), Prepare::form(Level::Paged));
    assert!(decoder.device_budget().is_some());
    decoder
}

fn plain(library: &Library, folder: &Path) -> OnnxDecoder {
    let config = DecoderConfig {
        prepare: Prepare::PLAIN,
        paged_stand_in: None,
        ..config()
    };
    OnnxDecoder::load(library, &ModelDir::open(folder).unwrap(), &config).unwrap()
}

#[test]
fn the_goldens() {
    let Some((folder, library, _opening)) = tiny() else {
        return;
    };
    let goldens = goldens(&folder);
    let mut reference = load(&library, &folder, |_| {});
    assert_eq!(reference.caps().rope_boundary, Some(64));
    for golden in &goldens {
        let logits = logits_after(&mut reference, &golden.prompt);
        for (id, value) in &golden.top {
            let got = logits[id.0 as usize];
            assert!(
                (got - value).abs() <= 0.05,
                "{} {id:?}: {got} is not {value}",
                golden.name
            );
        }
    }
    let per_token = reference.caps().kv_bytes_per_token;
    let length = |golden: &Golden| golden.prompt.len() + golden.max_new + 1;
    let longest = goldens.iter().map(length).max().unwrap() as u64;
    let (ample, scarce) = (16 << 20, per_token * longest.next_multiple_of(16) * 2);
    for (slots, chunk, memory) in [(1, 32, ample), (1, 7, scarce), (4, 24, ample), (3, 7, scarce)] {
        let decoder = load(&library, &folder, |config| {
            config.rows = slots + 2;
            config.provider_settings.device_memory = Some(memory);
        });
        let config = EngineConfig {
            slots,
            prefill_chunk: chunk,
            stop_repetition: true,
            kv_budget: decoder.device_budget(),
            ..EngineConfig::default()
        };
        let how = format!("{slots} at once in chunks of {chunk}, {memory} bytes");
        let mut engine = Engine::new(decoder, config);
        for round in ["first", "second"] {
            let answers = generate(&mut engine, goldens.iter().map(Golden::ask));
            for (golden, got) in goldens.iter().zip(answers) {
                check_ids(&mut reference, golden, &got, 0.02, &format!("{round}: {how}"));
            }
        }
    }
}

/// Equal but for the rounding of products of matrices of different heights.
fn close(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 0.02)
}

fn tokens(range: std::ops::Range<u32>) -> Vec<TokenId> {
    range.map(TokenId).collect()
}

#[test]
fn it_takes_rows_of_any_length_in_one_run() {
    let Some((folder, library, _opening)) = tiny() else {
        return;
    };
    let mut decoder = load(&library, &folder, |config| config.rows = 4);
    let caps = decoder.caps().clone();
    assert!(caps.ragged_chunks && caps.idle_rows && !caps.mixed_regimes && !caps.contiguous_rows);
    assert_eq!((caps.kv_type, caps.kv_block), (KvType::F16, 16));
    let mut alone = plain(&library, &folder);
    let prompts = [tokens(100..137), tokens(200..205), tokens(300..301)];
    let expected: Vec<Vec<f32>> = prompts
        .iter()
        .map(|prompt| run(&mut alone, 0, 0, prompt))
        .collect();
    // Each in two chunks, cut elsewhere, in another order, with an idle row between them.
    let cut = [19, 4, 0];
    for chunk in 0..2 {
        let inputs: Vec<Vec<Symbol>> = prompts
            .iter()
            .zip(cut)
            .map(|(prompt, cut)| {
                if chunk == 0 {
                    &prompt[..cut]
                } else {
                    &prompt[cut..]
                }
            })
            .map(|tokens| Symbol::of_tokens(tokens.iter().copied()))
            .collect();
        let wanted = if chunk == 0 { Wanted::None } else { Wanted::Last };
        let past = |at: usize| if chunk == 0 { 0 } else { cut[at] };
        let idle = Row {
            logits: Wanted::None,
            ..row(3, 0, &[])
        };
        let of = |at: usize| Row {
            logits: wanted,
            ..row(at as u32, past(at), &inputs[at])
        };
        let rows = [of(2), idle, of(0), of(1)];
        let logits = decoder.run(&Step { rows: &rows }, &Interrupt::new()).unwrap();
        assert_eq!(logits.rows(), 3 * chunk);
        for (at, prompt) in [2, 0, 1].into_iter().enumerate().filter(|_| chunk == 1) {
            assert!(
                close(logits.row(at).unwrap(), &expected[prompt]),
                "prompt {prompt}"
            );
        }
    }
    // All logits of one row in the company of another.
    let (long, short) = (
        Symbol::of_tokens(tokens(100..103)),
        Symbol::of_tokens(tokens(9..10)),
    );
    let all = Row {
        logits: Wanted::All,
        ..row(3, 0, &long)
    };
    let logits = decoder.run(
        &Step {
            rows: &[row(2, 1, &short), all],
        },
        &Interrupt::new(),
    );
    let logits = logits.unwrap();
    assert_eq!(logits.rows(), 4);
    for (at, end) in (101..104).enumerate() {
        assert!(close(
            logits.row(1 + at).unwrap(),
            &run(&mut alone, 0, 0, &tokens(100..end))
        ));
    }
}

#[test]
fn rows_share_blocks_until_they_part() {
    let Some((folder, library, _opening)) = tiny() else {
        return;
    };
    let mut decoder = load(&library, &folder, |config| config.rows = 4);
    let per_block = decoder.caps().kv_bytes_per_token * 16;
    let prompt = tokens(100..140);
    let expected = logits_after(&mut decoder, &prompt);
    decoder.release(RowId(0));
    // Three blocks of a prompt of 40 tokens; each copy needs one more, for its own end.
    let mut decoder = load(&library, &folder, |config| {
        config.rows = 4;
        config.provider_settings.device_memory = Some(per_block * 5);
    });
    run(&mut decoder, 0, 0, &prompt[..39]);
    for copy in 1..4 {
        decoder.copy(RowId(0), RowId(copy), 0..39).unwrap();
    }
    for row in 1..3 {
        assert!(
            close(&run(&mut decoder, row, 39, &prompt[39..]), &expected),
            "row {row}"
        );
    }
    let symbols = Symbol::of_tokens(prompt[39..].iter().copied());
    let refused = decoder.run(
        &Step {
            rows: &[row(3, 39, &symbols)],
        },
        &Interrupt::new(),
    );
    assert!(matches!(refused, Err(DecodeError::OutOfMemory(_))));
    // Another end of the first row changes no copy.
    decoder.release(RowId(2));
    run(&mut decoder, 0, 36, &tokens(500..503));
    decoder.release(RowId(1));
    assert!(close(&run(&mut decoder, 3, 39, &prompt[39..]), &expected));
    decoder.truncate(RowId(3), 20);
    assert!(close(&run(&mut decoder, 3, 20, &prompt[20..]), &expected));
    assert!(
        decoder
            .ensure(RowId(1), decoder.caps().context_length + 1)
            .is_err()
    );
}

#[test]
fn rows_are_saved_and_loaded() {
    let Some((folder, library, _opening)) = tiny() else {
        return;
    };
    let mut decoder = load(&library, &folder, |config| config.rows = 3);
    let prompt = tokens(100..140);
    let (head, tail) = prompt.split_at(37);
    let expected = logits_after(&mut decoder, &prompt);
    run(&mut decoder, 1, 0, head);
    let saved = decoder.save(RowId(1), head.len()).unwrap();
    let per_token = decoder.caps().kv_bytes_per_token as usize;
    assert_eq!(saved.len(), 8 + head.len() * per_token);
    decoder.release(RowId(1));
    assert!(decoder.save(RowId(1), 1).is_err(), "an empty row is saved");
    let symbols = Symbol::of_tokens(tail.iter().copied());
    let emptied = decoder.run(
        &Step {
            rows: &[row(1, head.len(), &symbols)],
        },
        &Interrupt::new(),
    );
    assert!(emptied.is_err(), "an empty row goes on");
    // Beside a row that has its blocks, in a process of its own.
    decoder.copy(RowId(0), RowId(2), 0..20).unwrap();
    for decoder in [
        &mut decoder,
        &mut load(&library, &folder, |config| config.rows = 3),
    ] {
        assert_eq!(decoder.load(RowId(2), &saved).unwrap(), head.len());
        assert!(close(&run(decoder, 2, head.len(), tail), &expected));
        assert_eq!(decoder.save(RowId(2), head.len()).unwrap(), saved);
        assert!(decoder.load(RowId(2), &saved[..saved.len() - 1]).is_err());
    }
    assert!(close(&run(&mut decoder, 0, 39, &prompt[39..]), &expected));
}

#[test]
fn prefixes_are_taken_from_rows_and_kept_over_a_restart() {
    let Some((folder, library, _opening)) = tiny() else {
        return;
    };
    check_prefixes(&folder, || load(&library, &folder, |config| config.rows = 3));
}

#[test]
fn an_operator_that_computes_wrong_is_left_out() {
    let Some((folder, library, _opening)) = tiny() else {
        return;
    };
    let config = DecoderConfig {
        paged_stand_in: Some(WRONG),
        ..config()
    };
    let model = ModelDir::open(&folder).unwrap();
    let mut decoder = OnnxDecoder::load(&library, &model, &config).unwrap();
    assert_eq!(decoder.prepared(), Prepare::form(Level::Rope));
    assert!(decoder.device_budget().is_none());
    let prompt = tokens(100..140);
    let expected = logits_after(&mut plain(&library, &folder), &prompt);
    assert!(close(&logits_after(&mut decoder, &prompt), &expected));
}

#[test]
fn graphs_of_32_bits_are_not_paged() {
    let (Some(folder), Some(library)) = (fixture("phi3-mini-tiny-fp32"), library()) else {
        return;
    };
    let _opening = OPENING.lock();
    let decoder = OnnxDecoder::load(&library, &ModelDir::open(&folder).unwrap(), &config()).unwrap();
    assert_eq!(decoder.prepared(), Prepare::form(Level::Rope));
}
