//! A sign of life of the engine's thread, for whoever watches over it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Tells from outside whether the engine's thread gets on with its work.
///
/// One number carries both facts, so that they can't be read apart: it is odd while the thread works, and changes with
/// each step that ends. Whoever drives an engine says what it does; there is one such thread.
#[derive(Debug, Clone, Default)]
pub struct LivenessProbe(Arc<AtomicU64>);

/// What [`LivenessProbe`] said at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heartbeat(u64);

impl Heartbeat {
    /// True if the thread has work and has not ended a step since `earlier`. A thread without work is never stuck.
    pub fn is_stuck_since(self, earlier: Self) -> bool {
        self == earlier && self.0 % 2 == 1
    }
}

impl LivenessProbe {
    /// How things stand.
    pub fn read(&self) -> Heartbeat {
        Heartbeat(self.0.load(Ordering::Relaxed))
    }

    /// Nothing is to be done.
    pub fn rest(&self) {
        self.set(|count| count + count % 2);
    }

    /// There is work.
    pub fn work(&self) {
        self.set(|count| count | 1);
    }

    /// A step has ended.
    pub fn step(&self) {
        self.set(|count| count + 2);
    }

    /// Only the engine's thread does this: it need not be one operation.
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
