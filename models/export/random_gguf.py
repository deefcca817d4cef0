"""Writes a GGUF file of the full shape of Phi-3.5-mini or Phi-3.5-MoE with random Q4_0 blocks, for comparisons with llama.cpp.

    python random_gguf.py OUT.gguf [--family mini|moe] [--layers 32] [--hidden 3072] …

The counterpart of random_model.py and random_moe.py: speed does not depend on the weights. Names are those of llama.cpp's own
conversion (`Phi3MiniModel`, `PhiMoeModel`). One tensor is in memory at a time. The vocabulary's texts are made up; prompts are
given as token ids.
"""

import argparse
import math

import gguf
import numpy as np

BLOCK = 32


class Blocks:
    """Random Q4_0 blocks: a half-precision scale and 32 nibbles, 18 bytes."""

    def __init__(self, rng):
        self.rng = rng

    def q4_0(self, rows, columns, spread):
        count = rows * columns // BLOCK
        blocks = np.empty((count, 18), dtype=np.uint8)
        # Nibbles 0..15 stand for -8..7, of a spread of 4.6.
        scale = self.rng.uniform(0.5, 1.5, count) * spread / 4.6
        blocks[:, :2] = scale.astype(np.float16).view(np.uint8).reshape(count, 2)
        blocks[:, 2:] = self.rng.integers(0, 256, (count, 16), dtype=np.uint8)
        return blocks.reshape(rows, columns // BLOCK * 18)


class Tensors:
    """The file's tensors: all are announced first, then each is made and written."""

    def __init__(self, writer, seed):
        self.writer, self.rng, self.made = writer, np.random.default_rng(seed), []
        self.blocks = Blocks(self.rng)

    def q4_0(self, name, *dims, spread=0.02):
        *rows, columns = dims
        count = math.prod(rows)
        stored = (*rows, columns // BLOCK * 18)
        self.writer.add_tensor_info(name, stored, np.dtype(np.uint8), math.prod(stored), gguf.GGMLQuantizationType.Q4_0)
        self.made.append(lambda: self.blocks.q4_0(count, columns, spread))

    def floats(self, name, *dims, make):
        self.writer.add_tensor_info(name, dims, np.dtype(np.float32), 4 * math.prod(dims))
        self.made.append(lambda: make(dims).astype(np.float32))

    def ones(self, name, size):
        self.floats(name, size, make=np.ones)

    def normal(self, name, *dims, spread):
        self.floats(name, *dims, make=lambda dims: self.rng.standard_normal(dims, dtype=np.float32) * np.float32(spread))

    def write(self):
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_ti_data_to_file()
        for make in self.made:
            self.writer.write_tensor_data(make())
        self.writer.close()


def metadata(writer, args, head):
    # llama.cpp looks at the name: any that says "phi-3" is given attributes of tokens that this vocabulary lacks.
    writer.add_name("random weights")
    writer.add_context_length(args.context)
    writer.add_rope_scaling_orig_ctx_len(args.original)
    writer.add_embedding_length(args.hidden)
    writer.add_feed_forward_length(args.intermediate)
    writer.add_block_count(args.layers)
    writer.add_head_count(args.heads)
    writer.add_head_count_kv(args.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(10000.0)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    writer.add_sliding_window(0)
    ratio = args.context / args.original
    writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(ratio) / math.log(args.original)))
    if args.family == "moe":
        writer.add_expert_count(args.experts)
        writer.add_expert_used_count(2)


def vocabulary(writer, count):
    # Pieces that are spelt in ASCII, so that any text of the server's own can be tokenised too.
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    tokens += [f"\u2581w{n}" for n in range(count - len(tokens))]
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    kinds += [gguf.TokenType.BYTE] * 256 + [gguf.TokenType.NORMAL] * (count - 259)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(n) for n in range(count)])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)


def experts(tensors, args, prefix):
    """The feed-forward block of Phi-3.5-MoE."""
    # Scores that differ from expert to expert; their weights are softmax over all, for llama.cpp has no sparse mixer.
    tensors.normal(f"{prefix}.ffn_gate_inp.weight", args.experts, args.hidden, spread=2 / math.sqrt(args.hidden))
    for part, rows, columns in (("gate", args.intermediate, args.hidden), ("down", args.hidden, args.intermediate),
                                ("up", args.intermediate, args.hidden)):
        tensors.q4_0(f"{prefix}.ffn_{part}_exps.weight", args.experts, rows, columns)


def layer(tensors, args, prefix, head):
    moe = args.family == "moe"

    def norm(name):
        tensors.ones(f"{prefix}.{name}.weight", args.hidden)
        if moe:
            tensors.normal(f"{prefix}.{name}.bias", args.hidden, spread=0.02)

    def product(name, rows):
        tensors.q4_0(f"{prefix}.{name}.weight", rows, args.hidden)
        if moe:
            tensors.normal(f"{prefix}.{name}.bias", rows, spread=0.02)

    norm("attn_norm")
    if moe:
        for name, rows in (("q", args.hidden), ("k", args.kv_heads * head), ("v", args.kv_heads * head)):
            product(f"attn_{name}", rows)
    else:
        product("attn_qkv", 3 * args.hidden)
    product("attn_output", args.hidden)
    norm("ffn_norm")
    if moe:
        experts(tensors, args, prefix)
    else:
        tensors.q4_0(f"{prefix}.ffn_up.weight", 2 * args.intermediate, args.hidden)
        tensors.q4_0(f"{prefix}.ffn_down.weight", args.hidden, args.intermediate)


def main(args):
    head = args.hidden // args.heads
    writer = gguf.GGUFWriter(args.out, "phimoe" if args.family == "moe" else "phi3", use_temp_file=False)
    metadata(writer, args, head)
    vocabulary(writer, args.vocabulary)
    tensors = Tensors(writer, args.seed)
    for name, most in (("long", 60.0), ("short", 2.0)):
        tensors.floats(f"rope_factors_{name}.weight", head // 2, make=lambda dims, most=most: np.linspace(1.0, most, *dims))
    tensors.q4_0("token_embd.weight", args.vocabulary, args.hidden)
    for i in range(args.layers):
        layer(tensors, args, f"blk.{i}", head)
    tensors.ones("output_norm.weight", args.hidden)
    tensors.q4_0("output.weight", args.vocabulary, args.hidden)
    if args.family == "moe":
        tensors.normal("output_norm.bias", args.hidden, spread=0.02)
        tensors.normal("output.bias", args.vocabulary, spread=0.02)
    tensors.write()


#: The dimensions in which the families differ.
FAMILIES = {"mini": {"hidden": 3072, "intermediate": 8192, "heads": 32, "kv_heads": 32, "experts": 0},
            "moe": {"hidden": 4096, "intermediate": 6400, "heads": 32, "kv_heads": 8, "experts": 16}}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out")
    parser.add_argument("--family", choices=FAMILIES, default="mini")
    for name in FAMILIES["mini"]:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int)
    for name, value in {"layers": 32, "vocabulary": 32064, "context": 131072, "original": 4096, "seed": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    for name, value in FAMILIES[args.family].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    main(args)
