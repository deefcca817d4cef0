//! The engine's thread with a real engine over a scripted decoder. Time is real here: the thread is.

mod support;

use std::sync::Arc;
use std::sync::mpsc as std_mpsc;
use std::time::Duration;

use phi_edge_engine::{
    Caps, DecodeError, Decoder, Engine, EngineConfig, ImageEncoding, ImageFeatures, ImageId, ImagePixels,
    Interrupt, Logits, RowId, Step, Wanted,
};
use phi_edge_models::PlacedImage;
use phi_edge_service::{
    Detail, ErrorCode, FinishReason, LivenessProbe, Message, NewJob, Reply, ReplyBody, RequestImage, Role,
    Service, ServiceConfig, StartError, spawn_engine,
};
use support::{Bytes, job, key};
use tokio::sync::mpsc;

const VOCAB: usize = 128;
const TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, PartialEq)]
enum Mood {
    /// Says the alphabet, from the prompt's last letter on, and stops after `z`.
    Works,
    /// Runs until it is interrupted.
    Hangs,
    Panics,
    /// Waits in each run until the gate opens.
    Waits,
    /// Works, and tells of the begin of each run, which takes [`RUN`] at least.
    Tells,
}

const RUN: Duration = Duration::from_millis(2);

struct Alphabet {
    caps: Caps,
    mood: Mood,
    logits: Vec<f32>,
    hanging: std_mpsc::Sender<()>,
    gate: Option<std_mpsc::Receiver<()>>,
}

impl Alphabet {
    fn new(mood: Mood, hanging: std_mpsc::Sender<()>) -> Self {
        let caps = Caps::plain(2, VOCAB);
        Self {
            caps,
            mood,
            logits: vec![],
            hanging,
            gate: None,
        }
    }

    fn behind(gate: std_mpsc::Receiver<()>, running: std_mpsc::Sender<()>) -> Self {
        Self {
            gate: Some(gate),
            ..Self::new(Mood::Waits, running)
        }
    }
}

