//! Attention of a few query vectors over one head's keys and values, block by block of keys (online softmax: Milakov and
//! Gimelshein, arXiv 1805.02867; by blocks: Dao et al., arXiv 2205.14135).

use std::arch::x86_64::{
    __m512, _MM_HINT_T0, _mm_prefetch, _mm512_add_ps, _mm512_castpd_ps, _mm512_castps_pd, _mm512_fmadd_ps,
    _mm512_loadu_ps, _mm512_mask_mov_ps, _mm512_maskz_mov_ps, _mm512_max_ps, _mm512_mul_ps,
    _mm512_reduce_add_ps, _mm512_reduce_max_ps, _mm512_roundscale_ps, _mm512_scalef_ps, _mm512_set1_ps,
    _mm512_setzero_ps, _mm512_shuffle_f32x4, _mm512_storeu_ps, _mm512_sub_ps, _mm512_unpackhi_pd,
    _mm512_unpackhi_ps, _mm512_unpacklo_pd, _mm512_unpacklo_ps,
};

use crate::attention::LANES;

/// The number of keys that are scored before their values are added.
pub(crate) const BLOCK: usize = 64;
const BLOCK_REGISTERS: usize = BLOCK / LANES;

/// The running softmax of one query vector.
pub(crate) struct Query {
    /// `size` values, scaled by what scores are scaled with and by log2(e).
    pub(crate) vector: *const f32,
    /// The number of keys that it attends to: those before its own token, and that.
    pub(crate) sees: usize,
    /// The sum of values, weighted by 2^(score - `largest`): `size` values.
    pub(crate) sum: *mut f32,
    pub(crate) largest: f32,
    /// The sum of the weights.
    pub(crate) weight: f32,
}

/// Adds the keys from `from` on, [`BLOCK`] of them or up to `end`, to each of `queries`.
///
/// `next`: the keys that are read after these. They, and before them the block's own values, are prefetched
/// meanwhile: vectors of a head lie in many small pages, which the processor's prefetcher does not cross. `None`: all
/// of it is in the cache.
///
/// The result of a query depends on its own vector and on the keys that it attends to, to the last bit: the
/// operations on each and their order are the same whatever is beside it.
///
/// # Safety
/// The processor has AVX-512. Each query points to `PIECES * 16` values and as many of its sum; `keys` and `values` to
/// `end` vectors of that length. No other code writes to any of them meanwhile.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
#[allow(clippy::needless_range_loop, reason = "indices into arrays of registers")]
pub(crate) unsafe fn block<const PIECES: usize, const ROWS: usize>(
    queries: &mut [Query],
    keys: *const f32,
    values: *const f32,
    from: usize,
    end: usize,
    next: Option<*const f32>,
) {
    let size = PIECES * LANES;
    let count = BLOCK.min(end - from);
    let mut weights = [[_mm512_setzero_ps(); BLOCK_REGISTERS]; ROWS];
    // SAFETY: as the caller guarantees.
    unsafe {
        let ahead = next.map(|_| values.add(from * size));
        scores::<PIECES, ROWS>(queries, keys.add(from * size), count, ahead, &mut weights);
    }
    for row in 0..ROWS {
        let query = &mut queries[row];
        let visible = query.sees.saturating_sub(from).min(count);
        if visible == 0 {
            // A block outside of its keys changes nothing.
            weights[row] = [_mm512_setzero_ps(); BLOCK_REGISTERS];
            continue;
        }
        let mut largest = _mm512_set1_ps(f32::NEG_INFINITY);
        for part in 0..BLOCK_REGISTERS {
            let known = _mm512_mask_mov_ps(largest, mask(visible, part), weights[row][part]);
            largest = _mm512_max_ps(largest, known);
        }
        let largest = query.largest.max(_mm512_reduce_max_ps(largest));
        let mut total = _mm512_setzero_ps();
        for part in 0..BLOCK_REGISTERS {
            let weight = exp2(_mm512_sub_ps(weights[row][part], _mm512_set1_ps(largest)));
            weights[row][part] = _mm512_maskz_mov_ps(mask(visible, part), weight);
            total = _mm512_add_ps(total, weights[row][part]);
        }
        let shrink = exp2(_mm512_set1_ps(query.largest - largest));
        query.weight = query.weight.mul_add(first(shrink), _mm512_reduce_add_ps(total));
        query.largest = largest;
        for piece in 0..PIECES {
            // SAFETY: as the caller guarantees.
            unsafe {
                let sum = query.sum.add(piece * LANES);
                _mm512_storeu_ps(sum, _mm512_mul_ps(_mm512_loadu_ps(sum), shrink));
            }
        }
    }
    let mut flat = [[0f32; BLOCK]; ROWS];
    for row in 0..ROWS {
        for part in 0..BLOCK_REGISTERS {
            // SAFETY: it has room for whole blocks.
            unsafe { _mm512_storeu_ps(flat[row].as_mut_ptr().add(part * LANES), weights[row][part]) };
        }
    }
    let mut sums = [[_mm512_setzero_ps(); PIECES]; ROWS];
    // SAFETY: as the caller guarantees.
    unsafe {
        for row in 0..ROWS {
            for piece in 0..PIECES {
                sums[row][piece] = _mm512_loadu_ps(queries[row].sum.add(piece * LANES));
            }
        }
        let mut value = values.add(from * size);
        for key in 0..count {
            fetch::<PIECES>(next, key);
            for piece in 0..PIECES {
                let part = _mm512_loadu_ps(value.add(piece * LANES));
                for row in 0..ROWS {
                    let weight = _mm512_set1_ps(flat[row][key]);
                    sums[row][piece] = _mm512_fmadd_ps(weight, part, sums[row][piece]);
                }
            }
            value = value.add(size);
        }
        for row in 0..ROWS {
            for piece in 0..PIECES {
                _mm512_storeu_ps(queries[row].sum.add(piece * LANES), sums[row][piece]);
            }
        }
    }
}

