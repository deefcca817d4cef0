//! The speed of products alone, beside the most that the processor's multipliers could do.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::isa::Isa;
use crate::matmul::multiply::{RowScratch, multiply};
use crate::matmul::operands::WeightBits;
use crate::matmul::pack::{MatrixShape, PackedWeights, WeightInputs};
use crate::probe;
use crate::workers::Workers;

/// The matrices of a layer of Phi-3.5-mini, `(k, n)`: queries, keys and values; the attention's output; gate and up; down.
const LAYER: [(usize, usize); 4] = [(3072, 9216), (3072, 3072), (3072, 16_384), (8192, 3072)];
/// The shortest time that is measured.
const SPELL: Duration = Duration::from_millis(300);

/// The speed of products of rows with the int4 weights of one layer, in products (of two values) a second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ProductSpeed {
    /// Rows that are multiplied at once.
    pub rows: usize,
    /// Values along `k` that share a scale.
    pub block: usize,
    /// Whether the weights have zero points of their own.
    pub zero_points: bool,
    /// What the kernels do, quantisation of the rows included.
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

#[expect(
    clippy::cast_precision_loss,
    reason = "numbers of products are small beside 2^52"
)]
fn speed(layer: &[PackedWeights], rows: usize, threads: usize) -> Result<f64, String> {
    let workers = Spawned(threads);
    let mut scratch = RowScratch::default();
    let mut buffers: Vec<(Vec<f32>, Vec<f32>)> = layer
        .iter()
        .map(|packed| {
            let input = (0..rows * packed.shape.k).map(|at| (at % 251) as f32 - 125.0);
            (input.collect(), vec![0.0; rows * packed.shape.n])
        })
        .collect();
    let mut pass = || -> Result<(), String> {
        for (packed, (input, out)) in layer.iter().zip(&mut buffers) {
            multiply(packed, input, out, &mut scratch, &workers)?;
        }
        Ok(())
    };
    // The first one pays for pages.
    pass()?;
    let (mut passes, begun) = (0_usize, Instant::now());
    while begun.elapsed() < SPELL {
        pass()?;
        passes += 1;
    }
    let products: usize = layer.iter().map(|packed| packed.shape.k * packed.shape.n).sum();
    Ok((products * rows * passes) as f64 / begun.elapsed().as_secs_f64())
}

/// Threads that are made for each product.
struct Spawned(usize);

impl Workers for Spawned {
    fn each(&self, total: usize, work: impl Fn(usize) + Send + Sync) -> Result<(), String> {
        let next = AtomicUsize::new(0);
        let take = || {
            loop {
                let piece = next.fetch_add(1, Ordering::Relaxed);
                if piece >= total {
                    return;
                }
                work(piece);
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..self.0 {
                scope.spawn(take);
            }
            take();
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_work_are_each_done_once() {
        let done: Vec<AtomicUsize> = (0..100).map(|_| AtomicUsize::new(0)).collect();
        Spawned(3)
            .each(done.len(), |piece| {
                done[piece].fetch_add(1, Ordering::Relaxed);
            })
            .unwrap();
        assert!(done.iter().all(|piece| piece.load(Ordering::Relaxed) == 1));
    }
}
