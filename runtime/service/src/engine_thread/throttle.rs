//! The throttle of the engine, for a hot machine or one on battery.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use phi_edge_engine::Interrupt;

/// The interval at which a pause checks whether it may end.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The share of time in which the engine computes. After each step it pauses for as long as the share requires.
#[derive(Debug, Clone)]
pub struct Throttle(Arc<AtomicU64>);

impl Default for Throttle {
    /// Returns a throttle that never pauses.
    fn default() -> Self {
        Self(Arc::new(AtomicU64::new(1.0_f64.to_bits())))
    }
}

impl Throttle {
    /// Sets the share of time in which the engine computes: above 0, at most 1.
    pub fn set(&self, share: f64) {
        let share = if share > 0.0 { share.min(1.0) } else { 1.0 };
        self.0.store(share.to_bits(), Ordering::Relaxed);
    }

    /// Returns the share of time.
    pub fn share(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }

    /// Returns the length of the pause after a step of this length.
    fn rest_after(&self, step: Duration) -> Duration {
        Duration::try_from_secs_f64(step.as_secs_f64() * (1.0 / self.share() - 1.0)).unwrap_or_default()
    }

    /// Pauses after a step of this length; for less time if the share is raised meanwhile or a request interrupts.
    pub(crate) fn pause(&self, step: Duration, interrupt: &Interrupt) {
        let begun = Instant::now();
        // A request that is cancelled, or reaches its deadline, must not wait for the pause.
        interrupt.accept_any_request();
        loop {
            let left = self.rest_after(step).saturating_sub(begun.elapsed());
            if left.is_zero() || interrupt.is_raised() {
                break;
            }
            std::thread::sleep(left.min(POLL_INTERVAL));
        }
        interrupt.clear_sole_request();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use phi_edge_engine::RequestId;

    use super::*;

    #[test]
    fn the_rest_makes_up_the_share() {
        let throttle = Throttle::default();
        let step = Duration::from_millis(30);
        assert_eq!(throttle.rest_after(step), Duration::ZERO);
        throttle.set(0.25);
        let rest = throttle.rest_after(step);
        assert!((rest.as_secs_f64() - 0.09).abs() < 1e-6, "{rest:?}");
        for nonsense in [0.0, -1.0, f64::NAN] {
            throttle.set(nonsense);
            assert_eq!(throttle.rest_after(step), Duration::ZERO, "{nonsense}");
        }
    }

    #[test]
    fn an_interrupt_ends_a_pause() {
        let (throttle, interrupt) = (Throttle::default(), Interrupt::new());
        throttle.set(0.001);
        // Each pause would last for more than a quarter of an hour.
        interrupt.raise();
        throttle.pause(Duration::from_secs(1), &interrupt);
        interrupt.clear();
        let cancelling = std::thread::spawn({
            let interrupt = interrupt.clone();
            move || {
                // Repeated until the pause takes it: earlier there is no pause to interrupt.
                while !interrupt.is_raised() {
                    interrupt.raise_for(RequestId(1));
                    std::thread::yield_now();
                }
            }
        });
        throttle.pause(Duration::from_secs(1), &interrupt);
        cancelling.join().unwrap();
    }
}
