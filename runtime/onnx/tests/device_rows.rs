//! Keys and values in device memory: the goldens, rows that are copied, saved and cut, and what happens when the memory
//! ends. On the processor its own allocator stands in for a device's; `PHI_EDGE_TEST_PROVIDER=webgpu` runs the same on a GPU or on
//! its software driver (`cargo xtask webgpu-test`).

#![allow(clippy::cast_possible_truncation, clippy::unwrap_used, missing_docs)]

mod support;

use std::path::{Path, PathBuf};

use phi_edge_engine::{
    DecodeError, Decoder, Engine, EngineConfig, Interrupt, KvType, Regime, Row, RowId, Step, Symbol, TokenId,
};
use phi_edge_models::ModelDir;
use phi_edge_onnx::{
    DecoderConfig, KvCache, Level, Library, OnnxDecoder, Prepare, Provider, ProviderSettings,
};
use support::golden::{Golden, INT4_LOGITS, check_ids, goldens, logits_after};
use support::rows::{check_prefixes, row, run_alone as run};
use support::{device_provider as provider, fixture, generate, library};

fn load(library: &Library, folder: &Path, adapt: impl FnOnce(&mut DecoderConfig)) -> OnnxDecoder {
    let model = ModelDir::open(folder).unwrap();
    let mut config = DecoderConfig {
        provider: provider(),
        threads: Some(2),
        rows: 1,
        kv_cache: KvCache::F32,
        provider_settings: ProviderSettings {
            device_memory: Some(64 << 20),
            ..ProviderSettings::default()
        },
        device_rows: true,
        ..DecoderConfig::default()
    };
    adapt(&mut config);
    let decoder = OnnxDecoder::load(library, &model, &config).unwrap();
    assert!(decoder.device_budget().is_some());
    assert_eq!(decoder.provider(), provider());
    decoder
}

/// The tiny model of this name and the library, where both are there.
fn tiny(name: &str) -> Option<(PathBuf, Library)> {
    Some((fixture(name)?, library()?))
}

/// The bytes of a token of a fixture, as its rows count in a budget.
fn bytes_per_token(decoder: &OnnxDecoder) -> u64 {
    decoder.caps().kv_bytes_per_token
}

/// How far logits may be from the reference's, and how near to each other where one changes places with another.
#[derive(Clone, Copy)]
struct Tolerance {
    logit: f32,
    near_tie: f32,
}

const fn within(logit: f32, near_tie: f32) -> Tolerance {
    Tolerance { logit, near_tie }
}

/// The goldens alone, in company, with little memory, and again with the prefixes that rows hold.
fn check(name: &str, on_processor: Tolerance, on_device: Tolerance) {
    let is_device = provider() != Provider::Cpu;
    let Tolerance { logit, near_tie } = if is_device { on_device } else { on_processor };
    let Some((folder, library)) = tiny(name) else {
        return;
    };
    let goldens = goldens(&folder);
    let mut reference = load(&library, &folder, |config| {
        config.prepare = if provider() == Provider::Cpu {
            Prepare::PLAIN
        } else {
            Prepare::ALL
        };
    });
    assert_eq!(reference.caps().rope_boundary, Some(64));
    let goldens = served(&mut reference, goldens.iter().collect());
    for golden in &goldens {
        let logits = logits_after(&mut reference, &golden.prompt);
        for (id, value) in &golden.top {
            let got = logits[id.0 as usize];
            assert!(
                (got - value).abs() <= logit,
                "{} {id:?}: {got} is not {value}",
                golden.name
            );
        }
    }
    let per_token = bytes_per_token(&reference);
    let longest = goldens
        .iter()
        .map(|golden| golden.prompt.len() + golden.max_new)
        .max()
        .unwrap()
        + 1;
    let group: Vec<&Golden> = goldens
        .iter()
        .filter(|golden| golden.group.is_some())
        .copied()
        .collect();
    let all: Vec<&Golden> = goldens
        .iter()
        .filter(|golden| is_quick(golden))
        .copied()
        .collect();
    assert!(group.len() > 1 && all.len() > 4);
    // As many rows as are wanted, or two of the longest.
    let (ample, scarce) = (64 << 20, per_token * longest.next_multiple_of(16) as u64 * 3);
    let runs = [
        (&goldens, 1, 32, Prepare::ALL, ample),
        (&all, 1, 32, Prepare::PLAIN, ample),
        (&all, 1, 7, Prepare::form(Level::Logits), ample),
        (&group, group.len(), 24, Prepare::PLAIN, ample),
        (&all, 4, 24, Prepare::form(Level::Logits), ample),
        (&all, 4, 24, Prepare::PLAIN, scarce),
        (&all, 3, 7, Prepare::form(Level::Logits), scarce),
        (&all, 4, 24, Prepare::ALL, scarce),
    ];
    for (at, (company, slots, chunk, prepare, memory)) in runs.into_iter().enumerate() {
        // The software driver takes a minute for each.
        if is_device && ![0, 3, 6, 7].contains(&at) {
            continue;
        }
        let mut decoder = load(&library, &folder, |config| {
            config.rows = slots + 2;
            config.prepare = prepare;
            config.provider_settings.device_memory = Some(memory);
        });
        let company = served(&mut decoder, company.clone());
        let config = EngineConfig {
            slots,
            prefill_chunk: chunk,
            stop_repetition: true,
            kv_budget: decoder.device_budget(),
            ..EngineConfig::default()
        };
        let how = format!("{slots} at once in chunks of {chunk}, {prepare}, {memory} bytes");
        let mut engine = Engine::new(decoder, config);
        for round in ["first", "second"] {
            let answers = generate(&mut engine, company.iter().map(|golden| golden.ask()));
            for (golden, got) in company.iter().zip(answers) {
                check_ids(&mut reference, golden, &got, near_tie, &format!("{round}: {how}"));
            }
        }
    }
}

