"""Both pictures of pairs of a run, opened when they are asked for."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from diffmem.copies.index import CopyIndex
from diffmem.data.png import decode_png
from diffmem.errors import DataError
from diffmem.report.stored import read_pngs
from diffmem.runs.store import RunStore

MOST_BYTES = 256_000_000
"""Bytes of generated images that are held in memory when pictures are opened one by one."""
LONGEST_SIDE, LOSSLESS = 1024, 256
_QUALITY = 92


def open_index(folder: Path, fact: Mapping[str, Any]) -> CopyIndex:
    """The index of the training images of a run; `fact` is that on copies.

    Raises:
        DataError: it is not in the run directory.
    """
    try:
        return CopyIndex.load(folder / "index" / fact["descriptor"]["name"])
    except DataError as problem:
        raise DataError(
            f"Pictures are to be compared, and the training images of '{folder}' are not to be had: {problem}"
        ) from problem


def open_pairs(
    folder: Path, fact: Mapping[str, Any], rows: Mapping[int, Mapping[str, Any]]
) -> Iterator[tuple[int, Image.Image, Image.Image]]:
    """Number, generated and training picture of rows of `matches`; rows whose pictures are gone are left out.

    Raises:
        DataError: the training images cannot be opened at all.
    """
    if not rows:
        return
    index = open_index(folder, fact)
    pngs = read_pngs(RunStore(folder), {row["image_key"] for row in rows.values()})
    for number, row in rows.items():
        item = index.image(row["train_id"])
        if item.image is not None and row["image_key"] in pngs:
            yield number, decode_png(pngs[row["image_key"]]), item.image


class PairPictures:
    """The pictures of single pairs, opened when they are asked for, from several threads too.

    Args:
        folder: the run directory.
        fact: on copies.

    Raises:
        DataError: the training images cannot be opened at all.
    """

    def __init__(self, folder: Path, fact: Mapping[str, Any]) -> None:
        self._store, self._index, self._lock = RunStore(folder), open_index(folder, fact), threading.Lock()
        self._part = self._store.parts_of("images")
        self._held: OrderedDict[Path, dict[bytes, bytes | None]] = OrderedDict()

    def generated(self, row: Mapping[str, Any]) -> bytes | None:
        """The generated image of a row of `matches` as PNG; None where it is gone."""
        key = bytes(row["image_key"])
        part = self._part.get(key)
        if part is None:
            return None
        with self._lock:
            if part not in self._held:
                table = self._store.read_part("images", part, ["key", "png"])
                self._held[part] = dict(zip(table["key"].to_pylist(), table["png"].to_pylist(), strict=True))
            self._held.move_to_end(part)
            while len(self._held) > 1 and sum(map(_size, self._held.values())) > MOST_BYTES:
                self._held.popitem(last=False)
            return self._held[part].get(key)

    def training(self, row: Mapping[str, Any]) -> Image.Image | None:
        """The training image of a row of `matches`; None where it is gone or has changed."""
        with self._lock:
            try:
                return self._index.image(row["train_id"]).image
            except DataError:
                return None

    def encoded(self, row: Mapping[str, Any], side: str) -> tuple[bytes, str] | None:
        """A picture for a browser, at most 1,024 pixels a side, and its type; without what else its file held."""
        if side == "generated":
            png = self.generated(row)
            image = None if png is None else decode_png(png)
        else:
            image = self.training(row)
        if image is None:
            return None
        image = image.convert("RGB")
        image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
        buffer = io.BytesIO()
        plain = Image.new("RGB", image.size)
        plain.paste(image)
        lossless = max(image.size) <= LOSSLESS
        plain.save(buffer, "PNG") if lossless else plain.save(buffer, "JPEG", quality=_QUALITY, subsampling=0)
        return buffer.getvalue(), "image/png" if lossless else "image/jpeg"


def _size(held: Mapping[bytes, bytes | None]) -> int:
    return sum(len(png) for png in held.values() if png is not None)
