"""The searches for works in a model, each an arm: captions, other wordings, prompts fitted to the pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from diffmem.data.png import decode_png
from diffmem.data.prompts import Prompt
from diffmem.errors import UsageError
from diffmem.experiments._arm import Arm
from diffmem.experiments._experiment import Experiment, Results
from diffmem.experiments.claim.evidence import Tested
from diffmem.experiments.claim.logs import read_log
from diffmem.experiments.claim.pool import WORK
from diffmem.experiments.claim.proof import Place
from diffmem.experiments.claim.search import Searched, plain
from diffmem.experiments.claim.summary import ClaimSummary
from diffmem.models.target import Target
from diffmem.report.prose import count, text_hash
from diffmem.report.stored import read_pngs
from diffmem.runs.images import images_of
from diffmem.runs.store import RunStore
from diffmem.runs.summary import ArmPlace
from diffmem.stages.generate import Generation
from diffmem.stages.measure.measure import measure
from diffmem.stages.samples import named_samples

MEASURE = "measure"
"""The search that makes no images."""
SEARCHES = ("captions", "paraphrases", "inversion", MEASURE)


@dataclass
class ClaimExperiment(Experiment[ClaimSummary]):
    """One arm per search; works and decoys are asked for alike in each.

    Args:
        target: the model.
        searched: works and decoys.
        settings: seed and sampling.
        budget: images per work, of all searches together.
        search: which searches.
        paraphrase: other wordings of a caption.
        inversion: the InvMM that measures and fits prompts.
    """

    target: Target
    searched: Searched
    settings: Generation
    budget: int
    search: Sequence[str]
    paraphrase: Callable[[str], Sequence[str]]
    inversion: str
    reworded: dict[str, list[str]] = field(default_factory=dict)
    """Caption -> its other wordings."""
    fitted: dict[str, str] = field(default_factory=dict)
    """Picture of the pool -> the prompt that was fitted to it."""

    describes: ClassVar[bool] = False
    summarize_at_end: ClassVar[bool] = True

    def identity(self) -> tuple[Mapping[str, Any], Mapping[str, str]]:
        """Works, decoys and how they are compared."""
        plan = {"fdr": self.searched.fdr, "descriptor": self.searched.descriptor, "inversion": self.inversion}
        return {"claim": plan}, {"model": self.target.fingerprint, **self.searched.fingerprints}

    def arms(self, results: Results) -> Iterator[Arm]:
        """Captions first, whose images the bounds rest on; a model that takes no prompts has one search."""
        if self.target.denoiser is not None and not self.target.denoiser.conditional:
            if {*self.search} - {"captions", "paraphrases"}:
                raise UsageError(
                    f"'{self.target.name}' takes no prompts, so that there is one search: leave --search out."
                )
            yield self._arm("samples", list(named_samples(self.budget * len(self.searched.works))), 1)
            return
        texts = self._captions()
        makers = [name for name in SEARCHES if name in self.search and name != MEASURE]
        shares = {name: math.ceil((self.budget - place) / len(makers)) for place, name in enumerate(makers)}
        if shares.get("captions"):
            yield self._arm("captions", [_prompt(text) for text in texts], shares["captions"])
        if shares.get("paraphrases"):
            self.reworded = {text: list(self.paraphrase(text)) for text in texts}
            yield self._in_turn("paraphrases", list(self.reworded.values()), shares["paraphrases"])
        if shares.get("inversion"):
            rows = self._measured("inversion", results, ",prompt=invert" if ":" in self.inversion else ":prompt=invert")
            captions = {item.id: item.caption or "" for item in self.searched.pool.words()}
            self.fitted = {
                row["image_id"]: json.loads(row["components"] or "{}").get("prompt") or captions[row["image_id"]]
                for row in rows if row["status"] == "ok"
            }  # fmt: skip
            yield self._in_turn("inversion", [[text] for text in self.fitted.values()], shares["inversion"])
        if MEASURE in self.search:
            self._measured(MEASURE, results, "")

    def summarize(self, results: Results, arms: tuple[ArmPlace, ...]) -> ClaimSummary:
        """Images of arms that were not looked at yet are held against works and decoys."""
        folders = {name: one.made.run.path for name, one in results.items() if one.made is not None}
        if not folders:
            raise UsageError("None of the searches could be made.")
        root = next(iter(folders.values())).parent
        self.searched.open(root)
        for name, folder in folders.items():
            if name not in self.searched.candidates:
                images = images_of(folder)
                self.searched.look(name, images, read_log(images, folder, None)[0], self._wordings(name))
        return self.searched.summary(
            self.target.name, root, lambda places: self._open(places, folders), arms=arms or _places(folders)
        )

    def _wordings(self, name: str) -> dict[str, list[int]] | None:
        """Prompt -> units that it is for; None where it is their caption."""
        found: dict[str, list[int]] = {}
        units = self.searched.units
        if name == "paraphrases":
            of_caption = self.searched.of_caption()
            for text, others in self.reworded.items():
                for other in others:
                    found.setdefault(plain(other), []).extend(of_caption.get(plain(text), []))
        elif name == "inversion":
            for key, text in self.fitted.items():
                if key in units.of:
                    found.setdefault(plain(text), []).append(units.of[key])
        else:
            return None
        return {text: list(dict.fromkeys(of)) for text, of in found.items()}

    def _captions(self) -> list[str]:
        """The distinct captions of works and decoys."""
        texts: dict[str, str] = {}
        without = {"works": 0, "decoys": 0}
        for item in self.searched.pool.words():
            if item.caption is None:
                without["works" if item.id.startswith(WORK) else "decoys"] += 1
            else:
                texts.setdefault(plain(item.caption), item.caption)
        if without["works"] == len(self.searched.works):
            raise UsageError(
                "No work has a caption, and this model is asked by prompts: put them beside the pictures (NAME.txt) or into "
                "metadata.csv (file_name, text)."
            )
        self.searched.notes += [
            f"{number:,} of the {kind} have no caption, so that no image was made for them."
            for kind, number in without.items() if number
        ]  # fmt: skip
        return list(texts.values())

    def _arm(
        self, name: str, prompts: Sequence[Prompt], images: int, work: Sequence[tuple[Prompt, int]] | None = None
    ) -> Arm:
        settings = self.settings.model_copy(update={"images_per_prompt": images})
        return Arm(name, lambda: self.target, prompts, settings, place=name, work=work)

    def _in_turn(self, name: str, wordings: Sequence[Sequence[str]], images: int) -> Arm:
        """An arm in which each list of wordings gets the same number of images, its wordings in turn."""
        work: dict[tuple[str, int], tuple[Prompt, int]] = {}
        for texts in wordings:
            for place in range(images if texts else 0):
                prompt, draw = _prompt(texts[place % len(texts)]), place // len(texts)
                work[prompt.id, draw] = (prompt, draw)
        prompts = {prompt.id: prompt for prompt, _ in work.values()}
        return self._arm(name, list(prompts.values()), images, list(work.values()))

    def _measured(self, name: str, results: Results, more: str) -> list[dict[str, Any]]:
        """InvMM of every work and decoy; its evidence is a test of its own."""
        made = next((one.made for one in results.values() if one.made is not None), None)
        if made is None:
            raise UsageError(f"The search '{name}' goes with others: add captions, such as --search captions,{name}.")
        searched, folder = self.searched, made.run.path.parent / f"{name}-measure"
        measure(
            self.target,
            searched.pool,
            [self.inversion + more],
            out=folder,
            seed=self.settings.seed,
            silent=searched.silent,
        )
        rows: list[dict[str, Any]] = RunStore(folder).read("measures").to_pylist()
        found = Tested(f"{name}: {self.inversion}")
        for row in rows:
            unit = searched.units.of.get(row["image_id"])
            if unit is not None and row["evidence"] is not None:
                found.value[unit] = max(row["evidence"], found.value.get(unit, -math.inf))
        searched.measures.append(found)
        failed = [row["error"] for row in rows if row["status"] == "error"]
        if failed:
            searched.notes.append(f"InvMM has no value for {count(len(failed), 'picture')}: {failed[0]}")
        return rows

    def _open(
        self, places: Sequence[Place], folders: Mapping[str, Path]
    ) -> dict[Place, tuple[Image.Image | None, dict[str, Any]]]:
        """Images of the arms, with what it takes to make them again."""
        found: dict[Place, tuple[Image.Image | None, dict[str, Any]]] = {}
        for name, folder in folders.items():
            wanted = {place[1] for place in places if place[0] == name}
            store = RunStore(folder)
            keys = {
                f"{row['prompt_id']}/{row['draw']}": row
                for row in store.read("images", ["key", "prompt_id", "draw"]).to_pylist()
                if f"{row['prompt_id']}/{row['draw']}" in wanted
            }
            texts = {row["prompt_id"]: row["text"] for row in store.read("prompts").to_pylist()} if keys else {}
            png = read_pngs(store, {row["key"] for row in keys.values()})
            for image, row in keys.items():
                about = {
                    "prompt": texts[row["prompt_id"]], "draw": row["draw"], "root_seed": self.settings.seed,
                    "sampling": self.settings.sampling.model_dump(mode="json"),
                    "model": {"name": self.target.name, "fingerprint": self.target.fingerprint},
                }  # fmt: skip
                found[name, image] = (decode_png(png[row["key"]]), about)
        return found


def _prompt(text: str) -> Prompt:
    return Prompt(text_hash(text), text, problem=None if text.strip() else "empty prompt")


def _places(folders: Mapping[str, Path]) -> tuple[ArmPlace, ...]:
    return tuple(ArmPlace(name=name, place=name) for name in folders)