/// Of `goldens`, those that a provider serves with a graph whose factors follow from the mask's width or from positions: kernels
/// that take neither a wide mask nor a pad token compute no text beyond the rope boundary, and refuse it.
fn served<'a>(decoder: &mut OnnxDecoder, goldens: Vec<&'a Golden>) -> Vec<&'a Golden> {
    let symbols = Symbol::of_tokens((100..103).map(TokenId));
    let long = Row {
        regime: Regime::Long,
        ..row(0, 0, &symbols)
    };
    let outcome = decoder.run(&Step { rows: &[long] }, &Interrupt::new());
    let refused = outcome.err().map(|error| error.to_string());
    decoder.release(RowId(0));
    let Some(refused) = refused else { return goldens };
    assert!(
        provider() != Provider::Cpu && refused.contains("rope boundary"),
        "{refused}"
    );
    let is_short = |golden: &&Golden| golden.prompt.len() + golden.max_new <= 64;
    goldens.into_iter().filter(is_short).collect()
}

/// Whether a software driver computes it in a few seconds.
fn is_quick(golden: &Golden) -> bool {
    provider() == Provider::Cpu || golden.prompt.len() < 200
}

#[test]
fn fp32() {
    check("phi3-mini-tiny-fp32", within(1e-3, 1e-4), within(1e-3, 1e-4));
}

#[test]
fn int4() {
    // The goldens have activations of 8 bits, which the processor's kernels round to.
    check(
        "phi3-mini-tiny-int4",
        within(INT4_LOGITS, 0.25),
        within(0.25, 0.4),
    );
}

#[test]
fn directml_form() {
    check("phi3-mini-tiny-dml", within(0.15, 0.25), within(0.25, 0.4));
}

#[test]
fn cuda_form() {
    // A device computes with 16 bits what the processor computes with 32.
    check("phi3-mini-tiny-cuda", within(0.05, 0.02), within(0.15, 0.2));
}

fn close(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4)
}

#[test]
fn rows_are_copied_saved_and_released() {
    let Some((folder, library)) = tiny("phi3-mini-tiny-fp32") else {
        return;
    };
    let mut decoder = load(&library, &folder, |config| config.rows = 4);
    let prompt: Vec<TokenId> = (100..120).map(TokenId).collect();
    let (head, tail) = prompt.split_at(15);
    let expected = logits_after(&mut decoder, &prompt);
    run(&mut decoder, 1, 0, head);
    decoder.copy(RowId(1), RowId(2), 0..head.len()).unwrap();
    let saved = decoder.save(RowId(1), head.len()).unwrap();
    decoder.release(RowId(1));
    assert!(
        close(&run(&mut decoder, 2, head.len(), tail), &expected),
        "a copied row answers differently"
    );
    assert!(
        !close(&run(&mut decoder, 1, head.len(), tail), &expected),
        "a released row still knows its tokens"
    );
    assert_eq!(decoder.load(RowId(1), &saved).unwrap(), head.len());
    assert!(
        close(&run(&mut decoder, 1, head.len(), tail), &expected),
        "a loaded row answers differently"
    );
    assert_eq!(decoder.save(RowId(1), head.len()).unwrap(), saved);
    assert!(decoder.load(RowId(1), &saved[..saved.len() - 1]).is_err());
    assert!(decoder.save(RowId(3), 1).is_err(), "an empty row is saved");
    // A row of a group, and one that is cut.
    decoder.copy(RowId(1), RowId(3), 0..7).unwrap();
    assert!(close(&run(&mut decoder, 3, 7, &prompt[7..]), &expected));
    decoder.truncate(RowId(3), 3);
    assert!(close(&run(&mut decoder, 3, 3, &prompt[3..]), &expected));
}

