//! Slows the engine down, where heat or a battery ask for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use phi_edge_engine::Interrupt;

/// A pause looks this often whether it is still wanted.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The share of the time in which the engine computes. After each step it rests for as long as the share asks for.
#[derive(Debug, Clone)]
pub struct Throttle(Arc<AtomicU64>);

impl Default for Throttle {
    /// All of the time.
    fn default() -> Self {
        Self(Arc::new(AtomicU64::new(1.0_f64.to_bits())))
    }
}

impl Throttle {
    /// From now on the engine computes in this share of the time: above 0, at most 1.
    pub fn set(&self, share: f64) {
        let share = if share > 0.0 { share.min(1.0) } else { 1.0 };
        self.0.store(share.to_bits(), Ordering::Relaxed);
    }

    /// The share of the time.
    pub fn share(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }

    /// The rest that follows a step of this length.
    fn rest_after(&self, step: Duration) -> Duration {
        Duration::try_from_secs_f64(step.as_secs_f64() * (1.0 / self.share() - 1.0)).unwrap_or_default()
    }

    /// Rests after a step of this length; less if the share is raised meanwhile or somebody interrupts.
    pub(crate) fn pause(&self, step: Duration, interrupt: &Interrupt) {
        let begun = Instant::now();
        // Whoever is cancelled, or comes to its deadline, waits for no pause.
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
                // Until the pause hears it: before it nobody is to be woken.
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
