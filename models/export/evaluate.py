"""Measures the exported model on held-out prompts: python evaluate.py MODEL [BURSTS] [JSON].

Devices, wordings and values were not seen in training (see telemetry.py). Each fact of an answer is compared with what
code computed; "guess" is what always saying the commonest value of the set would score.
"""

import json
import random
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path

import onnxruntime_genai as og
from tokenizers import Tokenizer

from telemetry import INSTRUCTIONS, QUANTITIES, answer, burst, facts_prompt, question, small_talk

SEED = 20_000


def reader(folder):
    model = og.Model(str(folder))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    end = tokenizer.token_to_id("<|end|>")

    def read(prompt):
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=1024, do_sample=False)
        generator = og.Generator(model, params)
        generator.append_tokens(tokenizer.encode(f"<|user|>\n{prompt}<|end|>\n<|assistant|>\n").ids)
        start = generator.token_count()
        while not generator.is_done():
            generator.generate_next_token()
        ids = [int(token) for token in generator.get_sequence(0)[start:]]
        return tokenizer.decode([token for token in ids if token != end])

    return read


def facts_of(text):
    """What a summary says, read back by its form; absent facts are None."""
    def find(pattern):
        found = re.search(pattern, text)
        return found.group(1) if found else None

    return {
        "device": find(r'"([^"]*)"'),
        "count": find(r"(?:sent|hat) (\d+) "),
        "value": find(r"(?:was|war) (-?[\d.]+) "),
        "time": find(r"(?:at|um) (\d\d:\d\d)"),
        "limit": find(r"(?:limit of|Grenze von) (-?[\d.]+) "),
        "crossed": "yes" if re.search(r"check|prüfen", text) else "no",
        "language": "de" if text.startswith("Ger") else "en",
        "quantity": find(r"(?:sent \d+ |für )(\w+)"),
    }


def truth_of(b):
    return {
        "device": b.device, "count": str(len(b.records)), "value": b.value, "time": b.time, "limit": b.limit,
        "crossed": "yes" if b.crossed else "no", "language": b.language,
        "quantity": b.quantity if b.language == "en" else QUANTITIES[b.quantity][0],
    }


def main(folder, bursts):
    read, rng = reader(folder), random.Random(SEED)
    right, seen, exact = Counter(), defaultdict(Counter), 0
    for _ in range(bursts):
        b = burst(rng, "test")
        text = read(facts_prompt(b, rng.choice(INSTRUCTIONS["test"][b.language])))
        truth, said = truth_of(b), facts_of(text)
        exact += text.strip() == answer(b).strip()
        for fact, value in truth.items():
            right[fact] += said[fact] == value
            seen[fact][value] += 1
    asked, answered = Counter(), Counter()
    for _ in range(bursts // 2):
        kind, _, prompt, reply = question(rng, "test")
        asked[kind] += 1
        answered[kind] += read(prompt).strip() == reply
    talk = sum(read(prompt).strip() == reply for prompt, reply in (small_talk(rng) for _ in range(100)))
    return {
        "bursts": bursts,
        "facts": {fact: {"right": right[fact] / bursts, "guess": seen[fact].most_common(1)[0][1] / bursts} for fact in seen},
        "whole_answer": exact / bursts,
        "questions": {kind: answered[kind] / asked[kind] for kind in sorted(asked)},
        "small_talk": talk / 100,
    }


if __name__ == "__main__":
    result = main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 500)
    print(json.dumps(result, indent=2))
    if len(sys.argv) > 3:
        Path(sys.argv[3]).write_text(json.dumps(result, indent=2) + "\n")
