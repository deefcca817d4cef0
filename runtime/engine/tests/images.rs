//! Images over the scripted decoder: encode steps between the runs of others, pixels that come late, features that are kept.

#![allow(clippy::cast_possible_truncation, clippy::unwrap_used, missing_docs)]

mod support;

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use phi_edge_engine::{
    CachedPrefixes, Engine, EngineConfig, Event, Failure, Finish, GenerateRequest, Image, ImageId, Interrupt,
    Regime, RequestId, RopePolicy, Symbol, TokenId,
};
use proptest::prelude::*;
use support::images::{FAILED, bytes, crops, delayed, features, image, image_id, tokens, value};
use support::{Form, Scripted, request, run, scripted, summary, symbols, text};

/// A part of a prompt.
#[derive(Debug, Clone)]
enum Part {
    Text(Vec<u32>),
    Image(ImageId),
}

fn prompt(parts: &[Part]) -> Vec<Symbol> {
    let mut prompt = Vec::new();
    for part in parts {
        match part {
            Part::Text(ids) => prompt.extend(symbols(ids)),
            Part::Image(id) => prompt.extend(Symbol::of_image(*id, tokens(*id) as u32)),
        }
    }
    prompt
}

/// The images of a prompt, each once.
fn named(parts: &[Part]) -> Vec<ImageId> {
    let mut ids: Vec<ImageId> = Vec::new();
    for part in parts {
        match part {
            Part::Image(id) if !ids.contains(id) => ids.push(*id),
            _ => {}
        }
    }
    ids
}

fn with_images(id: u64, parts: &[Part], images: Vec<Image>, max: usize) -> GenerateRequest {
    GenerateRequest {
        prompt: prompt(parts),
        images,
        ..request(id, &[], max)
    }
}

/// A request whose pixels are ready at once.
fn ready(id: u64, parts: &[Part], max: usize) -> GenerateRequest {
    with_images(id, parts, named(parts).into_iter().map(image).collect(), max)
}

fn decoder(boundary: bool, form: Form) -> Scripted {
    let mut decoder = scripted(boundary, form);
    decoder.caps.image_width = Some(support::images::WIDTH);
    decoder
}

fn engine(config: EngineConfig) -> Engine<Scripted> {
    Engine::new(decoder(false, Form::Shared), config)
}

fn text_alone(boundary: bool, request: GenerateRequest) -> String {
    text_alone_by(RopePolicy::Switch, boundary, request)
}

fn text_alone_by(rope_policy: RopePolicy, boundary: bool, request: GenerateRequest) -> String {
    let config = EngineConfig {
        rope_policy,
        prefix_cache: false,
        speculation: false,
        image_memory: 0,
        ..EngineConfig::default()
    };
    let id = request.id.0;
    let mut engine = Engine::new(decoder(boundary, Form::Plain), config);
    engine.submit(request, Duration::ZERO).unwrap();
    text(&run(&mut engine), id)
}

/// The steps of an engine, one at a time.
struct Stepper {
    engine: Engine<Scripted>,
    events: Vec<Event>,
    now: Cell<u64>,
    interrupt: Interrupt,
}

impl Stepper {
    fn new(engine: Engine<Scripted>) -> Self {
        Self {
            engine,
            events: Vec::new(),
            now: Cell::new(0),
            interrupt: Interrupt::new(),
        }
    }

    fn submit(&mut self, request: GenerateRequest) {
        self.engine.submit(request, Duration::ZERO).unwrap();
    }

    fn step(&mut self) {
        self.now.set(self.now.get() + 1);
        let now = || Duration::from_millis(self.now.get());
        self.engine.step(&now, &self.interrupt, &mut self.events);
    }

    fn runs(&self) -> (usize, usize) {
        (self.engine.decoder().runs, self.engine.decoder().encoder_calls)
    }

    fn failure(&self, wanted: u64) -> Option<&Failure> {
        self.events.iter().find_map(|event| match event {
            Event::Failed { id, reason } if id.0 == wanted => Some(reason),
            _ => None,
        })
    }
}

