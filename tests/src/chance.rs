//! The tests' source of randomness: the same seed makes the same choices.

use std::ops::Range;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

/// A generator of random choices.
#[derive(Debug, Clone)]
pub struct Chance(StdRng);

/// A seed that no run had before, short enough to be typed.
pub fn random_seed() -> u64 {
    u64::from(rand::random::<u32>())
}

impl Chance {
    /// A generator whose choices the seed decides.
    pub fn seeded(seed: u64) -> Self {
        Self(StdRng::seed_from_u64(seed))
    }

    /// A generator with a random seed, which is printed: the output of a test that fails names it.
    pub fn random() -> Self {
        let seed = random_seed();
        println!("seed {seed}");
        Self::seeded(seed)
    }

    /// A generator of its own for a task that runs beside others: their order must not change its choices.
    #[must_use]
    pub fn branch(&mut self) -> Self {
        Self::seeded(self.number())
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.0.random()
    }

    /// A number from 0 up to `bound`, which is left out; 0 where that is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0.random_range(0..bound.max(1))
    }

    /// A size within the range, its start where it is empty.
    pub fn size(&mut self, range: Range<usize>) -> usize {
        let width = range.end.saturating_sub(range.start) as u64;
        range.start + usize::try_from(self.below(width)).unwrap_or(0)
    }

    /// A time within the range, in microseconds.
    pub fn time(&mut self, range: Range<Duration>) -> Duration {
        let width = range.end.saturating_sub(range.start).as_micros();
        range.start + Duration::from_micros(self.below(u64::try_from(width).unwrap_or(u64::MAX)))
    }

    /// A time of less than so many milliseconds.
    pub fn ms(&mut self, bound: u64) -> Duration {
        Duration::from_millis(self.below(bound))
    }

    /// True once in `times`, on average.
    pub fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// One of these; there must be one.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.size(0..from.len())]
    }

    /// So many bytes.
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.0.fill(bytes.as_mut_slice());
        bytes
    }
}
