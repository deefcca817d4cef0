"""Exports the trained checkpoint as onnxruntime-genai does: python export.py CHECKPOINT OUT.

The exporter itself writes OUT, quantised to int4 (blocks of 32, accuracy level 4), as it writes Phi-3.5-mini; nothing
is patched afterwards. manifest.json is ours.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

KEPT = ["genai_config.json", "model.onnx", "model.onnx.data", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]

MANIFEST = {
    "name": "phi-edge-demo",
    "demonstration": True,
    "note": "A demonstration model of 2 million parameters. It words facts about machines, in English and German, and knows "
    "nothing else. It is no substitute for Phi-3.5.",
}


def main(checkpoint, out):
    with tempfile.TemporaryDirectory() as work:
        source, built = Path(work, "source"), Path(work, "built")
        shutil.copytree(checkpoint, source)
        config = json.loads((source / "config.json").read_text())
        # The exporter asks for the older of the two names of this key.
        config["rope_parameters"]["type"] = config["rope_parameters"]["rope_type"]
        # As Phi-3.5 has it: an answer ends with <|end|>, and never goes on into the next turn.
        tokens = {t["content"]: t["id"] for t in json.loads((source / "tokenizer.json").read_text())["added_tokens"]}
        ends = [tokens["<|end|>"], tokens["<|assistant|>"], tokens["<|endoftext|>"]]
        config["eos_token_id"] = ends
        (source / "config.json").write_text(json.dumps(config))
        generation = json.loads((source / "generation_config.json").read_text())
        (source / "generation_config.json").write_text(json.dumps(generation | {"eos_token_id": ends}))
        subprocess.run(
            [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", source, "-o", built, "-p", "int4", "-e", "cpu",
             "-c", Path(work, "cache"), "--extra_options", "int4_accuracy_level=4", "int4_block_size=32"],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        out.mkdir(parents=True, exist_ok=True)
        for name in KEPT:
            if (built / name).exists():
                shutil.copy(built / name, out / name)
    (out / "manifest.json").write_text(json.dumps(MANIFEST, indent=2) + "\n")
    for file in sorted(out.iterdir()):
        print(f"{file.stat().st_size:>9} {file.name}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
