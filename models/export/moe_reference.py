"""Phi-3.5-MoE's decoder in NumPy: a reference for exported graphs, which it shares no code with but the names of the weights.

Sequences are computed whole, without keys and values of before, with LongRoPE's factors by their length: the long ones for
all tokens of a sequence that is longer than `original`. (The `PhiMoE` of transformers keeps the short ones.) All in fp32.
"""

import math

import numpy as np
import onnx


class Stored:
    """The weights of an exported model, or `tensors` of one, mapped; quantised ones are given as fp32 with `matrix`."""

    def __init__(self, folder, shape, tensors=None):
        self.shape, self.arrays = shape, {}
        for tensor in tensors or onnx.load(folder / "model.onnx", load_external_data=False).graph.initializer:
            place = {entry.key: entry.value for entry in tensor.external_data}
            kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
            self.arrays[tensor.name] = np.memmap(folder / place["location"], kind, "r", int(place["offset"]), tuple(tensor.dims))

    def vector(self, name):
        return np.asarray(self.arrays[name], np.float32)

    def matrix(self, name):
        """A product's weight [outer, inner]."""
        root = f"{name}.MatMul.weight"
        return dequantised(self.arrays[f"{root}_Q4"], self.arrays[f"{root}_scales"], self.arrays.get(f"{root}_zp"))

    def expert(self, layer, number):
        """Gate [inner, hidden], up [inner, hidden] and down [hidden, inner] of an expert."""
        def part(which):
            zero_points = self.arrays.get(f"{layer}.moe.zero_points_{which}")
            return dequantised(self.arrays[f"{layer}.moe.weight_{which}"][number], self.arrays[f"{layer}.moe.scales_{which}"][number],
                               None if zero_points is None else zero_points[number])

        if f"{layer}.moe.weight_3" in self.arrays:
            return part(1), part(3), part(2)
        both = part(1)
        return both[0::2], both[1::2], part(2)


def dequantised(blocks, scales, zero_points=None):
    """The values of int4 blocks as fp32 [outer, inner]: (nibble - zero point) * scale, low nibbles first."""
    outer, count = scales.shape
    nibbles = np.stack([blocks & 15, blocks >> 4], -1).reshape(outer, count, -1)
    zeros = np.float32(8)
    if zero_points is not None:
        packed = zero_points.reshape(outer, -1)
        zeros = np.stack([packed & 15, packed >> 4], -1).reshape(outer, -1)[:, :count, None].astype(np.float32)
    values = nibbles.astype(np.float32)
    values -= zeros
    values *= np.asarray(scales, np.float32)[:, :, None]
    return values.reshape(outer, -1)


def rope(shape, length, base=10000.0):
    """Cosines and sines of a sequence's positions."""
    half = shape.head // 2
    factors, scale = shape.large if length > shape.original else shape.small
    if scale is None:
        ratio = shape.context / shape.original
        scale = math.sqrt(1 + math.log(ratio) / math.log(shape.original)) if ratio > 1 else 1.0
    angles = np.arange(length)[:, None] / (np.asarray(factors) * base ** (np.arange(half) / half))
    return (np.cos(angles) * scale).astype(np.float32), (np.sin(angles) * scale).astype(np.float32)


def norm(rows, weight, bias, epsilon):
    centred = rows - rows.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) * weight + bias


def softmax(rows):
    shares = np.exp(rows - rows.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)


def attention(shape, packed):
    """Causal attention over rows of queries, keys and values, queries' heads sharing those of keys in groups."""
    length = len(packed)
    heads, keys = shape.heads, shape.kv_heads
    rows = packed.reshape(length, heads + 2 * keys, shape.head).transpose(1, 0, 2)
    cosines, sines = rope(shape, length)
    first, second = np.split(rows[:heads + keys], 2, -1)
    turned = np.concatenate([first * cosines - second * sines, second * cosines + first * sines], -1)
    group = heads // keys
    key, value = np.repeat(turned[heads:], group, 0), np.repeat(rows[heads + keys:], group, 0)
    scores = turned[:heads] @ key.transpose(0, 2, 1) / math.sqrt(shape.head)
    scores = np.where(np.tril(np.ones((length, length), bool)), scores, -np.inf)
    return (softmax(scores) @ value).transpose(1, 0, 2).reshape(length, heads * shape.head)


def route(scores, jitter):
    """The sparse mixer: experts [rows, 2], their weights, and the smallest distance of a decision from a tie, in scores."""
    rows, threshold = np.arange(len(scores)), 2 * jitter
    left, experts, weights, gap = scores.copy(), [], [], np.inf
    for _ in range(2):
        best = left.argmax(-1)
        most = left[rows, best][:, None]
        beyond = most - scores - threshold * np.maximum(np.abs(scores), most)
        shares = softmax(np.where(beyond > 0, -np.inf, left))
        experts.append(best)
        weights.append(shares[rows, best])
        left[rows, best] = -np.inf
        gap = min(gap, float((most[:, 0] - left.max(-1)).min()), float(np.abs(np.where(np.isfinite(left), beyond, np.inf)).min()))
    return np.stack(experts, 1), np.stack(weights, 1), gap


def mixture(rows, experts, weights, expert):
    """The sum of the chosen experts' answers; `expert(number)` gives gate, up and down."""
    total = np.zeros_like(rows)
    for number in np.unique(experts):
        chosen, place = np.nonzero(experts == number)
        total[chosen] += weights[chosen, place][:, None] * feed_forward(rows[chosen], *expert(number))
    return total


def feed_forward(rows, gate, up, down):
    """SwiGLU."""
    opened = rows @ gate.T
    return (opened / (1 + np.exp(-opened)) * (rows @ up.T)) @ down.T


def layer(shape, weights, i, stream):
    """A layer's result for a sequence of hidden states, the experts [length, 2], and the routing's smallest gap."""
    name = f"model.layers.{i}"

    def normed(part, rows):
        return norm(rows, weights.vector(f"{name}.{part}.weight"), weights.vector(f"{name}.{part}.bias"), shape.epsilon)

    def product(part, rows):
        return rows @ weights.matrix(f"{name}.attn.{part}").T + weights.vector(f"{name}.attn.{part}.Add.bias")

    packed = product("qkv_proj", normed("input_layernorm", stream))
    stream = stream + product("o_proj", attention(shape, packed))
    rows = normed("post_attention_layernorm", stream)
    experts, shares, gap = route(rows @ weights.vector(f"{name}.moe.gate.MatMul.weight"), shape.jitter)
    return stream + mixture(rows, experts, shares, lambda number: weights.expert(name, number)), experts, gap


def logits(shape, weights, ids):
    """The logits after the last of the tokens, and the smallest gap of all routings."""
    stream, gap = weights.vector("model.embed_tokens.weight")[ids], np.inf
    for i in range(shape.layers):
        stream, _, nearest = layer(shape, weights, i, stream)
        gap = min(gap, nearest)
    return head(shape, weights, stream[-1:])[0], gap


def head(shape, weights, stream):
    """The logits of hidden states."""
    name = f"model.layers.{shape.layers}.final_norm_layernorm"
    rows = norm(stream, weights.vector(f"{name}.weight"), weights.vector(f"{name}.bias"), shape.epsilon)
    return rows @ weights.matrix("lm_head").T + weights.vector("lm_head.Add.bias")
