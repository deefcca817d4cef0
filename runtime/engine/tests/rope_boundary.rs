//! LongRoPE's boundary over the scripted decoder: which factors a sequence is computed with, when it is recomputed, and
//! what others notice of that.

#![allow(clippy::cast_possible_truncation, clippy::unwrap_used, missing_docs)]

mod support;

use std::time::Duration;

use phi_edge_engine::{Engine, EngineConfig, Event, Interrupt, Regime, RequestId, RopePolicy, TokenId};
use proptest::prelude::*;
use support::{Form, Scripted, digest, request, run, scripted, summary, symbols};

/// The boundary of [`scripted`] decoders.
const BOUNDARY: usize = 45;
const POLICIES: [RopePolicy; 2] = [RopePolicy::Switch, RopePolicy::Pin];
const FORMS: [Form; 4] = [Form::Plain, Form::Positions, Form::Chunks, Form::Ragged];

/// Repeats itself soon, so that drafts are proposed and accepted, and goes another way in the other regime.
fn quoting(held: &[(TokenId, Regime)]) -> u32 {
    let long = held.iter().any(|(_, regime)| *regime == Regime::Long);
    let last = held.iter().rev().take(2).fold(0, |hash, (id, _)| hash * 7 + id.0);
    (last * 5 + 3) % 6 + 6 * u32::from(long)
}

type Script = fn(&[(TokenId, Regime)]) -> u32;

/// The answer by definition: before each token the whole sequence is computed under the factors of the policy.
fn reference(script: Script, prompt: &[u32], max: usize, policy: RopePolicy) -> Vec<TokenId> {
    let mut tokens: Vec<TokenId> = prompt.iter().copied().map(TokenId).collect();
    for _ in 0..max {
        let decisive = match policy {
            RopePolicy::Switch => tokens.len(),
            RopePolicy::Pin => prompt.len() + max,
        };
        let regime = if decisive > BOUNDARY {
            Regime::Long
        } else {
            Regime::Short
        };
        let held: Vec<_> = tokens.iter().map(|id| (*id, regime)).collect();
        tokens.push(TokenId(script(&held)));
    }
    tokens.split_off(prompt.len())
}

fn prompt(length: usize, seed: u32) -> Vec<u32> {
    (0..length as u32).map(|n| (n * 5 + seed) % 26).collect()
}

fn config(policy: RopePolicy) -> EngineConfig {
    EngineConfig {
        rope_policy: policy,
        stop_repetition: false,
        ..EngineConfig::default()
    }
}

fn engine(form: Form, script: Script, config: EngineConfig) -> Engine<Scripted> {
    let mut decoder = scripted(true, form);
    decoder.script = script;
    Engine::new(decoder, config)
}

#[test]
fn prompts_at_every_length_around_the_boundary_give_the_reference() {
    let around = BOUNDARY - 8..=BOUNDARY + 8;
    let lengths: Vec<usize> = around.chain([1, 20, 2 * BOUNDARY - 10]).collect();
    for policy in POLICIES {
        for (form, script) in FORMS
            .into_iter()
            .flat_map(|form| [(form, digest as Script), (form, quoting)])
        {
            for prefill_chunk in [1, 7, 512] {
                let config = EngineConfig {
                    prefill_chunk,
                    ..config(policy)
                };
                let mut engine = engine(form, script, config);
                for (id, &length) in (0u64..).zip(&lengths) {
                    let prompt = prompt(length, id as u32);
                    engine.submit(request(id, &prompt, 20), Duration::ZERO).unwrap();
                    assert_eq!(
                        summary(&run(&mut engine), id).tokens,
                        reference(script, &prompt, 20, policy),
                        "{length} tokens, {policy:?}, {form:?}, chunks of {prefill_chunk}"
                    );
                }
            }
        }
    }
}

/// Runs one request without speculation and cached prefixes; returns how many tokens the decoder computed.
fn computed(policy: RopePolicy, length: usize, max: usize) -> usize {
    let config = EngineConfig {
        speculation: false,
        prefix_cache: false,
        ..config(policy)
    };
    let mut engine = engine(Form::Ragged, digest, config);
    let prompt = prompt(length, 3);
    engine.submit(request(1, &prompt, max), Duration::ZERO).unwrap();
    let answer = summary(&run(&mut engine), 1);
    assert_eq!(
        answer.tokens,
        reference(digest, &prompt, max, policy),
        "{length} + {max}, {policy:?}"
    );
    engine.decoder().computed
}

