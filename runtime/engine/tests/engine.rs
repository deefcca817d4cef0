//! The engine over a scripted decoder that keeps what a real one would keep, and objects to what a real
//! one would get wrong.

#![allow(clippy::cast_possible_truncation, clippy::unwrap_used, missing_docs)]

mod support;

use std::cell::Cell;
use std::time::Duration;

use phi_edge_engine::{Engine, EngineConfig, Event, Failure, Finish, Interrupt, Regime, RequestId, TokenId};
use support::{
    Form, Scripted, VOCAB, answer, count_up, digest, request, run, scripted, summary, symbols, text,
};

#[test]
fn generates_until_max_tokens() {
    let (text, summary) = answer(count_up, request(1, &[0, 1], 3));
    assert_eq!((text.as_str(), summary.finish), ("cde", Finish::Length));
    assert_eq!((summary.prompt_tokens, summary.tokens.len()), (2, 3));
}

#[test]
fn stops_on_ids_and_strings() {
    let mut by_id = request(1, &[0], 20);
    by_id.stop.ids = vec![TokenId(4)];
    let (text, summary) = answer(count_up, by_id);
    assert_eq!(
        (text.as_str(), summary.finish, summary.tokens.len()),
        ("bcd", Finish::Stop, 3)
    );

    let mut by_string = request(1, &[0], 20);
    by_string.stop.strings = vec!["fg".into(), "zz".into()];
    let (text, summary) = answer(count_up, by_string);
    assert_eq!((text.as_str(), summary.finish), ("bcde", Finish::Stop));
}

#[test]
fn fills_the_context_and_no_more() {
    let prompt: Vec<u32> = (0..97).map(|n| n % 26).collect();
    let (_, summary) = answer(count_up, request(1, &prompt, 50));
    assert_eq!((summary.finish, summary.tokens.len()), (Finish::Length, 3));
    let mut engine = Engine::new(Scripted::new(count_up), EngineConfig::default());
    let refused = engine.submit(request(1, &[1; 100], 5), Duration::ZERO);
    assert_eq!(
        refused,
        Err(Failure::ContextOverflow {
            prompt: 100,
            context: 100
        })
    );
}

#[test]
fn prefills_in_chunks_and_gives_the_same_text() {
    let prompt: Vec<u32> = (0..50).map(|n| n * 7 % 26).collect();
    let whole = answer(digest, request(1, &prompt, 20));
    let mut engine = Engine::new(
        Scripted::new(digest),
        EngineConfig {
            prefill_chunk: 8,
            ..EngineConfig::default()
        },
    );
    engine.submit(request(1, &prompt, 20), Duration::ZERO).unwrap();
    let events = run(&mut engine);
    assert_eq!(text(&events, 1), whole.0);
    assert_eq!(engine.decoder().longest_run, 8);
}

#[test]
fn crossing_the_rope_boundary_computes_the_row_anew() {
    let reference = |prompt: &[u32], n: usize| {
        let mut tokens: Vec<TokenId> = prompt.iter().copied().map(TokenId).collect();
        for _ in 0..n {
            let regime = if tokens.len() > 20 {
                Regime::Long
            } else {
                Regime::Short
            };
            let held: Vec<_> = tokens.iter().map(|id| (*id, regime)).collect();
            tokens.push(TokenId(digest(&held)));
        }
        tokens.split_off(prompt.len())
    };
    for length in [1usize, 19, 20, 21, 40] {
        let prompt: Vec<u32> = (0..length as u32).map(|n| n * 5 % 26).collect();
        let mut decoder = Scripted::new(digest);
        decoder.caps.rope_boundary = Some(20);
        let mut engine = Engine::new(
            decoder,
            EngineConfig {
                prefill_chunk: 6,
                ..EngineConfig::default()
            },
        );
        engine.submit(request(1, &prompt, 30), Duration::ZERO).unwrap();
        let events = run(&mut engine);
        assert_eq!(
            summary(&events, 1).tokens,
            reference(&prompt, 30),
            "prompt of {length}"
        );
    }
}

