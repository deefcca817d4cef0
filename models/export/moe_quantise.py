"""Int4 blocks of a weight [outer, inner], as `MatMulNBits` and `QMoE` read them."""

import numpy as np

#: Rows that are quantised at once: what they need fits a processor's cache.
ROWS = 256


class Quantised:
    """Nibbles [outer, blocks, block / 2] (low ones first), scales [outer, blocks], zero points [outer, (blocks + 1) / 2] or None."""

    def __init__(self, outer, inner, block, scale_type, asymmetric):
        count = inner // block
        self.blocks = np.empty((outer, count, block // 2), np.uint8)
        self.scales = np.empty((outer, count), scale_type)
        self.zero_points = np.zeros((outer, (count + 1) // 2), np.uint8) if asymmetric else None


def quantise(weight, block, scale_type=np.float32, asymmetric=False):
    """Symmetric blocks map the value of largest magnitude to -8 exactly: its sign is the scale's (MLAS does the same).
    Asymmetric ones map their range, zero included, to 0..15."""
    outer, inner = weight.shape
    result = Quantised(outer, inner, block, scale_type, asymmetric)
    for start in range(0, outer, ROWS):
        rows = slice(start, min(start + ROWS, outer))
        values = np.asarray(weight[rows], np.float32).reshape(-1, inner // block, block)
        least, most = values.min(-1), values.max(-1)
        if asymmetric:
            least, most = np.minimum(least, 0), np.maximum(most, 0)
            scales = stored((most - least) / 15, scale_type)
            zeros = np.clip(np.rint(-least / scales), 0, 15)
            result.zero_points[rows] = packed(zeros.astype(np.uint8))
        else:
            scales = stored(np.where(-least > most, least, most) / -8, scale_type)
            zeros = np.full_like(scales, 8)
        nibbles = values / scales[..., None]
        np.rint(nibbles, out=nibbles)
        nibbles += zeros[..., None]
        np.clip(nibbles, 0, 15, out=nibbles)
        result.blocks[rows] = packed(nibbles.astype(np.uint8))
        result.scales[rows] = scales
    return result


def stored(scales, scale_type):
    """The scales as they are after storing; 1 for a block of zeros."""
    scales = scales.astype(scale_type).astype(np.float32)
    return np.where(scales == 0, np.float32(1), scales)


def packed(nibbles):
    """Two values of the last dimension in a byte."""
    if nibbles.shape[-1] % 2:
        nibbles = np.concatenate([nibbles, np.zeros((*nibbles.shape[:-1], 1), np.uint8)], -1)
    return nibbles[..., 0::2] | nibbles[..., 1::2] << 4