impl Decoder for Alphabet {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn run(&mut self, step: &Step<'_>, interrupt: &Interrupt) -> Result<Logits<'_>, DecodeError> {
        match self.mood {
            Mood::Works => {}
            Mood::Tells => {
                let _ = self.hanging.send(());
                std::thread::sleep(RUN);
            }
            Mood::Panics => panic!("scripted panic"),
            Mood::Waits => {
                let _ = self.hanging.send(());
                let gate = self.gate.as_ref().expect("a gate");
                gate.recv_timeout(TIMEOUT).expect("the gate is not opened");
            }
            Mood::Hangs => {
                let (tx, rx) = std_mpsc::channel();
                let hook: phi_edge_engine::Hook = Arc::new(move || {
                    let _ = tx.send(());
                });
                let _guard = interrupt.during(&hook);
                let _ = self.hanging.send(());
                rx.recv_timeout(TIMEOUT).expect("the run is not interrupted");
                return Err(DecodeError::Interrupted);
            }
        }
        self.logits.clear();
        for row in step.rows.iter().filter(|row| row.logits == Wanted::Last) {
            let last = row.input.symbols.last().and_then(|symbol| symbol.token());
            let next = last.map_or(0, |id| if id.0 == u32::from('z') { 0 } else { id.0 + 1 });
            let mut logits = vec![0.0; VOCAB];
            logits[next as usize] = 9.0;
            self.logits.extend(logits);
        }
        Ok(Logits::new(&self.logits, VOCAB))
    }

    fn encode_image(
        &mut self,
        image: ImageId,
        pixels: &ImagePixels,
        encoding: &mut ImageEncoding,
        _interrupt: &Interrupt,
    ) -> Result<Option<ImageFeatures>, DecodeError> {
        encoding.crops += 1;
        let width = self.caps.image_width.expect("a model that takes images");
        // The text side gives an image as many places as crops.
        Ok((encoding.crops == pixels.crops).then(|| ImageFeatures {
            id: image,
            data: vec![0.0; pixels.crops * width],
            width,
        }))
    }

    fn ensure(&mut self, _row: RowId, _len: usize) -> Result<(), DecodeError> {
        Ok(())
    }

    fn copy(&mut self, _from: RowId, _to: RowId, _tokens: std::ops::Range<usize>) -> Result<(), DecodeError> {
        Ok(())
    }

    fn truncate(&mut self, _row: RowId, _len: usize) {}

    fn release(&mut self, _row: RowId) {}

    fn save(&mut self, _row: RowId, _len: usize) -> Result<Vec<u8>, DecodeError> {
        Err(DecodeError::Unsupported("not here".to_owned()))
    }

    fn load(&mut self, _row: RowId, _saved: &[u8]) -> Result<usize, DecodeError> {
        Err(DecodeError::Unsupported("not here".to_owned()))
    }
}

struct Ends {
    service: Service,
    replies: mpsc::Receiver<Reply>,
    hanging: std_mpsc::Receiver<()>,
}

async fn start(mood: Mood) -> Ends {
    start_with(mood, None, |_| Ok(())).await
}

/// With an engine that may be unloaded. `may_build` decides about each build, counted from 1.
async fn start_with(
    mood: Mood,
    unload_after: Option<Duration>,
    may_build: impl Fn(u32) -> Result<(), &'static str> + Send + 'static,
) -> Ends {
    let (hanging_tx, hanging) = std_mpsc::channel();
    // The engine's alone, so that its end is seen: the first build takes it, others have one of their own.
    let mut first = Some(hanging_tx);
    let mut builds = 0;
    let engine = spawn_engine("engine-test", unload_after, move || {
        builds += 1;
        may_build(builds)?;
        let hanging = first.take().unwrap_or_else(|| std_mpsc::channel().0);
        Ok::<_, &'static str>(Engine::new(Alphabet::new(mood, hanging), EngineConfig::default()))
    })
    .await
    .expect("the engine starts");
    assert_eq!(engine.info().context_length, 100);
    let (replies_tx, replies) = mpsc::channel(16);
    Ends {
        service: Service::start(
            ServiceConfig::default(),
            engine,
            Arc::new(Bytes::default()),
            replies_tx,
        ),
        replies,
        hanging,
    }
}

async fn outcome(ends: &mut Ends) -> ReplyBody {
    tokio::time::timeout(TIMEOUT, ends.replies.recv())
        .await
        .expect("a reply in time")
        .expect("a reply")
        .body
}

/// Waits until the decoder is in a run, without holding up the runtime's threads.
async fn a_run_hangs(ends: Ends) -> Ends {
    tokio::task::spawn_blocking(move || {
        ends.hanging.recv_timeout(TIMEOUT).expect("a run");
        ends
    })
    .await
    .expect("the wait ends")
}

/// A request of 500 ms with this prompt.
fn hurried(id: &str, prompt: &str) -> NewJob {
    NewJob {
        messages: vec![Message::new(Role::User, prompt.to_owned())],
        deadline: Some(Duration::from_millis(500)),
        ..job(id)
    }
}

#[tokio::test]
async fn a_deadline_is_checked_against_the_cache_and_the_throttle_of_the_moment() {
    for (prefix_cache, unload_after) in [
        (true, None),
        (false, None),
        (true, Some(Duration::from_millis(1))),
    ] {
        let (tells, _runs) = std_mpsc::channel();
        let engine = spawn_engine("engine-test", unload_after, move || {
            let mut decoder = Alphabet::new(Mood::Tells, tells.clone());
            decoder.caps.context_length = 1000;
            let config = EngineConfig {
                prefix_cache,
                ..EngineConfig::default()
            };
            Ok::<_, &'static str>(Engine::new(decoder, config))
        })
        .await
        .expect("the engine starts");
        let throttle = engine.throttle();
        let (replies_tx, replies) = mpsc::channel(16);
        let mut ends = Ends {
            service: Service::start(
                ServiceConfig::default(),
                engine,
                Arc::new(Bytes::default()),
                replies_tx,
            ),
            replies,
            hanging: std_mpsc::channel().1,
        };
        let known = "y".repeat(300);
        let first = NewJob {
            deadline: None,
            ..hurried("first", &known)
        };
        ends.service.submit(first).await.unwrap();
        assert!(matches!(outcome(&mut ends).await, ReplyBody::Final(_)));
        while unload_after.is_some() && ends.service.engine_load().loaded {
            tokio::task::yield_now().await;
        }
        // A run takes 2 ms, and now two seconds with its pause.
        throttle.set(0.001);
        let refusal = ends.service.submit(hurried("new", &"x".repeat(300))).await;
        let refusal = refusal.expect_err("there is no time for it");
        assert_eq!(refusal.code, ErrorCode::Busy);
        let says = "of 300 tokens (300 of them not in the prefix cache)";
        assert!(refusal.message.contains(says), "{}", refusal.message);
        let longer = ends.service.submit(hurried("longer", &(known + "y"))).await;
        assert_eq!(
            longer.is_ok(),
            prefix_cache && unload_after.is_none(),
            "{longer:?}"
        );
        throttle.set(1.0);
        // There is time for it without pauses.
        ends.service
            .submit(hurried("new", &"x".repeat(300)))
            .await
            .unwrap();
        ends.service.drain(TIMEOUT).await;
    }
}

#[tokio::test]
async fn an_answer_comes_out_of_the_engine() {
    let mut ends = start(Mood::Works).await;
    ends.service.submit(job("v")).await.unwrap();
    ends.service.submit(job("x")).await.unwrap();
    for text in ["wxyz", "yz"] {
        let ReplyBody::Final(answer) = outcome(&mut ends).await else {
            panic!("not an answer")
        };
        assert_eq!(
            (answer.text.as_str(), answer.finish_reason),
            (text, FinishReason::Stop)
        );
        assert_eq!(answer.completion_tokens, text.len());
        assert_eq!(answer.prompt_tokens, "question x".len());
    }
    ends.service.drain(TIMEOUT).await;
    assert!(
        ends.hanging.recv().is_err(),
        "the engine was dropped with its thread"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_is_cut_short_by_a_cancellation() {
    let mut ends = start(Mood::Hangs).await;
    ends.service.submit(job("a")).await.unwrap();
    ends = a_run_hangs(ends).await;
    assert!(ends.service.cancel(&key("a")));
    let ReplyBody::Final(answer) = outcome(&mut ends).await else {
        panic!("not an answer")
    };
    assert_eq!(answer.finish_reason, FinishReason::Cancelled);
    // Nothing of it is left over: the next job starts and ends as the first did.
    ends.service.submit(job("b")).await.unwrap();
    ends = a_run_hangs(ends).await;
    ends.service.drain(Duration::ZERO).await;
    let ReplyBody::Final(answer) = outcome(&mut ends).await else {
        panic!("not an answer")
    };
    assert_eq!(answer.finish_reason, FinishReason::Cancelled);
}

#[tokio::test]
async fn a_panic_in_the_engine_makes_the_service_unavailable() {
    let mut ends = start(Mood::Panics).await;
    ends.service.submit(job("a")).await.unwrap();
    let ReplyBody::Error(error) = outcome(&mut ends).await else {
        panic!("not an error")
    };
    assert_eq!(error.code, ErrorCode::Unavailable);
    ends.service.engine_lost().await;
    let refusal = ends.service.submit(job("b")).await.unwrap_err();
    assert_eq!(refusal.code, ErrorCode::Unavailable);
    ends.service.drain(TIMEOUT).await;
}

#[tokio::test]
async fn a_failed_build_is_told() {
    let failed = spawn_engine("engine-test", None, || Err::<Engine<Alphabet>, _>("no model")).await;
    assert!(matches!(failed, Err(StartError::Build("no model"))));
    let panicked = spawn_engine("engine-test", None, || -> Result<Engine<Alphabet>, &str> {
        panic!("oh")
    })
    .await;
    assert!(matches!(panicked, Err(StartError::Panicked(message)) if message == "oh"));
}

/// Waits until the engine is dropped, without holding up the runtime's threads.
async fn the_engine_goes(ends: Ends) -> Ends {
    tokio::task::spawn_blocking(move || {
        let gone = ends.hanging.recv_timeout(TIMEOUT);
        assert_eq!(gone, Err(std_mpsc::RecvTimeoutError::Disconnected));
        ends
    })
    .await
    .expect("the wait ends")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_nobody_needs_goes_and_comes_back() {
    let mut ends = start_with(Mood::Works, Some(Duration::from_millis(1)), |_| Ok(())).await;
    ends = the_engine_goes(ends).await;
    for text in ["v", "x"] {
        ends.service.submit(job(text)).await.unwrap();
        let ReplyBody::Final(answer) = outcome(&mut ends).await else {
            panic!("not an answer")
        };
        assert_eq!(answer.finish_reason, FinishReason::Stop);
    }
    let load = ends.service.engine_load();
    assert!(load.loads >= 2, "{load:?}");
    ends.service.drain(TIMEOUT).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_can_not_come_back_is_lost() {
    let first_only = |n| if n == 1 { Ok(()) } else { Err("the disk is gone") };
    let mut ends = start_with(Mood::Works, Some(Duration::from_millis(1)), first_only).await;
    ends = the_engine_goes(ends).await;
    assert!(!ends.service.is_engine_lost(), "it was only idle");
    ends.service.submit(job("v")).await.unwrap();
    let ReplyBody::Error(error) = outcome(&mut ends).await else {
        panic!("not an error")
    };
    assert_eq!(error.code, ErrorCode::Unavailable);
    ends.service.engine_lost().await;
    ends.service.drain(TIMEOUT).await;
}

/// Only the least is asserted: a busy machine makes everything longer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_throttled_engine_rests_after_each_step() {
    const SHARE: f64 = 0.05;
    let (running_tx, running) = std_mpsc::channel();
    let mut ends = Some(running_tx);
    let engine = spawn_engine("engine-test", None, move || {
        let running = ends.take().expect("one build");
        let engine = Engine::new(Alphabet::new(Mood::Tells, running), EngineConfig::default());
        Ok::<_, &'static str>(engine)
    })
    .await
    .expect("the engine starts");
    engine.throttle().set(SHARE);
    let liveness = engine.liveness();
    let (replies_tx, mut replies) = mpsc::channel(16);
    let service = Service::start(
        ServiceConfig::default(),
        engine,
        Arc::new(Bytes::default()),
        replies_tx,
    );
    let begun = std::time::Instant::now();
    service.submit(job("v")).await.unwrap();
    let reply = tokio::time::timeout(TIMEOUT, replies.recv()).await;
    let took = begun.elapsed();
    assert!(matches!(reply, Ok(Some(_))), "an answer");
    // The last run's rest is not waited for.
    let runs = u32::try_from(running.try_iter().count()).unwrap();
    let least = RUN.div_f64(SHARE) * (runs - 1);
    assert!(runs >= 4, "{runs} runs");
    assert!(took >= least, "{runs} runs took {took:?}, not {least:?} at least");
    // The answer comes a moment before the engine rests.
    let resting = liveness.read();
    while liveness.read().is_stuck_since(resting) {
        assert!(begun.elapsed() < TIMEOUT, "it has nothing to do");
        tokio::task::yield_now().await;
    }
    service.drain(TIMEOUT).await;
}

/// A run that does not end is told from a long prompt, each of whose chunks is a step, and from an idle engine.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pulse_tells_a_hang_from_a_long_prompt() {
    const CHUNKS: usize = 5;
    let (open, gate) = std_mpsc::channel();
    let (running_tx, running) = std_mpsc::channel();
    let mut ends = Some((gate, running_tx));
    let engine = spawn_engine("engine-test", None, move || {
        let config = EngineConfig {
            // "question v" is ten tokens.
            prefill_chunk: 2,
            ..EngineConfig::default()
        };
        let (gate, running) = ends.take().expect("one build");
        Ok::<_, std::convert::Infallible>(Engine::new(Alphabet::behind(gate, running), config))
    })
    .await
    .expect("the engine starts");
    let liveness = engine.liveness();
    let idle = liveness.read();
    assert!(
        !liveness.read().is_stuck_since(idle),
        "an idle engine is not stuck"
    );
    let (replies_tx, replies) = mpsc::channel(16);
    let service = Service::start(
        ServiceConfig::default(),
        engine,
        Arc::new(Bytes::default()),
        replies_tx,
    );
    service.submit(job("v")).await.unwrap();
    let watched = liveness.clone();
    tokio::task::spawn_blocking(move || {
        let mut before = idle;
        for chunk in 0..CHUNKS {
            running.recv_timeout(TIMEOUT).expect("a run");
            let now = watched.read();
            assert!(!now.is_stuck_since(before), "chunk {chunk} is progress");
            assert!(
                watched.read().is_stuck_since(now),
                "a run that does not end is none"
            );
            before = now;
            open.send(()).expect("the decoder waits");
        }
        // Open for the rest: the answer's letters.
        for _ in 0..100 {
            let _ = open.send(());
        }
        // Kept until the end, as the decoder tells of each run.
        running
    })
    .await
    .expect("every chunk was seen");
    let mut ends = Ends {
        service,
        replies,
        hanging: std_mpsc::channel().1,
    };
    assert!(matches!(outcome(&mut ends).await, ReplyBody::Final(_)));
    ends.service.drain(TIMEOUT).await;
    let at_rest = liveness.read();
    assert!(!liveness.read().is_stuck_since(at_rest));
}

#[tokio::test]
async fn a_session_goes_on_without_the_stop_text() {
    let mut ends = start(Mood::Works).await;
    let in_session = |id: &str, stop: &[&str]| {
        let mut job = job(id);
        job.session = Some("talk".to_owned());
        job.stop = stop.iter().map(|&stop| stop.to_owned()).collect();
        job
    };
    ends.service.submit(in_session("d", &["hi"])).await.unwrap();
    let ReplyBody::Final(first) = outcome(&mut ends).await else {
        panic!("no answer");
    };
    assert_eq!((first.text.as_str(), first.completion_tokens), ("efg", 5));
    ends.service.submit(in_session("v", &[])).await.unwrap();
    let ReplyBody::Final(second) = outcome(&mut ends).await else {
        panic!("no answer");
    };
    // "question d", its answer, the mark of a new turn and "question v".
    assert_eq!(second.prompt_tokens, 10 + 3 + 1 + 10);
}

#[tokio::test]
async fn the_memory_of_keys_and_values_is_known_before_the_first_job() {
    let engine = spawn_engine("engine-test", None, || {
        let config = EngineConfig {
            kv_budget: Some(1 << 20),
            ..EngineConfig::default()
        };
        let running = std_mpsc::channel().0;
        Ok::<_, std::convert::Infallible>(Engine::new(Alphabet::new(Mood::Works, running), config))
    })
    .await
    .expect("the engine starts");
    let (replies_tx, _replies) = mpsc::channel(16);
    let service = Service::start(
        ServiceConfig::default(),
        engine,
        Arc::new(Bytes::default()),
        replies_tx,
    );
    let load = service.engine_load();
    assert_eq!((load.steps, load.kv.budget), (0, Some(1 << 20)));
}

/// An engine of two slots that takes images, whose pixels wait for the gate, and its liveness.
async fn start_with_images() -> (Ends, LivenessProbe, std_mpsc::Sender<Result<(), String>>) {
    let engine = spawn_engine("engine-test", Some(Duration::from_millis(1)), || {
        let mut decoder = Alphabet::new(Mood::Works, std_mpsc::channel().0);
        decoder.caps.image_width = Some(2);
        let config = EngineConfig {
            slots: 2,
            ..EngineConfig::default()
        };
        Ok::<_, &'static str>(Engine::new(decoder, config))
    })
    .await
    .expect("the engine starts");
    let liveness = engine.liveness();
    let (open, gate) = std_mpsc::channel();
    let prompts = Bytes {
        takes_images: true,
        pixel_gate: Some(gate.into()),
    };
    let (replies_tx, replies) = mpsc::channel(16);
    let ends = Ends {
        service: Service::start(ServiceConfig::default(), engine, Arc::new(prompts), replies_tx),
        replies,
        hanging: std_mpsc::channel().1,
    };
    (ends, liveness, open)
}

/// A request with an image before its last letter.
fn with_image(id: &str) -> NewJob {
    let mut job = job(id);
    job.images = vec![RequestImage {
        file: b"gate".as_slice().into(),
        detail: Detail::Auto,
    }];
    let place = job.messages[0].content.len() - 1;
    job.messages[0].images = vec![PlacedImage::unread(place, 0)];
    job
}

/// Waits until the engine rests though it has computed what stands before the image.
async fn rests_before_the_image(ends: &Ends, liveness: &LivenessProbe) {
    let begun = std::time::Instant::now();
    loop {
        let steps = ends.service.engine_load().steps;
        let resting = liveness.read();
        if steps > 1 && !resting.is_stuck_since(resting) {
            return;
        }
        assert!(begun.elapsed() < TIMEOUT, "it has nothing to do");
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_engine_rests_while_pixels_are_made_and_others_go_on() {
    let (mut ends, liveness, open) = start_with_images().await;
    ends.service.submit(with_image("x")).await.unwrap();
    rests_before_the_image(&ends, &liveness).await;
    let texts = |body| match body {
        ReplyBody::Final(answer) => (answer.text, answer.image_tokens),
        other => panic!("not an answer: {other:?}"),
    };
    ends.service.submit(job("v")).await.unwrap();
    assert_eq!(texts(outcome(&mut ends).await), ("wxyz".to_owned(), 0));
    let load = ends.service.engine_load();
    assert!(load.loaded && load.crops_encoded == 0, "{load:?}");
    open.send(Ok(())).expect("the pixels are asked for");
    assert_eq!(texts(outcome(&mut ends).await), ("yz".to_owned(), 4));
    assert_eq!(ends.service.engine_load().crops_encoded, 4);
    ends.service.drain(TIMEOUT).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_waits_for_pixels_can_be_cancelled() {
    let (mut ends, liveness, open) = start_with_images().await;
    ends.service.submit(with_image("x")).await.unwrap();
    rests_before_the_image(&ends, &liveness).await;
    assert!(ends.service.cancel(&key("x")));
    let ReplyBody::Final(answer) = outcome(&mut ends).await else {
        panic!("not an answer")
    };
    assert_eq!(answer.finish_reason, FinishReason::Cancelled);
    // The runtime waits for the thread that makes pixels.
    drop(open);
    ends.service.drain(TIMEOUT).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pixels_that_fail_are_the_fault_of_the_request() {
    let (mut ends, liveness, open) = start_with_images().await;
    ends.service.submit(with_image("x")).await.unwrap();
    rests_before_the_image(&ends, &liveness).await;
    open.send(Err("it is damaged".to_owned()))
        .expect("the pixels are asked for");
    let ReplyBody::Error(error) = outcome(&mut ends).await else {
        panic!("not an error")
    };
    assert_eq!(error.code, ErrorCode::BadRequest);
    assert!(error.message.contains("it is damaged"), "{}", error.message);
    ends.service.drain(TIMEOUT).await;
}
