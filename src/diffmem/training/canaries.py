"""Image canaries: unique synthetic pictures put into a training set at known counts, registered before training."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from diffmem.copies.descriptors import PIXEL_DESCRIPTOR, make_descriptor
from diffmem.copies.index import CopyIndex
from diffmem.copies.neighbors import top_k
from diffmem.data.canaries import Canary, Registration, pixel_hash
from diffmem.data.canary_pictures import draw_picture, known_phrases, phrases
from diffmem.data.images import ImageSet, as_images
from diffmem.errors import UsageError
from diffmem.notebook import is_silent
from diffmem.randomness import seed_of
from diffmem.stages.match.stage import build_index
from diffmem.training.data import captions_in

TRIES = 300
_LOOKED_AT = 256


class CanaryPlan(BaseModel):
    """How many canaries, how often each, how far apart."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    counts: tuple[int, ...] = Field((1, 2, 4, 8, 16), min_length=1, description="how often a canary is in the data")
    per_count: int = Field(8, ge=1, description="canaries of each count")
    controls: int = Field(40, ge=2, description="drawn and registered alike, never in the data")
    coins: int = Field(0, ge=0, description="canaries of which a fair coin each decides whether it is in the data")
    coin_count: int = Field(1, ge=1, description="how often such a canary is in the data, if it is")
    words: Literal["made-up", "dataset"] = Field("made-up", description="of the captions")
    apart: float | None = Field(None, gt=0, description="least distance; default 1.5 times that of a copy")
    seed: int = 0


@dataclass(frozen=True)
class Drawn:
    """A registration and its pictures by id."""

    registration: Registration
    pictures: dict[str, Image.Image]


def draw_canaries(dataset: ImageSet | str | Path, plan: CanaryPlan, silent: bool | None = None) -> Drawn:
    """Draw canaries and negative controls by one process, then give them their counts at random.

    Every picture keeps at least the distance `apart` to all others and to the whole dataset, so that a model that has
    not seen it has no way to it; counts are dealt out after all are drawn, so that controls and canaries differ by
    nothing but training.

    Args:
        dataset: the pictures that the model will be trained on; size and mode are theirs.
        plan: counts, number of controls, seed.
        silent: no progress on stderr; by default progress shows in notebooks only.

    Raises:
        UsageError: counts that repeat or are below 1, or no room for so many pictures so far apart.
    """
    silent = is_silent(silent)
    if min(plan.counts) < 1 or len(set(plan.counts)) < len(plan.counts):
        raise UsageError(f"Counts {', '.join(map(str, plan.counts))}; expected different numbers of at least 1.")
    images = as_images(dataset)
    size, mode = size_and_mode(images)
    descriptor = make_descriptor(PIXEL_DESCRIPTOR, images)
    apart = 1.5 * (1 - descriptor.copy_similarity) if plan.apart is None else plan.apart
    total = len(plan.counts) * plan.per_count + plan.controls + plan.coins
    pictures, nearest = _distinct(build_index(images, descriptor, None, silent), size, mode, total, apart, plan.seed)
    captions = captions_in(images)
    made = (phrases if plan.words == "made-up" else known_phrases)(plan.seed, captions)
    roles = [(count, False) for count in plan.counts for _ in range(plan.per_count)] + [(0, False)] * plan.controls
    tossed = np.random.default_rng(seed_of(plan.seed, "canary coins")).random(plan.coins) < 0.5
    roles += [(plan.coin_count * int(heads), True) for heads in tossed]
    order = np.random.default_rng(seed_of(plan.seed, "canary roles")).permutation(total)
    canaries = tuple(
        Canary(
            f"canary-{i:04d}",
            roles[order[i]][0],
            next(made),
            pixel_hash(picture),
            round(float(nearest[i]), 4),
            roles[order[i]][1],
        )
        for i, picture in enumerate(pictures)
    )
    facts: dict[str, Any] = {
        "size": list(size), "mode": mode, "dataset": images.name, "images": len(images),
        "dataset_hash": images.fingerprint, "descriptor": descriptor.name, "recipe": descriptor.recipe,
        "apart": apart, "words": plan.words, **({"coin_count": plan.coin_count} if plan.coins else {}),
    }  # fmt: skip
    created = datetime.now(UTC).isoformat(timespec="seconds")
    registration = Registration(canaries, plan.seed, created, facts)
    return Drawn(registration, {c.id: picture for c, picture in zip(canaries, pictures, strict=True)})


def size_and_mode(images: ImageSet) -> tuple[tuple[int, int], str]:
    """The most frequent size and mode of the first pictures of a set."""
    found = Counter((i.image.size, i.image.mode) for i in images.items(0, _LOOKED_AT) if i.image is not None)
    if not found:
        raise UsageError(f"None of the first {_LOOKED_AT} pictures of {images.name} can be read; give pictures.")
    (size, mode), _ = found.most_common(1)[0]
    return size, mode


def _distinct(
    index: CopyIndex, size: tuple[int, int], mode: str, total: int, apart: float, seed: int
) -> tuple[list[Image.Image], np.ndarray]:
    """Pictures that keep a distance to the dataset and to one another, and each one's least distance."""
    pictures: list[Image.Image] = []
    vectors = np.empty((0, index.vectors.shape[1]), np.float32)
    to_data: list[float] = []
    turn = refused = 0
    while len(pictures) < total:
        if refused == TRIES:
            raise UsageError(
                f"After {len(pictures)} of {total} canaries no picture is {apart:.3g} from all others and from the dataset "
                f"({TRIES} tries): ask for fewer canaries or a smaller distance (--apart)."
            )
        image = draw_picture(size, mode, seed, turn)
        turn += 1
        vector = index.describe([image])
        similarity, _ = top_k(vector, index.vectors, 1, index.metric)
        distance = float(index.metric.distance(similarity[0, 0]))
        others = (
            index.metric.exact(np.repeat(vector, len(vectors), 0), vectors) if len(vectors) else np.array([-np.inf])
        )
        if min(distance, float(index.metric.distance(others.max()))) < apart:
            refused += 1
            continue
        refused = 0
        pictures.append(image)
        to_data.append(distance)
        vectors = np.concatenate([vectors, vector])
    similarity, _ = top_k(vectors, vectors, 1, index.metric, groups=np.arange(total), exclude=np.arange(total))
    return pictures, np.minimum(index.metric.distance(similarity[:, 0]), to_data)
