//! Random schedules of requests over the scripted decoder: arrivals, cancels, deadlines, failures, lengths and evictions.

#![allow(clippy::cast_possible_truncation, clippy::unwrap_used, missing_docs)]

mod support;

use std::time::Duration;

use phi_edge_engine::{
    CachedPrefixes, Engine, EngineConfig, Event, Failure, Finish, GenerateRequest, Interrupt, RequestId,
    RopePolicy,
};
use proptest::prelude::*;
use support::{Form, Scripted, request, run, scripted, summary, symbols, text};

/// A request of a random schedule: a prompt that shares its beginning with others, and when it comes and goes.
#[derive(Debug, Clone)]
struct Job {
    family: u32,
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
        let shared = beginning(self.family, self.shared);
        let prompt: Vec<u32> = shared.chain(self.own.iter().copied()).collect();
        let mut request = request(id, &prompt, self.max);
        request.sampling.temperature = self.temperature;
        request.sampling.seed = id;
        request
    }
}

/// The first `len` tokens of all prompts of a family.
fn beginning(family: u32, len: usize) -> impl Iterator<Item = u32> {
    (0..len as u32).map(move |n| (n * 7 + family) % 26)
}

fn jobs() -> impl Strategy<Value = Vec<Job>> {
    let job = (
        prop_oneof![4 => Just(0u32), 1 => Just(1)],
        prop_oneof![Just(0usize), Just(17), Just(40), 0usize..45],
        prop::collection::vec(0u32..26, 1..20),
        prop_oneof![4 => 1usize..20, 1 => 20usize..45],
        0usize..60,
        prop::option::weighted(0.3, 0usize..100),
        prop::option::weighted(0.2, 0u64..150),
        prop_oneof![Just(0.0f32), Just(1.0)],
    );
    let job = job.prop_map(
        |(family, shared, own, max, arrives, cancelled, deadline, temperature)| Job {
            family,
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

/// What goes wrong, and what was pinned before.
#[derive(Debug, Clone)]
struct Conditions {
    form: Form,
    rope_policy: RopePolicy,
    boundary: bool,
    pinned: Option<usize>,
    failing_run: Option<usize>,
    failing_copies: Option<usize>,
    interrupts: Option<usize>,
    budget: Option<u64>,
}

fn conditions() -> impl Strategy<Value = Conditions> {
    let forms = vec![
        Form::Plain,
        Form::Positions,
        Form::Chunks,
        Form::Ragged,
        Form::Shared,
        Form::Shared,
        Form::Shared,
    ];
    let conditions = (
        prop::sample::select(forms),
        prop::sample::select(vec![RopePolicy::Switch, RopePolicy::Pin]),
        any::<bool>(),
        prop::option::weighted(0.3, prop_oneof![Just(17usize), Just(32), 5usize..45]),
        prop::option::weighted(0.3, 1usize..60),
        prop::option::weighted(0.2, 1usize..4),
        prop::option::weighted(0.2, 2usize..8),
        prop::option::of(70usize..200),
    );
    conditions.prop_map(
        |(form, rope_policy, boundary, pinned, failing_run, failing_copies, interrupts, budget)| Conditions {
            form,
            rope_policy,
            boundary,
            pinned,
            failing_run,
            failing_copies,
            interrupts,
            // The scripted decoder counts 8 bytes a token.
            budget: budget.map(|tokens| 8 * tokens as u64),
        },
    )
}

impl Conditions {
    /// An engine with the pinned prefix in its memory, where that has room.
    fn engine(&self, form: Form, config: &EngineConfig) -> (Engine<Scripted>, usize) {
        let config = EngineConfig {
            kv_budget: self.budget,
            rope_policy: self.rope_policy,
            ..config.clone()
        };
        let mut decoder = scripted(self.boundary, form);
        // Neighbours are copied before what they replace is evicted.
        decoder.budget = self.budget.filter(|_| form == Form::Shared);
        let mut engine = Engine::new(decoder, config);
        let pinned = self.pinned.filter(|len| {
            let prefix: Vec<u32> = beginning(0, *len).collect();
            let prefix = symbols(&prefix);
            match engine.pin(&prefix, None) {
                Ok(loaded) => !loaded,
                Err(failure) => {
                    assert!(self.budget.is_some() && matches!(failure, Failure::MemoryOverflow { .. }));
                    false
                }
            }
        });
        (engine, pinned.unwrap_or(0))
    }

    /// The text of a request that runs alone, without a prefix cache.
    fn text_alone(&self, request: GenerateRequest) -> String {
        let plain = EngineConfig {
            prefix_cache: false,
            speculation: false,
            ..EngineConfig::default()
        };
        let form = if self.form == Form::Shared {
            Form::Shared
        } else {
            Form::Plain
        };
        let id = request.id.0;
        let (mut engine, _) = self.engine(form, &plain);
        engine.submit(request, Duration::ZERO).unwrap();
        text(&run(&mut engine), id)
    }
}

/// How a request ended; `None`: it failed.
fn end(events: &[Event], wanted: u64) -> Option<Finish> {
    let mut ends = events.iter().filter_map(|event| match event {
        Event::Finished { id, summary } if id.0 == wanted => Some(Some(summary.finish)),
        Event::Failed { id, .. } if id.0 == wanted => Some(None),
        _ => None,
    });
    let end = ends.next().expect("it ended");
    assert!(ends.next().is_none(), "it ended twice");
    end
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    /// Whatever comes, goes, fails and is remembered, in whatever company: one end each, the text of one alone, memory
    /// within its bound, and no request is passed over for ever.
    #[test]
    fn every_request_ends_once_with_its_own_text(
        jobs in jobs(), conditions in conditions(), chunk in 1usize..12, slots in 1usize..5,
        prefix_cache in any::<bool>(), speculation in any::<bool>(),
    ) {
        let config = EngineConfig {
            prefill_chunk: chunk, slots, stop_repetition: true, prefix_cache, speculation, kv_budget: None,
            ..EngineConfig::default()
        };
        let form = conditions.form;
        let (mut engine, pinned) = conditions.engine(form, &config);
        let runs = engine.decoder().runs;
        engine.decoder().fail_at.set(conditions.failing_run.map(|run| runs + run));
        engine.decoder_mut().failing_copies = conditions.failing_copies;
        let (interrupt, mut events, mut refused) = (Interrupt::new(), Vec::new(), Vec::new());
        let mut step = 0usize;
        let mut snapshot = CachedPrefixes::default();
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
            if conditions.interrupts.is_some_and(|interval| step.is_multiple_of(interval)) {
                interrupt.raise();
            }
            engine.step(&|| Duration::from_millis(step as u64), &interrupt, &mut events);
            engine.update_cached_prefixes(&mut snapshot);
            // A row between others may hold one token more, if it can't stand idle.
            let more = if matches!(form, Form::Plain | Form::Chunks) { 6 * 8 } else { 0 };
            if let Some(budget) = conditions.budget {
                let bytes = engine.decoder().bytes();
                prop_assert!(bytes <= budget + more, "{bytes} bytes in a budget of {budget}");
            }
            step += 1;
            prop_assert!(step < 5_000, "somebody waits for ever");
        }
        for (id, job) in (0u64..).zip(&jobs) {
            if refused.contains(&id) {
                prop_assert!(conditions.budget.is_some());
                continue;
            }
            let expected = conditions.text_alone(job.request(id));
            let text = text(&events, id);
            match end(&events, id) {
                Some(Finish::Cancelled | Finish::Deadline) => prop_assert!(expected.starts_with(&text)),
                Some(_) => prop_assert_eq!(text, expected),
                None => {
                    prop_assert!(conditions.failing_run.is_some(), "nothing failed");
                    prop_assert!(expected.starts_with(&text));
                }
            }
        }
        let mut whole = CachedPrefixes::default();
        engine.update_cached_prefixes(&mut whole);
        for job in &jobs {
            let prompt = job.request(0).prompt;
            prop_assert_eq!(snapshot.longest(&prompt, job.max), whole.longest(&prompt, job.max));
        }
        let again = jobs[0].request(100);
        let (prompt, promised) = (again.prompt.len(), snapshot.longest(&again.prompt, 1));
        if engine.submit(GenerateRequest { max_tokens: 1, ..again }, Duration::ZERO).is_ok()
            && conditions.failing_run.is_none()
        {
            let summary = summary(&run(&mut engine), 100);
            prop_assert!(summary.cached_tokens <= promised, "{} of {promised}", summary.cached_tokens);
            let whole = conditions.budget.is_none() && conditions.failing_copies.is_none();
            prop_assert!(!whole || summary.cached_tokens == promised, "{} of {promised}", summary.cached_tokens);
            let runs = summary.prefill_runs;
            // The last token may be computed as those of the answer are.
            let computed = summary.cached_tokens + runs.tokens;
            prop_assert!(prompt <= computed + 1 && (runs.tokens == 0 || runs.end == computed), "{runs:?}");
            prop_assert!(runs.time <= summary.prefill);
        }
        run(&mut engine);
        engine.forget();
        prop_assert_eq!(engine.decoder().held(), pinned, "a row was not released");
        let left = engine.kv_use();
        prop_assert_eq!((left.running, left.remembered), (0, engine.decoder().bytes()));
    }
}
