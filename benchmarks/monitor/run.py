"""Does the monitor warn before a training copies, and never in trainings that do not come to copy?

Small networks of digits (8 x 8, a perceptron of two layers that predicts the clean picture) trained from scratch with a
monitor in the loop: few pictures, and few pictures repeated among many, which come to copy; many pictures, which do not. What
counts as copying is what diffmem's own matcher calls at 1 % false positives an image, with the monitor's test. None of these
trainings was looked at while the rules were written (those that were had other seeds and sizes).

    python benchmarks/monitor/run.py --work FOLDER [--minutes 8]   # goes on where it stopped; several calls
    python benchmarks/monitor/run.py --work FOLDER --write         # result.json beside this file
    ZOO=FOLDER python benchmarks/monitor/run.py --zoo --write      # five checkpoints of a network that others trained

One thread; some 25 seconds per training.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
RESULT = HERE / "result.json"
LOOKS = (0, 50, 100, 200, 400, 800, 1600)
COPY = [("few", n, 1, seed) for seed in range(1000, 1006) for n in (16, 24, 32)]
COPY += [("repeated", 256, 40, seed) for seed in range(1000, 1008)]
NOT = [("many", n, 1, seed) for seed in range(1000, 1020) for n in (600, 900, 1200)]
HELD_OUT = 300


class Network(torch.nn.Module):
    """The clean picture from the noisy one and its time."""

    def __init__(self, width=256):
        super().__init__()
        self.register_buffer("frequencies", torch.exp(torch.linspace(0, 6, 16)))
        self.first = torch.nn.Linear(64 + 32, width)
        self.second = torch.nn.Linear(width + 32, width)
        self.last = torch.nn.Linear(width, 64)

    def forward(self, x, t):
        angles = t[:, None] / 1000 * self.frequencies
        time_ = torch.cat([angles.sin(), angles.cos()], 1)
        y = torch.nn.functional.silu(self.first(torch.cat([x.flatten(1), time_], 1)))
        y = y + torch.nn.functional.silu(self.second(torch.cat([y, time_], 1)))
        return self.last(y).view_as(x)


def pictures():
    from PIL import Image
    from sklearn.datasets import load_digits

    return [Image.fromarray((x * 255 / 16).round().astype(np.uint8)) for x in load_digits().images]


def train(kind, count, weight, seed, folder, looks=LOOKS):
    """One training with its monitor; a tenth of the pictures is seen `weight` times as often as the others."""
    import diffmem as dm
    from diffmem.experiments.monitor.plan import MonitorPlan
    from diffmem.models.model_image import to_pixels

    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(seed)
    known = pictures()
    order = np.random.default_rng(seed).permutation(len(known))
    own, held = [known[i] for i in order[:count]], [known[i] for i in order[-HELD_OUT:]]
    shares = torch.ones(count)
    shares[: max(1, count // 10)] = weight
    x0 = torch.stack([to_pixels(picture) for picture in own])
    network = Network()
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)

    def build(network):
        return dm.Target.from_callable(
            lambda x, t, cond: network(x, t), (1, 8, 8), prediction="x0", schedule="cosine", steps=20
        )

    alphas = build(network).need_denoiser().schedule
    watch = dm.training.Monitor(
        {f"train-{i}": picture for i, picture in enumerate(own)}, folder,
        heldout={f"held-{i}": picture for i, picture in enumerate(held)}, build=build, share=None,
        plan=MonitorPlan(images=128, sampling=dm.Sampling(steps=20)),
    )  # fmt: skip
    started, watched = time.perf_counter(), 0.0
    for step in range(max(looks) + 1):
        if step in looks:
            before = time.perf_counter()
            watch(step, network)
            watched += time.perf_counter() - before
        at = torch.multinomial(shares, 64, replacement=True)
        t = torch.randint(0, 1000, (64,)).double()
        alpha, sigma = (value.float()[:, None, None, None] for value in alphas.alpha_sigma(t))
        noise = torch.randn(64, 1, 8, 8)
        loss = (network(alpha * x0[at] + sigma * noise, t.float()) - x0[at]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    summary = watch.run.summary
    kept = ("step", "finding", "calls", "calls_p", "units", "standing", "standing_p", "copied_images", "quality", "gap")
    return {
        "kind": kind, "images": count, "weight": weight, "seed": seed,
        "rows": [{key: rounded(row[key]) for key in kept} for row in summary.rows],
        "warning": step_of(summary.first_warning), "excess": step_of(summary.first_excess),
        "clean": step_of(summary.last_clean), "onset": summary.onset,
        "seconds": round(time.perf_counter() - started, 1), "monitor_seconds": round(watched, 1),
    }  # fmt: skip


def rounded(value):
    return float(f"{value:.4g}") if isinstance(value, float) else value


def step_of(found):
    return None if found is None else found["step"]


def zoo(folder):
    """Five checkpoints of a network that others trained on 48,000 digits: members and others are known, nothing is copied."""
    import diffmem as dm
    from diffmem.experiments.monitor.plan import MonitorPlan
    from diffmem.experiments.monitor.run import monitor

    place = Path(os.environ["ZOO"])
    digits, split = np.load(place / "mnist_full.npz")["xtr"], np.load(place / "hughes_mnist_split.npz")
    from PIL import Image

    sides = {
        side: {f"{i}": Image.fromarray(digits[i]) for i in np.random.default_rng(0).permutation(split[key])[:count]}
        for side, key, count in (("train", "train", 1000), ("heldout", "held_out", 500))
    }
    networks = HERE.parent / "zoo" / "networks.py"
    started = time.perf_counter()
    run = monitor(
        [f"{networks}:cnn('{epoch}')={int(epoch)}" for epoch in ("000", "020", "100", "200", "400")],
        dm.load_images(sides["train"]), MonitorPlan(images=128, sampling=dm.Sampling(steps=20)), out=folder,
        heldout=dm.load_images(sides["heldout"]),
    )  # fmt: skip
    kept = ("step", "finding", "reason", "calls", "units", "standing", "standing_of", "standing_p", "quality", "gap")
    return {
        "images": 1000, "rows": [{key: rounded(row.get(key)) for key in kept} for row in run.summary.rows],
        "warnings": sum(row["warning"] for row in run.summary.rows), "excess": step_of(run.summary.first_excess),
        "headline": run.summary.headline, "seconds": round(time.perf_counter() - started, 1),
    }  # fmt: skip


def summarized(done):
    """The figures that the page on monitoring states."""
    copying = [one for one in done if one["excess"] is not None]
    planned = [one for one in done if one["kind"] != "many"]
    none = [one for one in done if one["kind"] == "many"]
    called = {id(one): next((r["step"] for r in one["rows"] if r["copied_images"]), None) for one in done}
    predicted = []
    for one in copying:
        onset = one["onset"]
        if onset["low"] is not None:
            # What is seen lies between two looks; an interval that meets that stretch agrees with it.
            high = float("inf") if onset["high"] is None else onset["high"]
            predicted.append(onset["low"] <= onset["by"] and high >= (onset["after"] or 0))
    seen = [(one["images"], one["excess"]) for one in copying if one["kind"] == "few"]
    slope = None
    if len({n for n, _ in seen}) > 1:
        slope = float(np.polyfit(np.log([n for n, _ in seen]), np.log([s for _, s in seen]), 1)[0])
    return {
        "meant_to_copy": len(planned), "came_to_copy": len(copying),
        "warned_before_excess": sum(one["warning"] is not None and one["warning"] < one["excess"] for one in copying),
        "warned_with_excess": sum(one["warning"] is not None and one["warning"] == one["excess"] for one in copying),
        "warned_later_or_never": sum(one["warning"] is None or one["warning"] > one["excess"] for one in copying),
        "warned_before_any_called_image": sum(
            one["warning"] is not None and (called[id(one)] is None or one["warning"] < called[id(one)]) for one in copying
        ),
        "warned_without_excess": sum(one["warning"] is not None for one in planned if one["excess"] is None),
        "not_meant_to_copy": len(none), "false_warnings": sum(one["warning"] is not None for one in none),
        "false_excess": sum(one["excess"] is not None for one in none),
        "onset_predicted": len(predicted), "onset_in_interval": sum(predicted),
        "log_onset_per_log_images": None if slope is None else round(slope, 3),
        "seconds_per_training": round(float(np.mean([one["seconds"] for one in done])), 1),
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/monitor-benchmark"))
    parser.add_argument("--minutes", type=float, default=8.0, help="stop after the training that is at work then")
    parser.add_argument("--part", default="0/1", help="I/N: every N-th training, for several processes")
    parser.add_argument("--zoo", action="store_true")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    from diffmem.runs.provenance import provenance

    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    if options.zoo:
        found = zoo(options.work / "zoo")
        (options.work / "zoo.json").write_text(json.dumps(found))
        print(found["headline"], found["warnings"], found["seconds"])
    part, parts = map(int, options.part.split("/"))
    # Interleaved, so that whatever is done is of both kinds.
    several = [one for pair in zip(NOT[::2], NOT[1::2], COPY + [None] * len(NOT), strict=False) for one in pair if one]
    several += [one for one in (*COPY, *NOT) if one not in several]
    for number, one in enumerate(several):
        file = options.work / f"{'-'.join(map(str, one))}.json"
        if options.zoo or options.write or file.exists() or number % parts != part:
            continue
        if time.monotonic() - started > 60 * options.minutes:
            break
        file.write_text(json.dumps(train(*one, options.work / f"run-{part}")))
        print(
            file.stem,
            *(json.loads(file.read_text())[key] for key in ("warning", "excess", "clean", "seconds")),
            flush=True,
        )
    if options.write:
        done = [json.loads((options.work / f"{'-'.join(map(str, one))}.json").read_text()) for one in several
                if (options.work / f"{'-'.join(map(str, one))}.json").exists()]  # fmt: skip
        zoo_file = options.work / "zoo.json"
        result = {
            "what": __doc__.partition("\n")[0], "looks": LOOKS, **summarized(done),
            "zoo": json.loads(zoo_file.read_text()) if zoo_file.exists() else None, "trainings": done,
            "provenance": provenance().model_dump(mode="json"),
        }  # fmt: skip
        RESULT.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
        print(
            json.dumps(
                {key: value for key, value in result.items() if key not in ("trainings", "provenance", "zoo")}, indent=1
            )
        )


if __name__ == "__main__":
    main()
