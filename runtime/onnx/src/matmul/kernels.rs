//! The kernels of the matmul by instruction set, and the operands that they share.
//!
//! All kernels read the same packed weights and give the same results, to the last bit: sums within a block are whole numbers,
//! and blocks are added in their order by one fused operation each.

use crate::isa::Isa;
use crate::matmul::operands::{PanelRow, Tile, TileForm, WordColumns, WordLine};
use crate::matmul::{LANES, scalar_kernel};
#[cfg(target_arch = "x86_64")]
use crate::matmul::{avx512_tile, maddubs_tile, quantise_x86, transpose_x86, vnni256_tile};
#[cfg(target_arch = "aarch64")]
use crate::matmul::{neon_dot_tile, neon_mull_tile, quantise_neon, transpose_neon};

/// The kernels of one instruction set.
///
/// # Safety
/// Of each function: the processor has the instruction set, which [`MatMulKernels::of`] does not check.
pub(crate) struct MatMulKernels {
    /// The rows of a panel: they go through the matmul together, and the unpacked weights serve them all.
    pub(crate) panel_rows: usize,
    /// The most rows that are one panel.
    pub(crate) max_panel_rows: usize,
    /// Quantises one row to eight bits by block: the largest magnitude of a block becomes 127. The last block is padded with
    /// zeros. A sum of a block's whole values fits 16 bits: 256 of them at most, of 127 each.
    ///
    /// # Safety
    /// The place is a panel with room for the row rounded up to whole blocks (of a multiple of 16 values), and no other code
    /// uses this row of it meanwhile.
    pub(crate) quantise: unsafe fn(&[f32], block: usize, &PanelRow),
    /// Computes one tile. A row's result depends on nothing but that row.
    ///
    /// # Safety
    /// All of the tile points to what its fields say, and no other code uses the part of the output meanwhile.
    pub(crate) tile: unsafe fn(TileForm, &Tile),
    /// Lays the words from `start` on of all columns side by side, as many as there are of 16; columns that are not there are
    /// zeros. Returns the lines, of which those behind the last word are zeros.
    ///
    /// # Safety
    /// The columns are there.
    pub(crate) transpose: unsafe fn(WordColumns, start: usize) -> [WordLine; LANES],
}

static SCALAR: MatMulKernels = MatMulKernels {
    panel_rows: 6,
    max_panel_rows: 6,
    quantise: scalar_kernel::quantise,
    tile: scalar_kernel::tile,
    transpose: scalar_kernel::transpose,
};
#[cfg(target_arch = "x86_64")]
static AVX512: MatMulKernels = MatMulKernels {
    // Of 4, 6 and 8 rows by three groups this was the fastest from 16 rows on (by 2 %).
    panel_rows: 6,
    // Eight times three sums and the unpacked weights fill the 32 registers.
    max_panel_rows: 8,
    quantise: quantise_x86::quantise_avx512,
    tile: avx512_tile::tile,
    transpose: transpose_x86::transpose_avx512,
};
#[cfg(target_arch = "x86_64")]
static AVX2: MatMulKernels = with_halves(maddubs_tile::tile);
#[cfg(target_arch = "x86_64")]
static VNNI256_EVEX: MatMulKernels = with_halves(vnni256_tile::tile_evex);
#[cfg(target_arch = "x86_64")]
static VNNI256_VEX: MatMulKernels = with_halves(vnni256_tile::tile_vex);

/// Kernels with registers of 256 bits.
#[cfg(target_arch = "x86_64")]
const fn with_halves(tile: unsafe fn(TileForm, &Tile)) -> MatMulKernels {
    MatMulKernels {
        // The sums of a row's half group or group, of six rows, fill the 16 registers.
        panel_rows: 6,
        max_panel_rows: 6,
        quantise: quantise_x86::quantise_avx2,
        tile,
        transpose: transpose_x86::transpose_avx2,
    }
}

#[cfg(target_arch = "aarch64")]
static NEON_DOT: MatMulKernels = with_quarters(neon_dot_tile::tile);
#[cfg(target_arch = "aarch64")]
static NEON: MatMulKernels = with_quarters(neon_mull_tile::tile);

/// Kernels with registers of 128 bits.
#[cfg(target_arch = "aarch64")]
const fn with_quarters(tile: unsafe fn(TileForm, &Tile)) -> MatMulKernels {
    MatMulKernels {
        // Six times four sums, the rows' values and the unpacked weights fill the 32 registers.
        panel_rows: 6,
        max_panel_rows: 6,
        quantise: quantise_neon::quantise,
        tile,
        transpose: transpose_neon::transpose,
    }
}

impl MatMulKernels {
    /// The kernels of an instruction set.
    pub(crate) fn of(isa: Isa) -> &'static Self {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => &AVX512,
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni if isa.has_evex_dot_products() => &VNNI256_EVEX,
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => &VNNI256_VEX,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => &AVX2,
            #[cfg(target_arch = "aarch64")]
            Isa::NeonDot => &NEON_DOT,
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => &NEON,
            _ => &SCALAR,
        }
    }

    /// All kernels that this processor can run, with a name for each: more than one instruction set has a form.
    #[cfg(test)]
    pub(crate) fn all() -> Vec<(&'static str, &'static Self)> {
        let supported = Isa::ALL.into_iter().filter(|isa| isa.is_supported());
        #[cfg_attr(not(target_arch = "x86_64"), allow(unused_mut))]
        let mut all: Vec<(&str, &Self)> = supported.map(|isa| (isa.as_str(), Self::of(isa))).collect();
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avxvnni") {
            all.push(("avxvnni, VEX", &VNNI256_VEX));
        }
        all
    }
}
