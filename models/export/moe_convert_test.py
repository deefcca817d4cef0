"""Tests of moe_convert.py on small random checkpoints: python -m unittest moe_convert_test

Agreement with the checkpoint, and of the graph with ONNX Runtime, is checked by the converter itself at every run.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import numpy as np

from moe_quantise import quantise
from moe_reference import dequantised

HERE = Path(__file__).resolve().parent
SHAPE = ("--layers 2 --hidden 64 --inner 96 --heads 4 --kv-heads 2 --experts 4 --vocab 320 --context 256 --original 64").split()
#: Stops the converter before the call of `os.fsync` of the number in its environment: two a part, for its file and its note.
KILLED_AT = """
import os, runpy, signal, sys
left, fsync = int(os.environ["KILLED_AT"]), os.fsync
def counted(file):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(file)
os.fsync = counted
sys.path.insert(0, sys.argv[1])
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Quantise(unittest.TestCase):
    def check(self, block, asymmetric, bound):
        weight = np.random.default_rng(1).standard_normal((37, 3 * block), dtype=np.float32)
        weight[3, :block] = 0
        made = quantise(weight, block, np.float32, asymmetric)
        back = dequantised(made.blocks, made.scales, made.zero_points)
        step = np.repeat(np.abs(made.scales), block, 1).reshape(weight.shape)
        # Half a step, and a whole one at the end of a range that has one value fewer.
        self.assertLessEqual(float((np.abs(back - weight) / step).max()), bound)
        self.assertEqual(float(np.abs(back[3, :block]).max()), 0)

    def test_blocks_come_back_within_a_step(self):
        for block in (32, 128):
            self.check(block, False, 1.0001)
            self.check(block, True, 1.0001)

    def test_the_largest_value_of_a_symmetric_block_is_exact(self):
        weight = np.random.default_rng(2).standard_normal((8, 64), dtype=np.float32)
        made = quantise(weight, 32)
        back = dequantised(made.blocks, made.scales).reshape(8, 2, 32)
        blocks = weight.reshape(8, 2, 32)
        at = np.abs(blocks).argmax(-1)[..., None]
        np.testing.assert_allclose(np.take_along_axis(back, at, -1), np.take_along_axis(blocks, at, -1), rtol=1e-6)


class Convert(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.folder = Path(scratch.name)
        self.checkpoint = self.folder / "checkpoint"
        subprocess.run([sys.executable, HERE / "random_checkpoint.py", self.checkpoint, *SHAPE], check=True)

    def convert(self, out, *options, killed_at=None):
        command = [sys.executable, HERE / "moe_convert.py"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        if killed_at is not None:
            command = [sys.executable, "-c", KILLED_AT, HERE, HERE / "moe_convert.py"]
            environment["KILLED_AT"] = str(killed_at)
        return subprocess.run([*command, self.checkpoint, self.folder / out, "--block", "32", *options], env=environment,
                              capture_output=True, text=True)

    def contents(self, out):
        return {file.name: file.read_bytes() for file in (self.folder / out).glob("model.onnx*")}

    def test_each_form_is_converted_and_checked(self):
        for number, options in enumerate(([], ["--asymmetric"], ["--form", "cuda"])):
            done = self.convert(f"form-{number}", *options)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertEqual(done.stdout.count("int4 error"), 2, done.stdout)

    def test_a_conversion_that_was_killed_anywhere_ends_the_same(self):
        self.assertEqual(self.convert("whole").returncode, 0)
        whole = self.contents("whole")
        for at in range(1, 9):
            killed = self.convert("killed", killed_at=at)
            self.assertEqual(killed.returncode, -signal.SIGKILL, f"{at}: {killed.stderr}")
            again = self.convert("killed")
            self.assertEqual(again.returncode, 0, again.stderr)
            self.assertEqual(self.contents("killed"), whole, f"killed at {at}")
            for file in (self.folder / "killed").iterdir():
                file.unlink()

    def test_what_was_done_is_kept(self):
        # The job, the embedding and the first layer are written and noted.
        self.convert("kept", killed_at=5)
        self.assertIn("layer 1 of 2: done before", self.convert("kept").stdout)

    def test_refusals_name_what_is_wrong(self):
        self.convert("other", killed_at=3)
        self.refused(self.convert("other", "--asymmetric"), "was begun with another checkpoint or other options")
        self.refused(self.convert("many", "--check-tokens", "65"), "--check-tokens 65 is not between 1 and 64")
        (self.folder / "strange").mkdir()
        (self.folder / "strange" / "file").touch()
        self.refused(self.convert("strange"), "no folder of an unfinished conversion")
        index = self.checkpoint / "model.safetensors.index.json"
        files = json.loads(index.read_text())["weight_map"]
        shard = self.checkpoint / files["lm_head.weight"]
        shard.write_bytes(shard.read_bytes()[:-9])
        self.refused(self.convert("cut"), f"{shard.name} can't be read")
        del files["lm_head.bias"]
        index.write_text(json.dumps({"weight_map": files}))
        self.refused(self.convert("less"), "has no tensor lm_head.bias")

    def refused(self, done, text):
        self.assertNotEqual(done.returncode, 0)
        self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
        self.assertIn(text, done.stderr)


if __name__ == "__main__":
    unittest.main()
