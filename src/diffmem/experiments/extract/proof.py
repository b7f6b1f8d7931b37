"""The proof of an extraction: both pictures and everything that it takes to make and to judge the image again."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from diffmem.atomic import read_json, write_atomic
from diffmem.copies.calibration import CopyThreshold
from diffmem.copies.descriptors.base import Descriptor
from diffmem.copies.index import CopyIndex
from diffmem.copies.match import match
from diffmem.copies.rule import CopyRule
from diffmem.data.png import decode_png, png_bytes
from diffmem.errors import DataError, IncompatibleRun
from diffmem.experiments.extract.summary import STATUS
from diffmem.models.generation import Sampling
from diffmem.models.target import Target
from diffmem.report.stored import read_pngs
from diffmem.runs.directory import RunDirectory
from diffmem.runs.provenance import provenance
from diffmem.stages.generate import Generation

FOLDER = "extracted"
PROOF = "proof.json"
NEEDED = ("prompt", "draw", "root_seed", "sampling", "model")


@dataclass(frozen=True)
class Circumstances:
    """What all extractions of a run have in common.

    Attributes:
        target: the model.
        settings: root seed and sampling.
        descriptor: how images were compared.
        edge: similarity that joined two images.
        index: of the training set, or None.
        threshold: from which its nearest training image counts as matched, or None.
    """

    target: Target
    settings: Generation
    descriptor: Descriptor
    edge: float
    index: CopyIndex | None
    threshold: CopyThreshold | None = None

    def as_dict(self) -> dict[str, Any]:
        """As plain values, in each proof: a proof stands alone."""
        metric = self.descriptor.metric
        return {
            "root_seed": self.settings.seed,
            "sampling": self.settings.sampling.model_dump(mode="json"),
            "model": {"name": self.target.name, "fingerprint": self.target.fingerprint},
            "descriptor": {"name": self.descriptor.name, "recipe": self.descriptor.recipe,
                           "distance": metric.kind, "tiles": metric.tiles},
            "edge": self.edge,
            "train_images": None if self.index is None else len(self.index),
            "versions": provenance().model_dump(mode="json"),
        }  # fmt: skip


def prove(run: RunDirectory, rows: list[dict[str, Any]], about: Circumstances) -> None:
    """Write each extraction's pictures and facts; with a training set, its nearest image too, whose columns rows get.

    `extracted/0001/` holds the surest: generated.png, training.png where there is one, and proof.json. Proofs of an
    earlier call (another edge, another training set) make way.
    """
    shutil.rmtree(run.path / FOLDER, ignore_errors=True)
    png = read_pngs(run.store, {bytes.fromhex(row["image_key"]) for row in rows})
    common = about.as_dict()
    for row in rows:
        folder = run.path / FOLDER / f"{row['rank']:04d}"
        own = png[bytes.fromhex(row["image_key"])]
        write_atomic(folder / "generated.png", own)
        proof = {"generated": {"file": "generated.png", "sha256": hashlib.sha256(own).hexdigest()}}
        if about.index is not None:
            proof |= _nearest(row, own, about.index, about.threshold, folder)
        text = json.dumps(row | proof | common, indent=1, ensure_ascii=False)
        write_atomic(folder / PROOF, text.encode("utf-8", errors="backslashreplace"))


def _nearest(
    row: dict[str, Any], png: bytes, index: CopyIndex, threshold: CopyThreshold | None, folder: Path
) -> dict[str, Any]:
    (nearest,) = match([decode_png(png)], index)
    if threshold is not None:
        row["status"] = STATUS[CopyRule(threshold.statistic, threshold.value).decide(nearest)]
    row |= {
        "train_id": nearest.train_id, "train_rank": nearest.rank, "train_similarity": nearest.similarity,
        "train_distance": nearest.distance, "ratio": nearest.ratio, "normalised": nearest.normalised,
    }  # fmt: skip
    if nearest.alignment is not None:
        row |= {"verified": nearest.verified, "view": nearest.view, "alignment": nearest.alignment.as_dict()}
    item = index.image(nearest.train_id)
    if item.image is None:
        return {"training": {"file": None, "digest": item.digest, "problem": item.problem}}
    write_atomic(folder / "training.png", png_bytes(item.image))
    return {"training": {"file": "training.png", "digest": item.digest, "problem": None}}


def remake(proof: Mapping[str, Any] | str | Path, target: Target) -> Image.Image:
    """Make an extracted image again, from its proof and the model alone.

    Args:
        proof: proof.json, its folder, or what it holds.
        target: the model that it was extracted from.

    Returns:
        The image; on the same hardware and versions it is generated.png, elsewhere up to rounding.

    Raises:
        DataError: no proof there, or one that lacks what it takes.
        IncompatibleRun: another model.
    """
    facts = dict(proof) if isinstance(proof, Mapping) else _read(Path(proof))
    lacking = [name for name in NEEDED if name not in facts]
    if lacking:
        raise DataError(f"The proof lacks {', '.join(lacking)}: run the extraction again, its images are kept.")
    if facts["model"]["fingerprint"] != target.fingerprint:
        raise IncompatibleRun(
            f"The image was extracted from {facts['model']['name']} ({facts['model']['fingerprint'][:12]}), but this is "
            f"{target.name} ({target.fingerprint[:12]}): open the same weights (and LoRA, and type)."
        )
    sampling = Sampling.model_validate(facts["sampling"])
    return target.generate([facts["prompt"]], [facts["draw"]], facts["root_seed"], sampling)[0]


def _read(path: Path) -> dict[str, Any]:
    file = path / PROOF if path.is_dir() else path
    try:
        return dict(read_json(file))
    except (OSError, ValueError, TypeError) as problem:
        raise DataError(
            f"'{file}' is no proof of an extraction ({problem}); expected {FOLDER}/NNNN/{PROOF}."
        ) from problem
