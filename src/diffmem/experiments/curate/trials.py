"""The smallest change that brings an image below the held-out ones: each candidate measured before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from diffmem.copies.curation import Proposal
from diffmem.data.images import ImageSet
from diffmem.experiments.curate.changes import CANDIDATES, alter, size_of
from diffmem.models.model_image import convert, model_image
from diffmem.models.target import Target
from diffmem.randomness import seed_of
from diffmem.runs.store import RunStore
from diffmem.stages.measure.measure import measure
from diffmem.stages.measure.pixels import image_sha

LEAST = "least"
"""The alteration that stands for the smallest change that is enough."""


@dataclass(frozen=True)
class Trial:
    """One change of one image, measured.

    Attributes:
        image_id: of the image.
        change: as `alter` takes it.
        size: root-mean-square difference of the pixels, 0 to 1.
        before, after: the evidence of the image as it is and changed (higher = more memorized); None for an error.
        enough: whether it lies at or below the limit after the change.
    """

    image_id: str
    change: str
    size: float
    before: float | None
    after: float | None
    enough: bool

    def as_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def partner_of(images: ImageSet, image_id: str, seed: int) -> Image.Image | None:
    """The image that `mix` blends with: another one of the set, chosen by the seed; None if there is none that opens."""
    others = sorted((name for name in images.ids if name != image_id), key=lambda n: seed_of(seed, "mix", image_id, n))
    return next((item.image for name in others[:5] if (item := images.by_id(name)).image is not None), None)


def changed(images: ImageSet, image_id: str, image: Image.Image, change: str, seed: int) -> Image.Image:
    """An image of a set after a change, as it will be written."""
    other = partner_of(images, image_id, seed) if change.partition(":")[0] == "mix" else None
    return alter(image, change, seed_of(seed, "crop", image_id), other)


def try_changes(
    target: Target, images: ImageSet, proposals: Sequence[Proposal], limit: float, label: str, out: Path,
    seed: int = 0, silent: bool = True,
) -> tuple[list[Proposal], list[Trial]]:  # fmt: skip
    """Replace `least` in proposals by the smallest change that is enough, or by `drop` where none is.

    Args:
        target: the model that was measured.
        images: the training set.
        proposals: of `propose`.
        limit: the evidence above which an image counts as memorized.
        label: the score, as typed.
        out: folder of the measurement of the changed images, which the same call resumes.
        seed: of crops and of partners.
        silent: no progress.

    Returns:
        The proposals, and every trial, each image's smallest change first. Cost: `len(CANDIDATES)` measures per image.
    """
    wanted = {p.image_id: p for p in proposals if p.action == LEAST}
    variants: dict[str, Image.Image] = {}
    sizes: dict[str, tuple[str, str, float]] = {}
    captions: dict[str, str | None] = {}
    for name in wanted:
        item = images.by_id(name)
        if item.image is None:
            continue
        for change in CANDIDATES:
            picture = changed(images, name, item.image, change, seed)
            key = f"{change}/{name}"
            variants[key], captions[key] = picture, item.caption
            sizes[key] = (name, change, size_of(item.image, picture))
    if not variants:
        return list(proposals), []
    source = _written(out / "images", variants, captions)
    result = measure(target, source, [label], out=out / "run", trained=False, seed=seed, silent=silent)
    # Changed images of equal pixels are measured once.
    store, form = RunStore(result.run.path), model_image(target.need_denoiser())
    shas = {row["image_id"]: row["sha"] for row in store.read("targets", ["image_id", "sha"]).to_pylist()}
    rows = store.read("measures", ["image_id", "evidence", "status"]).to_pylist()
    found = {shas[row["image_id"]]: row["evidence"] for row in rows if row["status"] == "ok"}
    trials = []
    for key, (name, change, size) in sizes.items():
        after = found.get(image_sha(convert(variants[key], form)[0]))
        enough = after is not None and after <= limit
        trials.append(Trial(name, change, size, wanted[name].evidence, after, enough))
    order = {name: place for place, name in enumerate(wanted)}
    trials.sort(key=lambda t: (order[t.image_id], t.size))
    return [_decided(p, [t for t in trials if t.image_id == p.image_id]) for p in proposals], trials


def _decided(proposal: Proposal, trials: Sequence[Trial]) -> Proposal:
    if proposal.action != LEAST:
        return proposal
    best = next((trial for trial in trials if trial.enough), None)
    if best is None:
        reason = f"{proposal.reason}; none of {len(trials)} changes brings it below the limit"
        return replace(proposal, action="drop", reason=reason)
    reason = (
        f"{proposal.reason}; the smallest of {len(trials)} changes that is enough (RMS {best.size:.3f}): evidence "
        f"{best.before:.4g} before, {best.after:.4g} after"
    )
    return replace(proposal, action=best.change, reason=reason)


def _file(key: str) -> str:
    return f"{key.replace(':', '=')}.png"


def _written(folder: Path, variants: dict[str, Image.Image], captions: dict[str, str | None]) -> Path:
    """The changed images as a folder, which a measurement that is resumed finds again."""
    import json

    from diffmem.atomic import write_atomic
    from diffmem.data.png import png_bytes

    lines = []
    for key, picture in variants.items():
        write_atomic(folder / _file(key), png_bytes(picture))
        lines.append(json.dumps({"file_name": _file(key)} | ({"caption": captions[key]} if captions[key] else {})))
    write_atomic(folder / "metadata.jsonl", ("\n".join(lines) + "\n").encode())
    return folder