#[test]
fn the_scripted_keys_depend_on_pixels_and_places() {
    let (a, b) = (image_id(1, 2, 3), image_id(2, 2, 3));
    let features = [Arc::new(features(a)), Arc::new(features(b))];
    let values: Vec<TokenId> = [a, b]
        .iter()
        .flat_map(|id| Symbol::of_image(*id, 3))
        .map(|symbol| value(symbol, &features))
        .collect();
    let mut distinct = values.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), 6, "{values:?}");
    let held = |id| [(id, Regime::Short), (TokenId(4), Regime::Short)];
    assert_ne!(
        support::digest(&held(values[0])),
        support::digest(&held(values[3]))
    );
}

#[test]
fn crops_alternate_with_the_tokens_of_others() {
    let mut steps = Stepper::new(engine(EngineConfig {
        slots: 2,
        speculation: false,
        ..EngineConfig::default()
    }));
    steps.submit(request(1, &[1, 2], 30));
    steps.step();
    let id = image_id(1, 3, 8);
    let parts = [Part::Text(vec![3, 4]), Part::Image(id), Part::Text(vec![5])];
    steps.submit(ready(2, &parts, 3));
    let mut kinds = String::new();
    let mut before = steps.runs();
    for _ in 0..11 {
        steps.step();
        let after = steps.runs();
        assert_eq!(after.0 + after.1, before.0 + before.1 + 1, "one run a step");
        kinds.push(if after.1 > before.1 { 'e' } else { 'r' });
        before = after;
    }
    // Text before the image, its crops, the rest of the prompt; a token of the other between each two.
    assert_eq!(kinds, "rrrerererrr");
    assert_eq!(steps.engine.crops_encoded(), 3);
    while !steps.engine.is_idle() {
        steps.step();
    }
    let end = summary(&steps.events, 2);
    assert_eq!((end.prompt_tokens, end.image_tokens), (11, 8));
    assert_eq!(text(&steps.events, 2), text_alone(false, ready(2, &parts, 3)));
    let progress = steps.events.iter().filter_map(|event| match event {
        Event::Progress {
            id: RequestId(2),
            done,
            total,
        } => Some((*done, *total)),
        _ => None,
    });
    // Encoded crops are no computed tokens.
    assert_eq!(progress.collect::<Vec<_>>(), [(2, 11), (11, 11)]);
}

#[test]
fn late_pixels_hold_up_no_other_request() {
    let clock = Arc::default();
    let mut steps = Stepper::new(engine(EngineConfig {
        slots: 2,
        ..EngineConfig::default()
    }));
    let id = image_id(1, 2, 5);
    let parts = [Part::Text(vec![3, 4]), Part::Image(id), Part::Text(vec![5])];
    let (late, asked) = delayed(id, 100, false, &clock);
    steps.submit(with_images(1, &parts, vec![late], 3));
    steps.step();
    assert!(
        asked.lock().is_some(),
        "the pixels are made while text is computed"
    );
    assert_eq!(steps.runs(), (1, 0));
    steps.step();
    assert!(steps.engine.waits_for_pixels() && !steps.engine.is_idle());
    assert_eq!(steps.runs(), (1, 0));
    steps.submit(request(2, &[7, 8], 4));
    assert!(!steps.engine.waits_for_pixels(), "there is something to do");
    while !steps.engine.waits_for_pixels() {
        steps.step();
    }
    assert_eq!(summary(&steps.events, 2).tokens.len(), 4);
    clock.fetch_add(100, Ordering::Relaxed);
    steps.step();
    assert_eq!(steps.runs().1, 1);
    while !steps.engine.is_idle() {
        assert!(!steps.engine.waits_for_pixels());
        steps.step();
    }
    assert_eq!(text(&steps.events, 1), text_alone(false, ready(1, &parts, 3)));
}