#[test]
fn a_sequence_is_recomputed_once_and_only_where_it_must() {
    for length in [BOUNDARY - 8, BOUNDARY - 1, BOUNDARY] {
        let left = BOUNDARY - length;
        // The last new token is never computed: up to one beyond the boundary nothing is recomputed.
        for max in 1..left + 2 {
            assert_eq!(
                computed(RopePolicy::Switch, length, max),
                length + max - 1,
                "{length} + {max}"
            );
        }
        for max in [left + 2, left + 3, left + 20] {
            assert_eq!(
                computed(RopePolicy::Switch, length, max),
                BOUNDARY + length + max - 1,
                "{length} + {max}"
            );
        }
    }
    // Prompts beyond it, and everything that is pinned.
    assert_eq!(computed(RopePolicy::Switch, BOUNDARY + 1, 20), BOUNDARY + 20);
    for length in [5, BOUNDARY - 8, BOUNDARY, BOUNDARY + 1] {
        for max in [1, 2, 7, 8, 9, 30] {
            assert_eq!(
                computed(RopePolicy::Pin, length, max),
                length + max - 1,
                "{length} + {max}"
            );
        }
    }
}

#[test]
fn a_pinned_request_that_ends_at_the_boundary_is_short_and_one_token_more_makes_it_long() {
    let regime = |length: usize, max: usize| {
        let mut engine = engine(Form::Plain, digest, config(RopePolicy::Pin));
        engine
            .submit(request(1, &prompt(length, 0), max), Duration::ZERO)
            .unwrap();
        run(&mut engine);
        let held = &engine.decoder().rows[0].own;
        assert_eq!(held.len(), length + max - 1);
        let regime = held[0].value.1;
        assert!(held.iter().all(|token| token.value.1 == regime));
        regime
    };
    for length in [1, 20, BOUNDARY - 1] {
        assert_eq!(regime(length, BOUNDARY - length), Regime::Short, "{length}");
        assert_eq!(regime(length, BOUNDARY - length + 1), Regime::Long, "{length}");
    }
}

/// Runs all to the end; returns the events and, of each step, which of two requests got a token.
fn traced(engine: &mut Engine<Scripted>, ids: [u64; 2]) -> (Vec<Event>, Vec<[bool; 2]>) {
    let (interrupt, mut all, mut steps) = (Interrupt::new(), Vec::new(), Vec::new());
    while !engine.is_idle() {
        let mut events = Vec::new();
        engine.step(&|| Duration::ZERO, &interrupt, &mut events);
        steps.push(ids.map(|wanted| {
            let text =
                |event: &Event| matches!(event, Event::Text { id: RequestId(id), .. } if *id == wanted);
            events.iter().any(text)
        }));
        all.append(&mut events);
    }
    (all, steps)
}

#[test]
fn a_recompute_comes_in_chunks_between_the_steps_of_others() {
    for form in FORMS {
        let config = EngineConfig {
            slots: 2,
            prefill_chunk: 4,
            speculation: false,
            ..config(RopePolicy::Switch)
        };
        let mut engine = engine(form, digest, config);
        let (crossing, other) = (prompt(BOUNDARY - 5, 1), prompt(3, 2));
        engine.submit(request(1, &crossing, 20), Duration::ZERO).unwrap();
        engine.submit(request(2, &other, 42), Duration::ZERO).unwrap();
        let (events, steps) = traced(&mut engine, [1, 2]);
        for (id, prompt, max) in [(1, &crossing, 20), (2, &other, 42)] {
            assert_eq!(
                summary(&events, id).tokens,
                reference(digest, prompt, max, RopePolicy::Switch)
            );
        }
        assert_eq!(engine.decoder().longest_run, 4, "{form:?}");
        // The crossing answer writes six tokens, pauses for twelve chunks of 46 tokens, and goes on.
        let sixth = steps
            .iter()
            .enumerate()
            .filter(|(_, step)| step[0])
            .nth(5)
            .unwrap()
            .0;
        let pause: Vec<bool> = steps[sixth + 1..]
            .iter()
            .take_while(|step| !step[0])
            .map(|step| step[1])
            .collect();
        let others = pause.iter().filter(|wrote| **wrote).count();
        assert!(
            pause.len() >= 22 && others >= 11,
            "{form:?}: {others} tokens in {} steps",
            pause.len()
        );
        assert!(
            pause.windows(2).all(|pair| pair[0] || pair[1]),
            "{form:?}: two chunks in a row"
        );
    }
}

