"""Extraction: many images per prompt, cliques of alike ones, and with a training set the proof of each."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from diffmem.copies.calibration import CopyThreshold, calibrate
from diffmem.copies.descriptors import PIXEL_DESCRIPTOR, make_descriptor
from diffmem.copies.descriptors.base import Descriptor
from diffmem.copies.extraction import (
    CLIQUE,
    Extraction,
    edges_within,
    extract,
    false_edges,
    pairwise,
    share_of_free_pairs,
)
from diffmem.copies.extraction import (
    DOUBTFUL as DOUBTFUL_SHARE,
)
from diffmem.copies.index import CopyIndex
from diffmem.data.images import ImageSet, as_images
from diffmem.data.png import decode_png
from diffmem.data.prompts import PromptList
from diffmem.errors import DataError, UsageError
from diffmem.evaluation.estimate import Estimate
from diffmem.evaluation.text_alignment import TextAlignment
from diffmem.experiments._arm import Arm, Options, Reference
from diffmem.experiments._experiment import Experiment, Results, run_experiment
from diffmem.experiments._run import Run
from diffmem.experiments._verdict import of_extractions
from diffmem.experiments.extract.proof import Circumstances, prove
from diffmem.experiments.extract.summary import DOUBTFUL, EXTRACTED, MATCHED, UNJUDGED, ExtractSummary, headline
from diffmem.models.target import Target
from diffmem.notebook import is_silent
from diffmem.runs.directory import RunDirectory
from diffmem.runs.progress import Progress
from diffmem.runs.store import RunStore
from diffmem.runs.summary import ArmPlace
from diffmem.stages.fit import fit_once
from diffmem.stages.generate import Generation
from diffmem.stages.match.stage import build_index
from diffmem.stages.samples import prompts_or_samples

_LOOKED_AT = 64
FPR = 0.01
"""Nominal rate at which an image of no training picture is called a copy, with a training set."""
ARM = "extract"


def extract_images(
    target: Target,
    prompts: PromptList | str | Path | Sequence[str] | None = None,
    settings: Generation | None = None,
    train: ImageSet | str | Path | None = None,
    *,
    samples: int | None = None,
    out: str | Path | None = None,
    descriptor: str = PIXEL_DESCRIPTOR,
    descriptor_options: Mapping[str, Any] | None = None,
    edge: float | None = None,
    smallest: int = CLIQUE,
    retry_errors: bool = False,
    shard: tuple[int, int] | None = None,
    silent: bool | None = None,
) -> Run:
    """Extract images that a model has memorized, from prompts alone (Carlini et al., USENIX Security 2023, §4.2).

    Args:
        target: the model; its own pipeline makes the images.
        prompts: a list of prompts, a file, or a PromptList; None for a model that takes none.
        settings: images per prompt (the paper: 500), seed, sampling.
        train: training images to prove extractions against; they play no part in finding them.
        samples: for a model that takes no prompts: how many images to make, in place of the settings' images per prompt.
        out: run directory; the same call goes on where it left, and images that are there serve any edge.
        descriptor: how images are compared; l2-tiled is the paper's.
        descriptor_options: of the descriptor's class.
        edge: similarity that joins two images; by default the descriptor's customary one (l2-tiled: distance .15),
            uncalibrated: `false_edges` says what it is worth here.
        smallest: members of a clique (the paper: 10).
        retry_errors: make images again that ended in an error.
        shard: (i, n): only this part of the prompts, without a summary; the call without it finishes.
        silent: no progress on stderr; by default progress shows in notebooks only.

    Returns:
        The run; `run.summary.extractions` has one row per extraction, and `extracted/` in its folder one folder with its
        pictures and proof.json.

    Raises:
        UsageError: fewer images per prompt than a clique takes.

    Examples:
        >>> import diffmem as dm
        >>> network = dm.Target.from_callable(lambda x, t, cond: x * 0, (1, 8, 8), steps=2, device="cpu")
        >>> run = dm.extract(network, samples=12, smallest=3)
        >>> run.verb, run.table("images").num_rows
        ('extract', 12)
    """
    silent = is_silent(silent)
    # Cliques are looked for within a prompt: all samples are one.
    listed = prompts_or_samples(target, prompts, None if samples is None else 1)
    settings = settings or Generation(images_per_prompt=100)
    if samples is not None:
        settings = settings.model_copy(update={"images_per_prompt": samples})
    if settings.images_per_prompt < smallest:
        raise UsageError(
            f"{settings.images_per_prompt} images per prompt cannot hold a clique of {smallest}: make more "
            "(--images-per-prompt) or ask for smaller cliques (--clique)."
        )
    known = None if train is None else as_images(train)
    experiment = ExtractExperiment(
        target,
        listed,
        settings,
        known,
        descriptor,
        dict(descriptor_options or {}),
        edge,
        smallest,
        silent,
    )
    return run_experiment(experiment, out, Options(retry_errors, silent, shard))


@dataclass
class ExtractExperiment(Experiment[ExtractSummary]):
    """One arm whose images are compared with each other; training images prove what was found."""

    target: Target
    prompts: PromptList
    settings: Generation
    train: ImageSet | None
    descriptor: str
    descriptor_options: Mapping[str, Any]
    edge: float | None
    smallest: int
    silent: bool
    reference: Reference | None = None
    judge: TextAlignment | None = None

    describes: ClassVar[bool] = False

    def identity(self) -> tuple[Mapping[str, Any], Mapping[str, str]]:
        """The arm has no folder of its own."""
        return {}, {}

    def arms(self, results: Results) -> Iterator[Arm]:
        """The only one."""
        yield Arm(
            ARM, lambda: self.target, self.prompts.prompts, self.settings,
            fingerprints={"prompts": self.prompts.fingerprint}, before=lambda run, target: fit_once(target, self.train, run),
        )  # fmt: skip

    def summarize(self, results: Results, arms: tuple[ArmPlace, ...]) -> ExtractSummary:
        """The cliques, each proved in `extracted/`."""
        made = results[ARM].made
        assert made is not None and made.generation is not None
        run: RunDirectory = made.run
        maker = make_descriptor(self.descriptor, self.train or _some_images(run.store), **self.descriptor_options)
        found = _Found(maker.copy_similarity if self.edge is None else self.edge)
        rows = _search(run.store, maker, self.smallest, self.settings.seed, found, self.silent)
        texts = {prompt.id: prompt.text for prompt in self.prompts}
        for row in rows:
            row["prompt"] = texts[row["prompt_id"]]
        index: CopyIndex | None = None
        threshold: CopyThreshold | None = None
        if self.train is not None:
            index = build_index(self.train, maker, run.path / "index" / maker.name, self.silent)
            threshold = calibrate(index, None, FPR, 1, None)
        prove(run, rows, Circumstances(self.target, self.settings, maker, found.edge, index, threshold))
        notes = [*made.before, *made.generation.notes, *found.notes, *_of_threshold(threshold)]
        counts = Counter(row["status"] for row in rows)
        undecided = counts[DOUBTFUL] + counts[UNJUDGED]
        verdict = of_extractions(
            len(rows) - undecided, counts[MATCHED], found.prompts, None if threshold is None else asdict(threshold), undecided
        )  # fmt: skip
        return ExtractSummary(
            verdict=verdict, headline=headline(rows, found.prompts, self.train is not None), arms=arms,
            notes=tuple(dict.fromkeys(notes)), model=self.target.name,
            extractions=tuple(rows), prompts=found.prompts, edge=found.edge, smallest=self.smallest, descriptor=maker.name,
            false_edges=asdict(found.false_edges), edges_within=asdict(found.edges_within),
            train_images=None if index is None else len(index),
            limits=(
                "A set of images that are all alike is a sign of memorization, and no proof: a prompt may allow one picture "
                "only. What proves it is a training image beside it (--train).",
                "What these prompts and seeds did not give may come from others.",
            ),
        )  # fmt: skip


def _of_threshold(threshold: CopyThreshold | None) -> list[str]:
    """What a reader must know of the threshold at which a training image counts as matched."""
    return [threshold.note] if threshold is not None and threshold.note else []


@dataclass
class _Found:
    """What the search says beside its rows."""

    edge: float
    prompts: int = 0
    false_edges: Estimate = field(default_factory=lambda: Estimate.missing("no images"))
    edges_within: Estimate = field(default_factory=lambda: Estimate.missing("no images"))
    notes: tuple[str, ...] = ()


def _search(
    store: RunStore, maker: Descriptor, smallest: int, seed: int, result: _Found, silent: bool
) -> list[dict[str, Any]]:
    """The extractions of all prompts, surest first. Vectors of all images lie in a temporary file, not in memory."""
    about: list[Any] = []
    found: list[Any] = []
    within: list[float | None] = []
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
            result.notes = ("no image could be compared: all failed or were degenerate",)
            return []
        names = np.array([row["prompt_id"] for row in about])
        result.false_edges = false_edges(vectors[: len(about)], names, maker.metric, result.edge, seed=seed)
        places = {name: np.flatnonzero(names == name) for name in dict.fromkeys(names)}
        result.prompts = len(places)
        with Progress(len(places), "searching", unit="prompts", silent=silent) as bar:
            for at in places.values():
                at = at[np.argsort([about[i]["draw"] for i in at])]
                own = np.asarray(vectors[at])
                cliques = extract(own, maker.metric, result.edge, smallest)
                within.append(share_of_free_pairs(pairwise(own, maker.metric) >= result.edge, cliques))
                for one in cliques:
                    found.append(_row(one, [about[i] for i in at]))
                bar.advance(1)
        del vectors
    result.edges_within = edges_within(within)
    low = result.edges_within.low
    for row in found:
        # Where images of one prompt are alike whatever the prompt, a set of them says nothing of memorization; and where
        # each prompt has alike images only, nothing says whether that is so.
        if low is None or low > DOUBTFUL_SHARE:
            row["status"] = UNJUDGED if low is None else DOUBTFUL
    found.sort(
        key=lambda row: (
            row["status"] != EXTRACTED,
            -row["size"] / row["of"],
            -row["mean_similarity"],
            row["prompt_id"],
            row["draw"],
        )
    )
    return [{"rank": rank} | row for rank, row in enumerate(found, start=1)]


def _row(one: Extraction, about: Sequence[dict[str, Any]]) -> dict[str, Any]:
    shown = about[one.medoid]
    return {
        "prompt_id": shown["prompt_id"], "draw": shown["draw"], "seed": shown["seed"], "size": len(one.members),
        "of": one.of, "mean_similarity": one.mean_similarity, "exact": one.exact,
        "draws": [about[i]["draw"] for i in one.members], "image_key": shown["key"].hex(), "outside": one.outside,
        "status": DOUBTFUL if one.is_doubtful else EXTRACTED,
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
    return as_images([decode_png(row["png"]) for row in rows])
