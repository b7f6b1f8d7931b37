"""Which family does what, measured on tiny pipelines of the real classes and held against benchmarks/families/result.json."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.tiny import LORA_TARGETS, random_lora, tiny_ddpm, tiny_ldm, tiny_sd
from tests.tiny_captured import CAPTURED, TARGETS
from tests.tiny_families import FAMILIES, flux

from diffmem.errors import DiffmemError
from diffmem.models.families.capture import Captured
from diffmem.models.generation import Sampling
from diffmem.models.lora import load_lora
from diffmem.models.target import Target
from diffmem.stages.measure.measure import measure
from diffmem.stages.score.score import score

BY_FILE = {
    "text-unet": tiny_sd, **{k: v for k, v in FAMILIES.items() if k != "flux"}, "flux (distilled)": flux,
    "flux (true guidance)": lambda: flux(distilled=False), "latent-unet": tiny_ldm, "pixel-unet": tiny_ddpm,
}  # fmt: skip
BY_CAPTURE = {**{k: v for k, v in BY_FILE.items() if k not in ("dit", "latent-unet", "pixel-unet")}, **CAPTURED}
CELLS = ("check", "score", "generate", "LoRA", "measure")
ROOT = Path(__file__).parents[2]
RESULT = ROOT / "benchmarks" / "families" / "result.json"
PAGE = ROOT / "docs" / "models.md"
SIZED = {"flux (distilled)", "flux (true guidance)", "sd3", "qwen-image"}
"""Whose classes keep the size of their images at opening, which the tests lower."""


def opened(how, name, pipe):
    if how == "file":
        return Target.from_pipeline(pipe, name=name)
    if name == "sana":
        pipe.default_sample_size = 8
    return Target(name, Captured(pipe), pipe)


def sampling(how, name):
    return Sampling(steps=2, **({"height": 16, "width": 16} if how == "file" and name in SIZED else {}))


def cells(how, name, maker, folder):
    """{"check": "yes", ...}; a cell that is not says why not."""
    prompt = "207" if name == "dit" else "a fox"
    target = opened(how, name, maker())
    denoiser, settings = target.denoiser, sampling(how, name)
    side = denoiser.decode(torch.zeros(1, *denoiser.sample_shape, dtype=denoiser.dtype)).shape[-1]
    picture = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)

    def check():
        return target.check(prompt, settings).passed

    def scored():
        result = score(target, [prompt], ["score-difference"], draws=1)
        if result.refused:
            return "one branch" if "unconditional" in str(result.refused) else "no prompts"
        return bool(np.isfinite(result.values("score-difference").popitem()[1]).all())

    def generated():
        first, again = (target.generate([prompt], [0], 0, settings)[0] for _ in range(2))
        return first.size == (side, side) and first.tobytes() == again.tobytes()

    def adapted():
        file, _ = random_lora(maker(), folder / "lora", targets=TARGETS.get(name, LORA_TARGETS))
        other = maker()
        load_lora(other, file)
        tuned = opened(how, name, other)
        x = torch.ones(1, *denoiser.sample_shape)
        t = denoiser.schedule.sampling_times(4)[1]
        outputs = []
        for one in (denoiser, tuned.denoiser):
            with torch.no_grad():
                outputs.append(one.predict(x, t, one.encode_prompts([prompt]) if one.conditional else one.null()))
        return bool((outputs[0] - outputs[1]).abs().max() > 1e-4) and tuned.check(prompt, settings).passed

    def measured():
        target.despite_check = True  # random weights may fit another declaration better than their own
        with torch.no_grad():
            result = measure(target, [picture], ["loss", "pia"], condition="none" if name == "dit" else "caption")
        return not result.refused and all(math.isfinite(v) for k in result.labels for v in result.values(k).values())

    found = {}
    for cell, ask in zip(CELLS, (check, scored, generated, adapted, measured), strict=True):
        try:
            said = ask()
        except DiffmemError as problem:
            said = f"no: {problem}"
        found[cell] = said if isinstance(said, str) else "yes" if said else "no"
    return found


def table_of(rows):
    """The table of docs/models.md, from rows of result.json."""
    lines = ["| model | by | " + " | ".join(CELLS) + " |", "|---|---|" + "---|" * len(CELLS)]
    lines += [f"| `{row['model']}` | {row['by']} | " + " | ".join(row[c] for c in CELLS) + " |" for row in rows]
    return "\n".join(lines) + "\n"


CASES = [("file", name) for name in BY_FILE] + [("capture", name) for name in BY_CAPTURE]


def kept():
    """(how, name) -> the cells of result.json."""
    rows = json.loads(RESULT.read_text(encoding="utf-8"))["rows"]
    return {(row["by"], row["model"]): {cell: row[cell] for cell in CELLS} for row in rows}


def test_the_page_shows_what_was_measured():
    rows = json.loads(RESULT.read_text(encoding="utf-8"))["rows"]
    assert [(row["by"], row["model"]) for row in rows] == CASES
    assert table_of(rows) in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize(("how", "name"), CASES)
def test_it_does_what_was_measured(how, name, tmp_path):
    maker = (BY_FILE if how == "file" else BY_CAPTURE)[name]
    assert cells(how, name, maker, tmp_path) == kept()[how, name]
