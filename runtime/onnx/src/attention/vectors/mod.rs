//! Registers as the kernels of attention use them, for each instruction set.
//!
//! A kernel is one source for all of them ([`super::kernel`]). Each operation on a lane rounds as IEEE 754 says, and sums over
//! lanes have one order ([`tree_sum`]): so the instruction set does not change a result, to the last bit.

#[cfg(target_arch = "x86_64")]
pub(super) mod avx2_vector;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512_vector;
#[cfg(target_arch = "aarch64")]
pub(super) mod neon_vector;
pub(super) mod scalar_vector;

use super::layout::{self, BLOCK_TOKENS};

/// The registers of an instruction set, and the operations on them.
///
/// # Safety
/// Of each function: the processor has the instruction set; pointers point to as many values as there are lanes. Lane
/// operations do what their names say.
pub(super) trait Vector {
    /// The 32-bit lanes of a register: a power of two, 16 at most.
    const LANES: usize;
    /// A register of 32-bit floats.
    type Floats: Copy;
    /// A register of 32-bit integers, or of four bytes each.
    type Ints: Copy;

    unsafe fn set(value: f32) -> Self::Floats;
    unsafe fn load(from: *const f32) -> Self::Floats;
    unsafe fn store(to: *mut f32, value: Self::Floats);
    /// Loads 16-bit floats.
    unsafe fn load_f16(from: *const u16) -> Self::Floats;
    unsafe fn add(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    unsafe fn sub(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    unsafe fn mul(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a * b + c`, rounded once.
    unsafe fn mul_add(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// The larger one; `b` where either is NaN.
    unsafe fn max(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// The smaller one; `b` where either is NaN.
    unsafe fn min(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// To whole numbers, halves to even ones.
    unsafe fn round(value: Self::Floats) -> Self::Floats;
    /// `value * 2^power` for whole powers from -126 to 0.
    unsafe fn scale(value: Self::Floats, power: Self::Floats) -> Self::Floats;
    /// The first `count` lanes of `a`, the others of `b`.
    unsafe fn first(count: usize, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// The largest lane.
    unsafe fn largest(value: Self::Floats) -> f32;
    /// The Walsh-Hadamard transform of 16 values in place, after their multiplication by `factor`: neighbours at a distance
    /// of 1, 2, 4 and 8 become their sum and their difference.
    unsafe fn mix(values: *mut f32, factor: f32);

    unsafe fn set_ints(value: i32) -> Self::Ints;
    unsafe fn load_ints(from: *const u8) -> Self::Ints;
    unsafe fn store_ints(to: *mut i32, value: Self::Ints);
    unsafe fn add_ints(a: Self::Ints, b: Self::Ints) -> Self::Ints;
    /// To the nearest integers, halves to even ones; of what has none, any.
    unsafe fn to_ints(value: Self::Floats) -> Self::Ints;
    unsafe fn to_floats(value: Self::Ints) -> Self::Floats;
}

/// The products of bytes that an instruction set has, and the form of what they take.
///
/// # Safety
/// As for [`Vector`].
pub(super) trait ByteProducts {
    /// The registers that they are computed in.
    type Lanes: Vector;
    /// What the stored bytes of keys exceed the factors of [`ByteProducts::add_keys`] by.
    const KEY_OFFSET: i32 = layout::KEY_OFFSET;

    /// Integers of a query (15 bits) as two lines of words, one word for four integers.
    fn query_words(integers: &[i32; BLOCK_TOKENS]) -> WordLines;
    /// Adds the products of four bytes of a key a lane (as stored: unsigned) with a query's words.
    unsafe fn add_keys(sums: &mut ProductSums<Self>, keys: IntsOf<Self>, query: [IntsOf<Self>; 2]);
    /// The sum of all products of keys.
    unsafe fn key_total(sums: ProductSums<Self>) -> IntsOf<Self>;

    /// The integers of tokens' weights (16 bits, unsigned) as two lines of words, one word for four tokens.
    fn weight_words(integers: &[i32; BLOCK_TOKENS]) -> WordLines;
    /// Adds the values alone, where the form of the weights needs that.
    unsafe fn add_plain_values(sum: IntsOf<Self>, values: IntsOf<Self>) -> IntsOf<Self>;
    /// Adds the products of four tokens' values a lane (signed bytes) with their weights' words.
    unsafe fn add_values(sums: &mut ProductSums<Self>, values: IntsOf<Self>, weights: [IntsOf<Self>; 2]);
    /// The sum of all products of values, rounded once.
    unsafe fn value_total(sums: ProductSums<Self>, plain: IntsOf<Self>) -> FloatsOf<Self>;
}

/// Two words for each four of 16 integers, as bytes.
pub(super) type WordLines = [[u8; BLOCK_TOKENS]; 2];
pub(super) type IntsOf<B> = <<B as ByteProducts>::Lanes as Vector>::Ints;
pub(super) type FloatsOf<B> = <<B as ByteProducts>::Lanes as Vector>::Floats;
/// Sums of products, of which each instruction set uses one or two.
pub(super) type ProductSums<B> = [IntsOf<B>; 2];

/// The sum of 16 values: halves are added until one is left.
#[inline(always)]
pub(super) fn tree_sum(values: &[f32; BLOCK_TOKENS]) -> f32 {
    let mut sums = *values;
    let mut width = BLOCK_TOKENS / 2;
    while width > 0 {
        for at in 0..width {
            sums[at] += sums[at + width];
        }
        width /= 2;
    }
    sums[0]
}

/// The upper bytes of integers, and the lower ones of `bits` bits; the latter are between `-lowest` and `2^bits - lowest`.
#[inline(always)]
pub(super) fn byte_lines(integers: &[i32; BLOCK_TOKENS], bits: u32, lowest: i32) -> WordLines {
    // Without checks of overflow, which can't happen, the compiler makes vectors of it in every profile.
    let mut lines = [[0u8; BLOCK_TOKENS]; 2];
    for (at, integer) in integers.iter().enumerate() {
        let upper = integer.wrapping_add(lowest) >> bits;
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the bits of a byte"
        )]
        {
            lines[0][at] = upper as u8;
            lines[1][at] = integer.wrapping_sub(upper << bits) as u8;
        }
    }
    lines
}

/// What weights of 16 bits are lowered by to be signed, as a power of two.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(super) const WEIGHT_OFFSET_BITS: i32 = 15;

/// Weights of 16 bits, lowered to signed ones, as words: see [`even_and_odd`].
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[inline(always)]
pub(super) fn lowered_even_and_odd(integers: &[i32; BLOCK_TOKENS]) -> WordLines {
    let mut lowered = [0; BLOCK_TOKENS];
    for (lowered, integer) in lowered.iter_mut().zip(integers) {
        *lowered = integer.wrapping_sub(1 << WEIGHT_OFFSET_BITS);
    }
    even_and_odd(&lowered)
}

/// Integers of 16 bits as words: of each four, those at even places, and those at odd ones.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[inline(always)]
pub(super) fn even_and_odd(integers: &[i32; BLOCK_TOKENS]) -> WordLines {
    let mut lines = [[0u8; BLOCK_TOKENS]; 2];
    for four in 0..BLOCK_TOKENS / 4 {
        for at in 0..4 {
            let [low, high, ..] = integers[4 * four + at].to_le_bytes();
            let to = 4 * four + at / 2 * 2;
            lines[at % 2][to] = low;
            lines[at % 2][to + 1] = high;
        }
    }
    lines
}
