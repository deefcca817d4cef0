//! Moments that outlive the process.
//!
//! The wall clock of an appliance may be wrong for hours after a start (no battery, no network), and is set at will. So
//! a moment is kept twice: by the time since the machine started, which nothing sets, and by the wall clock, for when the
//! machine itself was restarted.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// A moment, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment {
    /// Since the machine started.
    pub(crate) up_ms: i64,
    /// Since 1970, as the wall clock had it when this was written.
    pub(crate) wall_ms: i64,
}

/// Turns moments of this process into such that outlive it, and back.
#[derive(Debug, Clone)]
pub(crate) struct Clock {
    start: Instant,
    start_up_ms: i64,
    /// This start of the machine.
    boot: String,
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self {
            start: Instant::now(),
            start_up_ms: uptime().map_or(0, |up| i64::try_from(up.as_millis()).unwrap_or(i64::MAX)),
            boot: boot_id().unwrap_or_default(),
        }
    }

    /// Names this start of the machine; empty where that can't be told.
    pub(crate) fn boot(&self) -> &str {
        &self.boot
    }

    /// `moment` for the disk.
    pub(crate) fn keep(&self, moment: Instant) -> Moment {
        let up_ms = self.up_ms(moment);
        let left = up_ms - self.up_ms(Instant::now());
        Moment {
            up_ms,
            wall_ms: wall_ms().saturating_add(left),
        }
    }

    /// A moment that this start of the machine wrote, for this process: `None` if it is past.
    pub(crate) fn left(&self, up_ms: i64) -> Option<Duration> {
        let left = up_ms.saturating_sub(self.up_ms(Instant::now()));
        u64::try_from(left)
            .ok()
            .filter(|left| *left > 0)
            .map(Duration::from_millis)
    }

    fn up_ms(&self, moment: Instant) -> i64 {
        let ms = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        if moment >= self.start {
            self.start_up_ms.saturating_add(ms(moment - self.start))
        } else {
            self.start_up_ms.saturating_sub(ms(self.start - moment))
        }
    }
}

/// Milliseconds since 1970 by the wall clock.
pub(crate) fn wall_ms() -> i64 {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_millis()).unwrap_or(i64::MAX),
        Err(before) => -i64::try_from(before.duration().as_millis()).unwrap_or(i64::MAX),
    }
}

/// Time since the machine started, also while it slept; Linux only.
fn uptime() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/uptime").ok()?;
    let seconds: f64 = text.split_whitespace().next()?.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// Linux only. Elsewhere a restart of the process counts as one of the machine: by the wall clock.
fn boot_id() -> Option<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_moment_comes_back_from_the_disk() {
        let clock = Clock::new();
        let kept = clock.keep(Instant::now() + Duration::from_mins(10));
        let left = clock.left(kept.up_ms).unwrap();
        assert!(
            left > Duration::from_secs(590) && left <= Duration::from_mins(10),
            "{left:?}"
        );
        assert!((kept.wall_ms - wall_ms() - 600_000).abs() < 10_000);
        // Another process on the same machine reads the same.
        let later = Clock::new();
        assert!(later.left(kept.up_ms).unwrap() > Duration::from_secs(590));
        assert_eq!(clock.left(kept.up_ms - 700_000), None);
    }
}
