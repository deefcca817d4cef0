//! The end of the service, and whatever happens: one outcome for each accepted job.

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use phi_edge_engine::{Failure, Finish};
use phi_edge_service::{
    EngineCommand, ErrorCode, FinishReason, JobKey, Priority, Reply, ReplyBody, ReplyTarget, ServiceConfig,
    Sink,
};
use proptest::prelude::*;
use support::{Bench, job, key, settle, summary};
use tokio::time::Instant;

#[tokio::test(start_paused = true)]
async fn what_runs_may_end_within_the_grace_time() {
    let mut bench = Bench::new();
    bench.service.submit(job("a")).await.unwrap();
    bench.service.submit(job("b")).await.unwrap();
    let (_request, sink) = bench.asked().await;
    let service = bench.service.clone();
    let drain = tokio::spawn(async move { service.drain(Duration::from_secs(30)).await });
    let refused = bench.reply().await;
    assert_eq!(refused.key, key("b"));
    assert!(matches!(refused.body, ReplyBody::Error(e) if e.code == ErrorCode::Unavailable));
    let refusal = bench.service.submit(job("c")).await.unwrap_err();
    assert_eq!(refusal.code, ErrorCode::Unavailable);
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(!sink.is_cancelled());
    sink.finish(summary(Finish::Stop, 1));
    assert!(matches!(bench.body().await, ReplyBody::Final(a) if a.finish_reason == FinishReason::Stop));
    drain.await.unwrap();
    assert!(bench.commands.recv().await.is_none(), "the engine is let go");
    assert!(bench.replies.recv().await.is_none(), "no more replies will come");
}

#[tokio::test(start_paused = true)]
async fn what_runs_longer_is_cut_short() {
    let mut bench = Bench::new();
    bench.service.submit(job("a")).await.unwrap();
    let (request, mut sink) = bench.asked().await;
    bench.interrupt.set_sole_request(request.id);
    sink.text("so far");
    let service = bench.service.clone();
    let started = Instant::now();
    let drain = tokio::spawn(async move { service.drain(Duration::from_secs(3)).await });
    sink.cancelled().await;
    assert!(started.elapsed() >= Duration::from_secs(3));
    assert!(bench.interrupt.is_raised());
    sink.finish(summary(Finish::Cancelled, 1));
    let ReplyBody::Final(answer) = bench.body().await else {
        panic!("not an answer")
    };
    assert_eq!(
        (answer.text.as_str(), answer.finish_reason),
        ("so far", FinishReason::Cancelled)
    );
    drain.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn draining_ends_even_if_nobody_takes_the_outcomes() {
    let bench = Bench::with(ServiceConfig::default(), 1, 1);
    for id in ["a", "b", "c"] {
        bench.service.submit(job(id)).await.unwrap();
    }
    bench.service.drain(Duration::from_secs(1)).await;
    assert_eq!(bench.service.stats().running, 0);
    // Twice does no harm.
    bench.service.drain(Duration::ZERO).await;
}

#[derive(Debug, Clone)]
enum Op {
    Submit {
        id: u8,
        body: u8,
        topic: u8,
        deadline_s: Option<u8>,
        stream: bool,
        again: bool,
    },
    Cancel(u8),
    Text(usize),
    Finish(usize),
    Fail(usize),
    /// The engine honours what was cancelled.
    Yield,
    Advance(u16),
    Read(u8),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0..6u8, 0..2u8, 0..3u8, proptest::option::of(0..5u8), any::<bool>(), any::<bool>()).prop_map(
            |(id, body, topic, deadline_s, stream, again)| Op::Submit { id, body, topic, deadline_s, stream, again }
        ),
        2 => (0..6u8).prop_map(Op::Cancel),
        2 => (0..3usize).prop_map(Op::Text),
        3 => (0..3usize).prop_map(Op::Finish),
        1 => (0..3usize).prop_map(Op::Fail),
        2 => Just(Op::Yield),
        2 => (0..5000u16).prop_map(Op::Advance),
        3 => (1..4u8).prop_map(Op::Read),
    ]
}

/// The engine's requests and what the clients have seen.
struct World {
    bench: Bench,
    running: Vec<Sink>,
    seen: Vec<Reply>,
    /// Accepted submissions per job and topic.
    accepted: BTreeMap<JobKey, BTreeMap<String, usize>>,
}

