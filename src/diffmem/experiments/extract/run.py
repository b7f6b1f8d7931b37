"""Extraction: many images per prompt, cliques of alike ones, and with a training set the proof of each."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from diffmem.copies.descriptors import make_descriptor
from diffmem.copies.descriptors.base import Descriptor
from diffmem.copies.extraction import CLIQUE, Extraction, extract, false_edges
from diffmem.data.images import ImageSet, load_images
from diffmem.data.png import decode_png
from diffmem.data.prompts import PromptList, load_prompts
from diffmem.errors import DataError, UsageError
from diffmem.evaluation.estimate import Estimate
from diffmem.experiments.extract.proof import Circumstances, prove
from diffmem.models.target import Target
from diffmem.runs.directory import RunDirectory
from diffmem.runs.facts import write_fact
from diffmem.runs.progress import Progress
from diffmem.runs.store import RunStore
from diffmem.stages.generate import Generation, generate_stage
from diffmem.stages.match.stage import build_index

_LOOKED_AT = 64


@dataclass
class ExtractionResult:
    """What was extracted.

    Attributes:
        run: the run directory; `extracted/` in it holds one folder per extraction with its pictures and proof.json.
        rows: one per extraction, surest first: "rank", "prompt_id", "prompt", "draw", "seed", "size", "of",
            "mean_similarity", "exact", "draws", and of the nearest training image, with one, "train_id", "train_rank" (1),
            "train_similarity", "train_distance" (in the descriptor's metric), "ratio" and "normalised".
        prompts: prompts whose images were compared.
        edge: similarity that joined two images.
        false_edges: how often images of different prompts were joined.
        notes: what a reader must know.
    """

    run: RunDirectory
    rows: list[dict[str, Any]] = field(default_factory=list)
    prompts: int = 0
    edge: float = 0.0
    false_edges: Estimate = field(default_factory=lambda: Estimate.missing("no images"))
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {
            "extractions": self.rows, "prompts": self.prompts, "edge": self.edge,
            "false_edges": asdict(self.false_edges), "notes": self.notes,
        }  # fmt: skip


def extract_images(
    target: Target,
    prompts: PromptList | str | Path | Sequence[str],
    settings: Generation | None = None,
    train: ImageSet | str | Path | None = None,
    *,
    out: str | Path | None = None,
    descriptor: str = "l2-tiled",
    descriptor_options: Mapping[str, Any] | None = None,
    edge: float | None = None,
    smallest: int = CLIQUE,
    retry_errors: bool = False,
    silent: bool = True,
) -> ExtractionResult:
    """Extract images that a model has memorized, from prompts alone (Carlini et al., USENIX Security 2023, §4.2).

    Args:
        target: the model; its own pipeline makes the images.
        prompts: a list of prompts, a file, or a PromptList.
        settings: images per prompt (the paper: 500), seed, sampling.
        train: training images to prove extractions against; they play no part in finding them.
        out: run directory; the same call goes on where it left, and images that are there serve any edge.
        descriptor: how images are compared; l2-tiled is the paper's.
        descriptor_options: of the descriptor's class.
        edge: similarity that joins two images; by default the descriptor's customary one (l2-tiled: distance .15),
            uncalibrated: `false_edges` says what it is worth here.
        smallest: members of a clique (the paper: 10).
        retry_errors: make images again that ended in an error.
        silent: no progress on stderr.

    Raises:
        UsageError: fewer images per prompt than a clique takes.
    """
    settings = settings or Generation(draws=100)
    if settings.draws < smallest:
        raise UsageError(
            f"{settings.draws} images per prompt cannot hold a clique of {smallest}: make more (--images) or ask for "
            "smaller cliques (--clique)."
        )
    listed = prompts if isinstance(prompts, PromptList) else load_prompts(prompts)
    fingerprints = {"model": target.fingerprint, "prompts": listed.fingerprint}
    run = RunDirectory(out, {"generate": settings.model_dump(mode="json")}, fingerprints)
    made = generate_stage(target, listed, settings, run, None, retry_errors, silent)
    result = ExtractionResult(run, notes=made.notes)
    known = None if train is None else load_images(train)
    maker = make_descriptor(descriptor, known or _some_images(run.store), **(descriptor_options or {}))
    result.edge = maker.copy_similarity if edge is None else edge
    result.rows = _search(run.store, maker, smallest, settings.seed, result, silent)
    texts = {prompt.id: prompt.text for prompt in listed}
    for row in result.rows:
        row["prompt"] = texts[row["prompt_id"]]
    index = None if known is None else build_index(known, maker, run.path / "index" / maker.name, silent)
    prove(run, result.rows, Circumstances(target, settings, maker, result.edge, index))
    write_fact(run.path, "extraction", result.as_dict() | {"descriptor": maker.name, "smallest": smallest})
    return result


def _search(
    store: RunStore, maker: Descriptor, smallest: int, seed: int, result: ExtractionResult, silent: bool
) -> list[dict[str, Any]]:
    """The extractions of all prompts, surest first. Vectors of all images lie in a temporary file, not in memory."""
    about: list[Any] = []
    found: list[Any] = []
    count = store.read("images", ["key"]).num_rows
    with tempfile.TemporaryDirectory(prefix="diffmem-") as folder:
        vectors: np.ndarray | None = None
        for rows in _batches(store):
            described = maker.describe([decode_png(row["png"]) for row in rows])
            if vectors is None:
                shape = (count, described.shape[1])
                vectors = np.lib.format.open_memmap(Path(folder, "vectors.npy"), "w+", np.float32, shape)
            vectors[len(about) : len(about) + len(rows)] = described
            about += [{name: row[name] for name in ("key", "prompt_id", "draw", "seed")} for row in rows]
        if vectors is None:
            result.notes.append("no image could be compared: all failed or were degenerate")
            return []
        names = np.array([row["prompt_id"] for row in about])
        result.false_edges = false_edges(vectors[: len(about)], names, maker.metric, result.edge, seed=seed)
        places = {name: np.flatnonzero(names == name) for name in dict.fromkeys(names)}
        result.prompts = len(places)
        with Progress(len(places), "searching", unit="prompts", silent=silent) as bar:
            for at in places.values():
                at = at[np.argsort([about[i]["draw"] for i in at])]
                for one in extract(np.asarray(vectors[at]), maker.metric, result.edge, smallest):
                    found.append(_row(one, [about[i] for i in at]))
                bar.advance(1)
        del vectors
    found.sort(key=lambda row: (-row["size"] / row["of"], -row["mean_similarity"], row["prompt_id"], row["draw"]))
    return [{"rank": rank} | row for rank, row in enumerate(found, start=1)]


def _row(one: Extraction, about: Sequence[dict[str, Any]]) -> dict[str, Any]:
    shown = about[one.medoid]
    return {
        "prompt_id": shown["prompt_id"], "draw": shown["draw"], "seed": shown["seed"], "size": len(one.members),
        "of": one.of, "mean_similarity": one.mean_similarity, "exact": one.exact,
        "draws": [about[i]["draw"] for i in one.members], "image_key": shown["key"].hex(),
    }  # fmt: skip


def _batches(store: RunStore) -> Iterator[list[dict[str, Any]]]:
    """Images that can be compared, a bounded number at a time."""
    for table in store.stream("images", ["key", "prompt_id", "draw", "seed", "png", "degenerate", "status"]):
        for start in range(0, table.num_rows, _LOOKED_AT):
            rows = table.slice(start, _LOOKED_AT).to_pylist()
            if sound := [row for row in rows if row["status"] == "ok" and not row["degenerate"]]:
                yield sound


def _some_images(store: RunStore) -> ImageSet:
    """The first images of a run, for descriptors that fit themselves to a set."""
    rows = next(_batches(store), None)
    if rows is None:
        raise DataError("No image of this run can be compared: all failed or are black or constant.")
    return load_images([decode_png(row["png"]) for row in rows])