#[test]
fn a_saved_row_has_the_form_of_the_hosts() {
    let Some((folder, library)) = tiny("phi3-mini-tiny-fp32") else {
        return;
    };
    if provider() != Provider::Cpu {
        return;
    }
    let prompt: Vec<TokenId> = (100..120).map(TokenId).collect();
    let saved = |device_rows: bool| {
        let model = ModelDir::open(&folder).unwrap();
        let config = DecoderConfig {
            provider: Provider::Cpu,
            threads: Some(2),
            kv_cache: KvCache::F32,
            prepare: Prepare::PLAIN,
            device_rows,
            ..DecoderConfig::default()
        };
        let mut decoder = OnnxDecoder::load(&library, &model, &config).unwrap();
        assert_eq!(
            (decoder.device_budget().is_some(), decoder.caps().kv_type),
            (device_rows, KvType::F32)
        );
        run(&mut decoder, 0, 0, &prompt);
        decoder.save(RowId(0), prompt.len()).unwrap()
    };
    assert_eq!(saved(true), saved(false));
}

#[test]
fn rows_of_other_groups_give_their_logits_in_the_order_of_the_step() {
    let Some((folder, library)) = tiny("phi3-mini-tiny-fp32") else {
        return;
    };
    let mut decoder = load(&library, &folder, |config| config.rows = 6);
    let lengths = [50, 3, 20, 7, 48, 21];
    let token = |row: usize, at: usize| TokenId((7 * row + 3 * at + 5) as u32 % 300);
    let mut alone = Vec::new();
    for (number, length) in lengths.into_iter().enumerate() {
        let tokens: Vec<TokenId> = (0..length).map(|at| token(number, at)).collect();
        run(&mut decoder, number as u32, 0, &tokens);
        alone.push(run(&mut decoder, number as u32, length, &[token(number, length)]));
    }
    // The same token again, all rows in one step, in an order of their own, and another one after that.
    let order = [3, 0, 5, 1, 4, 2];
    let inputs = order.map(|number| [Symbol::Token(token(number, lengths[number]))]);
    for _ in 0..2 {
        let rows: Vec<Row<'_>> = order
            .iter()
            .zip(&inputs)
            .map(|(&number, input)| row(number as u32, lengths[number], input))
            .collect();
        let logits = decoder.run(&Step { rows: &rows }, &Interrupt::new()).unwrap();
        for (at, &number) in order.iter().enumerate() {
            assert!(close(logits.row(at).unwrap(), &alone[number]), "row {number}");
        }
    }
    // A row that leaves takes its tokens along.
    decoder.copy(RowId(4), RowId(1), 0..lengths[4]).unwrap();
    let again = run(&mut decoder, 1, lengths[4], &[token(4, lengths[4])]);
    assert!(close(&again, &alone[4]));
}

#[test]
fn memory_that_ends_is_an_error_of_one_row() {
    let Some((folder, library)) = tiny("phi3-mini-tiny-fp32") else {
        return;
    };
    let per_token = bytes_per_token(&load(&library, &folder, |_| {}));
    let mut decoder = load(&library, &folder, |config| {
        config.rows = 4;
        config.provider_settings.device_memory = Some(per_token * 64);
    });
    let context = decoder.caps().context_length;
    assert!((40..64).contains(&context), "{context}");
    let prompt: Vec<TokenId> = (100..120).map(TokenId).collect();
    let expected = run(&mut decoder, 0, 0, &prompt);
    decoder.ensure(RowId(1), 30).unwrap();
    let refused = decoder.ensure(RowId(2), 40).unwrap_err();
    assert!(matches!(&refused, DecodeError::OutOfMemory(_)), "{refused}");
    assert!(decoder.ensure(RowId(1), context + 1).is_err());
    // The others hold what they held, and released memory can be had.
    let last = prompt.len() - 1;
    assert!(close(&run(&mut decoder, 0, last, &prompt[last..]), &expected));
    decoder.release(RowId(1));
    decoder.ensure(RowId(2), 30).unwrap();
}