#[test]
fn failed_pixels_fail_their_request_and_let_the_next_begin() {
    let clock = Arc::new(AtomicUsize::new(0));
    let mut steps = Stepper::new(engine(EngineConfig::default()));
    let parts = [Part::Image(image_id(1, 2, 5)), Part::Text(vec![5])];
    let failing = delayed(image_id(1, 2, 5), 2, true, &clock).0;
    steps.submit(with_images(1, &parts, vec![failing], 3));
    steps.submit(ready(2, &parts, 3));
    steps.step();
    assert!(steps.engine.waits_for_pixels());
    clock.store(2, Ordering::Relaxed);
    steps.step();
    assert_eq!(steps.failure(1), Some(&Failure::Image(FAILED.to_owned())));
    // The other has waited for the slot, for no pixels.
    assert!(!steps.engine.waits_for_pixels());
    while !steps.engine.is_idle() {
        steps.step();
    }
    assert_eq!(text(&steps.events, 2), text_alone(false, ready(2, &parts, 3)));
}

#[test]
fn the_slot_of_failed_pixels_is_taken_while_others_await_theirs() {
    let clock = Arc::new(AtomicUsize::new(0));
    let mut steps = Stepper::new(engine(EngineConfig {
        slots: 2,
        ..EngineConfig::default()
    }));
    for (n, delay, fails) in [(1, 2, true), (2, 100, false)] {
        let id = image_id(n, 1, 5);
        let image = delayed(id, delay, fails, &clock).0;
        steps.submit(with_images(
            u64::from(n),
            &[Part::Image(id), Part::Text(vec![5])],
            vec![image],
            3,
        ));
    }
    steps.submit(request(3, &[1, 2], 3));
    steps.step();
    assert!(steps.engine.waits_for_pixels());
    clock.store(2, Ordering::Relaxed);
    steps.step();
    assert!(steps.failure(1).is_some());
    while !steps.engine.waits_for_pixels() {
        steps.step();
    }
    assert_eq!(summary(&steps.events, 3).tokens.len(), 3);
}

#[test]
fn one_image_of_several_requests_is_encoded_once() {
    for prefix_cache in [true, false] {
        let clock = Arc::default();
        let mut steps = Stepper::new(engine(EngineConfig {
            slots: 3,
            prefix_cache,
            ..EngineConfig::default()
        }));
        let id = image_id(1, 3, 9);
        let mut asked = Vec::new();
        for n in 1..4u32 {
            let parts = [Part::Text(vec![n]), Part::Image(id), Part::Text(vec![5])];
            let (image, was_asked) = delayed(id, 4, false, &clock);
            steps.submit(with_images(u64::from(n), &parts, vec![image], 3));
            asked.push(was_asked);
        }
        for _ in 0..3 {
            steps.step();
        }
        let asked = asked.iter().filter(|asked| asked.lock().is_some()).count();
        assert_eq!(asked, 1, "one source makes pixels");
        while !steps.engine.is_idle() {
            clock.fetch_add(1, Ordering::Relaxed);
            steps.step();
        }
        assert_eq!(steps.engine.crops_encoded(), 3);
        for n in 1..4u32 {
            let parts = [Part::Text(vec![n]), Part::Image(id), Part::Text(vec![5])];
            let n = u64::from(n);
            assert_eq!(text(&steps.events, n), text_alone(false, ready(n, &parts, 3)));
        }
    }
}

#[test]
fn a_cached_prefix_needs_neither_pixels_nor_features() {
    let id = image_id(1, 2, 20);
    let parts = [Part::Text(vec![3]), Part::Image(id), Part::Text(vec![5, 6])];
    let mut steps = Stepper::new(engine(EngineConfig {
        image_memory: 0,
        ..EngineConfig::default()
    }));
    steps.submit(ready(1, &parts, 3));
    while !steps.engine.is_idle() {
        steps.step();
    }
    assert_eq!(steps.engine.image_bytes(), 0);
    let (never, asked) = delayed(id, usize::MAX / 2, false, &Arc::default());
    steps.submit(with_images(2, &parts, vec![never], 3));
    while !steps.engine.is_idle() {
        assert!(!steps.engine.waits_for_pixels());
        steps.step();
    }
    assert!(asked.lock().is_none());
    assert_eq!(steps.engine.crops_encoded(), 2);
    assert_eq!(summary(&steps.events, 2).cached_tokens, 22);
    assert_eq!(text(&steps.events, 2), text(&steps.events, 1));
}

