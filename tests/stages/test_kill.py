"""kill -9 in the middle of an audit: the same command finishes with the same keys, statuses and values."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
from tests.tiny import picture, tiny_sd

from diffmem.runs.store import RunStore

STAGES = {"prompts": ["label"], "scores": ["status", "value"], "images": ["status", "png", "seed"],
          "matches": ["status", "similarity", "train_id"]}  # fmt: skip


def contents(folder):
    """Everything of a run but timings, by key."""
    store = RunStore(folder)
    return {s: {r["key"]: [r[c] for c in cols] for r in store.read(s).to_pylist()} for s, cols in STAGES.items()}


def same(a, b):
    assert a.keys() == b.keys()
    for stage in a:
        assert a[stage].keys() == b[stage].keys(), stage
        for key, values in a[stage].items():
            for one, two in zip(values, b[stage][key], strict=True):
                assert one == (pytest.approx(two, rel=1e-5, abs=1e-5) if isinstance(two, float) else two)


def command(folder, out):
    return [
        sys.executable, "-m", "diffmem.cli.app", "audit", str(folder / "m"), *(f"prompt {i}" for i in range(24)),
        "--train", str(folder / "train"), "--out", str(out), "--steps", "4", "--images-per-prompt", "4", "--batch", "4",
        "--micro-batch", "4", "--quiet", "--score", "score-difference:over=steps,k=4,steps=10", "--score", "alignment",
        "--score", "anisotropy",
    ]  # fmt: skip


def parts(folder, stage):
    return len(list((folder / "parts" / stage).glob("[!.]*.parquet")))


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(tmp_path):
    tiny_sd().save_pretrained(tmp_path / "m")
    (tmp_path / "train").mkdir()
    for i in range(150):
        picture(i).save(tmp_path / "train" / f"{i}.png")
    env = {**os.environ, "DIFFMEM_FLUSH_SECONDS": "0.2"}
    subprocess.run(command(tmp_path, tmp_path / "whole"), check=True, env=env, stdout=subprocess.DEVNULL)
    chance = random.Random(0)
    killed = []
    # By what is on the disk, not by the clock: a busy machine may take any time to come that far.
    for stage in ("scores", "images", "matches"):
        work = subprocess.Popen(
            command(tmp_path, tmp_path / "killed"), env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        before = parts(tmp_path / "killed", stage)
        while work.poll() is None and parts(tmp_path / "killed", stage) == before:
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.3))
        if work.poll() is None:
            work.send_signal(signal.SIGKILL)
            killed.append(stage)
        work.wait()
    subprocess.run(command(tmp_path, tmp_path / "killed"), check=True, env=env, stdout=subprocess.DEVNULL)
    assert killed[:2] == ["scores", "images"]
    same(contents(tmp_path / "killed"), contents(tmp_path / "whole"))