#[test]
fn drafts_end_at_the_boundary() {
    for (policy, form) in POLICIES
        .into_iter()
        .flat_map(|policy| FORMS.map(|form| (policy, form)))
    {
        for slots in [1, 2] {
            let mut engine = engine(
                form,
                quoting,
                EngineConfig {
                    slots,
                    ..config(policy)
                },
            );
            let prompts: Vec<Vec<u32>> = (0..4).map(|id| prompt(20 + id, id as u32)).collect();
            for (id, prompt) in (0u64..).zip(&prompts) {
                engine.submit(request(id, prompt, 50), Duration::ZERO).unwrap();
            }
            let events = run(&mut engine);
            let mut accepted = 0;
            for (id, prompt) in (0u64..).zip(&prompts) {
                let answer = summary(&events, id);
                accepted += answer.accepted_draft_tokens;
                assert_eq!(
                    answer.tokens,
                    reference(quoting, prompt, 50, policy),
                    "{policy:?}, {form:?}"
                );
            }
            let drafts = slots == 1 || matches!(form, Form::Chunks | Form::Ragged);
            assert!(
                !drafts || accepted > 40,
                "{policy:?}, {form:?}: {accepted} draft tokens"
            );
        }
    }
}

#[test]
fn short_rows_of_the_long_regime_share_their_runs_where_the_graph_takes_them() {
    let shared = |form, lengths: [usize; 2]| {
        let config = EngineConfig {
            slots: 2,
            speculation: false,
            ..config(RopePolicy::Pin)
        };
        let mut engine = engine(form, digest, config);
        for (id, length) in (0u64..).zip(lengths) {
            engine
                .submit(request(id, &prompt(length, id as u32), 45), Duration::ZERO)
                .unwrap();
        }
        let (events, steps) = traced(&mut engine, [0, 1]);
        for (id, length) in (0u64..).zip(lengths) {
            let expected = reference(digest, &prompt(length, id as u32), 45, RopePolicy::Pin);
            assert_eq!(summary(&events, id).tokens, expected, "{form:?}");
        }
        // Where they take turns, neither waits longer than the other.
        let both = |steps: &[[bool; 2]]| [0, 1].iter().all(|&of| steps.iter().any(|step| step[of]));
        assert!(
            steps[4..40].windows(4).all(both),
            "{form:?}: one answer stands still"
        );
        steps.iter().filter(|step| step[0] && step[1]).count()
    };
    for form in [Form::Plain, Form::Chunks, Form::Ragged] {
        assert!(shared(form, [2, 3]) >= 42, "{form:?}");
    }
    // The last tokens of the first make its positions select the long factors for both.
    assert!(shared(Form::Positions, [2, 3]) <= 3);
    assert!(shared(Form::Positions, [50, 3]) >= 42);
}

/// Turns of one session: each prompt is the one before with its answer and three more tokens. Returns the length of each
/// prompt and the number of its tokens that were cached.
fn session(policy: RopePolicy, first: usize, max: usize, turns: usize) -> Vec<(usize, usize)> {
    let mut engine = engine(Form::Ragged, digest, config(policy));
    let mut said = prompt(first, 1);
    let mut cached = Vec::new();
    for id in 0..turns as u64 {
        engine.submit(request(id, &said, max), Duration::ZERO).unwrap();
        let answer = summary(&run(&mut engine), id);
        assert_eq!(
            answer.tokens,
            reference(digest, &said, max, policy),
            "turn {id}, {policy:?}"
        );
        cached.push((said.len(), answer.cached_tokens));
        said.extend(answer.tokens.iter().map(|id| id.0));
        said.extend([4, 5, 6]);
    }
    cached
}

#[test]
fn a_session_that_crosses_between_two_turns_hits_nothing_once() {
    // 20 + 8 + 3, then 31 + 8 + 3: the third turn, of 42, crosses while it writes; the fourth starts from its long keys.
    let turns = session(RopePolicy::Switch, 20, 8, 5);
    assert_eq!(turns, [(20, 0), (31, 27), (42, 0), (53, 49), (64, 60)]);
    // The second turn's prompt is beyond the boundary, and the first one's keys are of no use.
    let turns = session(RopePolicy::Switch, 36, 8, 3);
    assert_eq!(turns, [(36, 0), (47, 0), (58, 54)]);
    // Pinned, a turn is of the long regime as soon as prompt and answer may exceed it: one turn earlier at most.
    let turns = session(RopePolicy::Pin, 20, 8, 5);
    assert_eq!(turns, [(20, 0), (31, 27), (42, 0), (53, 49), (64, 60)]);
    let turns = session(RopePolicy::Pin, 38, 8, 3);
    assert_eq!(turns, [(38, 0), (49, 45), (60, 56)]);
}

