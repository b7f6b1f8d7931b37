"""Wrong model folders by the hundred: tiny pipelines of every family, one thing changed in their files, opened and scored.

A mutation is one of: a key of a config deleted, null, of another type, another number or another name; a component of
another class; weights cut, garbled, not finite, without a tensor or of another shape; a file that is missing, empty or
something else; an odd model_index.json. Each is opened in a process of its own, with a limit of time and memory.

    python benchmarks/attacks/configs.py [--each 40] [--seed 0] [--families sd,sdxl]

Outcomes: `same` (the figures of the model before, to 1e-4), `other model` (another model whose config is valid, and
the check holds it against the pipeline's own run), `generates only` and `refused` (a sentence, exit 2),
`check failed` (exit 1), and three kinds of failure: `silent` (opened with other figures, though no model is meant by the
change), `defect` (exit 70, memory or time ran out) and `executed` (code from the folder was run).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from mutations import mutations
from tests.tiny import tiny_ddpm, tiny_ldm, tiny_sd
from tests.tiny_captured import CAPTURED
from tests.tiny_families import FAMILIES

from diffmem.atomic import write_atomic
from diffmem.errors import CheckFailed, DiffmemError
from diffmem.models.generation import Sampling
from diffmem.models.target import Target
from diffmem.runs.provenance import provenance
from diffmem.stages.score.score import score

FILE = Path(__file__).with_name("configs.json")
MAKERS = {
    "sd": tiny_sd, **FAMILIES, "ddpm": tiny_ddpm, "ldm": tiny_ldm, "lumina2": CAPTURED["lumina2"],
    "hunyuan-dit": CAPTURED["hunyuan-dit"], "aura-flow": CAPTURED["aura-flow"],
}  # fmt: skip
BAD = ("silent", "defect", "executed")
SECONDS, MEMORY = 60, 6 << 30
MEANINGLESS = ("type", "impossible", "weights", "file", "swap", "stranger")
"""Kinds of mutations that leave no valid model, so that another model's figures are no answer."""


def looked_at(folder, side):
    """Open a folder and compute figures of everything that scoring and generating use.

    Args:
        folder: of the pipeline.
        side: pixels of an image; None for what its configs say.
    """
    target = Target.from_pretrained(folder)
    captured = target.denoiser is not None and target.denoiser.family == "capture"
    size = {} if side is None else {"height": side, "width": side}
    sampling = Sampling(steps=2, **size)
    prompts = ["207", "3"] if type(target.pipeline).__name__ == "DiTPipeline" else ["a fox", "a dog"]
    target.require_check(sampling, None if prompts[0] == "207" else prompts[0])
    image = target.generate(prompts[:1], [0], 0, sampling)[0]
    figures = [np.asarray(image, dtype=float).reshape(-1) / 255]
    if target.denoiser is None:
        return target.generates_only, figures, image
    d = target.denoiser
    d = d.under(size.get("height"), size.get("width"), None)
    x = torch.randn(1, *d.sample_shape, generator=torch.Generator().manual_seed(0))
    branches = [d.null(), d.encode_prompts(prompts[:1])] if d.conditional else [d.null()]
    with torch.no_grad():
        for t in d.schedule.sampling_times(5)[1::2]:
            figures += [d.predict(x, t, c).double().numpy().reshape(-1) for c in branches]
        figures.append(d.decode(x / 4).double().numpy().reshape(-1))
    if d.conditional and not captured and not d.distilled:
        found = score(Target("sized", d, target.pipeline), prompts, ["score-difference"], draws=1)
        if not found.refused:
            figures.append(np.array(found.values("score-difference")[next(iter(found.values("score-difference")))]))
    return None, figures, image


def alike(one, other):
    return len(one) == len(other) and all(
        a.shape == b.shape and np.isfinite(a).all() and np.isfinite(b).all()
        and np.abs(a - b).max() <= 1e-4 * max(1.0, np.abs(b).max())
        for a, b in zip(one, other, strict=True)
    )  # fmt: skip