#[test]
fn what_a_running_sequence_holds_needs_no_encoder() {
    let id = image_id(1, 2, 20);
    let parts = [Part::Image(id), Part::Text(vec![5, 6])];
    for form in [Form::Plain, Form::Chunks, Form::Ragged, Form::Shared] {
        let config = EngineConfig {
            image_memory: 0,
            slots: 2,
            stop_repetition: false,
            ..EngineConfig::default()
        };
        let mut steps = Stepper::new(Engine::new(decoder(false, form), config));
        steps.submit(ready(1, &parts, 50));
        while steps.engine.image_bytes() > 0 || steps.engine.crops_encoded() < 2 {
            steps.step();
        }
        let (never, asked) = delayed(id, usize::MAX / 2, false, &Arc::default());
        steps.submit(with_images(2, &parts, vec![never], 3));
        while !steps.engine.is_idle() {
            assert!(!steps.engine.waits_for_pixels(), "{form:?}");
            steps.step();
        }
        assert!(asked.lock().is_none());
        assert_eq!(steps.engine.crops_encoded(), 2);
        assert_eq!(text(&steps.events, 2), text(&steps.events, 1)[..3]);
    }
}

#[test]
fn kept_features_serve_other_prompts() {
    let id = image_id(1, 2, 10);
    for (image_memory, encoded) in [(bytes(id), 2), (bytes(id) - 1, 4)] {
        let mut steps = Stepper::new(engine(EngineConfig {
            image_memory,
            ..EngineConfig::default()
        }));
        for n in 1..3u32 {
            steps.submit(ready(
                u64::from(n),
                &[Part::Text(vec![n]), Part::Image(id), Part::Text(vec![9])],
                1,
            ));
            while !steps.engine.is_idle() {
                steps.step();
            }
        }
        assert_eq!(steps.engine.crops_encoded(), encoded);
    }
}

#[test]
fn a_prompt_may_end_with_an_image() {
    let id = image_id(1, 2, 20);
    let parts = [Part::Text(vec![3]), Part::Image(id)];
    let mut steps = Stepper::new(engine(EngineConfig {
        image_memory: 0,
        slots: 2,
        ..EngineConfig::default()
    }));
    for n in 1..3 {
        // The last place is computed again, and its features with it.
        steps.submit(ready(n, &parts, 4));
        steps.submit(request(n + 10, &[1, 2, 3], 9));
        while !steps.engine.is_idle() {
            steps.step();
        }
        assert_eq!(text(&steps.events, n), text_alone(false, ready(n, &parts, 4)));
    }
}

#[test]
fn a_cancellation_ends_the_encoding_and_frees_the_pixels() {
    let id = image_id(1, 4, 10);
    let mut steps = Stepper::new(engine(EngineConfig::default()));
    steps.submit(ready(1, &[Part::Image(id), Part::Text(vec![9])], 3));
    steps.step();
    assert_eq!(steps.engine.crops_encoded(), 1);
    // An interrupted crop is encoded again, unless its request has ended.
    steps.interrupt.raise();
    steps.step();
    assert!(!steps.interrupt.is_raised());
    assert_eq!((steps.engine.crops_encoded(), steps.runs().1), (1, 2));
    steps.step();
    assert_eq!(steps.engine.crops_encoded(), 2);
    steps.engine.cancel(RequestId(1));
    steps.step();
    assert_eq!(summary(&steps.events, 1).finish, Finish::Cancelled);
    assert!(steps.engine.is_idle());
    steps.submit(ready(2, &[Part::Image(id), Part::Text(vec![9])], 3));
    while !steps.engine.is_idle() {
        steps.step();
    }
    assert_eq!(steps.engine.crops_encoded(), 2 + 4, "it begins again");
}