#[test]
fn both_regimes_go_on_while_a_prompt_enters() {
    let mut decoder = Scripted::new(digest);
    decoder.caps.rope_boundary = Some(20);
    let config = EngineConfig {
        slots: 3,
        prefill_chunk: 1,
        stop_repetition: false,
        speculation: false,
        ..EngineConfig::default()
    };
    let mut engine = Engine::new(decoder, config);
    let (interrupt, mut events) = (Interrupt::new(), Vec::new());
    for (id, prompt, most) in [(1u64, vec![1; 30], 60), (2, vec![2; 3], 15)] {
        engine.submit(request(id, &prompt, most), Duration::ZERO).unwrap();
        while text(&events, id).is_empty() {
            engine.step(&|| Duration::ZERO, &interrupt, &mut events);
        }
    }
    engine.submit(request(3, &[3; 90], 1), Duration::ZERO).unwrap();
    let before = [1, 2].map(|id| text(&events, id).len());
    for _ in 0..40 {
        engine.step(&|| Duration::ZERO, &interrupt, &mut events);
    }
    // Every second step is a chunk; the others are shared.
    let now = [1, 2].map(|id| text(&events, id).len());
    assert!(
        now[0] >= before[0] + 9 && now[1] >= before[1] + 9,
        "{before:?} became {now:?} characters"
    );
}

#[test]
fn cancels_waiting_and_running_requests() {
    let mut engine = Engine::new(Scripted::new(count_up), EngineConfig::default());
    engine.submit(request(1, &[0], 50), Duration::ZERO).unwrap();
    engine.submit(request(2, &[0], 50), Duration::ZERO).unwrap();
    let (interrupt, mut events) = (Interrupt::new(), Vec::new());
    for _ in 0..3 {
        engine.step(&|| Duration::ZERO, &interrupt, &mut events);
    }
    engine.cancel(RequestId(2));
    engine.cancel(RequestId(1));
    engine.cancel(RequestId(77));
    engine.step(&|| Duration::ZERO, &interrupt, &mut events);
    assert!(engine.is_idle());
    assert_eq!(
        (summary(&events, 1).finish, text(&events, 1).as_str()),
        (Finish::Cancelled, "bcd")
    );
    assert_eq!(
        (summary(&events, 2).finish, summary(&events, 2).tokens.len()),
        (Finish::Cancelled, 0)
    );
}

#[test]
fn an_interrupted_run_loses_nothing() {
    let mut engine = Engine::new(
        Scripted::new(digest),
        EngineConfig {
            prefill_chunk: 4,
            ..EngineConfig::default()
        },
    );
    engine.submit(request(1, &[3; 10], 12), Duration::ZERO).unwrap();
    let (interrupt, mut events) = (Interrupt::new(), Vec::new());
    let mut steps = 0;
    while !engine.is_idle() {
        steps += 1;
        if steps % 3 == 0 {
            interrupt.raise();
        }
        engine.step(&|| Duration::ZERO, &interrupt, &mut events);
    }
    assert_eq!(text(&events, 1), answer(digest, request(1, &[3; 10], 12)).0);
}

#[test]
fn deadlines_end_what_runs_and_what_waits() {
    let mut engine = Engine::new(Scripted::new(count_up), EngineConfig::default());
    let mut first = request(1, &[0], 50);
    first.deadline = Some(Duration::from_secs(5));
    let mut second = request(2, &[0], 50);
    second.deadline = Some(Duration::from_secs(1));
    engine.submit(first, Duration::ZERO).unwrap();
    engine.submit(second, Duration::ZERO).unwrap();
    let (interrupt, mut events) = (Interrupt::new(), Vec::new());
    let clock = Cell::new(0);
    for _ in 0..10 {
        engine.step(&|| Duration::from_secs(clock.get()), &interrupt, &mut events);
        clock.set(clock.get() + 1);
    }
    assert_eq!(
        (summary(&events, 1).finish, text(&events, 1).as_str()),
        (Finish::Deadline, "bcdef")
    );
    assert_eq!(
        (summary(&events, 2).finish, summary(&events, 2).tokens.len()),
        (Finish::Deadline, 0)
    );
}

