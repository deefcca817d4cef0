//! Random schedules of requests over the scripted decoder: arrivals, cancels, deadlines, lengths and evictions.

#![allow(clippy::cast_possible_truncation, clippy::unwrap_used, missing_docs)]

mod support;

use std::time::Duration;

use phi_edge_engine::{Engine, EngineConfig, Finish, GenerateRequest, Interrupt, RequestId, RopePolicy};
use proptest::prelude::*;
use support::{Form, request, run, scripted, summary, text};

/// What a random schedule consists of: prompts that share beginnings, and when each comes and goes.
#[derive(Debug, Clone)]
struct Job {
    shared: usize,
    own: Vec<u32>,
    max: usize,
    arrives: usize,
    cancelled: Option<usize>,
    deadline: Option<u64>,
    temperature: f32,
}

impl Job {
    fn request(&self, id: u64) -> GenerateRequest {
        let shared = (0..self.shared as u32).map(|n| n * 7 % 26);
        let prompt: Vec<u32> = shared.chain(self.own.iter().copied()).collect();
        let mut request = request(id, &prompt, self.max);
        request.sampling.temperature = self.temperature;
        request.sampling.seed = id;
        request
    }
}

fn jobs() -> impl Strategy<Value = Vec<Job>> {
    let job = (
        prop_oneof![Just(0usize), Just(17), Just(40), 0usize..45],
        prop::collection::vec(0u32..26, 1..20),
        1usize..20,
        0usize..60,
        prop::option::weighted(0.3, 0usize..100),
        prop::option::weighted(0.2, 0u64..150),
        prop_oneof![Just(0.0f32), Just(1.0)],
    );
    let job = job.prop_map(
        |(shared, own, max, arrives, cancelled, deadline, temperature)| Job {
            shared,
            own,
            max,
            arrives,
            cancelled,
            deadline,
            temperature,
        },
    );
    prop::collection::vec(job, 1..10)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    /// Whatever comes, goes and is remembered, in whatever company: one end each, the text of one alone, memory
    /// within its bound, and no request is passed over for ever.
    #[test]
    fn every_request_ends_once_with_its_own_text(
        jobs in jobs(), chunk in 1usize..12, slots in 1usize..5, boundary in any::<bool>(),
        form in prop::sample::select(vec![Form::Plain, Form::Positions, Form::Chunks, Form::Ragged]),
        rope_policy in prop::sample::select(vec![RopePolicy::Switch, RopePolicy::Pin]),
        prefix_cache in any::<bool>(), speculation in any::<bool>(), budget in prop::option::of(70usize..200),
    ) {
        let config = EngineConfig {
            prefill_chunk: chunk, slots, stop_repetition: true, prefix_cache, speculation,
            kv_budget: budget.map(|tokens| 8 * tokens as u64), rope_policy,
        };
        let mut engine = Engine::new(scripted(boundary, form), config);
        let (interrupt, mut events, mut refused) = (Interrupt::new(), Vec::new(), Vec::new());
        let mut step = 0usize;
        loop {
            for (id, job) in (0u64..).zip(&jobs) {
                if job.arrives == step {
                    let mut request = job.request(id);
                    request.deadline = job.deadline.map(|d| Duration::from_millis(step as u64 + d));
                    if engine.submit(request, Duration::ZERO).is_err() {
                        refused.push(id);
                    }
                }
                if job.cancelled == Some(step) {
                    engine.cancel(RequestId(id));
                }
            }
            if engine.is_idle() && step > 60 {
                break;
            }
            engine.step(&|| Duration::from_millis(step as u64), &interrupt, &mut events);
            // A row between others may hold one token more, if it can't stand idle.
            let more = if form == Form::Ragged { 0 } else { 6 };
            let held: usize = engine.decoder().rows.iter().map(Vec::len).sum();
            if let Some(budget) = budget {
                prop_assert!(held <= budget + more, "{held} tokens in a budget of {budget}");
            }
            step += 1;
            prop_assert!(step < 5_000, "somebody waits for ever");
        }
        for (id, job) in (0u64..).zip(&jobs) {
            if refused.contains(&id) {
                prop_assert!(budget.is_some());
                continue;
            }
            let plain = EngineConfig {
                prefix_cache: false, speculation: false, kv_budget: budget.map(|tokens| 8 * tokens as u64), rope_policy,
                ..EngineConfig::default()
            };
            let mut alone = Engine::new(scripted(boundary, Form::Plain), plain);
            alone.submit(job.request(id), Duration::ZERO).unwrap();
            let expected = text(&run(&mut alone), id);
            let summary = summary(&events, id);
            if matches!(summary.finish, Finish::Cancelled | Finish::Deadline) {
                prop_assert!(expected.starts_with(&text(&events, id)));
            } else {
                prop_assert_eq!(text(&events, id), expected);
            }
        }
        engine.forget();
        prop_assert!(engine.decoder().rows.iter().all(Vec::is_empty), "a row was not released");
    }
}