#[test]
fn images_are_validated() {
    let (id, other) = (image_id(1, 1, 2), image_id(2, 1, 2));
    let refused = |request: GenerateRequest| {
        let mut engine = engine(EngineConfig::default());
        match engine.submit(request, Duration::ZERO) {
            Err(Failure::Invalid(message)) => message,
            other => panic!("{other:?}"),
        }
    };
    let parts = [Part::Image(id), Part::Text(vec![1])];
    assert!(refused(with_images(1, &parts, vec![image(id), image(id)], 1)).contains("twice"));
    assert!(refused(with_images(1, &parts, vec![image(other)], 1)).contains("does not have"));
    let short = Image {
        tokens: 1,
        ..image(id)
    };
    assert!(refused(with_images(1, &parts, vec![short], 1)).contains("does not have"));
    let mut text_only = Engine::new(scripted(false, Form::Plain), EngineConfig::default());
    let outcome = text_only.submit(ready(1, &parts, 1), Duration::ZERO);
    assert!(matches!(outcome, Err(Failure::Invalid(message)) if message.contains("text alone")));
    let mut engine = engine(EngineConfig::default());
    assert!(matches!(
        engine.pin(&prompt(&parts), None),
        Err(Failure::Invalid(_))
    ));
}

#[test]
fn features_of_another_shape_fail_the_request() {
    let id = image_id(1, 1, 2);
    let mut steps = Stepper::new(engine(EngineConfig::default()));
    let longer = Image {
        tokens: 3,
        ..image(id)
    };
    steps.submit(with_images(
        1,
        &[Part::Image(id), Part::Text(vec![1])],
        vec![longer],
        1,
    ));
    steps.step();
    assert!(matches!(steps.failure(1), Some(Failure::Decoder(message)) if message.contains("3 tokens")));
    assert!(steps.engine.is_idle());
}

#[test]
fn a_rope_switch_encodes_again_what_is_gone() {
    // The boundary is 45 tokens.
    let id = image_id(1, 2, 20);
    let parts = [
        Part::Text(vec![1, 2]),
        Part::Image(id),
        Part::Text((0..20).collect()),
    ];
    let mut engine = Engine::new(
        decoder(true, Form::Shared),
        EngineConfig {
            image_memory: 0,
            stop_repetition: false,
            ..EngineConfig::default()
        },
    );
    engine.submit(ready(1, &parts, 10), Duration::ZERO).unwrap();
    let events = run(&mut engine);
    assert_eq!(engine.crops_encoded(), 4);
    assert_eq!(summary(&events, 1).tokens.len(), 10);
    assert_eq!(text(&events, 1), text_alone(true, ready(1, &parts, 10)));
}

/// A request of a random schedule.
#[derive(Debug, Clone)]
struct Job {
    parts: Vec<Part>,
    max: usize,
    arrives: usize,
    cancelled: Option<usize>,
    deadline: Option<u64>,
    /// Steps until pixels are ready.
    delay: usize,
    damaged: bool,
}

fn jobs() -> impl Strategy<Value = Vec<Job>> {
    let images = [(1, 1, 3), (2, 2, 17), (3, 4, 8), (4, 3, 20), (5, 1, 1)];
    let images = images.map(|(n, crops, tokens)| image_id(n, crops, tokens));
    let part = prop_oneof![
        prop::sample::select(images.to_vec()).prop_map(Part::Image),
        prop::sample::select(vec![vec![1], vec![2, 3], (0..18).collect::<Vec<u32>>()]).prop_map(Part::Text),
        prop::collection::vec(0u32..26, 1..6).prop_map(Part::Text),
    ];
    let job = (
        prop::collection::vec(part, 1..4),
        prop_oneof![4 => 1usize..10, 1 => 10usize..25],
        0usize..40,
        prop::option::weighted(0.25, 0usize..60),
        prop::option::weighted(0.15, 0u64..120),
        prop_oneof![3 => Just(0usize), 2 => 1usize..40],
        prop::bool::weighted(0.1),
    );
    let job = job.prop_map(|(parts, max, arrives, cancelled, deadline, delay, damaged)| Job {
        parts,
        max,
        arrives,
        cancelled,
        deadline,
        delay,
        damaged,
    });
    prop::collection::vec(job, 1..8)
}

/// What holds for a whole schedule.
#[derive(Debug, Clone)]
struct Conditions {
    form: Form,
    boundary: bool,
    config: EngineConfig,
    interrupts: Option<usize>,
    encoder_fails_at: Option<usize>,
    encodes_whole: bool,
}

