"""Image sets from folders, parquet files or memory, decoded one at a time within limits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from diffmem.atomic import user_path
from diffmem.data.captions import Captions, Reading
from diffmem.data.decode import MAX_PIXELS, Decoded
from diffmem.data.fingerprint import hash_items
from diffmem.data.hub_dataset import hub_tables, is_hub_dataset
from diffmem.data.image_sources import ImageSource, Raw
from diffmem.data.notes import count, named, say
from diffmem.data.opening import open_memory, open_path, open_tables
from diffmem.data.views import View, views_of
from diffmem.errors import DataError, UsageError
from diffmem.notebook import ShownInNotebooks


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
        captions: all its captions, the first one first.
        label: its class, or None.
        repeats: how often sd-scripts shows it per epoch (`10_sks dog`), otherwise 1.
    """

    id: str
    image: Image.Image | None
    caption: str | None = None
    problem: str | None = None
    note: str | None = None
    digest: str = ""
    original: Image.Image | None = field(default=None, repr=False, compare=False)
    captions: tuple[str, ...] = ()
    label: str | None = None
    repeats: int = 1

    def views(self, side: int | None = None) -> tuple[View, ...]:
        """The picture as training scripts may have seen it, as it lies first; none where there is no image.

        Args:
            side: pixels a side of the centre squares (the model's size); None leaves them as large as they are.
        """
        return () if self.image is None else views_of(self.image, self.original, side)


class ImageSet(ShownInNotebooks):
    """Pictures with ids in a fixed order; iterating reads and decodes them one at a time, in bounded memory.

    Args:
        source: where the pictures come from.
        path: the folder or file that `load_images` was given, None for pictures in memory.
        column: the parquet column that was asked for.
        max_pixels: larger pictures are refused from their header.
        captions: where captions were asked to be read from.

    Attributes:
        problems: why the pictures that could not be decoded so far could not, by id; said once all have been looked at.
    """

    def __init__(
        self,
        source: ImageSource,
        path: Path | None = None,
        column: str | None = None,
        max_pixels: int = MAX_PIXELS,
        captions: Captions | None = None,
    ) -> None:
        self._source = source
        self.path = path
        self.column = column
        self.max_pixels = max_pixels
        self.captions = captions
        self.name = source.name
        self.problems: dict[str, str] = {}
        self._told = False
        self._frames: dict[str, int] = {}

    @property
    def notes(self) -> list[str]:
        """Sentences on files that are not read, captions without a picture and the like."""
        return list(self._source.notes)

    def require_captions(self) -> None:
        """Raise DataError where captions are ambiguous: for whoever uses them, others need none."""
        if self._source.caption_problem is not None:
            raise DataError(self._source.caption_problem)

    @property
    def ids(self) -> Sequence[str]:
        """All ids, in order."""
        return self._source.ids

    def __len__(self) -> int:
        return len(self._source.ids)

    def __iter__(self) -> Iterator[ImageItem]:
        return self.items()

    def __repr__(self) -> str:
        return f"ImageSet({len(self)} images of {self.name})"

    def shown_facts(self) -> dict[str, object]:
        """What a notebook shows."""
        return {
            "images": len(self), "source": str(self.name), "unreadable so far": len(self.problems),
        }  # fmt: skip

    def items(self, start: int = 0, stop: int | None = None) -> Iterator[ImageItem]:
        """The pictures at positions start … stop − 1."""
        stop = len(self) if stop is None else min(stop, len(self))
        for raw in self._source.read(start, stop):
            item = self._item(raw)
            if item.image is None:
                self.problems[item.id] = item.problem or "no picture"
            yield item
        if stop == len(self):
            self._tell()

    def raws(self, start: int, stop: int) -> Iterator[Raw]:
        """The pictures at positions start … stop − 1 as they are stored, not decoded."""
        return self._source.read(start, stop)

    @property
    def shortlist(self) -> Mapping[str, Any] | None:
        """Of images chosen from a larger set for being near some images: how that was searched; None for a whole set."""
        return self._source.shortlist

    def words(self) -> Iterator[ImageItem]:
        """All items without their pictures: captions, labels and repeats alone."""
        for raw in self._source.words(0, len(self)):
            yield _item_of(raw, Decoded(None))

    def _tell(self) -> None:
        """Say, once, which pictures could not be decoded, and of which the first frame alone was read."""
        if self._told:
            return
        self._told = bool(self.problems or self._frames)
        if self._frames:
            several = [f"{key} ({number})" for key, number in self._frames.items()]
            say(
                f"{count(len(several), 'picture')} of {self.name} hold several frames or pages, of which the first is read: "
                f"{named(several)}"
            )
        if not self.problems:
            return
        shown = [f"{key} ({problem})" for key, problem in self.problems.items()]
        say(
            f"{len(shown):,} of {count(len(self), 'picture')} of {self.name} cannot be read and are left out: {named(shown)}"
        )

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
        if decoded.frames > 1:
            self._frames[raw.id] = decoded.frames
        return _item_of(raw, decoded)


