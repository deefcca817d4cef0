"""Trains the demonstration model on a plain CPU: python train.py FOLDER [MINUTES [CHECKPOINT]].

FOLDER holds the tokenizer (tokenizer.py) and receives a Hugging Face checkpoint. Loss is taken on answers alone.
With a CHECKPOINT, training goes on from it at half the rate.
"""

import json
import random
import sys
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import Phi3Config, Phi3ForCausalLM

from telemetry import example

BATCH, LENGTH, RATE, SEED = 8, 384, 2e-3, 1


def config(vocabulary, ids):
    half = 192 // 4 // 2
    return Phi3Config(
        vocab_size=vocabulary, hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=2048, original_max_position_embeddings=1024, sliding_window=None,
        tie_word_embeddings=False, bos_token_id=ids[0], eos_token_id=ids[0], pad_token_id=ids[0], attention_dropout=0.0,
        rope_parameters={
            "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 1024,
            "short_factor": [1.0] * half, "long_factor": [1.0 + n / (half - 1) for n in range(half)],
        },
    )


def batches(tokenizer, rng):
    """Endless batches of (ids, labels): whole conversations side by side until a row is full."""
    end = tokenizer.token_to_id("<|end|>")
    while True:
        ids = torch.full((BATCH, LENGTH), tokenizer.token_to_id("<|endoftext|>"))
        labels = torch.full((BATCH, LENGTH), -100)
        longest = 0
        for row in range(BATCH):
            while True:
                prompt, reply = example(rng)
                head = tokenizer.encode(f"<|user|>\n{prompt}<|end|>\n<|assistant|>\n").ids
                tail = tokenizer.encode(reply).ids + [end]
                if len(head) + len(tail) <= LENGTH:
                    break
            n = len(head) + len(tail)
            ids[row, :n] = torch.tensor(head + tail)
            labels[row, len(head):n] = torch.tensor(tail)
            longest = max(longest, n)
        yield ids[:, :longest], labels[:, :longest]


def main(folder, minutes, checkpoint):
    seed = SEED + (checkpoint is not None)
    torch.manual_seed(seed)
    torch.set_num_threads(2)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = [tokenizer.token_to_id(t) for t in ("<|endoftext|>", "<|end|>", "<|assistant|>")]
    model = Phi3ForCausalLM.from_pretrained(checkpoint) if checkpoint else Phi3ForCausalLM(config(tokenizer.get_vocab_size(), ids))
    peak = RATE / 2 if checkpoint else RATE
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters", flush=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01, betas=(0.9, 0.98))
    started, step, running = time.time(), 0, 0.0
    for ids_, labels in batches(tokenizer, random.Random(seed)):
        done = (time.time() - started) / (60 * minutes)
        if done >= 1:
            break
        # Warm-up, then a cosine over the time that is given.
        rate = peak * min(1, step / 200) * (0.02 + 0.98 * 0.5 * (1 + torch.cos(torch.tensor(done * 3.14159)).item()))
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(input_ids=ids_, labels=labels).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        running = 0.98 * running + 0.02 * loss.item() if step else loss.item()
        step += 1
        if step % 200 == 0:
            print(f"step {step} minute {done * minutes:.1f} loss {running:.4f}", flush=True)
        if step % 2000 == 0:
            model.save_pretrained(folder)
    model.save_pretrained(folder)
    (folder / "training.json").write_text(json.dumps({"steps": step, "minutes": minutes, "loss": running, "seed": seed}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 45, sys.argv[3] if len(sys.argv) > 3 else None)
