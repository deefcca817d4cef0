//! The series behind the exponentials of attention and of SwiGLU.

/// The factors of the Taylor series of 2^f for f in -0.5..0.5, from that of f^7 to that of f; the last one is 1. What is left out is
/// below 1e-8.
pub(crate) const EXP2_SERIES: [f32; 7] = [
    1.525_273_4e-5,
    1.540_353e-4,
    1.333_355_8e-3,
    9.618_129e-3,
    5.550_411e-2,
    2.402_265e-1,
    6.931_472e-1,
];