#[test]
fn an_endless_circle_is_ended() {
    let (_, summary) = {
        let mut decoder = Scripted::new(|_| 3);
        decoder.caps.context_length = 2000;
        let mut engine = Engine::new(decoder, EngineConfig::default());
        engine.submit(request(1, &[0], 1900), Duration::ZERO).unwrap();
        let events = run(&mut engine);
        (text(&events, 1), summary(&events, 1))
    };
    assert_eq!(summary.finish, Finish::Repetition);
    assert!(summary.tokens.len() < 200);
}

#[test]
fn a_failing_decoder_fails_the_request_and_not_the_engine() {
    let decoder = Scripted::new(count_up);
    decoder.fail_at.set(Some(3));
    let mut engine = Engine::new(decoder, EngineConfig::default());
    engine.submit(request(1, &[0], 10), Duration::ZERO).unwrap();
    engine.submit(request(2, &[0], 2), Duration::ZERO).unwrap();
    let events = run(&mut engine);
    assert!(events.iter().any(|e| matches!(e, Event::Failed { id: RequestId(1), reason: Failure::Decoder(m) } if m.contains("scripted"))));
    assert_eq!(text(&events, 2), "bc");
}

#[test]
fn refuses_what_it_cannot_run() {
    let mut engine = Engine::new(Scripted::new(count_up), EngineConfig::default());
    for bad in [
        request(1, &[], 5),
        request(1, &[0], 0),
        request(1, &[VOCAB as u32], 5),
    ] {
        assert!(matches!(
            engine.submit(bad, Duration::ZERO),
            Err(Failure::Invalid(_))
        ));
    }
    engine.submit(request(1, &[0], 5), Duration::ZERO).unwrap();
    assert!(matches!(
        engine.submit(request(1, &[0], 5), Duration::ZERO),
        Err(Failure::Invalid(_))
    ));
}

#[test]
fn running_answers_share_their_steps() {
    let config = EngineConfig {
        slots: 4,
        speculation: false,
        ..EngineConfig::default()
    };
    let mut engine = Engine::new(Scripted::new(digest), config);
    for id in 0..4u64 {
        engine
            .submit(request(id, &[id as u32 + 1], 20), Duration::ZERO)
            .unwrap();
    }
    run(&mut engine);
    assert_eq!(engine.decoder().widest_run, 4);
    // One run a token for all four, and a few while they join.
    assert!(engine.decoder().runs < 30, "{} runs", engine.decoder().runs);
}

#[test]
fn a_beginning_in_common_is_computed_once() {
    let shared: Vec<u32> = (0..40).map(|n| n * 7 % 26).collect();
    let prompt = |own: u32| [shared.as_slice(), &[own, own + 1]].concat();
    let config = EngineConfig {
        slots: 3,
        ..EngineConfig::default()
    };
    let mut engine = Engine::new(Scripted::new(digest), config);
    // Three at once, and two that come when the others are gone.
    for id in 0..5u64 {
        engine
            .submit(request(id, &prompt(id as u32), 5), Duration::ZERO)
            .unwrap();
    }
    let events = run(&mut engine);
    assert_eq!(summary(&events, 0).cached_tokens, 0);
    for id in 1..5u64 {
        assert_eq!(summary(&events, id).cached_tokens, 40, "request {id}");
        assert_eq!(
            text(&events, id),
            answer(digest, request(id, &prompt(id as u32), 5)).0
        );
    }
    assert!(
        engine.decoder().computed < 42 + 4 * 2 + 5 * 8,
        "{} tokens computed",
        engine.decoder().computed
    );
}

#[test]
fn a_conversation_goes_on_where_it_was() {
    let mut engine = Engine::new(Scripted::new(digest), EngineConfig::default());
    let first: Vec<u32> = (0..30).map(|n| n * 3 % 26).collect();
    engine.submit(request(1, &first, 10), Duration::ZERO).unwrap();
    let events = run(&mut engine);
    let mut second = first.clone();
    second.extend(summary(&events, 1).tokens.iter().map(|id| id.0));
    second.extend([4, 5, 6]);
    engine.submit(request(2, &second, 5), Duration::ZERO).unwrap();
    let events = run(&mut engine);
    // All but the last new token, which was never computed, and the new turn.
    assert_eq!(summary(&events, 2).cached_tokens, 39);
    assert_eq!(text(&events, 2), answer(digest, request(2, &second, 5)).0);
}

