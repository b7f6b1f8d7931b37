"""One cell at work: its training, and its images from the same training images' captions as every other cell's."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from diffmem.data.prompts import Prompt
from diffmem.experiments._arm import Arm, Hook
from diffmem.experiments.lab.plan import Cell, GenerateSection, LabPlan
from diffmem.keys import row_key
from diffmem.models.target import Target
from diffmem.randomness import generator
from diffmem.stages.generate import Generation
from diffmem.training.captions import captions_of
from diffmem.training.data import TrainingSet
from diffmem.training.loop import LOG, train
from diffmem.training.plan import FREE, TrainPlan


@dataclass(frozen=True)
class Asked:
    """One image that a cell is to make: the training image that it is about, and the caption and draw that ask for it."""

    image_id: str
    text: str
    draw: int

    @property
    def prompt(self) -> Prompt:
        """As the generation stage takes it; equal captions are one prompt with several draws."""
        return Prompt(row_key(lab_prompt=self.text).hex()[:16], self.text)


def prompted(data: TrainingSet, captions: Sequence[Sequence[str]], plan: GenerateSection) -> list[Asked]:
    """The images to make: training images in an order named by the seed, each under its first caption, again from the start
    when there are more images than that.

    The order knows nothing of the cell, so that image n of all cells is about the same training image.
    """
    order = torch.randperm(len(data), generator=generator(plan.seed, "lab", "prompted")).tolist()
    used: Counter[str] = Counter()
    found = []
    for n in range(plan.images_per_cell):
        place = order[n % len(order)]
        text = captions[place][0]
        found.append(Asked(data.images[place].id, text, used[text]))
        used[text] += 1
    return found


def training_name(plan: TrainPlan) -> str:
    """The folder of a training: a hash of all that changes a weight."""
    settings = plan.model_dump(mode="json")
    for name in FREE:
        section, _, key = name.rpartition(".")
        (settings[section] if section else settings).pop(key, None)  # a default may not be written
    return row_key(training=settings).hex()[:16]


def trained(cell: Cell, folder: Path, data: TrainingSet, device: str | None, silent: bool) -> Target:
    """The cell's model: trained now, resumed, or opened if it is there."""
    saved = folder / ("lora" if cell.training.model.method == "lora" else "model")
    if not (folder / LOG).exists():
        train(cell.training, folder, data=data, device=device, silent=silent)
        # A finished training needs no checkpoint, which is three times the size of the model.
        (folder / "checkpoint.pt").unlink(missing_ok=True)
    name = f"{cell.name}, seed {cell.seed}"
    if saved.name == "model":
        target = Target.from_pretrained(saved, device=device, name=name)
    else:
        base = cell.training.model.base
        target = Target.from_pretrained(base, lora=saved, device=device, name=name)
    target.require_check()
    return target


def seconds_of(folder: Path) -> float:
    """What a training took."""
    return float(json.loads((folder / LOG).read_text())["seconds"])


def asked_of(cell: Cell, plan: LabPlan, target: Target, data: TrainingSet) -> list[Asked]:
    """The images that a cell is to make, under the captions that its training showed."""
    tokenizer = getattr(target.pipeline, "tokenizer", None)
    return prompted(data, captions_of(data, cell.training.data, tokenizer, cell.seed), plan.generate)


def cell_arm(
    cell: Cell, plan: LabPlan, target: Target, asked: Sequence[Asked], place: str, data: TrainingSet, after: Hook
) -> Arm:
    """The cell as an arm: its images with its inference-time mitigations; `after` measures them."""
    settings = Generation(
        images_per_prompt=max(one.draw for one in asked) + 1, seed=plan.generate.seed, batch=plan.generate.batch,
        sampling=plan.generate.sampling,
    )  # fmt: skip
    labels = [one.label for one in cell.treatment.inference]
    return Arm(
        f"{cell.name}, seed {cell.seed}", lambda: target, list({one.prompt.id: one.prompt for one in asked}.values()),
        settings, place, {"lab": {"mitigation": labels}}, cell.treatment.inference,
        work=[(one.prompt, one.draw) for one in asked], judged_together=1, fingerprints={"training": data.fingerprint},
        after=after,
    )  # fmt: skip
