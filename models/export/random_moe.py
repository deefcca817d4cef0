"""Writes a model directory of Phi-3.5-MoE's shape with random weights, without PyTorch.

    python random_moe.py OUT [--layers 32] [--experts 16] … [--block 128|32] [--asymmetric] [--form cpu|cuda]

The counterpart of random_model.py; moe_graph.py says what the two forms are. Weights are written in pieces: 0.2 GB of memory.
`--accuracy 0` leaves the level of products and experts out, which then compute with 32 bits.

`--routing clear` gives each token of the vocabulary two experts for every layer, all experts equally often, by signs in its
embedding that the routers look for: no choice is a near tie, as it often is with `--routing random`, where a rounding can
decide between experts and answers differ by much then. With either the experts of a run of tokens are as those of
independent draws.
"""

import argparse
import math
from pathlib import Path

import moe_graph
from random_model import Weights, genai_config, np, save, write_folder

#: The spread of int4 values that are drawn evenly.
EVEN = 4.6
#: Elements that are drawn at once.
PIECE = 1 << 22


class Random(Weights):
    """Random weights of the decoder, written as they come."""

    def __init__(self, path, shape):
        super().__init__(path, shape.seed, "f16" if shape.form == "cuda" else "f32")
        self.shape, self.signs = shape, None
        if shape.routing == "clear":
            rng = np.random.default_rng([shape.seed, shape.experts])
            # As many of either sign, which the norms' mean would take out.
            half = np.repeat(np.array([-1, 1], np.float32), shape.hidden // 2)
            self.signs = np.stack([rng.permutation(half) for _ in range(shape.experts)])

    def start(self, name, dims, data_type):
        # A small model is not to consist of padding.
        self.page = 4096 if np.prod(dims) > 1 << 16 else 64
        super().start(name, dims, data_type)

    def draw(self, shape, weight):
        """Writes a weight, in pieces."""
        left = int(np.prod(weight.dims))
        self.start(weight.name, weight.dims, moe_graph.element_type(shape, weight))
        while left:
            size = min(left, PIECE // weight.dims[-1] * weight.dims[-1])
            self.file.write(self.piece(weight.kind, size, weight.inner, weight.dims))
            left -= size
        self.end()

    def mark(self, kind, values):
        """Puts the signs of experts into rows of the embedding, and of all experts into a router."""
        if kind == "router":
            # Scores of about 3 and 1.5, the others' below 0.5 in magnitude.
            return self.signs[self.rng.permutation(self.shape.experts)].T * np.float32(4 / self.shape.hidden)
        rows = values.reshape(-1, self.shape.hidden)
        for row in rows:
            first, second = self.rng.choice(self.shape.experts, 2, replace=False)
            row += 1.5 * self.signs[first] + 0.75 * self.signs[second]
        return values

    def piece(self, kind, size, inner, dims):
        if kind == "blocks":
            return self.rng.bytes(size)
        if kind == "zero_points":
            # 7, 8 or 9 of each block.
            low, high = self.rng.integers(7, 10, (2, size), np.uint8)
            return (low | high << 4).tobytes()
        mean, spread = {
            # The product has the spread of its input.
            "scales": (1 / (EVEN * math.sqrt(inner or 1)), 0.05 / (EVEN * math.sqrt(inner or 1))),
            "norm": (1.0, 0.05), "bias": (0.0, 0.02), "embedding": (0.0, 1.0),
            # Scores of tokens differ by more than rounding does.
            "router": (0.0, 2 / math.sqrt(dims[0])),
        }[kind]
        values = self.rng.standard_normal(size, dtype=np.float32)
        values *= spread
        values += mean
        if self.signs is not None and kind in ("embedding", "router"):
            values = self.mark(kind, values)
        return values.astype(self.numpy, copy=False).tobytes()


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    for name, value in (("layers", 32), ("hidden", 4096), ("inner", 6400), ("heads", 32), ("kv-heads", 8), ("experts", 16),
                        ("vocab", 32064), ("context", 131072), ("original", 4096), ("block", 128), ("accuracy", 4), ("seed", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--form", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--asymmetric", action="store_true")
    parser.add_argument("--routing", choices=("clear", "random"), default="clear")
    parser.add_argument("--tokenizer", type=Path)
    shape = parser.parse_args()
    shape.head = shape.hidden // shape.heads
    shape.epsilon, shape.jitter, shape.large, shape.small = 1e-5, 0.01, None, None
    for name, length in (("hidden", shape.hidden), ("inner", shape.inner)):
        if length % shape.block:
            parser.error(f"--{name} {length} is no multiple of --block {shape.block}")
    return shape


def write(shape):
    shape.out.mkdir(parents=True, exist_ok=True)
    weights = Random(shape.out / "model.onnx.data", shape)
    for weight in moe_graph.all_weights(shape):
        weights.draw(shape, weight)
    save(shape.out / "model.onnx", moe_graph.graph(shape, weights.tensors, weights.numpy), weights)
    write_folder(shape.out, genai_config(shape, "model.onnx", "phimoe"), shape.tokenizer)


if __name__ == "__main__":
    write(arguments())