#[test]
fn pinned_prefixes_are_there_from_the_start() {
    let mut engine = Engine::new(Scripted::new(digest), EngineConfig::default());
    let prefix: Vec<u32> = (0..30).map(|id| id % 26).collect();
    let prefix = symbols(&prefix);
    engine.pin(&prefix, None).unwrap();
    for id in 0..6u64 {
        let mut prompt: Vec<u32> = prefix
            .iter()
            .filter_map(|symbol| Some(symbol.token()?.0))
            .collect();
        prompt.push(id as u32);
        engine.submit(request(id, &prompt, 5), Duration::ZERO).unwrap();
        // Others come between and want rows.
        engine
            .submit(request(100 + id, &[id as u32 + 7; 40], 5), Duration::ZERO)
            .unwrap();
        let events = run(&mut engine);
        assert_eq!(summary(&events, id).cached_tokens, 30);
    }
}

#[test]
fn short_prompts_overtake_long_ones_and_answers_keep_flowing() {
    let config = EngineConfig {
        slots: 3,
        prefill_chunk: 4,
        ..EngineConfig::default()
    };
    let mut engine = Engine::new(Scripted::new(digest), config);
    engine.submit(request(1, &[1], 60), Duration::ZERO).unwrap();
    let (interrupt, mut events) = (Interrupt::new(), Vec::new());
    let mut step = |engine: &mut Engine<Scripted>| {
        events.clear();
        engine.step(&|| Duration::ZERO, &interrupt, &mut events);
        events
            .iter()
            .any(|e| matches!(e, Event::Text { id: RequestId(1), .. }))
    };
    step(&mut engine);
    engine
        .submit(
            request(2, &(0..90).map(|n| n % 25).collect::<Vec<_>>(), 2),
            Duration::ZERO,
        )
        .unwrap();
    engine.submit(request(3, &[9; 8], 2), Duration::ZERO).unwrap();
    let mut since_text = 0;
    for _ in 0..30 {
        since_text = if step(&mut engine) { 0 } else { since_text + 1 };
        assert!(since_text <= 1, "two runs without a token for the running answer");
    }
}

#[test]
fn drafts_save_runs_and_change_nothing() {
    // Goes round with a period of 13, which the repetition guard must not end.
    fn quoting(held: &[(TokenId, Regime)]) -> u32 {
        (held.len() * 5 % 13) as u32
    }
    let run_with = |speculation| {
        let config = EngineConfig {
            speculation,
            stop_repetition: false,
            ..EngineConfig::default()
        };
        let mut engine = Engine::new(Scripted::new(quoting), config);
        engine.submit(request(1, &[1, 2, 3], 90), Duration::ZERO).unwrap();
        let events = run(&mut engine);
        (text(&events, 1), summary(&events, 1), engine.decoder().runs)
    };
    let (plain, _, plain_runs) = run_with(false);
    let (drafted, summary, runs) = run_with(true);
    assert_eq!(plain, drafted);
    assert_eq!(plain_runs, 90);
    assert!(runs < 50, "{runs} runs");
    assert!(summary.accepted_draft_tokens >= 90 - runs);
}

#[test]
fn two_regimes_share_their_steps_where_the_decoder_can() {
    let runs = |form| {
        let config = EngineConfig {
            slots: 2,
            speculation: false,
            ..EngineConfig::default()
        };
        let mut engine = Engine::new(scripted(true, form), config);
        let long: Vec<u32> = (0..50).map(|n| n % 30).collect();
        engine.submit(request(1, &long, 20), Duration::ZERO).unwrap();
        engine.submit(request(2, &[1, 2, 3], 20), Duration::ZERO).unwrap();
        let events = run(&mut engine);
        let texts = [text(&events, 1), text(&events, 2)];
        (texts, engine.decoder().runs)
    };
    let (apart, many) = runs(Form::Chunks);
    let (together, few) = runs(Form::Ragged);
    assert_eq!(apart, together);
    assert!(few < many - 15, "{few} runs in place of {many}");
}

