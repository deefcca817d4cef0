//! The speed of products alone, beside the most that the processor's multipliers could do.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::isa::Isa;
use crate::matmul::multiply::{RowScratch, multiply};
use crate::matmul::operands::WeightBits;
use crate::matmul::pack::{MatrixShape, PackedWeights, WeightInputs};
use crate::probe;
use crate::workers::Workers;

/// The matrices of a layer of Phi-3.5-mini, `(k, n)`: queries, keys and values; the attention's output; gate and up; down.
const LAYER: [(usize, usize); 4] = [(3072, 9216), (3072, 3072), (3072, 16_384), (8192, 3072)];
/// The shortest time that is measured.
const SPELL: Duration = Duration::from_secs(1);
/// The fewest passes over the layer.
const LEAST_PASSES: usize = 8;

/// The speed of products of rows with the int4 weights of one layer, in products (of two values) a second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ProductSpeed {
    /// Rows that are multiplied at once.
    pub rows: usize,
    /// Values along `k` that share a scale.
    pub block: usize,
    /// Whether the weights have zero points of their own.
    pub zero_points: bool,
    /// What the kernels do, quantisation of the rows included, in the fastest round of each matrix.
    pub products_per_s: f64,
    /// What the multipliers can do with operands that are in registers, measured just before; 0 where no probe exists.
    pub peak_per_s: f64,
}

/// Measures products of each number of rows with the matrices of one layer, on `threads` threads, by the kernels of `isa`.
///
/// # Errors
/// This processor does not have the instruction set.
pub fn product_speeds(isa: Isa, threads: usize, rows: &[usize]) -> Result<Vec<ProductSpeed>, String> {
    let mut speeds = Vec::new();
    for (block, zero_points) in [(32, false), (128, false), (128, true)] {
        let layer = layer(isa, threads, block, zero_points)?;
        for &rows in rows {
            speeds.push(ProductSpeed {
                rows,
                block,
                zero_points,
                peak_per_s: probe::multiply_adds(isa, threads).unwrap_or(0.0),
                products_per_s: speed(&layer, rows, threads)?,
            });
        }
    }
    Ok(speeds)
}

fn layer(isa: Isa, threads: usize, block: usize, zero_points: bool) -> Result<Vec<PackedWeights>, String> {
    let packed = LAYER.iter().map(|&(k, n)| {
        let shape = MatrixShape {
            k,
            n,
            block,
            bits: WeightBits::Four,
        };
        let weights: Vec<u8> = (0..k * n / 2)
            .map(|at| ((at * 167) >> 3).to_le_bytes()[0])
            .collect();
        let scales = vec![0.01; k * n / block];
        let zeros = zero_points.then(|| vec![0x79; n * shape.blocks().div_ceil(2)]);
        let source = WeightInputs {
            weights: &weights,
            scales: &scales,
            zeros: zeros.as_deref(),
        };
        PackedWeights::new(shape, source, (isa, threads))
    });
    packed.collect()
}

fn speed(layer: &[PackedWeights], rows: usize, threads: usize) -> Result<f64, String> {
    Team::of(threads, |workers| speed_on(layer, rows, workers))
}

#[expect(
    clippy::cast_precision_loss,
    reason = "numbers of products are small beside 2^52"
)]
fn speed_on(layer: &[PackedWeights], rows: usize, workers: &impl Workers) -> Result<f64, String> {
    let mut scratch = RowScratch::default();
    let mut buffers: Vec<(Vec<f32>, Vec<f32>)> = layer
        .iter()
        .map(|packed| {
            let input = (0..rows * packed.shape.k).map(|at| (at % 251) as f32 - 125.0);
            (input.collect(), vec![0.0; rows * packed.shape.n])
        })
        .collect();
    // As for the peak, the fastest round counts, of each matrix: other work of the machine interrupts some of them.
    let mut fastest = vec![Duration::MAX; layer.len()];
    let (mut passes, begun) = (0_usize, Instant::now());
    // The first one pays for pages.
    while passes < LEAST_PASSES || begun.elapsed() < SPELL {
        for ((packed, (input, out)), fastest) in layer.iter().zip(&mut buffers).zip(&mut fastest) {
            let begun = Instant::now();
            multiply(packed, input, out, &mut scratch, workers)?;
            *fastest = begun.elapsed().min(*fastest);
        }
        passes += 1;
    }
    let products: usize = layer.iter().map(|packed| packed.shape.k * packed.shape.n).sum();
    let time: Duration = fastest.iter().sum();
    Ok((products * rows) as f64 / time.as_secs_f64().max(1e-9))
}

