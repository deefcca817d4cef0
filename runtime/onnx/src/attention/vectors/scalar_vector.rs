//! One lane at a time, without vector instructions: the reference of the other instruction sets.

use super::{ByteProducts, Vector, WordLines, byte_lines};
use crate::attention::i8_tile::{LOWER_QUERY_BITS, LOWER_QUERY_HALF};
use crate::attention::layout::BLOCK_TOKENS;
use crate::mul_add::mul_add;

/// Registers of one lane.
pub(in crate::attention) enum OneLane {}

impl Vector for OneLane {
    const LANES: usize = 1;
    type Floats = f32;
    type Ints = i32;

    unsafe fn set(value: f32) -> f32 {
        value
    }

    unsafe fn load(from: *const f32) -> f32 {
        // SAFETY: as the caller guarantees.
        unsafe { *from }
    }

    unsafe fn store(to: *mut f32, value: f32) {
        // SAFETY: as the caller guarantees.
        unsafe { *to = value };
    }

    unsafe fn load_f16(from: *const u16) -> f32 {
        // SAFETY: as the caller guarantees.
        half::f16::from_bits(unsafe { *from }).to_f32()
    }

    unsafe fn add(a: f32, b: f32) -> f32 {
        a + b
    }

    unsafe fn sub(a: f32, b: f32) -> f32 {
        a - b
    }

    unsafe fn mul(a: f32, b: f32) -> f32 {
        a * b
    }

    unsafe fn mul_add(a: f32, b: f32, c: f32) -> f32 {
        mul_add(a, b, c)
    }

    unsafe fn max(a: f32, b: f32) -> f32 {
        if a > b { a } else { b }
    }

    unsafe fn min(a: f32, b: f32) -> f32 {
        if a < b { a } else { b }
    }

    unsafe fn round(value: f32) -> f32 {
        value.round_ties_even()
    }

    unsafe fn scale(value: f32, power: f32) -> f32 {
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the exponent of a normal number"
        )]
        let exponent = (power + 127.0) as u32;
        value * f32::from_bits(exponent << 23)
    }

    unsafe fn first(count: usize, a: f32, b: f32) -> f32 {
        if count > 0 { a } else { b }
    }

    unsafe fn largest(value: f32) -> f32 {
        value
    }

    unsafe fn mix(values: *mut f32, factor: f32) {
        // SAFETY: as the caller guarantees: 16 values.
        let values = unsafe { std::slice::from_raw_parts_mut(values, BLOCK_TOKENS) };
        for value in &mut *values {
            *value *= factor;
        }
        for distance in [1, 2, 4, 8] {
            for at in (0..BLOCK_TOKENS).filter(|at| at & distance == 0) {
                let (low, high) = (values[at], values[at + distance]);
                values[at] = low + high;
                values[at + distance] = low - high;
            }
        }
    }

    unsafe fn set_ints(value: i32) -> i32 {
        value
    }

    unsafe fn load_ints(from: *const u8) -> i32 {
        // SAFETY: as the caller guarantees.
        unsafe { from.cast::<i32>().read_unaligned() }
    }

    unsafe fn store_ints(to: *mut i32, value: i32) {
        // SAFETY: as the caller guarantees.
        unsafe { *to = value };
    }

    unsafe fn add_ints(a: i32, b: i32) -> i32 {
        a + b
    }

    unsafe fn to_ints(value: f32) -> i32 {
        #[allow(clippy::cast_possible_truncation, reason = "bounded by the callers")]
        {
            value.round_ties_even() as i32
        }
    }

    unsafe fn to_floats(value: i32) -> f32 {
        #[allow(clippy::cast_precision_loss, reason = "rounded as the vector instructions do")]
        {
            value as f32
        }
    }
}

impl ByteProducts for OneLane {
    type Lanes = Self;

    fn query_words(integers: &[i32; BLOCK_TOKENS]) -> WordLines {
        byte_lines(integers, LOWER_QUERY_BITS, LOWER_QUERY_HALF)
    }

    unsafe fn add_keys(sums: &mut [i32; 2], keys: i32, query: [i32; 2]) {
        for (sum, query) in sums.iter_mut().zip(query) {
            *sum += unsigned_by_signed(keys, query);
        }
    }

    unsafe fn key_total([upper, lower]: [i32; 2]) -> i32 {
        (upper << LOWER_QUERY_BITS) + lower
    }

    fn weight_words(integers: &[i32; BLOCK_TOKENS]) -> WordLines {
        byte_lines(integers, 8, 0)
    }

    unsafe fn add_plain_values(sum: i32, _values: i32) -> i32 {
        sum
    }

    unsafe fn add_values(sums: &mut [i32; 2], values: i32, weights: [i32; 2]) {
        for (sum, weights) in sums.iter_mut().zip(weights) {
            *sum += unsigned_by_signed(weights, values);
        }
    }

    unsafe fn value_total([upper, lower]: [i32; 2], _plain: i32) -> f32 {
        // SAFETY: no instruction set is needed.
        unsafe { Self::to_floats((upper << 8) + lower) }
    }
}

/// The sum of the products of four unsigned bytes with four signed ones.
fn unsigned_by_signed(unsigned: i32, signed: i32) -> i32 {
    let pairs = unsigned.to_ne_bytes().into_iter().zip(signed.to_ne_bytes());
    pairs
        .map(|(a, b)| i32::from(a) * i32::from(b.cast_signed()))
        .sum()
}
