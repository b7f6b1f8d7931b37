"""Image sets from folders, parquet files or memory, decoded one at a time within limits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffmem.data.decode import MAX_PIXELS, SUFFIXES
from diffmem.data.fingerprint import hash_items
from diffmem.data.hub_dataset import hub_tables, is_hub_dataset
from diffmem.data.image_sources import FolderSource, ImageSource, MemorySource, Raw, require_unique, scan
from diffmem.data.views import View, views_of
from diffmem.errors import DataError, UsageError


@dataclass(frozen=True)
class ImageItem:
    """One picture of a set.

    Attributes:
        id: unique within the set.
        image: mode RGB or L; None if it could not be decoded.
        caption: if the source has one.
        problem: why there is no image, None if there is one.
        note: what the conversion to RGB or L changed, if anything.
        digest: content hash of the encoded bytes (of mode and pixels for pictures in memory).
        original: the picture before the conversion, where alpha, an EXIF turn or 16 bits made a difference; see `views`.
    """

    id: str
    image: Image.Image | None
    caption: str | None = None
    problem: str | None = None
    note: str | None = None
    digest: str = ""
    original: Image.Image | None = field(default=None, repr=False, compare=False)

    def views(self, side: int | None = None) -> tuple[View, ...]:
        """The picture as training scripts may have seen it, as it lies first; none where there is no image.

        Args:
            side: pixels a side of the centre squares (the model's size); None leaves them as large as they are.
        """
        return () if self.image is None else views_of(self.image, self.original, side)


class ImageSet:
    """Pictures with ids in a fixed order; iterating reads and decodes them one at a time, in bounded memory.

    Args:
        source: where the pictures come from.
        path: the folder or file that `load_images` was given, None for pictures in memory.
        column: the parquet column that was asked for.
        max_pixels: larger pictures are refused from their header.
    """

    def __init__(
        self, source: ImageSource, path: Path | None = None, column: str | None = None, max_pixels: int = MAX_PIXELS
    ) -> None:
        self._source = source
        self.path = path
        self.column = column
        self.max_pixels = max_pixels
        self.name = source.name

    @property
    def ids(self) -> Sequence[str]:
        """All ids, in order."""
        return self._source.ids

    def __len__(self) -> int:
        return len(self._source.ids)

    def __iter__(self) -> Iterator[ImageItem]:
        return self.items()

    def items(self, start: int = 0, stop: int | None = None) -> Iterator[ImageItem]:
        """The pictures at positions start … stop − 1."""
        for raw in self._source.read(start, len(self) if stop is None else min(stop, len(self))):
            yield self._item(raw)

    def batches(self, size: int) -> Iterator[list[ImageItem]]:
        """Consecutive pictures, `size` at a time; the last batch may be shorter."""
        if size < 1:
            raise UsageError(f"A batch of {size} images; expected at least 1.")
        batch: list[ImageItem] = []
        for item in self:
            batch.append(item)
            if len(batch) == size:
                yield batch
                batch = []
        if batch:
            yield batch

    def by_id(self, image_id: str) -> ImageItem:
        """The picture with this id; raises DataError if there is none."""
        position = self._positions.get(image_id)
        if position is None:
            raise DataError(f"There is no image '{image_id}' in {self.name} ({len(self)} images).")
        return next(self.items(position, position + 1))

    def digests(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[str, str]]:
        """(id, content hash) of each picture, without decoding it."""
        for raw in self._source.read(start, len(self) if stop is None else min(stop, len(self))):
            yield raw.id, raw.digest

    @cached_property
    def fingerprint(self) -> str:
        """Content hash of all ids and encoded pictures in order; reads everything once."""
        return hash_items(self.digests())

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {key: i for i, key in enumerate(self._source.ids)}

    def _item(self, raw: Raw) -> ImageItem:
        decoded = raw.decode(self.max_pixels)
        note = "; ".join(part for part in (raw.note, decoded.note) if part) or None
        return ImageItem(raw.id, decoded.image, raw.caption, decoded.problem, note, raw.digest, decoded.original)


def load_images(
    source: str | Path | Sequence[Any] | Mapping[str, Any] | np.ndarray[Any, Any] | ImageSet,
    column: str | None = None,
    max_pixels: int = MAX_PIXELS,
) -> ImageSet:
    """Open an image set; nothing is decoded yet.

    Args:
        source: a folder of pictures (searched recursively, sorted by path; captions from `metadata.jsonl` or .txt files
            beside them), one picture, a parquet file or a folder of them (images as struct{bytes, path} or bytes), what
            `datasets.save_to_disk` has written, a data set of the Hugging Face hub (hf:OWNER/NAME/CONFIG/SPLIT), or a
            Python sequence, or mapping of ids, of PIL images, arrays [H, W(, C)] (uint8, or float in [0, 1]) or paths,
            or one array [N, H, W(, C)].
        column: the table's column of the pictures; by default found by its name and type.
        max_pixels: pictures of more pixels become problems, decided from their header.

    Returns:
        The set. Pictures that cannot be decoded are items with `problem` set.

    Raises:
        DataError: nothing there, no pictures, pictures and parquet files mixed, duplicate ids.
    """
    if isinstance(source, ImageSet):
        return source
    if isinstance(source, (str, Path)) and is_hub_dataset(source):
        tables = hub_tables(source)
        images = ImageSet(_tables(tables, column), tables[0].parent, column, max_pixels)
        images.name = str(source)
    elif isinstance(source, (str, Path)):
        path = Path(source)
        images = ImageSet(_open(path, column), path, column, max_pixels)
    elif isinstance(source, np.ndarray) and source.ndim in (3, 4):
        images = ImageSet(MemorySource(list(source)), None, None, max_pixels)
    elif isinstance(source, (Sequence, Mapping)) and not isinstance(source, (bytes, bytearray)):
        images = ImageSet(MemorySource(source), None, None, max_pixels)
    else:
        raise UsageError(
            f"Images from a {type(source).__name__}; expected a folder, a file, a sequence, a mapping or [N, H, W, C]."
        )
    if len(images) == 0:
        raise DataError(f"{images.name} holds no images.")
    require_unique(images._source)
    return images


def _open(path: Path, column: str | None) -> ImageSource:
    if path.is_file():
        if path.suffix.lower() in SUFFIXES:
            return FolderSource(path.parent, [path])
        return _tables([path], column)
    if not path.is_dir():
        raise DataError(
            f"'{path}' does not exist; expected a folder of images, an image, a parquet file, or hf:OWNER/NAME of a data set."
        )
    if (path / "dataset_dict.json").exists():  # what the datasets library writes for several
        splits = sorted(child.name for child in path.iterdir() if child.is_dir())
        raise DataError(
            f"'{path}' holds a dataset of several splits ({', '.join(splits)}); name one: {path / splits[-1]}."
        )
    pictures, tables = scan(path)
    if pictures and tables:
        raise DataError(
            f"'{path}' holds {len(pictures)} images and {len(tables)} tables of images; name the folder or file to use."
        )
    if tables:
        return _tables(tables, column)
    if not pictures:
        raise DataError(f"'{path}' holds no images ({', '.join(sorted(SUFFIXES))}) and no parquet files.")
    return FolderSource(path, pictures)


def _tables(files: list[Path], column: str | None) -> ImageSource:
    # Imported here: sets in memory and folders need no pyarrow.
    from diffmem.data.table_images import TableSource

    return TableSource(files, column)