#[test]
fn two_answers_speculate_together_where_the_decoder_can() {
    fn quoting(held: &[(TokenId, Regime)]) -> u32 {
        (held.len() as u32) % 7
    }
    let runs = |form| {
        let config = EngineConfig {
            slots: 2,
            stop_repetition: false,
            ..EngineConfig::default()
        };
        let mut engine = Engine::new(scripted(false, form), config);
        engine.decoder_mut().script = quoting;
        for id in [1u64, 2] {
            let prompt: Vec<u32> = (0..20 + id as u32).map(|n| n % 7).collect();
            engine.submit(request(id, &prompt, 40), Duration::ZERO).unwrap();
        }
        let events = run(&mut engine);
        ([text(&events, 1), text(&events, 2)], engine.decoder().runs)
    };
    let (plain, many) = runs(Form::Plain);
    let (drafted, few) = runs(Form::Ragged);
    assert_eq!(plain, drafted);
    assert!(few * 2 < many, "{few} runs in place of {many}");
}

#[test]
fn memory_bounds_what_runs_and_what_is_remembered() {
    let config = EngineConfig {
        slots: 4,
        // The scripted decoder counts 8 bytes a token.
        kv_budget: Some(8 * 60),
        ..EngineConfig::default()
    };
    let mut engine = Engine::new(Scripted::new(digest), config);
    assert_eq!(engine.context(), 60);
    let refused = engine.submit(request(9, &[1; 60], 20), Duration::ZERO);
    assert_eq!(
        refused,
        Err(Failure::MemoryOverflow {
            prompt: 60,
            new: 1,
            budget: 60
        })
    );
    // An answer ends where the memory does, as it ends where the context does.
    engine.submit(request(10, &[1; 50], 20), Duration::ZERO).unwrap();
    assert_eq!(summary(&run(&mut engine), 10).tokens.len(), 10);
    for id in 0..6u64 {
        engine
            .submit(request(id, &[id as u32; 20], 10), Duration::ZERO)
            .unwrap();
    }
    let (interrupt, mut events) = (Interrupt::new(), Vec::new());
    while !engine.is_idle() {
        engine.step(&|| Duration::ZERO, &interrupt, &mut events);
        let held: usize = engine.decoder().held();
        assert!(held <= 60, "{held} tokens");
    }
    for id in 0..6 {
        assert_eq!(summary(&events, id).tokens.len(), 10);
    }
}

#[test]
fn a_row_that_takes_in_a_shorter_text_gives_the_rest_of_its_memory_back() {
    let config = EngineConfig {
        slots: 1,
        ..EngineConfig::default()
    };
    let mut engine = Engine::new(Scripted::new(digest), config);
    for (id, length) in [(0u64, 90), (1, 80), (2, 70), (3, 40), (4, 40), (5, 40), (6, 40)] {
        let prompt: Vec<u32> = (0..length).map(|n| (n + id as u32 * 5) % 26).collect();
        engine.submit(request(id, &prompt, 2), Duration::ZERO).unwrap();
        run(&mut engine);
        let held: usize = engine.decoder().held();
        let counted = engine.kv_use();
        assert_eq!(8 * held as u64, counted.running + counted.remembered, "{id}");
    }
}

#[test]
fn room_is_not_made_by_giving_up_what_is_wanted() {
    let config = EngineConfig {
        slots: 1,
        kv_budget: Some(8 * 60),
        ..EngineConfig::default()
    };
    let mut engine = Engine::new(Scripted::new(digest), config);
    let mut said: Vec<u32> = (0..40).map(|n| n % 26).collect();
    for id in 0..4u64 {
        // A conversation that takes more than half of the memory.
        engine.submit(request(id, &said, 3), Duration::ZERO).unwrap();
        let events = run(&mut engine);
        let summary = summary(&events, id);
        assert_eq!(
            summary.cached_tokens,
            if id == 0 { 0 } else { said.len() - 2 },
            "{id}"
        );
        said.extend(summary.tokens.iter().map(|token| token.0));
        said.push(3);
    }
}

