//! Prefixes that rows share by reference, and what they take of the memory budget.

#![allow(clippy::cast_possible_truncation, clippy::unwrap_used, missing_docs)]

mod support;

use std::time::Duration;

use phi_edge_engine::{Engine, EngineConfig, Event, Failure, Interrupt, RequestId};
use support::{Form, Scripted, answer, digest, request, run, scripted, summary, symbols, text};

/// 40 tokens that all prompts begin with, and three of a request's own.
fn prompt(own: u32) -> Vec<u32> {
    let shared = (0..40).map(|n| n * 7 % 26);
    shared.chain([own, own + 1, own + 2]).collect()
}

fn engine(config: EngineConfig) -> Engine<Scripted> {
    let mut decoder = scripted(false, Form::Shared);
    decoder.budget = config.kv_budget;
    Engine::new(decoder, config)
}

fn slots(slots: usize) -> EngineConfig {
    EngineConfig {
        slots,
        speculation: false,
        ..EngineConfig::default()
    }
}

/// The bytes of a row that holds `tokens` itself: blocks of 4 tokens of 8 bytes, and 20 bytes of overhead.
fn bytes(tokens: usize) -> u64 {
    8 * 4 * tokens.div_ceil(4) as u64 + 20
}

fn step(engine: &mut Engine<Scripted>, events: &mut Vec<Event>) {
    engine.step(&|| Duration::ZERO, &Interrupt::new(), events);
}

fn assert_answered_as_alone(events: &[Event], id: u64, own: u32, new: usize) {
    assert_eq!(text(events, id), answer(digest, request(id, &prompt(own), new)).0);
}

#[test]
fn a_burst_holds_its_common_prefix_once() {
    let mut engine = engine(slots(4));
    let mut most = 0;
    for id in 0..8u64 {
        engine
            .submit(request(id, &prompt(id as u32), 10), Duration::ZERO)
            .unwrap();
    }
    let mut events = Vec::new();
    while !engine.is_idle() {
        step(&mut engine, &mut events);
        most = most.max(engine.decoder().bytes());
    }
    for id in 0..8u64 {
        assert_answered_as_alone(&events, id, id as u32, 10);
        assert_eq!(summary(&events, id).cached_tokens, if id == 0 { 0 } else { 40 });
    }
    let decoder = engine.decoder();
    assert_eq!((decoder.longest_shared, decoder.copies), (40, 0));
    assert_eq!(decoder.computed, 43 + 7 * 3 + 8 * 9);
    // One whole row, and the own tokens of five others.
    assert!(most <= bytes(52) + 5 * bytes(12), "{most} bytes");
}

#[test]
fn what_waits_for_a_shared_prefix_has_its_progress() {
    let config = EngineConfig {
        prefill_chunk: 10,
        ..slots(3)
    };
    let mut engine = engine(config);
    // The third begins like none.
    for (id, prompt) in [(1, prompt(1)), (2, prompt(2)), (3, vec![25; 24])] {
        engine.submit(request(id, &prompt, 5), Duration::ZERO).unwrap();
    }
    let events = run(&mut engine);
    let done = |of: u64| -> Vec<usize> {
        let done = events.iter().filter_map(|event| match event {
            Event::Progress { id, done, .. } if id.0 == of => Some(*done),
            _ => None,
        });
        done.collect()
    };
    assert_eq!(done(1), [10, 20, 30, 40, 43]);
    assert_eq!(done(2), [10, 20, 30, 43]);
    assert_eq!(done(3), [10, 20, 24]);
    assert_eq!(summary(&events, 2).cached_tokens, 40);
}

#[test]
fn the_budget_counts_shared_tokens_once() {
    let budget = bytes(53) + 3 * bytes(13);
    let config = EngineConfig {
        kv_budget: Some(budget),
        ..slots(4)
    };
    let mut engine = engine(config);
    for id in 0..4u64 {
        engine
            .submit(request(id, &prompt(id as u32), 10), Duration::ZERO)
            .unwrap();
    }
    let events = run(&mut engine);
    for id in 0..4u64 {
        assert_answered_as_alone(&events, id, id as u32, 10);
    }
    // Without sharing not even two of them fit.
    assert!(budget < 2 * bytes(53) + bytes(13));
    assert_eq!(engine.decoder().widest_run, 4);
}

#[test]
fn what_blocks_and_rows_lose_holds_no_tokens() {
    let config = EngineConfig {
        kv_budget: Some(bytes(40) + 31),
        ..slots(2)
    };
    let mut engine = engine(config);
    assert_eq!((engine.context(), engine.memory()), (40, Some(40)));
    let refused = engine.submit(request(1, &[1; 40], 1), Duration::ZERO);
    assert!(matches!(refused, Err(Failure::MemoryOverflow { budget: 40, .. })));
    // The whole memory is for one request, once what is remembered of others is evicted.
    for id in 2..5u64 {
        engine
            .submit(request(id, &[id as u32; 30], 20), Duration::ZERO)
            .unwrap();
    }
    let events = run(&mut engine);
    assert!((2..5).all(|id| summary(&events, id).tokens.len() == 10));
}