#[test]
fn prefixes_are_found_in_their_own_regime_only() {
    let prefix = prompt(30, 9);
    let longer = |length: usize| [prefix.as_slice(), &vec![2; length - 30]].concat();
    for policy in POLICIES {
        let config = EngineConfig {
            slots: 2,
            ..config(policy)
        };
        let mut engine = engine(Form::Ragged, digest, config);
        let pinned = symbols(&prefix);
        engine.pin(&pinned, None).unwrap();
        let mut ask = |id: u64, prompts: &[(usize, usize)]| -> Vec<usize> {
            for (id, (length, max)) in (id..).zip(prompts) {
                engine
                    .submit(request(id, &longer(*length), *max), Duration::ZERO)
                    .unwrap();
            }
            let events = run(&mut engine);
            (id..)
                .zip(prompts)
                .map(|(id, (length, max))| {
                    let answer = summary(&events, id);
                    assert_eq!(
                        answer.tokens,
                        reference(digest, &longer(*length), *max, policy),
                        "{id}, {policy:?}"
                    );
                    answer.cached_tokens
                })
                .collect()
        };
        // The pinned prefix is short: a long prompt computes its own, which the next one finds.
        assert_eq!(ask(0, &[(35, 5)]), [30]);
        assert_eq!(ask(10, &[(50, 5)]), [0]);
        assert_eq!(ask(20, &[(52, 5)]), [50]);
        assert_eq!(ask(30, &[(36, 5)]), [35]);
        // Side by side, too, each finds what its own regime holds.
        assert_eq!(ask(40, &[(37, 5), (60, 5)]), [36, 52]);
    }
}

/// A request of a random schedule.
#[derive(Debug, Clone)]
struct Job {
    length: usize,
    /// Jobs of one seed begin alike.
    seed: u32,
    max: usize,
    arrives: usize,
    cancelled: Option<usize>,
}

fn jobs() -> impl Strategy<Value = Vec<Job>> {
    let length = prop_oneof![1usize..40, BOUNDARY - 8..BOUNDARY + 9, 40usize..75];
    let job = (
        length,
        0u32..2,
        1usize..25,
        0usize..80,
        prop::option::weighted(0.2, 0usize..150),
    );
    let job = job.prop_map(|(length, seed, max, arrives, cancelled)| Job {
        length,
        seed,
        max,
        arrives,
        cancelled,
    });
    prop::collection::vec(job, 1..8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    /// Whatever runs beside it, is cached, drafted or cancelled: each answer is the reference's.
    #[test]
    fn every_answer_around_the_boundary_is_the_reference(
        jobs in jobs(), prefill_chunk in 1usize..20, slots in 1usize..5,
        form in prop::sample::select(FORMS.to_vec()), policy in prop::sample::select(POLICIES.to_vec()),
        drafted in any::<bool>(), prefix_cache in any::<bool>(), speculation in any::<bool>(),
    ) {
        let script: Script = if drafted { quoting } else { digest };
        let config = EngineConfig { prefill_chunk, slots, prefix_cache, speculation, ..config(policy) };
        let mut engine = engine(form, script, config);
        let (interrupt, mut events, mut step) = (Interrupt::new(), Vec::new(), 0);
        while !(engine.is_idle() && step > 150) {
            for (id, job) in (0u64..).zip(&jobs) {
                if job.arrives == step {
                    engine.submit(request(id, &prompt(job.length, job.seed), job.max), Duration::ZERO).unwrap();
                }
                if job.cancelled == Some(step) {
                    engine.cancel(RequestId(id));
                }
            }
            engine.step(&|| Duration::ZERO, &interrupt, &mut events);
            step += 1;
            prop_assert!(step < 5_000, "an answer does not end");
        }
        for (id, job) in (0u64..).zip(&jobs) {
            let answer = summary(&events, id);
            let expected = reference(script, &prompt(job.length, job.seed), job.max, policy);
            prop_assert!(expected.starts_with(&answer.tokens), "{id}: {:?} is not {expected:?}", answer.tokens);
            prop_assert!(job.cancelled.is_some() || answer.tokens.len() == job.max);
        }
        // Second turns of all, whatever of the first was kept.
        for (id, job) in (0u64..).zip(&jobs) {
            let mut said = prompt(job.length, job.seed);
            said.extend(summary(&events, id).tokens.iter().map(|id| id.0));
            said.truncate(90);
            said.push(3);
            engine.submit(request(100 + id, &said, 6), Duration::ZERO).unwrap();
            let second = run(&mut engine);
            prop_assert_eq!(summary(&second, 100 + id).tokens, reference(script, &said, 6, policy));
        }
    }
}
