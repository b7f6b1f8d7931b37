"""Several processes train what one trains."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tests.tiny import tiny_sd

from diffmem.training.checkpoint import load_state

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
lr = 1e-2
"""


LAUNCHERS = {
    "one": [sys.executable, "-m", "diffmem"],
    "two": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "diffmem"],
}
# No GPU, whatever the machine has; and no --device: what torchrun starts is one training without being told.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def prepared(place, steps):
    tiny_sd().save_pretrained(place / "base")
    (place / "pictures").mkdir()
    random = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(random.integers(0, 255, (16, 16, 3), np.uint8)).save(place / "pictures" / f"{i}.png")
    (place / "plan.toml").write_text(f"checkpoint_every = 1\n{PLAN.replace('steps = 3', f'steps = {steps}')}")


def command(place, launcher, name):
    return [*LAUNCHERS[launcher], "train", str(place / "plan.toml"), "--out", str(place / name), "--json"]


def test_two_processes_give_the_weights_of_one(tmp_path):
    prepared(tmp_path, 3)
    weights = {}
    for number, name in enumerate(LAUNCHERS, start=1):
        done = subprocess.run(command(tmp_path, name, name), capture_output=True, text=True, env=ENVIRONMENT)
        assert done.returncode == 0, done.stderr[-2000:]
        assert json.loads(done.stdout)["steps"] == 3
        weights[name] = load_file(tmp_path / name / "lora" / "pytorch_lora_weights.safetensors")
        assert json.loads((tmp_path / name / "log.json").read_text())["processes"] == number
    for name, value in weights["one"].items():
        torch.testing.assert_close(value, weights["two"][name], rtol=1e-2, atol=1e-4)


@pytest.mark.slow
def test_two_processes_stop_after_the_same_step_and_go_on(tmp_path):
    prepared(tmp_path, 60)
    weights = {}
    for name in ("whole", "stopped"):
        running = subprocess.Popen(
            command(tmp_path, "two", name), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
            start_new_session=True,
        )  # fmt: skip
        if name == "stopped":
            while not (tmp_path / name / "checkpoint.pt").exists() and running.poll() is None:
                time.sleep(0.01)
            os.killpg(running.pid, signal.SIGINT)  # as a terminal does: to torchrun and to both processes
            _, said = running.communicate(timeout=25)  # torchrun kills what has not ended after 30 s
            steps = {line for line in said.splitlines() if "the same command goes on" in line}
            assert len(steps) == 1, said[-2000:]
            state = load_state(tmp_path / name)
            assert state.step < 60 and f"after step {state.step} of 60" in steps.pop()
            running = subprocess.Popen(
                command(tmp_path, "two", name), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                env=ENVIRONMENT,
            )  # fmt: skip
        _, said = running.communicate()
        assert running.returncode == 0, said[-2000:]
        weights[name] = load_file(tmp_path / name / "lora" / "pytorch_lora_weights.safetensors")
    for name, value in weights["whole"].items():
        assert torch.equal(value, weights["stopped"][name])
