"""Several processes train what one trains."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from tests.tiny import tiny_sd

PLAN = """
[model]
base = "base"
method = "lora"
lora_rank = 2
[data]
images = "pictures"
captions = "fixed"
[optimizer]
steps = 3
batch = 4
rate = 1e-2
"""


def test_two_processes_give_the_weights_of_one(tmp_path):
    tiny_sd().save_pretrained(tmp_path / "base")
    (tmp_path / "pictures").mkdir()
    random = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(random.integers(0, 255, (16, 16, 3), np.uint8)).save(tmp_path / "pictures" / f"{i}.png")
    (tmp_path / "plan.toml").write_text(PLAN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    launchers = {
        "one": [sys.executable, "-m", "diffmem"],
        "two": [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            "2",
            "-m",
            "diffmem",
        ],
    }
    weights = {}
    for name, launcher in launchers.items():
        command = [*launcher, "train", str(tmp_path / "plan.toml"), "--out", str(tmp_path / name), "--device", "cpu"]
        done = subprocess.run([*command, "--json"], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-2000:]
        assert json.loads(done.stdout)["steps"] == 3
        weights[name] = load_file(tmp_path / name / "lora" / "pytorch_lora_weights.safetensors")
        processes = json.loads((tmp_path / name / "log.json").read_text())["processes"]
        assert processes == len(weights)
    for name, value in weights["one"].items():
        torch.testing.assert_close(value, weights["two"][name], rtol=1e-2, atol=1e-4)
