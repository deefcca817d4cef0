//! What observers are told, and traces.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::{Arc, Mutex};

use phi_edge_engine::{Finish, Summary};
use phi_edge_service::{
    ErrorCode, JobEnd, JobKey, Observer, Observers, Outcome, Refusal, ReplyAddress, ReplyBody, ServiceConfig,
    TraceParent,
};
use support::{Bench, job, key, summary};

#[derive(Default)]
struct Told(Mutex<Vec<String>>);

impl Told {
    fn say(&self, line: String) {
        self.0.lock().unwrap().push(line);
    }

    fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

impl Observer for Told {
    fn ended(&self, end: &JobEnd<'_>) {
        let id = &end.job.key.id;
        self.say(match end.outcome {
            Outcome::Answered {
                answer,
                guessed,
                guessed_right,
            } => {
                let (reason, tokens) = (answer.finish_reason.as_str(), answer.completion_tokens);
                format!(
                    "{id} {reason} {tokens} {guessed_right}/{guessed} {}",
                    end.attempts
                )
            }
            Outcome::Failed(refusal) => format!("{id} {} {}", refusal.code, end.attempts),
        });
    }

    fn refused(&self, key: &JobKey, address: &ReplyAddress, refusal: &Refusal) {
        let trace = address.traceparent.as_ref().map_or("", TraceParent::trace_id);
        self.say(format!("{} refused {} {trace}", key.id, refusal.code));
    }
}

fn watched() -> (Bench, Arc<Told>) {
    let told = Arc::new(Told::default());
    let config = ServiceConfig {
        observers: Observers::new(vec![Arc::clone(&told) as Arc<dyn Observer>]),
        ..ServiceConfig::default()
    };
    (Bench::with(config, 1, 64), told)
}

#[tokio::test(start_paused = true)]
async fn each_end_is_told_once() {
    let (mut bench, told) = watched();
    bench.service.submit(job("a")).await.unwrap();
    let (_, sink) = bench.asked().await;
    bench.service.submit(job("b")).await.unwrap();
    assert!(bench.service.cancel(&key("b")));
    bench.error().await;
    sink.finish(Summary {
        draft_tokens: 5,
        accepted_draft_tokens: 3,
        ..summary(Finish::Stop, 7)
    });
    bench.reply().await;
    // A repeat gets the stored outcome: that is no other end.
    bench.service.submit(job("a")).await.unwrap();
    bench.reply().await;
    let refusal = bench.service.refusal(ErrorCode::BadRequest, "no");
    let body = ReplyBody::Error(refusal);
    let mut address = job("c").reply;
    address.traceparent = TraceParent::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    bench.service.post(key("c"), address, body, None).await;
    assert_eq!(
        told.lines(),
        [
            "b cancelled 0",
            "a stop 7 3/5 1",
            "c refused bad_request 4bf92f3577b34da6a3ce929d0e0e4736"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn another_trace_is_no_other_address() {
    let (mut bench, _) = watched();
    let traced = |parent: &str| {
        let mut job = job("a");
        let trace = format!("00-4bf92f3577b34da6a3ce929d0e0e4736-{parent}-01");
        job.reply.traceparent = TraceParent::parse(&trace);
        job
    };
    bench.service.submit(traced("00f067aa0ba902b7")).await.unwrap();
    let (_, sink) = bench.asked().await;
    bench.service.submit(traced("00f067aa0ba902b8")).await.unwrap();
    sink.finish(summary(Finish::Stop, 1));
    let trace = bench.reply().await.address.traceparent.unwrap();
    assert!(trace.as_str().ends_with("-00f067aa0ba902b7-01"), "{trace:?}");
    assert!(bench.is_silent().await);
}