impl World {
    async fn apply(&mut self, op: Op) {
        match op {
            Op::Submit {
                id,
                body,
                topic,
                deadline_s,
                stream,
                again,
            } => {
                let mut job = job(&id.to_string());
                job.body_digest = [body; 32];
                job.deadline = deadline_s.map(|s| Duration::from_secs(s.into()));
                job.stream = stream;
                job.priority = if body == 0 {
                    Priority::Normal
                } else {
                    Priority::Interactive
                };
                job.reply.target = ReplyTarget::Topic(format!("t/{topic}"));
                let (key, to) = (job.key.clone(), format!("t/{topic}"));
                let known = self.accepted.contains_key(&key);
                let service = &self.bench.service;
                let taken = if again {
                    service.submit_redelivered(job).await
                } else {
                    service.submit(job).await
                };
                // A redelivery of what is known promises nothing more.
                if taken.is_ok() && !(again && known) {
                    *self.accepted.entry(key).or_default().entry(to).or_default() += 1;
                }
            }
            Op::Cancel(id) => {
                self.bench.service.cancel(&key(&id.to_string()));
            }
            Op::Text(at) => {
                if let Some(sink) = self.running.get(at) {
                    sink.text("text ");
                }
            }
            Op::Finish(at) => {
                if at < self.running.len() {
                    self.running.remove(at).finish(summary(Finish::Stop, 3));
                }
            }
            Op::Fail(at) => {
                if at < self.running.len() {
                    self.running
                        .remove(at)
                        .fail(Failure::Decoder("scripted".to_owned()));
                }
            }
            Op::Yield => self.honour_cancellations(),
            Op::Advance(ms) => tokio::time::sleep(Duration::from_millis(ms.into())).await,
            Op::Read(count) => {
                for _ in 0..count {
                    if let Ok(reply) = self.bench.replies.try_recv() {
                        self.seen.push(reply);
                        settle().await;
                    }
                }
            }
        }
        settle().await;
        self.take_requests();
    }

    fn take_requests(&mut self) {
        while let Ok(EngineCommand::Generate { sink, .. }) = self.bench.commands.try_recv() {
            self.running.push(sink);
        }
    }

    fn honour_cancellations(&mut self) {
        for sink in std::mem::take(&mut self.running) {
            if sink.is_cancelled() {
                sink.finish(summary(Finish::Cancelled, 1));
            } else {
                self.running.push(sink);
            }
        }
    }

    /// The engine's thread panics.
    fn lose_engine(&mut self) {
        self.bench.commands.close();
        while self.bench.commands.try_recv().is_ok() {}
        self.running.clear();
    }

    /// Drains the service and holds what came against what was promised.
    async fn check(mut self) -> Result<(), TestCaseError> {
        let service = self.bench.service.clone();
        let drain = tokio::spawn(async move { service.drain(Duration::from_secs(2)).await });
        while let Ok(reply) = tokio::time::timeout(Duration::from_millis(50), self.bench.replies.recv())
            .await
            .transpose_some()
        {
            if let Some(reply) = reply {
                self.seen.push(reply);
            }
            self.take_requests();
            self.honour_cancellations();
        }
        drain.await.map_err(|e| TestCaseError::fail(e.to_string()))?;
        let mut outcomes: BTreeMap<JobKey, Vec<Reply>> = BTreeMap::new();
        for reply in self.seen {
            if matches!(reply.body, ReplyBody::Chunk { .. }) {
                prop_assert!(!outcomes.contains_key(&reply.key), "a chunk after the outcome");
            } else {
                outcomes.entry(reply.key.clone()).or_default().push(reply);
            }
        }
        prop_assert!(
            outcomes.keys().eq(self.accepted.keys()),
            "outcomes for {:?}, accepted {:?}",
            outcomes.keys(),
            self.accepted.keys()
        );
        for (key, topics) in &self.accepted {
            let outcomes = &outcomes[key];
            prop_assert!(
                outcomes.iter().all(|o| o.body == outcomes[0].body),
                "two outcomes of {:?}",
                key
            );
            for (topic, submissions) in topics {
                let copies = outcomes
                    .iter()
                    .filter(|o| o.address.topic() == Some(topic.as_str()))
                    .count();
                prop_assert!(
                    (1..=*submissions).contains(&copies),
                    "{copies} of {submissions} for {key:?} on {topic}"
                );
            }
            let asked: usize = topics.values().sum();
            prop_assert!(outcomes.len() <= asked);
        }
        let stats = self.bench.service.stats();
        prop_assert_eq!((stats.queued, stats.running, stats.outcomes_waiting), (0, 0, 0));
        prop_assert_eq!(stats.served + stats.failed, self.accepted.len() as u64);
        Ok(())
    }
}

/// `Err` at the channel's end, `Ok(None)` when nothing came in time.
trait TransposeSome<T> {
    fn transpose_some(self) -> Result<Option<T>, ()>;
}

impl<T, E> TransposeSome<T> for Result<Option<T>, E> {
    fn transpose_some(self) -> Result<Option<T>, ()> {
        match self {
            Ok(Some(value)) => Ok(Some(value)),
            Ok(None) => Err(()),
            Err(_) => Ok(None),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn each_accepted_job_gets_exactly_one_outcome(ops in proptest::collection::vec(op(), 0..60), slots in 1..4usize, dies in any::<bool>()) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .map_err(|e| TestCaseError::fail(e.to_string()))?;
        runtime.block_on(async move {
            let config = ServiceConfig { queue: 3, ..ServiceConfig::default() };
            let mut world = World {
                bench: Bench::with(config, slots, 2),
                running: Vec::new(),
                seen: Vec::new(),
                accepted: BTreeMap::new(),
            };
            for op in ops {
                world.apply(op).await;
            }
            if dies {
                world.lose_engine();
            }
            world.check().await
        })?;
    }
}