def outcome(kind, folder, before, side):
    """(outcome, what was said) of opening a changed folder."""
    try:
        only, figures, _ = looked_at(folder, side)
    except CheckFailed as problem:
        return "check failed", str(problem)
    except DiffmemError as problem:
        said = str(problem)
        return ("refused" if "\n" not in said and len(said) > 30 else "defect"), said
    except MemoryError:
        return "defect", "memory"
    except BaseException as problem:
        import traceback

        frames = traceback.extract_tb(problem.__traceback__)
        own = next((f for f in reversed(frames) if "/diffmem/" in f.filename), frames[-1])
        return "defect", f"{type(problem).__name__}: {str(problem)[:200]} ({Path(own.filename).name}:{own.lineno})"
    if only is not None:
        return "generates only", only
    if alike(figures, before):
        return "same", ""
    if not all(np.isfinite(f).all() for f in figures):
        return "silent", "figures are not finite"
    if kind in MEANINGLESS:
        return "silent", "opened with other figures"
    return "other model", ""


def isolated(kind, folder, before, side, work):
    """`outcome` in a child with limits; what the folder ran leaves a file."""
    mark = work / "executed"
    mark.unlink(missing_ok=True)
    read, wrote = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        signal.alarm(SECONDS)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1), os.dup2(null, 2)
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        said = outcome(kind, folder, before, side)
        os.write(wrote, json.dumps(said)[:60_000].encode())
        os._exit(0)
    os.close(wrote)
    with os.fdopen(read, "rb") as pipe:
        answer = pipe.read()
    status = os.waitpid(child, 0)[1]
    if mark.exists():
        return "executed", ""
    if not answer:
        return "defect", f"the process ended with status {status} (time or memory)"
    return tuple(json.loads(answer))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--each", type=int, default=40, help="mutations of each family")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--families", default=",".join(MAKERS))
    parser.add_argument("--list", action="store_true", help="print every outcome")
    parser.add_argument("--out", type=Path, default=FILE)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    done = json.loads(args.out.read_text())["families"] if args.out.exists() else {}
    for family in args.families.split(","):
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as name:
            counts, failures = attacked(family, Path(name), args.each, args.seed, args.list)
        done[family] = {
            "seed": args.seed, "mutations": sum(counts.values()), "seconds": round(time.monotonic() - began),
            "counts": {kind: {o: n for (k, o), n in sorted(counts.items()) if k == kind} for kind, _ in sorted(counts)},
            "failures": failures, "provenance": provenance().model_dump(),
        }  # fmt: skip
        total = Counter()
        for one in done.values():
            for of_kind in one["counts"].values():
                total.update(of_kind)
        result = {
            "question": "Is a model folder in which one thing is wrong opened rightly or refused?",
            "mutations": sum(total.values()), "failures": sum(total[kind] for kind in BAD),
            "outcomes": dict(sorted(total.items())),
            "families": done,
        }  # fmt: skip
        write_atomic(args.out, (json.dumps(result, indent=1) + "\n").encode())
        print(f"{family}: {dict(Counter(o for (_, o), n in counts.items() for _ in range(n)))}", flush=True)


def attacked(family, work, each, seed, listed):
    """Counts of (kind, outcome) for one family, and what failed."""
    counts, failures = Counter(), []
    clean = work / family
    pipe = MAKERS[family]()
    pipe.save_pretrained(clean)
    size = getattr(pipe, "default_sample_size", None) if family in FAMILIES or family in CAPTURED else None
    side = None if size is None else min(int(size), 16) * int(pipe.vae_scale_factor)
    code = f"open({str(work / 'executed')!r}, 'w').close()\nclass Thing:\n    pass\n"
    for place in ("helper.py", "unet/helper.py", "pipeline.py", "diffusers_modules.py"):
        if (clean / place).parent.is_dir():
            (clean / place).write_text(code)
    before = looked_at(clean, side)[1]
    assert alike(before, looked_at(clean, side)[1]), f"{family} has other figures at a second opening"
    made = mutations(clean, random.Random(f"{seed}/{family}"))
    for _ in range(each):
        kind, what, change = next(made)
        folder = work / "mutant"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(clean, folder)
        change(folder)
        result, said = isolated(kind, folder, before, side, work)
        counts[kind, result] += 1
        if result in BAD:
            failures.append({"kind": kind, "mutation": what, "outcome": result, "said": said})
        if listed or result in (*BAD, "other model"):
            print(f"{family} {kind} [{what}] -> {result}: {said[:300]}", flush=True)
    return counts, failures


if __name__ == "__main__":
    main()
