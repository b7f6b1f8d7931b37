"""Describing a set of images into an index, part by part, so that an interruption loses one part at most."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from diffmem.copies.degenerate import is_degenerate
from diffmem.copies.descriptors.base import Descriptor
from diffmem.copies.index_files import ITEMS, IndexState
from diffmem.data.fingerprint import hash_items
from diffmem.data.images import ImageItem, ImageSet
from diffmem.errors import DataError, IncompatibleRun

_PART_BYTES = 64 << 20


def describe_itself(descriptor: Descriptor) -> dict[str, Any]:
    """What an index keeps about the descriptor that made it, as JSON."""
    return {
        "name": descriptor.name,
        "fingerprint": descriptor.fingerprint,
        "recipe": descriptor.recipe,
        "metric": [descriptor.metric.kind, descriptor.metric.tiles],
        "duplicate_cut": descriptor.duplicate_cut,
        "copy_similarity": descriptor.copy_similarity,
        "statistic": descriptor.statistic,
        "misses": descriptor.misses,
    }


def fill(
    state: IndexState,
    images: ImageSet,
    descriptor: Descriptor,
    batch: int,
    part_rows: int | None,
    progress: Callable[[int], None] | None,
    first: bool,
) -> None:
    """Bring all images of a set into an index; those that it has already are compared by content hash and kept.

    Args:
        state: the index.
        images: the set.
        descriptor: makes the vectors.
        batch: images described at a time.
        part_rows: images per part; by default 64 MB of vectors.
        progress: called with the number of images after each batch.
        first: whether this is the set that the index began with, rather than one to be added.

    Raises:
        DataError: an id twice, or no image can be decoded.
        IncompatibleRun: the index has other images in this place.
    """
    number = _source_number(state, images, first)
    entry = state.meta["sources"][number]
    start = _compare(state, images, number)
    if entry["fingerprint"] is not None:
        return
    part = _Part(state, number, part_rows)
    waiting: list[ImageItem] = []
    for item in images.items(start):
        waiting.append(item)
        if len(waiting) == batch:
            part.extend(waiting, descriptor)
            if progress is not None:
                progress(len(waiting))
            waiting = []
    part.extend(waiting, descriptor)
    if progress is not None and waiting:
        progress(len(waiting))
    part.flush()
    if not state.meta["dimension"]:
        raise DataError(
            f"None of the {len(images)} images of {images.name} can be used; the first: {part.first_problem}."
        )
    mine = state.items.filter(pc.equal(state.items.column("source"), number))
    entry["fingerprint"] = hash_items(zip(*(mine.column(name).to_pylist() for name in ("id", "digest")), strict=True))
    state.save()


class _Part:
    """Described images that are not yet in the index."""

    def __init__(self, state: IndexState, source: int, rows: int | None) -> None:
        self.state, self.source, self.rows = state, source, rows
        self.items: list[dict[str, Any]] = []
        self.vectors: list[NDArray[np.float32]] = []
        self.views: list[tuple[int, str]] = []
        self.view_vectors: list[NDArray[np.float32]] = []
        self.first_problem: str | None = None

    def extend(self, batch: list[ImageItem], descriptor: Descriptor) -> None:
        """Describe a batch; what cannot be described is kept as a problem."""
        usable = [item for item in batch if item.image is not None]
        vectors = descriptor.describe([item.image for item in usable if item.image is not None]) if usable else None
        good = np.zeros(0, bool) if vectors is None else np.asarray(np.isfinite(vectors).all(axis=1), bool)
        finite = {item.id for item, fine in zip(usable, good, strict=True) if fine}
        for item in batch:
            problem = item.problem
            if problem is None and item.id not in finite:
                problem = "the descriptor of this image is not finite"
            self.first_problem = self.first_problem or (problem and f"'{item.id}', {problem}")
            self.items.append(
                {
                    "id": item.id,
                    "digest": item.digest,
                    "source": self.source,
                    "caption": item.caption,
                    "note": item.note,
                    "problem": problem,
                }
            )
        if vectors is not None:
            self._add_views([item for item, fine in zip(usable, good, strict=True) if fine], descriptor)
            self.vectors.append(vectors[good])
            full = self.rows or max(1, _PART_BYTES // (4 * vectors.shape[1]))
            if max(len(self.items), len(self.views)) >= full:
                self.flush()

    def _add_views(self, described: list[ImageItem], descriptor: Descriptor) -> None:
        """Describe each image's other views too; flat ones (a drawing without its alpha) are left out."""
        row = sum(map(len, self.vectors))
        for number, item in enumerate(described, start=row):
            views = [view for view in item.views()[1:] if is_degenerate(view.image) is None]
            if not views:
                continue
            vectors = descriptor.describe([view.image for view in views])
            finite = np.asarray(np.isfinite(vectors).all(axis=1), bool)
            self.views += [(number, view.name) for view, fine in zip(views, finite, strict=True) if fine]
            self.view_vectors.append(vectors[finite])

    def flush(self) -> None:
        """Hand over to the index; without a vector so far, problems wait for the first one."""
        dimension = self.vectors[0].shape[1] if self.vectors else self.state.meta["dimension"]
        if not self.items or not dimension:
            return
        vectors = np.concatenate([np.empty((0, dimension), np.float32), *self.vectors])
        of_views = np.concatenate([np.empty((0, dimension), np.float32), *self.view_vectors])
        self.state.add(vectors, pa.Table.from_pylist(self.items, schema=ITEMS), of_views, self.views)
        self.items, self.vectors, self.views, self.view_vectors = [], [], [], []


def _source_number(state: IndexState, images: ImageSet, first: bool) -> int:
    """Which of the index's sets this is: its first, its unfinished last, or a new one."""
    sources = state.meta["sources"]
    if first and len(sources) > 1:
        raise DataError(f"The index in '{state.path}' holds {len(sources)} image sets; load it instead of building it.")
    if sources and (first or sources[-1]["fingerprint"] is None):
        return len(sources) - 1
    known = set(state.items.column("id").to_pylist())
    twice = [key for key in images.ids if key in known]
    if twice:
        raise DataError(f"{len(twice)} ids of {images.name} are in the index already, for instance '{twice[0]}'.")
    path = None if images.path is None else str(images.path.resolve())
    sources.append(
        {"path": path, "column": images.column, "name": images.name, "fingerprint": None, "notes": images.notes}
        | ({} if images.shortlist is None else {"shortlist": dict(images.shortlist)})
    )
    return len(sources) - 1


def _compare(state: IndexState, images: ImageSet, number: int) -> int:
    """How many images of this set are in the index; raises IncompatibleRun if they are not its first ones."""
    mine = state.items.filter(pc.equal(state.items.column("source"), number))
    ids, digests = (mine.column(name).to_pylist() for name in ("id", "digest"))
    now = images.digests(0, len(ids))
    differing = next((key for key, digest in zip(ids, digests, strict=True) if next(now, None) != (key, digest)), None)
    finished = state.meta["sources"][number]["fingerprint"] is not None
    if differing is None and (not finished or len(ids) == len(images)):
        return len(ids)
    where = f"'{differing}' differs" if differing is not None else f"{len(ids)} images there, {len(images)} now"
    raise IncompatibleRun(
        f"The index in '{state.path}' was made of other images ({where}); give another folder, or delete it to index again."
    )
