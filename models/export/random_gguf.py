"""Writes a GGUF file of Phi-3.5-mini's full shape with random Q4_0 blocks, for comparisons with llama.cpp.

    python random_gguf.py OUT.gguf [--layers 32] [--hidden 3072] …

The counterpart of random_model.py: speed does not depend on the weights. The vocabulary's texts are made up;
prompts are given as token ids.
"""

import argparse
import math

import gguf
import numpy as np

BLOCK = 32


class Blocks:
    """Random Q4_0 blocks: a half-precision scale and 32 nibbles, 18 bytes."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def q4_0(self, rows, columns, spread):
        count = rows * columns // BLOCK
        blocks = np.empty((count, 18), dtype=np.uint8)
        # Nibbles 0..15 stand for -8..7, of a spread of 4.6.
        scale = self.rng.uniform(0.5, 1.5, count) * spread / 4.6
        blocks[:, :2] = scale.astype(np.float16).view(np.uint8).reshape(count, 2)
        blocks[:, 2:] = self.rng.integers(0, 256, (count, 16), dtype=np.uint8)
        return blocks.reshape(rows, columns // BLOCK * 18)


def main(args):
    head = args.hidden // args.heads
    writer = gguf.GGUFWriter(args.out, "phi3", use_temp_file=False)
    # llama.cpp looks at the name: any that says "phi-3" is given attributes of tokens that this vocabulary lacks.
    writer.add_name("random weights")
    writer.add_context_length(args.context)
    writer.add_rope_scaling_orig_ctx_len(args.original)
    writer.add_embedding_length(args.hidden)
    writer.add_feed_forward_length(args.intermediate)
    writer.add_block_count(args.layers)
    writer.add_head_count(args.heads)
    writer.add_head_count_kv(args.heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(10000.0)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    writer.add_sliding_window(0)
    ratio = args.context / args.original
    writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(ratio) / math.log(args.original)))

    # Pieces that are spelt in ASCII, so that any text of the server's own can be tokenised too.
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    tokens += [f"\u2581w{n}" for n in range(args.vocabulary - len(tokens))]
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    kinds += [gguf.TokenType.BYTE] * 256 + [gguf.TokenType.NORMAL] * (args.vocabulary - 259)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(n) for n in range(args.vocabulary)])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)

    blocks = Blocks(args.seed)

    def q4_0(name, rows, columns, spread=0.02):
        data = blocks.q4_0(rows, columns, spread)
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType.Q4_0)

    def ones(name, size):
        writer.add_tensor(name, np.ones(size, dtype=np.float32))

    for name in ("long", "short"):
        factors = np.linspace(1.0, 60.0 if name == "long" else 2.0, head // 2, dtype=np.float32)
        writer.add_tensor(f"rope_factors_{name}.weight", factors)
    q4_0("token_embd.weight", args.vocabulary, args.hidden)
    for layer in range(args.layers):
        prefix = f"blk.{layer}"
        ones(f"{prefix}.attn_norm.weight", args.hidden)
        q4_0(f"{prefix}.attn_qkv.weight", 3 * args.hidden, args.hidden)
        q4_0(f"{prefix}.attn_output.weight", args.hidden, args.hidden)
        ones(f"{prefix}.ffn_norm.weight", args.hidden)
        q4_0(f"{prefix}.ffn_up.weight", 2 * args.intermediate, args.hidden)
        q4_0(f"{prefix}.ffn_down.weight", args.hidden, args.intermediate)
    ones("output_norm.weight", args.hidden)
    q4_0("output.weight", args.vocabulary, args.hidden)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out")
    for name, value in {
        "layers": 32, "hidden": 3072, "intermediate": 8192, "heads": 32, "vocabulary": 32064, "context": 131072,
        "original": 4096, "seed": 1,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    main(parser.parse_args())