#[test]
fn progress_is_told_after_each_part_of_a_prompt_with_what_was_cached() {
    let config = EngineConfig {
        slots: 1,
        prefill_chunk: 8,
        ..EngineConfig::default()
    };
    let mut engine = Engine::new(Scripted::new(digest), config);
    let progress = |events: &[Event], wanted: u64| -> Vec<(usize, usize)> {
        let told = events.iter().filter_map(|event| match event {
            Event::Progress { id, done, total } if id.0 == wanted => Some((*done, *total)),
            _ => None,
        });
        told.collect()
    };
    let prompt: Vec<u32> = (0..30).map(|n| n * 7 % 26).collect();
    engine.submit(request(1, &prompt, 5), Duration::ZERO).unwrap();
    let events = run(&mut engine);
    assert_eq!(progress(&events, 1), [(8, 30), (16, 30), (24, 30), (30, 30)]);
    // It is told before the text that comes of it.
    let of_text = events
        .iter()
        .position(|event| matches!(event, Event::Text { .. }));
    let of_progress = events
        .iter()
        .rposition(|event| matches!(event, Event::Progress { .. }));
    assert!(of_progress < of_text, "{events:?}");
    let longer = [prompt.as_slice(), &[25; 10]].concat();
    engine.submit(request(2, &longer, 5), Duration::ZERO).unwrap();
    let events = run(&mut engine);
    assert_eq!(progress(&events, 2), [(39, 40), (40, 40)]);
}

#[test]
fn progress_tells_of_the_prompt_alone_where_an_answer_is_computed_again() {
    let mut decoder = Scripted::new(digest);
    decoder.caps.rope_boundary = Some(20);
    let config = EngineConfig {
        prefill_chunk: 6,
        ..EngineConfig::default()
    };
    let mut engine = Engine::new(decoder, config);
    engine.submit(request(1, &[1; 18], 20), Duration::ZERO).unwrap();
    let events = run(&mut engine);
    let told = events.iter().filter_map(|event| match event {
        Event::Progress { done, total, .. } => Some((*done, *total)),
        _ => None,
    });
    assert_eq!(told.collect::<Vec<_>>(), [(6, 18), (12, 18), (18, 18)]);
}

#[test]
fn a_long_prompt_holds_up_others_by_one_part_at_most() {
    for form in [Form::Plain, Form::Chunks, Form::Ragged] {
        let mut decoder = scripted(false, form);
        decoder.caps.context_length = 600;
        let config = EngineConfig {
            slots: 3,
            prefill_chunk: 16,
            stop_repetition: false,
            speculation: false,
            ..EngineConfig::default()
        };
        let mut engine = Engine::new(decoder, config);
        let interrupt = Interrupt::new();
        let mut events = Vec::new();
        let now = || Duration::ZERO;
        engine
            .submit(request(1, &[1, 2, 3], 200), Duration::ZERO)
            .unwrap();
        engine.step(&now, &interrupt, &mut events);
        let long: Vec<u32> = (0..500).map(|n| n * 11 % 26).collect();
        engine.submit(request(2, &long, 2), Duration::ZERO).unwrap();
        let texts = |events: &[Event], wanted: u64| text(events, wanted).len();
        let is_read = |events: &[Event]| {
            events
                .iter()
                .any(|event| matches!(event, Event::Progress { id, done: 500, .. } if id.0 == 2))
        };
        let (mut waited, mut step, mut short_from, mut short_waited) = (0, 0, None, None);
        while !is_read(&events) {
            let before = texts(&events, 1);
            engine.step(&now, &interrupt, &mut events);
            step += 1;
            assert!(engine.decoder().longest_run <= 16, "{form:?}");
            waited = if texts(&events, 1) > before { 0 } else { waited + 1 };
            assert!(
                waited <= 1,
                "{form:?}: an answer waits {waited} steps at step {step}"
            );
            if step == 10 {
                engine.submit(request(3, &[4, 5], 3), Duration::ZERO).unwrap();
                short_from = Some(step);
            }
            if let (Some(from), None) = (short_from, short_waited)
                && texts(&events, 3) > 0
            {
                short_waited = Some(step - from);
            }
        }
        // A part of the long prompt, a step of the answer, then the short prompt.
        assert!(
            short_waited.is_some_and(|steps| steps <= 4),
            "{form:?}: a short prompt waits {short_waited:?} steps of {step}"
        );
        assert!(step > 50, "{form:?}: the prompt takes {step} steps");
    }
}
