"""Writes held-out prompts as JSON strings, one a line: python prompts.py [COUNT] [SEED].

What `phi-edge bench --prompts FILE` has the demonstration model answer; 16 of them are built into `bench --kv-loss`.
"""

import json
import random
import sys

from telemetry import INSTRUCTIONS, burst, facts_prompt

count = int(sys.argv[1]) if len(sys.argv) > 1 else 50
rng = random.Random(int(sys.argv[2]) if len(sys.argv) > 2 else 20_001)
for _ in range(count):
    b = burst(rng, "test")
    print(json.dumps(facts_prompt(b, rng.choice(INSTRUCTIONS["test"][b.language]))))
