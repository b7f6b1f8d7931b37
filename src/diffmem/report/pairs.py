"""The galleries of a digest: pairs of generated and training image, and the command that makes an image again."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from diffmem.report.columns import PromptColumns
from diffmem.report.matches import Matches, distinct, sections
from diffmem.report.overlap import overlap_of
from diffmem.report.prose import Texts, visible
from diffmem.report.review.summary import Reviewed
from diffmem.report.shapes.copies import Gallery, PairDigest, Section
from diffmem.runs.manifest import Manifest
from diffmem.runs.store import RunStore

MOST: dict[Section, int] = {"copies": 60, "false": 12, "missed": 12, "below": 6}
LONGEST_COMMAND = 400
VERBS_WITH_A_MODEL = ("audit", "generate")


def choose(matches: Matches, prompts: PromptColumns) -> dict[Section, tuple[int, int, np.ndarray]]:
    """Section -> prompts, training groups, and the matches that are shown."""
    found: dict[Section, tuple[int, int, np.ndarray]] = {}
    for section, rows in sections(matches, prompts).items():
        groups = distinct(rows, matches)
        if len(rows):
            found[section] = (len(rows), len(groups), groups[: MOST[section]])
    return found


def galleries(
    chosen: dict[Section, tuple[int, int, np.ndarray]],
    matches: Matches,
    prompts: PromptColumns,
    texts: Texts,
    store: RunStore,
    again: Again,
    reviewed: Reviewed | None = None,
) -> tuple[Gallery, ...]:
    """The pairs in words; their pictures stay in the store and in the training set."""
    copied_groups = matches.group[matches.copy]
    images = np.bincount(copied_groups, minlength=int(matches.group.max(initial=0)) + 1)
    pairs = np.unique(np.stack([copied_groups, matches.place[matches.copy]]), axis=1)[0]
    per_group = np.bincount(pairs, minlength=len(images))
    keys = {matches.row(int(i))["image_key"] for _, _, rows in chosen.values() for i in rows}
    seeds = _seeds(store, keys)
    found = []
    for section, (count, groups, rows) in chosen.items():
        shown = []
        for i in rows:
            row, place, group = matches.row(int(i)), int(matches.place[i]), int(matches.group[i])
            label = int(prompts.label[place])
            shown.append(
                PairDigest(
                    prompt_id=row["prompt_id"], prompt=texts.shown(row["prompt_id"]),
                    label=None if label < 0 else bool(label), draw=row["draw"], train_id=row["train_id"],
                    group=row["group"] or row["train_id"], group_size=row["group_size"] or 1,
                    background=bool(row["background"]), value=abs(float(matches.statistic[i])),
                    similarity=row["similarity"], copy_called=bool(matches.copy[i]), prompts=int(per_group[group]),
                    images=int(images[group]), image_key=row["image_key"].hex(), seed=seeds.get(row["image_key"]),
                    command=again.command(texts.whole(row["prompt_id"]), row["draw"]),
                    overlap=overlap_of(row["alignment"], row["view"]),
                    said={} if reviewed is None else reviewed.categories_of(int(i)),
                )
            )  # fmt: skip
        found.append(Gallery(section=section, prompts=count, groups=groups, pairs=tuple(shown)))
    return tuple(found)


def _seeds(store: RunStore, keys: set[bytes]) -> dict[bytes, int]:
    found: dict[bytes, int] = {}
    wanted = pa.array(sorted(keys), pa.binary(16))
    for table in store.stream("images", ["key", "seed"]):
        rows = table.filter(pc.is_in(table["key"], value_set=wanted)).to_pylist()
        found |= {row["key"]: row["seed"] for row in rows}
    return found


class Again:
    """How an image of a run is made again.

    The noise of an image depends on the root seed, the prompt and the draw only, so `diffmem generate` with draw + 1
    images makes it as the last one.
    """

    def __init__(self, manifest: Manifest, model: dict[str, Any]) -> None:
        self._model = _model_as_typed(manifest, model.get("name"))
        plan = manifest.plan.get("generate")
        self._plan: dict[str, Any] = dict(plan) if isinstance(plan, dict) else {}
        self._dtype = model.get("dtype")

    def command(self, prompt: str | None, draw: int) -> str | None:
        """One line for a shell; None for a prompt that no line can hold."""
        if prompt is None or prompt != visible(prompt) or "\n" in prompt or prompt.startswith("-") or not self._plan:
            return None
        words = ["diffmem", "generate", self._model, prompt, "--images-per-prompt", str(draw + 1)]
        words += ["--seed", str(self._plan.get("seed", 0))]
        sampling = self._plan.get("sampling")
        for name, value in (sampling if isinstance(sampling, dict) else {}).items():
            if value is not None:
                words += ["--" + name.replace("_", "-"), value if isinstance(value, str) else json.dumps(value)]
        if self._dtype not in (None, "float32"):
            words += ["--dtype", str(self._dtype)]
        line = shlex.join([*words, "--out", "again"])
        return line if len(line) <= LONGEST_COMMAND else None


def _model_as_typed(manifest: Manifest, name: str | None) -> str:
    """The model as the last command named it, MODEL where that cannot be told."""
    for command in reversed(manifest.commands):
        if command[1:2] == ("demo",):
            return "testbed:digits"
        if len(command) > 2 and command[1] in VERBS_WITH_A_MODEL:
            typed = command[2]
            if typed.startswith("testbed:") or (name is not None and Path(typed).name == name):
                return typed
    return "MODEL"
