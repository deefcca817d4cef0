//! The liveness of the engine's thread, for the watchdog.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A probe that shows whether the engine's thread makes progress.
///
/// One number carries both facts, so that they can't be read apart: it is odd while the thread works, and changes with
/// each step that ends. Only the thread that runs the engine writes it.
#[derive(Debug, Clone, Default)]
pub struct LivenessProbe(Arc<AtomicU64>);

/// A reading of a [`LivenessProbe`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heartbeat(u64);

impl Heartbeat {
    /// Whether the thread has work and has not ended a step since `earlier`. A thread without work is never stuck.
    pub fn is_stuck_since(self, earlier: Self) -> bool {
        self == earlier && self.0 % 2 == 1
    }
}

impl LivenessProbe {
    /// Returns the present reading.
    pub fn read(&self) -> Heartbeat {
        Heartbeat(self.0.load(Ordering::Relaxed))
    }

    /// Records that the thread has no work.
    pub fn rest(&self) {
        self.set(|count| count + count % 2);
    }

    /// Records that the thread has work.
    pub fn work(&self) {
        self.set(|count| count | 1);
    }

    /// Records the end of a step.
    pub fn step(&self) {
        self.set(|count| count + 2);
    }

    /// Replaces the number. Only the engine's thread does this: it need not be one atomic operation.
    fn set(&self, next: impl Fn(u64) -> u64) {
        self.0
            .store(next(self.0.load(Ordering::Relaxed)), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_work_without_a_step_is_stuck() {
        let liveness = LivenessProbe::default();
        let resting = liveness.read();
        assert!(!resting.is_stuck_since(resting));
        liveness.work();
        let begun = liveness.read();
        assert!(!begun.is_stuck_since(resting));
        assert!(liveness.read().is_stuck_since(begun));
        liveness.step();
        assert!(!liveness.read().is_stuck_since(begun));
        liveness.rest();
        let rests_again = liveness.read();
        assert!(!liveness.read().is_stuck_since(rests_again));
    }
}
