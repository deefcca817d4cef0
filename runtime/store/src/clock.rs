//! Moments that outlive the process.
//!
//! The wall clock of an appliance may be wrong for hours after a start (no battery, no network), and is set at will. So
//! a moment is kept twice: by the time that the machine was awake since it started, which nothing sets, and by the wall clock,
//! for when the machine itself was restarted.
//!
//! Timers of a process stand still while the machine is suspended (`CLOCK_MONOTONIC`). What is kept goes by the same clock: by
//! one that counts suspension (`CLOCK_BOOTTIME`, /proc/uptime) deadlines would pass early after a restart.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// A moment, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// The time since the machine started, without that for which it was suspended.
    pub up_ms: i64,
    /// The time since 1970, by the wall clock when this was written.
    pub wall_ms: i64,
}

/// A converter of moments of this process into stored moments, and back.
#[derive(Debug, Clone)]
pub struct Clock {
    start: Instant,
    start_up_ms: i64,
    /// The id of this start of the machine.
    boot: String,
}

impl Clock {
    /// Returns the clock of this process on this start of the machine.
    pub fn of_this_process() -> Self {
        Self::at(Instant::now(), awake(), boot_id())
    }

    /// Returns a clock with these readings: `awake` is that of the machine at `start`.
    fn at(start: Instant, awake: Duration, boot_id: Option<String>) -> Self {
        Self {
            start,
            start_up_ms: i64::try_from(awake.as_millis()).unwrap_or(i64::MAX),
            // Moments by another clock don't belong to this one, though the machine was not restarted since.
            boot: boot_id.map_or_else(String::new, |id| format!("{id} awake")),
        }
    }

    /// Returns the id of this start of the machine; empty where it is unknown.
    pub fn boot(&self) -> &str {
        &self.boot
    }

    /// Returns `moment` as it is stored.
    pub fn keep(&self, moment: Instant) -> Moment {
        self.keep_at(moment, Instant::now())
    }

    fn keep_at(&self, moment: Instant, now: Instant) -> Moment {
        let up_ms = self.up_ms(moment);
        let left = up_ms - self.up_ms(now);
        Moment {
            up_ms,
            wall_ms: wall_ms().saturating_add(left),
        }
    }

    /// Returns the time left until a moment that this start of the machine stored; `None` if it is past.
    pub fn left(&self, up_ms: i64) -> Option<Duration> {
        self.left_at(up_ms, Instant::now())
    }

    fn left_at(&self, up_ms: i64, now: Instant) -> Option<Duration> {
        let left = up_ms.saturating_sub(self.up_ms(now));
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

/// Returns the milliseconds since 1970 by the wall clock.
pub fn wall_ms() -> i64 {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_millis()).unwrap_or(i64::MAX),
        Err(before) => -i64::try_from(before.duration().as_millis()).unwrap_or(i64::MAX),
    }
}

/// Returns the time since the machine started, without that for which it was suspended: the clock of [`Instant`].
#[cfg(unix)]
fn awake() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or_default())
}

/// Returns zero. There is no id of a start of the machine either: a restart of the process counts as one.
#[cfg(not(unix))]
fn awake() -> Duration {
    Duration::ZERO
}

/// Returns the id of this start of the machine, on Linux. Elsewhere a restart of the process counts as one of the machine,
/// by the wall clock.
fn boot_id() -> Option<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    /// A machine's clocks, as CLOCK_MONOTONIC and CLOCK_BOOTTIME have them.
    struct Machine {
        /// The process's own timers.
        now: Instant,
        monotonic: Duration,
        boottime: Duration,
    }

    impl Machine {
        fn new() -> Self {
            Self {
                now: Instant::now(),
                monotonic: Duration::from_hours(1),
                boottime: Duration::from_hours(1),
            }
        }

        fn works(&mut self, time: Duration) {
            self.now += time;
            self.monotonic += time;
            self.boottime += time;
        }

        fn sleeps(&mut self, time: Duration) {
            self.boottime += time;
        }

        fn process(&self) -> Clock {
            Clock::at(self.now, self.monotonic, Some("boot".to_owned()))
        }
    }

    proptest! {
        /// A deadline is due for later processes where it would be due for a process that goes on.
        #[test]
        fn a_deadline_is_neither_early_nor_late_after_suspend_and_restart(
            events in prop::collection::vec((0u64..400, prop::bool::ANY, prop::bool::ANY), 1..12), deadline in 1u64..2000,
        ) {
            let mut machine = Machine::new();
            let expires = machine.now + Duration::from_secs(deadline);
            let mut kept = machine.process().keep_at(expires, machine.now).up_ms;
            let mut clock = machine.process();
            for (seconds, suspended, restarts) in events {
                let time = Duration::from_secs(seconds);
                if suspended { machine.sleeps(time) } else { machine.works(time) }
                if restarts {
                    clock = machine.process();
                }
                let left = expires.checked_duration_since(machine.now).filter(|left| !left.is_zero());
                prop_assert_eq!(clock.left_at(kept, machine.now), left);
                let Some(left) = left else { continue };
                // Kept again by this process it is the same.
                kept = clock.keep_at(machine.now + left, machine.now).up_ms;
            }
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_clock_is_that_of_timers() {
        // An Instant tells its reading only so.
        let shown = format!("{:?}", std::time::Instant::now());
        let seconds = shown
            .split("tv_sec: ")
            .nth(1)
            .and_then(|rest| rest.split(',').next());
        let seconds: u64 = seconds.unwrap().parse().unwrap();
        assert!(awake().as_secs().abs_diff(seconds) <= 2, "{shown}, {:?}", awake());
    }

    #[test]
    fn a_moment_comes_back_from_the_disk() {
        let clock = Clock::of_this_process();
        let kept = clock.keep(Instant::now() + Duration::from_mins(10));
        let left = clock.left(kept.up_ms).unwrap();
        assert!(
            left > Duration::from_secs(590) && left <= Duration::from_mins(10),
            "{left:?}"
        );
        assert!((kept.wall_ms - wall_ms() - 600_000).abs() < 10_000);
        // Another process on the same machine reads the same.
        let later = Clock::of_this_process();
        assert!(later.left(kept.up_ms).unwrap() > Duration::from_secs(590));
        assert_eq!(clock.left(kept.up_ms - 700_000), None);
    }
}
