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
import math
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
MEANINGLESS = ("type", "impossible", "weights", "file", "swap")
"""Kinds of mutations that leave no valid model, so that another model's figures are no answer."""


def keys_of(value, path=()):
    """The paths of all entries of a config."""
    for key, inner in value.items():
        if not str(key).startswith("_") or key == "_class_name":
            yield (*path, key)
            if isinstance(inner, dict) and len(path) < 2:
                yield from keys_of(inner, (*path, key))


def changed(config, path, value):
    """A config with one entry set, or without it (value `...`)."""
    copy = json.loads(json.dumps(config))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return copy


def values_for(before):
    """(kind, value) that an entry may be replaced by."""
    found = [("deleted", ...), ("null", None), ("type", {"a": 1}), ("type", [[]])]
    if isinstance(before, bool):
        return [*found, ("flipped", not before), ("type", "yes"), ("type", 7.5)]
    if isinstance(before, int | float):
        impossible = [-1, -before - 1, 10**9, 1e308, math.nan, math.inf]
        other = [0, before * 2, before + 1, before / 2 + 0.25, 1]
        return [*found, ("type", str(before)), ("type", [before, "x"]), ("type", True),
                *(("impossible", v) for v in impossible), *(("number", v) for v in other)]  # fmt: skip
    if isinstance(before, str):
        return [*found, ("name", "nope"), ("name", ""), ("name", "../../x"), ("type", 3)]
    if isinstance(before, list):
        return [*found, ("type", "nope"), ("length", before[:-1]), ("length", before * 2), ("length", []),
                ("type", [{}] * len(before)), ("impossible", [-3 for _ in before])]  # fmt: skip
    return found


def mutations(folder, rng):
    """Endless (kind, description, function that changes a copy of the folder)."""
    configs = [p.relative_to(folder) for p in sorted(folder.rglob("*.json")) if p.stat().st_size < 100_000]
    weights = [p.relative_to(folder) for p in sorted(folder.rglob("*.safetensors"))]
    files = [p.relative_to(folder) for p in sorted(folder.rglob("*")) if p.is_file()]
    parts = [p.name for p in sorted(folder.iterdir()) if p.is_dir()]
    index = json.loads((folder / "model_index.json").read_text())
    while True:
        what = rng.choices(("key", "weights", "file", "index", "swap"), (10, 3, 2, 2, 1))[0]
        if what == "key":
            name = rng.choice(configs)
            config = json.loads((folder / name).read_text())
            paths = list(keys_of(config)) if isinstance(config, dict) else []
            if not paths:
                continue
            path = rng.choice(paths)
            before = config
            for key in path:
                before = before[key]
            kind, value = rng.choice(values_for(before))
            if kind == "impossible" and "shift" in path[-1]:
                kind = "number"  # which may be negative
            if value == before and type(value) is type(before):
                continue
            after = changed(config, path, value)
            yield (
                kind,
                f"{name}: {'.'.join(path)} = {'(deleted)' if value is ... else repr(value)[:40]}",
                write(name, after),
            )
        elif what == "weights":
            name = rng.choice(weights)
            how = rng.choice(sorted(WEIGHTS))
            yield "weights", f"{name}: {how}", on_file(name, WEIGHTS[how], rng.random())
        elif what == "file":
            name = rng.choice(files)
            how = rng.choice(sorted(FILES))
            yield "file", f"{name}: {how}", on_file(name, FILES[how], rng.random())
        elif what == "index":
            entry = rng.choice(ENTRIES)
            part = rng.choice([*parts, "_class_name", "novel", "_diffusers_version", "../evil"])
            index = json.loads((folder / "model_index.json").read_text())
            yield (
                "index",
                f"model_index.json: {part} = {entry!r}",
                write(Path("model_index.json"), index | {part: entry}),
            )
        elif len(parts) > 1:
            one, other = rng.sample(parts, 2)
            if index[one] == index[other]:
                continue  # as CLIP and CLIP: another model that is as good
            yield "swap", f"{one} and {other} change places", swapped(one, other)


def write(name, value):
    return lambda folder: (folder / name).write_text(json.dumps(value))


def swapped(one, other):
    def change(folder):
        (folder / one).rename(folder / "between")
        (folder / other).rename(folder / one)
        (folder / "between").rename(folder / other)

    return change


def on_file(name, change, at):
    return lambda folder: change(folder / name, at)


def tensors(change):
    def rewrite(file, at):
        from safetensors.torch import load_file, save_file

        found = load_file(file)
        names = sorted(k for k, v in found.items() if v.ndim > 1) or sorted(found)
        key = names[int(at * len(names))]
        found = change(found, key)
        save_file({k: v.contiguous().clone() for k, v in found.items()}, file, metadata={"format": "pt"})

    return rewrite


def garbled(file, at):
    raw = bytearray(file.read_bytes())
    place = int(at * (8 + int.from_bytes(raw[:8], "little")))  # the header
    raw[place] ^= 0xFF
    file.write_bytes(raw)


def fifo(file, _):
    file.unlink()
    os.mkfifo(file)


WEIGHTS = {
    "cut": lambda file, at: file.write_bytes(file.read_bytes()[: int(at * file.stat().st_size)]),
    "garbled header": garbled,
    "NaN": tensors(lambda t, k: t | {k: torch.full_like(t[k], math.nan)}),
    "infinite": tensors(lambda t, k: t | {k: torch.full_like(t[k], math.inf)}),
    "tensor lost": tensors(lambda t, k: {n: v for n, v in t.items() if n != k}),
    "tensor renamed": tensors(lambda t, k: {n + ("_" if n == k else ""): v for n, v in t.items()}),
    "all renamed": tensors(lambda t, k: {"module." + n: v for n, v in t.items()}),
    "transposed": tensors(lambda t, k: t | {k: torch.cat([t[k], t[k]], -1).transpose(0, -1)}),
    "flat": tensors(lambda t, k: t | {k: torch.cat([t[k].reshape(-1), t[k].reshape(-1)])}),
    "integers": tensors(lambda t, k: t | {k: torch.ones_like(t[k], dtype=torch.int8)}),
    "tensor too many": tensors(lambda t, k: t | {"novel.weight": t[k]}),
    "empty": tensors(lambda t, k: {"x": torch.zeros(1)}),
}
FILES = {
    "missing": lambda file, _: file.unlink(),
    "nothing in it": lambda file, _: file.write_bytes(b""),
    "web page": lambda file, _: file.write_text("<!DOCTYPE html><html>404</html>"),
    "pointer of Git LFS": lambda file, _: file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
    "zeros": lambda file, _: file.write_bytes(b"\0" * file.stat().st_size),
    "a FIFO": fifo,
    "a link to nothing": lambda file, _: (file.unlink(), file.symlink_to("/nonexistent/x")),
    "a list": lambda file, _: file.write_text("[1, 2]"),
}
ENTRIES = [
    ["helper", "Thing"], ["diffusers", "UNet2DModel"], ["transformers", "CLIPTextModel"], ["diffusers", "AutoencoderKL"],
    ["os", "system"], ["diffusers.loaders", "X"], ["", ""], [], [None, None], None, 3, "unet", {"a": [1]}, [["a"], ["b"]],
    ["diffusers", "StableDiffusionPipeline"], ["transformers", "AutoModel"], ["diffusers", "DDIMScheduler"], True,
    ["stable_diffusion", "helper"], ["pipelines", "x"], ["diffusers_modules.local", "Thing"], "helper.Thing",
    ["helper", "Thing", "more"],
]  # fmt: skip


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