fn conditions() -> impl Strategy<Value = Conditions> {
    let config = (
        1usize..25,
        1usize..5,
        any::<bool>(),
        any::<bool>(),
        prop::sample::select(vec![RopePolicy::Switch, RopePolicy::Pin]),
        prop_oneof![Just(0u64), 100u64..500, Just(1 << 20)],
    );
    let config = config.prop_map(
        |(prefill_chunk, slots, prefix_cache, speculation, rope_policy, image_memory)| EngineConfig {
            prefill_chunk,
            slots,
            prefix_cache,
            speculation,
            rope_policy,
            image_memory,
            ..EngineConfig::default()
        },
    );
    let conditions = (
        prop::sample::select(vec![
            Form::Plain,
            Form::Chunks,
            Form::Ragged,
            Form::Shared,
            Form::Shared,
        ]),
        any::<bool>(),
        config,
        prop::option::weighted(0.2, 2usize..8),
        prop::option::weighted(0.15, 1usize..15),
        any::<bool>(),
    );
    conditions.prop_map(
        |(form, boundary, config, interrupts, encoder_fails_at, encodes_whole)| Conditions {
            form,
            boundary,
            config,
            interrupts,
            encoder_fails_at,
            encodes_whole,
        },
    )
}

/// A schedule under way.
struct Schedule {
    steps: Stepper,
    clock: Arc<AtomicUsize>,
    /// When the pixels of each submitted request's images were asked for.
    asked: Vec<Vec<Arc<Mutex<Option<usize>>>>>,
}

impl Schedule {
    fn new(conditions: &Conditions) -> Self {
        let mut decoder = decoder(conditions.boundary, conditions.form);
        decoder.encoder_fails_at = conditions.encoder_fails_at;
        decoder.encodes_whole = conditions.encodes_whole;
        Self {
            steps: Stepper::new(Engine::new(decoder, conditions.config.clone())),
            clock: Arc::default(),
            asked: Vec::new(),
        }
    }

    fn submit(&mut self, id: u64, job: &Job) {
        let images = named(&job.parts).into_iter();
        let (images, asked) = images
            .map(|id| delayed(id, job.delay, job.damaged, &self.clock))
            .unzip();
        self.asked.push(asked);
        let mut request = with_images(id, &job.parts, images, job.max);
        request.deadline = job
            .deadline
            .map(|deadline| Duration::from_millis(self.steps.now.get() + deadline));
        self.steps.submit(request);
    }

    /// Makes a step and checks what it may have done. A step that awaits pixels does nothing.
    fn step(&mut self, jobs: &[Job], bound: u64) {
        let before = (self.steps.runs(), self.steps.events.len());
        self.steps.step();
        let engine = &self.steps.engine;
        let after = (self.steps.runs(), self.steps.events.len());
        assert!(
            after.0.0 + after.0.1 <= before.0.0 + before.0.1 + 1,
            "two runs in a step"
        );
        if engine.waits_for_pixels() {
            assert_eq!(before.0, after.0);
            assert!(!engine.is_idle());
            let pending = self.asked.iter().flatten().any(|asked| asked.lock().is_some());
            assert!(pending, "it waits for nothing");
        }
        // What runs may need more than the bound, but not more than its own images.
        let mut needed: Vec<ImageId> = Vec::new();
        for (id, job) in (0u64..).zip(jobs).filter(|(id, _)| self.runs(*id)) {
            assert!(id < 100);
            needed.extend(named(&job.parts));
        }
        needed.sort_unstable();
        needed.dedup();
        let needed: u64 = needed.into_iter().map(bytes).sum();
        let held = engine.image_bytes();
        assert!(
            held <= bound.max(needed),
            "{held} bytes of a bound of {bound}, {needed} in use"
        );
    }

