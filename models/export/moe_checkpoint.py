"""Phi-3.5-MoE's checkpoint as Hugging Face publishes it: `config.json` and sharded safetensors, read a tensor at a time."""

import json
from types import SimpleNamespace

import ml_dtypes  # noqa: F401  safetensors gives bfloat16 by it.
import numpy as np
from safetensors import safe_open

#: The names of a layer's parts there, by those in the graph.
PARTS = {"attn.o_proj": "self_attn.o_proj", "input_layernorm": "input_layernorm",
         "post_attention_layernorm": "post_attention_layernorm"}


class CheckpointError(Exception):
    """A checkpoint that can't be converted; the text says what is wrong with which file."""


def shape_of(folder):
    """The dimensions that `config.json` states, as moe_graph.py names them."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} can't be read: {error}") from None
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    try:
        shape = SimpleNamespace(
            layers=config["num_hidden_layers"], hidden=config["hidden_size"], inner=config["intermediate_size"],
            heads=config["num_attention_heads"], kv_heads=config["num_key_value_heads"], experts=config["num_local_experts"],
            vocab=config["vocab_size"], context=config["max_position_embeddings"],
            original=rope.get("original_max_position_embeddings") or config["original_max_position_embeddings"],
            epsilon=config["rms_norm_eps"], jitter=config.get("router_jitter_noise", 0.01),
            large=(rope["long_factor"], rope.get("long_mscale")), small=(rope["short_factor"], rope.get("short_mscale")),
        )
        shape.head = config.get("head_dim") or shape.hidden // shape.heads
    except KeyError as error:
        raise CheckpointError(f"{path} has no {error}: is it Phi-3.5-MoE's?") from None
    theta = config.get("rope_theta") or rope.get("rope_theta", 10000.0)
    window = config.get("sliding_window") or shape.context
    windowed = window < shape.context
    for name, value, wanted in (("num_experts_per_tok", config.get("num_experts_per_tok"), 2), ("rope_theta", theta, 10000.0),
                                ("hidden_act", config.get("hidden_act"), "silu"), ("sliding_window below the context", windowed, False),
                                ("long_factor", len(shape.large[0]), shape.head // 2), ("short_factor", len(shape.small[0]), shape.head // 2)):
        if value != wanted:
            raise CheckpointError(f"{path}: {name} is {value}; only {wanted} can be converted")
    return shape


def tensors(shape):
    """All tensors' names and dimensions."""
    width, keys = shape.heads * shape.head, shape.kv_heads * shape.head
    yield "model.embed_tokens.weight", (shape.vocab, shape.hidden)
    for i in range(shape.layers):
        layer = f"model.layers.{i}"
        for part, outer, inner in (("q", width, shape.hidden), ("k", keys, shape.hidden), ("v", keys, shape.hidden),
                                   ("o", shape.hidden, width)):
            yield f"{layer}.self_attn.{part}_proj.weight", (outer, inner)
            yield f"{layer}.self_attn.{part}_proj.bias", (outer,)
        for part in ("input_layernorm", "post_attention_layernorm"):
            yield from ((f"{layer}.{part}.{kind}", (shape.hidden,)) for kind in ("weight", "bias"))
        yield f"{layer}.block_sparse_moe.gate.weight", (shape.experts, shape.hidden)
        for number in range(shape.experts):
            for part in ("w1", "w2", "w3"):
                dims = (shape.hidden, shape.inner) if part == "w2" else (shape.inner, shape.hidden)
                yield f"{layer}.block_sparse_moe.experts.{number}.{part}.weight", dims
    yield from ((f"model.norm.{kind}", (shape.hidden,)) for kind in ("weight", "bias"))
    yield "lm_head.weight", (shape.vocab, shape.hidden)
    yield "lm_head.bias", (shape.vocab,)


class Checkpoint:
    """The weights under the graph's names, as fp32: the interface of moe_reference.py's `Stored`."""

    def __init__(self, folder, shape):
        self.folder, self.shape = folder, shape
        index, single = folder / "model.safetensors.index.json", "model.safetensors"
        if index.exists():
            self.files = json.loads(index.read_text())["weight_map"]
        elif (folder / single).exists():
            with safe_open(folder / single, "numpy") as file:
                self.files = dict.fromkeys(file.keys(), single)
        else:
            raise CheckpointError(f"{folder} has neither {index.name} nor {single}: is it a checkpoint of Hugging Face's layout?")

    def check(self):
        """All tensors are there, with the right dimensions and a type that is no quantised one."""
        by_file = {}
        for name, dims in tensors(self.shape):
            if name not in self.files:
                raise CheckpointError(f"{self.folder} has no tensor {name}")
            by_file.setdefault(self.files[name], []).append((name, dims))
        for file_name, held in by_file.items():
            path = self.folder / file_name
            try:
                with safe_open(path, "numpy") as file:
                    for name, dims in held:
                        part = file.get_slice(name)
                        if tuple(part.get_shape()) != dims or part.get_dtype() not in ("BF16", "F16", "F32"):
                            raise CheckpointError(f"{path}: {name} is {part.get_dtype()} {part.get_shape()} instead of "
                                                  f"BF16, F16 or F32 {list(dims)}")
            except CheckpointError:
                raise
            except Exception as error:  # The package has errors of several kinds.
                raise CheckpointError(f"{path} can't be read: {error}; fetch it again") from None

    def read(self, name):
        """A tensor as fp32. The file is closed again: its pages are not this process's memory."""
        with safe_open(self.folder / self.files[name], "numpy") as file:
            values = file.get_tensor(name)
        if values.dtype == ml_dtypes.bfloat16:
            wide = values.view(np.uint16).astype(np.uint32)
            wide <<= 16
            return wide.view(np.float32)
        return np.asarray(values, np.float32)

    def vector(self, name):
        """A norm's weight or bias, a product's bias, a router's transposed weight, or the embedding."""
        if name.endswith("moe.gate.MatMul.weight"):
            return np.ascontiguousarray(self.read(name.replace("moe.gate.MatMul", "block_sparse_moe.gate")).T)
        if name.startswith(f"model.layers.{self.shape.layers}.final_norm_layernorm"):
            return self.read(f"model.norm.{name.rsplit('.', 1)[1]}")
        name = name.replace(".Add.bias", ".bias")
        if ".attn.qkv_proj" in name:
            return np.concatenate([self.read(name.replace("attn.qkv_proj", f"self_attn.{part}_proj")) for part in "qkv"])
        for ours, theirs in PARTS.items():
            name = name.replace(f".{ours}.", f".{theirs}.")
        return self.read(name)

    def matrix(self, name):
        return self.vector(f"{name}.weight")

    def expert(self, layer, number):
        return tuple(self.read(f"{layer}.block_sparse_moe.experts.{number}.{part}.weight") for part in ("w1", "w3", "w2"))