/// Scores of `count` keys for each query: products of the vectors. As many vectors are fetched from `ahead`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
#[allow(clippy::needless_range_loop, reason = "indices into arrays of registers")]
#[inline]
unsafe fn scores<const PIECES: usize, const ROWS: usize>(
    queries: &[Query],
    mut keys: *const f32,
    count: usize,
    ahead: Option<*const f32>,
    scores: &mut [[__m512; BLOCK_REGISTERS]; ROWS],
) {
    let mut vectors = [[_mm512_setzero_ps(); PIECES]; ROWS];
    for row in 0..ROWS {
        for piece in 0..PIECES {
            // SAFETY: as the caller guarantees.
            vectors[row][piece] = unsafe { _mm512_loadu_ps(queries[row].vector.add(piece * LANES)) };
        }
    }
    for part in 0..count.div_ceil(LANES) {
        let mut products = [[_mm512_setzero_ps(); LANES]; ROWS];
        for key in 0..LANES.min(count - part * LANES) {
            fetch::<PIECES>(ahead, part * LANES + key);
            for piece in 0..PIECES {
                // SAFETY: as the caller guarantees.
                let values = unsafe { _mm512_loadu_ps(keys.add(piece * LANES)) };
                for row in 0..ROWS {
                    products[row][key] = _mm512_fmadd_ps(vectors[row][piece], values, products[row][key]);
                }
            }
            // SAFETY: there are `count` of them.
            keys = unsafe { keys.add(PIECES * LANES) };
        }
        for row in 0..ROWS {
            scores[row][part] = sums(&products[row]);
        }
    }
}

/// Prefetches the vector `index` of those at `from` into the first cache.
#[inline]
fn fetch<const PIECES: usize>(from: Option<*const f32>, index: usize) {
    if let Some(from) = from {
        for piece in 0..PIECES {
            let line = from.wrapping_add((index * PIECES + piece) * LANES);
            // SAFETY: a prefetch reads nothing: an invalid address is ignored.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast::<i8>()) };
        }
    }
}

/// The sum of each register's lanes, in the registers' order.
#[target_feature(enable = "avx512f")]
#[inline]
fn sums(registers: &[__m512; LANES]) -> __m512 {
    let pairs: [__m512; 8] = std::array::from_fn(|at| {
        let (a, b) = (registers[2 * at], registers[2 * at + 1]);
        _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b))
    });
    let fours: [__m512; 4] = std::array::from_fn(|at| {
        let (a, b) = (
            _mm512_castps_pd(pairs[2 * at]),
            _mm512_castps_pd(pairs[2 * at + 1]),
        );
        let (low, high) = (_mm512_unpacklo_pd(a, b), _mm512_unpackhi_pd(a, b));
        _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high))
    });
    let eights: [__m512; 2] = std::array::from_fn(|at| {
        let (a, b) = (fours[2 * at], fours[2 * at + 1]);
        _mm512_add_ps(
            _mm512_shuffle_f32x4::<0x44>(a, b),
            _mm512_shuffle_f32x4::<0xee>(a, b),
        )
    });
    _mm512_add_ps(
        _mm512_shuffle_f32x4::<0x88>(eights[0], eights[1]),
        _mm512_shuffle_f32x4::<0xdd>(eights[0], eights[1]),
    )
}

/// The mask of a register's lanes that are among the first `count` keys.
fn mask(count: usize, part: usize) -> u16 {
    match count.saturating_sub(part * LANES) {
        lanes if lanes >= LANES => 0xffff,
        lanes => (1 << lanes) - 1,
    }
}

/// 2^x for x of at most 0, exactly 1 for 0; what is below 2^-126 need not be exact.
#[target_feature(enable = "avx512f")]
#[inline]
fn exp2(x: __m512) -> __m512 {
    // The Taylor series of 2^f for f in -0.5..0.5: what is left out is below 1e-8.
    const SERIES: [f32; 7] = [
        1.525_273_4e-5,
        1.540_353e-4,
        1.333_355_8e-3,
        9.618_129e-3,
        5.550_411e-2,
        2.402_265e-1,
        6.931_472e-1,
    ];
    let x = _mm512_max_ps(x, _mm512_set1_ps(-126.0));
    let whole = _mm512_roundscale_ps::<0>(x);
    let part = _mm512_sub_ps(x, whole);
    let mut sum = _mm512_set1_ps(SERIES[0]);
    for factor in &SERIES[1..] {
        sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(*factor));
    }
    _mm512_scalef_ps(_mm512_fmadd_ps(sum, part, _mm512_set1_ps(1.0)), whole)
}

#[target_feature(enable = "avx512f")]
fn first(register: __m512) -> f32 {
    let mut lanes = [0f32; LANES];
    // SAFETY: it has room for all lanes.
    unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), register) };
    lanes[0]
}