    fn runs(&self, wanted: u64) -> bool {
        let mut running = false;
        for event in &self.steps.events {
            match event {
                Event::Started { id } if id.0 == wanted => running = true,
                Event::Finished { id, .. } | Event::Failed { id, .. } if id.0 == wanted => return false,
                _ => {}
            }
        }
        running
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    /// Whatever comes, goes, fails and is kept: one end each, the text of one alone, features within their bound, no crop
    /// encoded without need, and no request waits for ever.
    #[test]
    fn images_are_encoded_once_for_all_that_need_them(jobs in jobs(), conditions in conditions()) {
        let mut schedule = Schedule::new(&conditions);
        let bound = conditions.config.image_memory;
        let mut step = 0usize;
        let last = jobs.iter().map(|job| job.arrives.max(job.cancelled.unwrap_or(0))).max().unwrap_or(0);
        loop {
            for (id, job) in (0u64..).zip(&jobs) {
                if job.arrives == step {
                    schedule.submit(id, job);
                }
                if job.cancelled == Some(step) {
                    schedule.steps.engine.cancel(RequestId(id));
                }
            }
            if schedule.steps.engine.is_idle() && step > last {
                break;
            }
            if conditions.interrupts.is_some_and(|interval| step.is_multiple_of(interval)) {
                schedule.steps.interrupt.raise();
            }
            schedule.step(&jobs, bound);
            schedule.clock.fetch_add(1, Ordering::Relaxed);
            step += 1;
            prop_assert!(step < 5_000, "somebody waits for ever");
        }
        prop_assert!(schedule.steps.engine.image_bytes() <= bound);
        for (id, job) in (0u64..).zip(&jobs) {
            let request = ready(id, &job.parts, job.max);
            let expected = text_alone_by(conditions.config.rope_policy, conditions.boundary, request);
            let text = text(&schedule.steps.events, id);
            match schedule.steps.failure(id) {
                Some(Failure::Image(line)) => prop_assert!(job.damaged && line == FAILED),
                Some(Failure::Decoder(_)) => prop_assert!(conditions.encoder_fails_at.is_some()),
                Some(other) => prop_assert!(false, "{other:?}"),
                None => {
                    let summary = summary(&schedule.steps.events, id);
                    let places: usize = prompt(&job.parts).iter().filter(|symbol| symbol.image().is_some()).count();
                    prop_assert_eq!(summary.image_tokens, places);
                    if matches!(summary.finish, Finish::Cancelled | Finish::Deadline) {
                        prop_assert!(expected.starts_with(&text));
                    } else {
                        prop_assert_eq!(&text, &expected);
                    }
                }
            }
        }
        let engine = &schedule.steps.engine;
        let encoded = &engine.decoder().encoded;
        prop_assert_eq!(engine.crops_encoded(), encoded.values().sum::<usize>() as u64);
        // One that ends before its time, or whose image fails, takes what is half encoded with it.
        let left = |job: &&Job| job.cancelled.is_some() || job.deadline.is_some() || job.damaged;
        let given_up = jobs.iter().filter(left).count() + usize::from(conditions.encoder_fails_at.is_some());
        if bound >= 1 << 20 {
            for (id, count) in encoded {
                prop_assert!(*count <= crops(*id) * (1 + given_up), "{count} crops of {}", crops(*id));
            }
        }
        check_cached_prefix(&mut schedule, &jobs[0]);
    }
}

/// A prompt whose images the prefix cache holds needs no pixels and no encoder.
fn check_cached_prefix(schedule: &mut Schedule, job: &Job) {
    let mut snapshot = CachedPrefixes::default();
    schedule.steps.engine.update_cached_prefixes(&mut snapshot);
    let prompt = prompt(&job.parts);
    let images_end = prompt.iter().rposition(|symbol| symbol.image().is_some());
    let images_end = images_end.map_or(0, |last| last + 1);
    if snapshot.longest(&prompt, 1) < images_end {
        return;
    }
    let before = schedule.steps.runs().1;
    let images = named(&job.parts).into_iter();
    let (images, asked): (Vec<_>, Vec<_>) = images
        .map(|id| delayed(id, usize::MAX / 2, false, &schedule.clock))
        .unzip();
    schedule.steps.submit(with_images(200, &job.parts, images, 1));
    while !schedule.steps.engine.is_idle() {
        schedule.steps.step();
        assert!(!schedule.steps.engine.waits_for_pixels());
    }
    assert!(asked.iter().all(|asked| asked.lock().is_none()));
    assert_eq!(schedule.steps.runs().1, before);
    assert_eq!(summary(&schedule.steps.events, 200).tokens.len(), 1);
}