def _item_of(raw: Raw, decoded: Decoded) -> ImageItem:
    note = "; ".join(part for part in (raw.note, decoded.note) if part) or None
    return ImageItem(
        raw.id, decoded.image, raw.caption, decoded.problem, note, raw.digest, decoded.original,
        raw.captions, raw.label, raw.repeats,
    )  # fmt: skip


def load_images(
    source: Any,
    column: str | None = None,
    max_pixels: int = MAX_PIXELS,
    captions: Captions | None = None,
    id_column: str | None = None,
    caption_column: str | None = None,
    encoding: str | None = None,
) -> ImageSet:
    """Open an image set; nothing is decoded yet. What is there and is not read is said by the logger `diffmem.data`.

    Args:
        source: a folder of pictures (searched recursively, sorted by path), one picture, a zip or tar archive or a folder
            of them (WebDataset), a parquet file or a folder of them (images as struct{bytes, path} or bytes), what
            `datasets.save_to_disk` has written, a data set of the Hugging Face hub (hf:OWNER/NAME/CONFIG/SPLIT), a
            pattern of tables (data/train-*.parquet), or pictures in memory: one PIL image, array or torch tensor, a batch
            [N, H, W, C] or [N, C, H, W], a sequence, or a mapping of ids, of these or of paths. Arrays have 1, 3 or 4
            channels first or last, uint8 or floating point in [0, 1] or [-1, 1].
        column: the table's column of the pictures, or of the file names in metadata; by default found by name and type.
        max_pixels: pictures of more pixels become problems, decided from their header.
        captions: where captions are read from, see `diffmem.data.captions`; by default wherever there are any.
        id_column: the table's column of the ids; "" numbers the rows.
        caption_column: the column of the captions in metadata or the table; by default found by its name.
        encoding: of captions in text files; by default the byte-order mark decides, then UTF-8.

    Returns:
        The set. Pictures that cannot be decoded are items with `problem` set.

    Raises:
        DataError: nothing there, no pictures, pictures and tables of pictures mixed, several splits.

    Examples:
        >>> import numpy as np, diffmem as dm
        >>> dm.load_images(np.zeros((3, 8, 8, 3), np.uint8))
        ImageSet(3 images of a Python sequence)
    """
    if isinstance(source, ImageSet):
        return source
    reading = Reading(captions, column, caption_column, encoding)
    if isinstance(source, (str, Path)) and is_hub_dataset(source):
        tables = hub_tables(source)
        images = ImageSet(open_tables(tables, column, id_column, reading), tables[0].parent, column, max_pixels)
        images.name = str(source)
    elif isinstance(source, (str, Path)):
        if not str(source).strip():
            raise UsageError("The images are an empty path; expected a folder, a file or pictures.")
        path = user_path(source)
        images = ImageSet(open_path(path, column, reading, id_column), path, column, max_pixels, captions)
    else:
        images = ImageSet(open_memory(source), None, None, max_pixels)
    if len(images) == 0:
        raise DataError(f"{images.name} holds no images.")
    for note in images.notes:
        say(note)
    return images


def as_images(source: Any) -> ImageSet:
    """Whatever a function takes as images, as an image set: everything that `load_images` takes, with its defaults."""
    return load_images(source)
