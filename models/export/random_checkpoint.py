"""Writes a randomly filled checkpoint of Phi-3.5-MoE, as Hugging Face publishes it, for tests of moe_convert.py.

    python random_checkpoint.py OUT [--layers 2] [--hidden 4096] …

bf16 in shards of a layer each, 2.6 GB at the true shape. A tensor is in memory at a time. Routers' scores are those of random
weights, so that some choices of experts are near ties.
"""

import argparse
import json
import math
from pathlib import Path

import ml_dtypes
import numpy as np

import moe_checkpoint
from random_model import long_factors


def header(tensors):
    """The head of a safetensors file of bf16 tensors (names and dimensions)."""
    entries, at = {}, 0
    for name, dims in tensors:
        length = 2 * math.prod(dims)
        entries[name] = {"dtype": "BF16", "shape": list(dims), "data_offsets": [at, at + length]}
        at += length
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def values(rng, name, dims):
    spread = 0.02 if name.endswith("bias") else 1.0 if "embed" in name else 1 / math.sqrt(dims[-1])
    if "gate" in name:
        spread *= 2
    drawn = rng.standard_normal(dims, dtype=np.float32) * np.float32(spread)
    if "norm" in name and name.endswith("weight"):
        drawn = 1 + np.float32(0.05) * rng.standard_normal(dims, dtype=np.float32)
    return drawn.astype(ml_dtypes.bfloat16)


def config(shape):
    return {
        "architectures": ["PhiMoEForCausalLM"], "model_type": "phimoe", "hidden_act": "silu", "attention_bias": True,
        "lm_head_bias": True, "hidden_size": shape.hidden, "intermediate_size": shape.inner, "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads, "num_local_experts": shape.experts,
        "num_experts_per_tok": 2, "vocab_size": shape.vocab, "max_position_embeddings": shape.context,
        "original_max_position_embeddings": shape.original, "rms_norm_eps": 1e-5, "router_jitter_noise": 0.01,
        "rope_theta": 10000.0, "sliding_window": shape.context, "tie_word_embeddings": False, "bos_token_id": 1,
        "eos_token_id": shape.vocab - 64, "torch_dtype": "bfloat16",
        "rope_scaling": {"type": "longrope", "long_factor": long_factors(shape), "short_factor": [1.0] * (shape.head // 2),
                         "long_mscale": 1.2431, "short_mscale": 1.2431, "original_max_position_embeddings": shape.original},
    }


def main(shape):
    shape.out.mkdir(parents=True, exist_ok=True)
    shape.head = shape.hidden // shape.heads
    (shape.out / "config.json").write_text(json.dumps(config(shape), indent=2))
    groups = {}
    for name, dims in moe_checkpoint.tensors(shape):
        group = name.split(".")[2] if ".layers." in name else "outer"
        groups.setdefault(group, []).append((name, dims))
    rng, files = np.random.default_rng(shape.seed), {}
    for number, tensors in enumerate(groups.values(), 1):
        file_name = f"model-{number:05}-of-{len(groups):05}.safetensors"
        with open(shape.out / file_name, "wb") as file:
            file.write(header(tensors))
            for name, dims in tensors:
                file.write(values(rng, name, dims).tobytes())
                files[name] = file_name
    (shape.out / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    for name, value in (("layers", 2), ("hidden", 4096), ("inner", 6400), ("heads", 32), ("kv-heads", 8), ("experts", 16),
                        ("vocab", 32064), ("context", 131072), ("original", 4096), ("seed", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    main(parser.parse_args())