#[test]
fn what_others_read_outlives_its_sequence() {
    for cancelled in [true, false] {
        let mut engine = engine(slots(2));
        let mut events = Vec::new();
        let new = if cancelled { 40 } else { 6 };
        engine
            .submit(request(1, &prompt(1), new), Duration::ZERO)
            .unwrap();
        for _ in 0..3 {
            step(&mut engine, &mut events);
        }
        engine.submit(request(2, &prompt(2), 25), Duration::ZERO).unwrap();
        for _ in 0..2 {
            step(&mut engine, &mut events);
        }
        if cancelled {
            engine.cancel(RequestId(1));
        }
        // A third wants rows meanwhile, and a fourth begins like the first two.
        engine.submit(request(3, &[25; 60], 3), Duration::ZERO).unwrap();
        engine.submit(request(4, &prompt(4), 5), Duration::ZERO).unwrap();
        events.extend(run(&mut engine));
        assert_answered_as_alone(&events, 2, 2, 25);
        assert_answered_as_alone(&events, 4, 4, 5);
        assert_eq!(summary(&events, 4).cached_tokens, 40);
        engine.forget();
        assert_eq!((engine.decoder().held(), engine.kv_use().remembered), (0, 0));
    }
}

#[test]
fn what_others_read_outlives_a_failure() {
    let config = EngineConfig {
        prefill_chunk: 10,
        ..slots(2)
    };
    let mut engine = engine(config);
    let mut events = Vec::new();
    let long = [prompt(1), vec![9; 40]].concat();
    engine.submit(request(1, &long, 5), Duration::ZERO).unwrap();
    for _ in 0..5 {
        step(&mut engine, &mut events);
    }
    engine.submit(request(2, &prompt(2), 25), Duration::ZERO).unwrap();
    // The other prompt enters, then a decode step, then a chunk of the first.
    let runs = engine.decoder().runs;
    engine.decoder().fail_at.set(Some(runs + 3));
    events.extend(run(&mut engine));
    let failed = |event: &Event| matches!(event, Event::Failed { id: RequestId(1), .. });
    assert!(events.iter().any(failed), "{events:?}");
    assert_answered_as_alone(&events, 2, 2, 25);
    assert_eq!(
        (summary(&events, 2).cached_tokens, engine.decoder().longest_shared),
        (40, 40)
    );
    engine.forget();
    assert_eq!((engine.decoder().held(), engine.kv_use().remembered), (0, 0));
}

#[test]
fn pinned_prefixes_are_read_where_they_are() {
    let mut engine = engine(slots(3));
    let prefix = symbols(&prompt(0)[..40]);
    engine.pin(&prefix, None).unwrap();
    for id in 0..6u64 {
        engine
            .submit(request(id, &prompt(id as u32), 5), Duration::ZERO)
            .unwrap();
    }
    let events = run(&mut engine);
    for id in 0..6u64 {
        assert_answered_as_alone(&events, id, id as u32, 5);
        assert_eq!(summary(&events, id).cached_tokens, 40);
    }
    assert_eq!((engine.decoder().copies, engine.decoder().longest_chain), (0, 1));
    engine.forget();
    assert_eq!(
        (engine.decoder().held(), engine.kv_use().remembered),
        (40, bytes(40))
    );
}

#[test]
fn a_sequence_that_crosses_the_boundary_leaves_its_readers_alone() {
    // The boundary of the scripted decoder lies at 45 tokens.
    let mut engine = Engine::new(scripted(true, Form::Shared), slots(3));
    // The first crosses, the second and the third stay below; the fourth begins beyond.
    let news = [(1u64, 20), (2, 2), (3, 1), (4, 20)];
    for (id, new) in news {
        engine
            .submit(request(id, &prompt(id as u32), new), Duration::ZERO)
            .unwrap();
    }
    let events = run(&mut engine);
    for (id, new) in news {
        let mut alone = Engine::new(scripted(true, Form::Plain), EngineConfig::default());
        alone
            .submit(request(id, &prompt(id as u32), new), Duration::ZERO)
            .unwrap();
        assert_eq!(text(&events, id), text(&run(&mut alone), id), "request {id}");
    }
    // The first is no source of spans, what the others computed is.
    assert!(engine.decoder().copies > 0 && engine.decoder().longest_shared == 40);
}

#[test]
fn a_conversation_goes_on_in_its_row_beside_its_readers() {
    let mut engine = engine(slots(2));
    engine.submit(request(1, &prompt(1), 40), Duration::ZERO).unwrap();
    let mut events = run(&mut engine);
    // A long answer reads the prefix of the first turn while the second turn runs.
    engine.submit(request(2, &prompt(2), 30), Duration::ZERO).unwrap();
    let mut said = prompt(1);
    said.extend(summary(&events, 1).tokens.iter().map(|token| token.0));
    said.push(3);
    engine.submit(request(3, &said, 5), Duration::ZERO).unwrap();
    events.extend(run(&mut engine));
    assert_answered_as_alone(&events, 2, 2, 30);
    assert_eq!(text(&events, 3), answer(digest, request(3, &said, 5)).0);
    assert_eq!(summary(&events, 3).cached_tokens, said.len() - 2);
    assert_eq!(
        (engine.decoder().copies, engine.decoder().longest_shared),
        (0, 40)
    );
}