/// Threads that wait for work by spinning, as ONNX Runtime's do between the operators of a run.
struct SpinningThreads<'a> {
    team: &'a Team,
}

/// What the threads share.
#[derive(Default)]
struct Team {
    /// Threads beside the one that hands out work.
    helpers: usize,
    /// The number of the current job; [`Team::END`] is the last.
    job: AtomicUsize,
    /// The work of the current job, called with a piece's number.
    work: Mutex<Option<WorkPointer>>,
    total: AtomicUsize,
    next: AtomicUsize,
    /// Helpers that have finished the current job.
    finished: AtomicUsize,
}

/// Work that outlives the job in which it is called.
#[derive(Clone, Copy)]
struct WorkPointer(*const (dyn Fn(usize) + Sync));

// SAFETY: what it points to may be called by several threads, and `each` returns after the last call.
unsafe impl Send for WorkPointer {}

impl Team {
    const END: usize = usize::MAX;

    /// Runs `with` beside `threads - 1` helpers.
    fn of<T>(threads: usize, with: impl FnOnce(&SpinningThreads<'_>) -> T) -> T {
        let team = Self {
            helpers: threads.saturating_sub(1),
            ..Self::default()
        };
        std::thread::scope(|scope| {
            for _ in 0..team.helpers {
                scope.spawn(|| team.help());
            }
            // A panic in `with` must end the helpers as well.
            let _end = EndOnDrop(&team);
            with(&SpinningThreads { team: &team })
        })
    }

    fn help(&self) {
        let mut seen = 0;
        loop {
            let job = self.job.load(Ordering::Acquire);
            if job == Self::END {
                return;
            }
            if job == seen {
                std::hint::spin_loop();
                continue;
            }
            seen = job;
            let work = *self.work.lock();
            if let Some(WorkPointer(work)) = work {
                // SAFETY: `each` keeps the work alive until all helpers have finished the job.
                self.take_pieces(unsafe { &*work });
            }
            self.finished.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn take_pieces(&self, work: &(dyn Fn(usize) + Sync)) {
        let total = self.total.load(Ordering::Relaxed);
        loop {
            let piece = self.next.fetch_add(1, Ordering::Relaxed);
            if piece >= total {
                return;
            }
            work(piece);
        }
    }
}

/// Ends the helpers.
struct EndOnDrop<'a>(&'a Team);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.job.store(Team::END, Ordering::Release);
    }
}

impl Workers for SpinningThreads<'_> {
    fn each(&self, total: usize, work: impl Fn(usize) + Send + Sync) -> Result<(), String> {
        let team = self.team;
        let work: &(dyn Fn(usize) + Sync) = &work;
        // SAFETY: only the lifetime is changed; no helper calls it after this function has returned, as it waits for all.
        let work_for_ever =
            unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(work) };
        let pointer = WorkPointer(work_for_ever);
        *team.work.lock() = Some(pointer);
        team.total.store(total, Ordering::Relaxed);
        team.next.store(0, Ordering::Relaxed);
        team.finished.store(0, Ordering::Relaxed);
        team.job.fetch_add(1, Ordering::AcqRel);
        team.take_pieces(work);
        while team.finished.load(Ordering::Acquire) < team.helpers {
            std::hint::spin_loop();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_work_are_each_done_once() {
        for threads in [1, 3] {
            Team::of(threads, |workers| {
                for total in [100, 1, 0, 37] {
                    let done: Vec<AtomicUsize> = (0..total).map(|_| AtomicUsize::new(0)).collect();
                    let piece = |piece: usize| {
                        done[piece].fetch_add(1, Ordering::Relaxed);
                    };
                    workers.each(total, piece).unwrap();
                    assert!(done.iter().all(|piece| piece.load(Ordering::Relaxed) == 1));
                }
            });
        }
    }
}
