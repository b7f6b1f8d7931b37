"""An index of the training images near some images, from a training set that streams past."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffmem.copies.degenerate import is_degenerate
from diffmem.copies.descriptors import DEFAULT_DESCRIPTOR, make_descriptor
from diffmem.copies.descriptors.base import Descriptor
from diffmem.copies.index import CopyIndex
from diffmem.copies.metrics import Floats
from diffmem.data.images import ImageSet, as_images, load_images
from diffmem.data.notes import say
from diffmem.data.shards import shards_of
from diffmem.runs.images import images_of
from diffmem.runs.runners import as_runner
from diffmem.runs.units import Runner
from diffmem.stages.match.stage import BATCH, build_index
from diffmem.stages.match.stream import KEPT, shortlist, stream_shards, work_of


def stream_index(
    images: Any,
    train: str | Path,
    folder: str | Path,
    *,
    heldout: Any = None,
    descriptor: str = DEFAULT_DESCRIPTOR,
    descriptor_options: Mapping[str, Any] | None = None,
    backend: str | None = None,
    shard: tuple[int, int] | None = None,
    runner: Runner | str | None = None,
    silent: bool = True,
) -> CopyIndex | None:
    """Search a training set of any size shard by shard, and index the images that are near; the same call goes on where it was.

    Args:
        images: to be matched: whatever `as_images` takes, a run or its folder.
        train: the training images, see `shards_of`.
        folder: keeps vectors (float16, for every later call with this descriptor) and results.
        heldout: images that no training has seen, for the threshold; they are searched alike.
        descriptor: how images are compared; one that is fitted to the training images is fitted to the first shard.
        descriptor_options: of its class.
        backend: of the search: None for numpy, "torch", "torch:cuda:1".
        shard: (i, n): only every n-th shard of the training set, from the i-th.
        runner: who does the shards, see `score`.
        silent: no progress on stderr.

    Returns:
        The index of the shortlist; None where other processes have not done their shards yet.

    Cost: every shard is read and described once per descriptor; q x N x D products per call.
    """
    place, listed = Path(folder), shards_of(train)
    with listed[0].images() as first:
        maker = make_descriptor(descriptor, first, **(descriptor_options or {}))
    sets = [images_of(images), *(() if heldout is None else (as_images(heldout),))]
    queries = np.concatenate([_described(one, maker) for one in sets])
    work = work_of(queries, maker, descriptor_options or {}, place, backend)
    if not stream_shards(listed, work, as_runner(runner), shard, silent):
        return None
    kept = shortlist(listed, work)
    if kept.unproven:
        say(
            f"{kept.unproven} of {len(queries)} images have {KEPT} training images within rounding of their nearest one; another "
            "of these may be nearer by that little"
        )
    index = build_index(load_images(kept.file), maker, place / kept.file.stem.replace("shortlist", "index"), silent)
    if index.verifier is not None:
        say(
            "training images are shortlisted by pixels alone: copies that were cut, mirrored or moved may not be among them "
            "(diffmem index describes the whole set and has them sought)"
        )
    index._sets[0] = load_images(kept.file)
    return index


def _described(images: ImageSet, maker: Descriptor) -> Floats:
    """Vectors [n, D] of the images that can be judged."""
    parts = []
    for batch in images.batches(BATCH):
        sound = [item.image for item in batch if item.image is not None and is_degenerate(item.image) is None]
        if sound:
            parts.append(maker.describe(sound))
    return np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)