#[test]
fn the_context_follows_from_the_memory() {
    let Some((folder, library)) = tiny("phi3-mini-tiny-fp32") else {
        return;
    };
    let whole = load(&library, &folder, |config| {
        config.provider_settings.device_memory = None;
    });
    let per_token = bytes_per_token(&whole);
    let full = whole.caps().context_length;
    assert_eq!(full, ModelDir::open(&folder).unwrap().config().context_length);
    for rows in [1, 12] {
        // Rows share the memory: one of them may have it all.
        let decoder = load(&library, &folder, |config| {
            config.rows = rows;
            config.provider_settings.device_memory = Some(per_token * 100);
        });
        let caps = decoder.caps();
        assert!(
            (70..100).contains(&caps.context_length),
            "{}",
            caps.context_length
        );
        assert_eq!(caps.rows, rows.max(2));
    }
}

#[test]
fn prefixes_are_taken_from_rows_and_kept_over_a_restart() {
    let Some((folder, library)) = tiny("phi3-mini-tiny-fp32") else {
        return;
    };
    check_prefixes(&folder, || load(&library, &folder, |config| config.rows = 3));
}

#[test]
fn an_interrupted_run_leaves_its_row_usable() {
    let Some((folder, library)) = tiny("phi3-mini-tiny-fp32") else {
        return;
    };
    let mut decoder = load(&library, &folder, |config| config.rows = 2);
    let prompt: Vec<TokenId> = (100..140).map(TokenId).collect();
    let expected = run(&mut decoder, 0, 0, &prompt);
    let symbols = Symbol::of_tokens(prompt.iter().copied());
    let interrupt = Interrupt::new();
    interrupt.raise();
    let step = [row(1, 0, &symbols)];
    let outcome = decoder.run(&Step { rows: &step }, &interrupt);
    assert!(matches!(outcome, Err(DecodeError::Interrupted)));
    interrupt.clear();
    let from_outside = interrupt.clone();
    std::thread::scope(|scope| {
        scope.spawn(move || from_outside.raise());
        match decoder.run(&Step { rows: &step }, &interrupt) {
            Ok(_) | Err(DecodeError::Interrupted) => {}
            Err(error) => panic!("{error}"),
        }
    });
    assert!(close(&run(&mut decoder, 1, 0, &prompt), &expected));
}

/// The repository's own models, where they are; `PHI_EDGE_TEST_MODELS` names a folder of copies.
fn own_models() -> [PathBuf; 2] {
    match std::env::var_os("PHI_EDGE_TEST_MODELS") {
        Some(folder) => ["demo", "2024"].map(|name| Path::new(&folder).join(name)),
        None => ["models/demo", "tests/fixtures/forms/2024"]
            .map(|name| Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(name)),
    }
}

#[test]
fn the_repositorys_models_give_the_logits_of_the_host() {
    let Some(library) = library() else { return };
    for folder in own_models() {
        let on_host = DecoderConfig {
            provider: Provider::Cpu,
            threads: Some(2),
            kv_cache: KvCache::F32,
            prepare: Prepare::PLAIN,
            ..DecoderConfig::default()
        };
        let model = ModelDir::open(&folder).unwrap();
        let mut host = OnnxDecoder::load(&library, &model, &on_host).unwrap();
        let mut device = load(&library, &folder, |config| config.rows = 3);
        let prompts: [Vec<TokenId>; 3] = [5, 5, 29].map(|length| {
            (0..length)
                .map(|at| TokenId(3 + (7 * at + length) % 200))
                .collect()
        });
        let mut expected = Vec::new();
        for (number, prompt) in (0..).zip(&prompts) {
            let (last, head) = prompt.split_last().unwrap();
            expected.push(run(&mut host, 0, 0, prompt));
            run(&mut device, number, 0, head);
            let alone = run(&mut device, number, head.len(), &[*last]);
            assert!(
                near(&alone, &expected[number as usize]),
                "{} alone",
                folder.display()
            );
        }
        let inputs = prompts
            .each_ref()
            .map(|prompt| [Symbol::Token(*prompt.last().unwrap())]);
        let rows: Vec<Row<'_>> = (0..)
            .zip(&prompts)
            .zip(&inputs)
            .map(|((number, prompt), input)| row(number, prompt.len() - 1, input))
            .collect();
        let logits = device.run(&Step { rows: &rows }, &Interrupt::new()).unwrap();
        for (at, expected) in expected.iter().enumerate() {
            assert!(
                near(logits.row(at).unwrap(), expected),
                "{} in company",
                folder.display()
            );
        }
    }
}

/// Equal but for the rounding of int4 kernels: within 5 % of the largest.
fn near(got: &[f32], expected: &[f32]) -> bool {
    let largest = expected
        .iter()
        .fold(0_f32, |largest, value| largest.max(value.abs()));
    got.len() == expected.len()
        && got
            .iter()
            .zip(expected)
            .all(|(a, b)| (a - b).abs() <= 0.05 * largest)
}
