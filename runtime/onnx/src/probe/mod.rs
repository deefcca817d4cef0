//! Probes of the processor and the memory: the bounds of what any kernel can reach on this machine.

#[cfg(target_arch = "x86_64")]
mod multiply_adds_x86;

use std::hint::black_box;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use crate::isa::Isa;

/// The passes over the memory, of which the fastest counts.
const PASSES: usize = 6;
/// The rounds of a measurement of products, of which the fastest counts.
const ROUNDS: usize = 100;
/// The least time of such a round: short, so that some rounds are not interrupted by other work of the machine.
const ROUND_TIME: Duration = Duration::from_millis(2);

/// Reads `bytes` of memory on `threads` threads, several times. Returns bytes a second of the fastest pass. The buffer must be
/// far larger than the caches.
pub fn read_bandwidth(bytes: usize, threads: usize) -> f64 {
    /// Values that are summed side by side, in as many registers as the compiler likes.
    const LANES: usize = 32;
    let values = (bytes / size_of::<u64>() / threads.max(1)).max(LANES);
    let barrier = Barrier::new(threads.max(1) + 1);
    let mut fastest = Duration::MAX;
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                // Each thread writes what it reads, so that it is near its core where memory has places.
                let buffer = vec![1u64; values];
                for _ in 0..PASSES {
                    barrier.wait();
                    let mut sums = [0u64; LANES];
                    for chunk in buffer.chunks_exact(LANES) {
                        for (sum, value) in sums.iter_mut().zip(chunk) {
                            *sum = sum.wrapping_add(*value);
                        }
                    }
                    black_box(sums);
                    barrier.wait();
                }
            });
        }
        for _ in 0..PASSES {
            barrier.wait();
            let begun = Instant::now();
            barrier.wait();
            fastest = fastest.min(begun.elapsed());
        }
    });
    let read = values * size_of::<u64>() * threads.max(1);
    to_f64(read) / fastest.as_secs_f64().max(1e-9)
}

/// Multiply-adds of bytes a second that `threads` threads reach with the instructions of `isa` on registers alone; `None` for
/// an instruction set without such a probe.
pub fn multiply_adds(isa: Isa, threads: usize) -> Option<f64> {
    let probe = Probe::of(isa)?;
    let barrier = Barrier::new(threads.max(1));
    let one = || {
        let mut rounds = 1 << 12;
        // Warms up, and finds how many rounds take long enough to be measured.
        while probe.time(rounds) < ROUND_TIME && rounds < 1 << 40 {
            rounds *= 2;
        }
        let mut fastest = Duration::MAX;
        for _ in 0..ROUNDS {
            barrier.wait();
            fastest = fastest.min(probe.time(rounds));
        }
        to_f64(rounds) * to_f64(probe.multiply_adds_a_round) / fastest.as_secs_f64().max(1e-9)
    };
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(one)).collect();
        running.into_iter().map(|thread| thread.join().ok()).sum()
    })
}

/// A loop of multiply-adds.
struct Probe {
    multiply_adds_a_round: usize,
    /// Runs a number of rounds.
    run: fn(usize),
}

impl Probe {
    #[cfg(target_arch = "x86_64")]
    fn of(isa: Isa) -> Option<Self> {
        use multiply_adds_x86 as x86;
        let (multiply_adds_a_round, run): (usize, fn(usize)) = match isa {
            _ if !isa.is_supported() => return None,
            Isa::Avx512Vnni => (x86::REGISTERS * 64, x86::run_avx512),
            Isa::AvxVnni => (x86::REGISTERS * 32, x86::run_vnni256),
            Isa::Avx2 => (x86::REGISTERS * x86::MADDUBS_A_SUM * 32, x86::run_avx2),
            Isa::NeonDot | Isa::Neon | Isa::Scalar => return None,
        };
        Some(Self {
            multiply_adds_a_round,
            run,
        })
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn of(_: Isa) -> Option<Self> {
        None
    }

    fn time(&self, rounds: usize) -> Duration {
        let begun = Instant::now();
        (self.run)(rounds);
        begun.elapsed()
    }
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn to_f64(count: usize) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_at_a_plausible_speed() {
        let bandwidth = read_bandwidth(8 << 20, 2);
        // From a microcontroller's to beyond that of any first-level cache.
        assert!((1e7..1e14).contains(&bandwidth), "{bandwidth}");
    }

    #[test]
    fn each_vector_instruction_set_has_a_peak() {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
            let peak = multiply_adds(isa, 1);
            assert_eq!(
                peak.is_some(),
                cfg!(target_arch = "x86_64") && isa != Isa::Scalar,
                "{isa:?}"
            );
            // A processor of 0.1 to 10 GHz, with 4 to 1,024 of them a cycle.
            assert!(peak.is_none_or(|peak| (4e8..1e13).contains(&peak)), "{peak:?}");
        }
    }
}
