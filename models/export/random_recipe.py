"""Writes random_model.py's model directory without its weights: a recipe in their place, for machines with no Python.

    python random_recipe.py OUT [the options of random_model.py]

`model.onnx.data.recipe` has a line for each run of bytes: a source, a length, and an offset into the source. `zeros` are zero
bytes; all other sources are files in `patterns/`, which are repeated from the offset on. `xtask/gpu/gpu-check.sh` writes
`model.onnx.data` from it. A pattern's length is a prime number of values, so that no two rows of a matrix are alike, and each tensor
begins somewhere else in it, so that no two matrices are.
"""

import random_model
from random_model import TensorProto, Weights, arguments, genai_config, graph, np, save, write_folder

#: Values of a pattern of floats, and bytes of the pattern of quantised blocks: primes.
FLOATS, BYTES = 65_521, 1_048_573


class Recipe(Weights):
    """Weights that are described instead of written."""

    def __init__(self, folder, filename, seed, precision):
        self.lines, self.at, self.patterns = [], 0, folder / "patterns"
        self.patterns.mkdir(parents=True, exist_ok=True)
        super().__init__(folder / f"{filename}.recipe", seed, precision)
        self.name, self.generator, self.rng = filename, self.rng, self
        self.write_pattern("blocks", self.generator.bytes(BYTES))

    def bytes(self, length):
        """Stands in for numpy's generator: the length of random bytes in place of themselves."""
        return range(length)

    def write_pattern(self, name, data):
        (self.patterns / name).write_bytes(data)

    def line(self, source, length, offset=0):
        if length:
            self.file.write(f"{source} {length} {offset}\n".encode())
            self.at += length

    def place(self, name, dims, data_type, source, length, start):
        tensor = TensorProto(name=name, dims=dims, data_type=data_type, data_location=TensorProto.EXTERNAL)
        self.line("zeros", -self.at % 4096)
        for key, value in (("location", self.name), ("offset", self.at), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
        self.line(source, length, start)
        self.tensors.append(tensor)
        return name

    def add(self, name, dims, data_type, data):
        if not isinstance(data, range):
            raise SystemExit(f"{name} has values of its own, which a recipe can't describe: leave --form 2024 out")
        return self.place(name, dims, data_type, "blocks", len(data), int(self.generator.integers(BYTES)))

    def floats(self, name, dims, mean, spread, rows=None):
        if rows is not None:
            raise SystemExit("a recipe can't describe rows of their own size: leave --sharp out")
        width = np.dtype(self.numpy).itemsize
        source = f"normal-{mean:.6g}-{spread:.6g}"
        if not (self.patterns / source).exists():
            values = mean + spread * self.generator.standard_normal(FLOATS, dtype=np.float32)
            self.write_pattern(source, values.astype(self.numpy).tobytes())
        start = int(self.generator.integers(FLOATS)) * width
        return self.place(name, dims, self.kind, source, int(np.prod(dims)) * width, start)


def write(shape, out, tokenizer):
    filename = "model.onnx"
    out.mkdir(parents=True, exist_ok=True)
    weights = Recipe(out, f"{filename}.data", shape.seed, shape.precision)
    save(out / filename, graph(shape, weights), weights)
    write_folder(out, genai_config(shape, filename), tokenizer)


if __name__ == "__main__":
    chosen = arguments(f"{__doc__}\n{random_model.__doc__}")
    write(chosen, chosen.out, chosen.tokenizer)
