//! A rate limit for log lines of one kind, so that outside input can't fill the log.
//!
//! A kind is a callsite. Lines beyond its burst are suppressed and counted, and one line reports the number. With
//! `log.level = "debug"` nothing is suppressed.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};
use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// The number of lines of one kind in an interval.
const RATE_LIMIT_BURST: u32 = 20;
const RATE_LIMIT_INTERVAL: Duration = Duration::from_secs(10);
/// The time between two checks for suppressed lines.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// The rate limits of all callsites. Copies share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct LogRateLimit(Arc<Mutex<HashMap<Identifier, CallsiteLimit>>>);

/// The task that reports suppressed lines. It ends with a last report when this is dropped.
pub(crate) struct SuppressionReports {
    limits: LogRateLimit,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct CallsiteLimit {
    level: Level,
    /// The message of the callsite.
    message: String,
    budget: Budget,
}

/// The budget of one callsite. Time is an argument.
#[derive(Debug)]
struct Budget {
    begun: Instant,
    written: u32,
    left_out: u64,
    /// The time at which the first of them was suppressed.
    since: Option<Instant>,
}

impl Budget {
    fn new(now: Instant) -> Self {
        Self {
            begun: now,
            written: 0,
            left_out: 0,
            since: None,
        }
    }

    /// Whether one more line is written.
    fn take(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.begun) >= RATE_LIMIT_INTERVAL {
            self.begun = now;
            self.written = 0;
        }
        if self.written < RATE_LIMIT_BURST {
            self.written += 1;
            return true;
        }
        self.left_out += 1;
        self.since.get_or_insert(now);
        false
    }

    /// The number of suppressed lines, once an interval has passed since the first of them.
    fn report(&mut self, now: Instant) -> Option<u64> {
        let since = self.since?;
        (now.saturating_duration_since(since) >= RATE_LIMIT_INTERVAL).then(|| {
            self.since = None;
            std::mem::take(&mut self.left_out)
        })
    }
}

impl LogRateLimit {
    /// Starts the reports of suppressed lines.
    pub(crate) fn spawn_reports(self) -> SuppressionReports {
        let limits = self.clone();
        let task = tokio::spawn(async move {
            let mut ticks = interval(REPORT_INTERVAL);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                limits.report(Instant::now());
            }
        });
        SuppressionReports { limits: self, task }
    }

    fn take(&self, event: &Event<'_>, now: Instant) -> bool {
        let mut kinds = self.0.lock();
        let kind = kinds
            .entry(event.metadata().callsite())
            .or_insert_with(|| CallsiteLimit {
                level: *event.metadata().level(),
                message: message(event),
                budget: Budget::new(now),
            });
        kind.budget.take(now)
    }

    fn report(&self, now: Instant) {
        // Not under the lock: the lines of the report come by here, too.
        let due: Vec<(Level, String, u64)> = {
            let mut kinds = self.0.lock();
            let report =
                |kind: &mut CallsiteLimit| Some((kind.level, kind.message.clone(), kind.budget.report(now)?));
            kinds.values_mut().filter_map(report).collect()
        };
        for (level, like, lines) in due {
            if level == Level::INFO {
                tracing::info!(
                    lines,
                    like,
                    "lines were left out of the log: too many of one kind"
                );
            } else {
                tracing::warn!(
                    lines,
                    like,
                    "lines were left out of the log: too many of one kind"
                );
            }
        }
    }
}

impl Drop for SuppressionReports {
    fn drop(&mut self) {
        self.task.abort();
        self.limits.report(Instant::now() + RATE_LIMIT_INTERVAL);
    }
}

impl<S: Subscriber> Layer<S> for LogRateLimit {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        LevelFilter::current() >= LevelFilter::DEBUG
            || *metadata.level() > Level::INFO
            || metadata.target() == module_path!()
            || self.take(event, Instant::now())
    }
}

fn message(event: &Event<'_>) -> String {
    struct MessageVisitor(String);
    impl Visit for MessageVisitor {
        fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
            if field.name() == "message" {
                self.0 = format!("{value:?}");
            }
        }
    }
    let mut message = MessageVisitor(String::new());
    event.record(&mut message);
    message.0
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[test]
    fn a_flood_is_written_in_part_and_counted_in_whole() {
        let begun = Instant::now();
        let mut budget = Budget::new(begun);
        let (mut written, mut told) = (0_u64, 0);
        // A line each millisecond for a minute.
        for ms in 0..60_000 {
            let now = begun + Duration::from_millis(ms);
            written += u64::from(budget.take(now));
            told += budget.report(now).unwrap_or(0);
        }
        assert_eq!(written, 6 * u64::from(RATE_LIMIT_BURST));
        told += budget.report(begun + Duration::from_mins(2)).unwrap_or(0);
        assert_eq!(written + told, 60_000);
        assert_eq!(budget.report(begun + Duration::from_mins(3)), None);
    }

    #[test]
    fn what_comes_now_and_then_is_written() {
        let begun = Instant::now();
        let mut budget = Budget::new(begun);
        for line in 0..1000 {
            let now = begun + line * (RATE_LIMIT_INTERVAL / RATE_LIMIT_BURST);
            assert!(budget.take(now));
            assert_eq!(budget.report(now), None);
        }
    }

    #[derive(Clone, Default)]
    struct Output(Arc<Mutex<Vec<u8>>>);

    impl Write for Output {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// What a flood of one kind and a line of another leave in a log of this level.
    fn logged(level: LevelFilter) -> (usize, usize, String) {
        let output = Output::default();
        let writer = output.clone();
        let limits = LogRateLimit::default();
        let lines = tracing_subscriber::fmt::layer()
            .with_ansi(false)
            .with_writer(move || writer.clone());
        let log = tracing_subscriber::registry()
            .with(lines)
            .with(level)
            .with(limits.clone());
        tracing::subscriber::with_default(log, || {
            for n in 0..500 {
                tracing::info!(n, "refused");
            }
            tracing::warn!("another");
            limits.report(Instant::now() + RATE_LIMIT_INTERVAL);
        });
        let text = String::from_utf8(output.0.lock().clone()).expect("text");
        (
            text.matches(" refused ").count(),
            text.matches("another").count(),
            text,
        )
    }

    #[test]
    fn one_kind_leaves_room_for_others_and_debug_has_all() {
        let (refused, others, text) = logged(LevelFilter::INFO);
        assert_eq!((refused, others), (20, 1), "{text}");
        assert!(text.contains("lines=480 like=\"refused\""), "{text}");
        let (refused, others, text) = logged(LevelFilter::DEBUG);
        assert_eq!((refused, others), (500, 1), "{text}");
        assert!(!text.contains("left out"), "{text}");
    }
}
