"""Where pictures come from: files, tables, memory. Sources hand out undecoded content one at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from diffmem.data.captions import CaptionReader, Reading
from diffmem.data.decode import Decoded, decode_array, decode_bytes, decode_image
from diffmem.data.fingerprint import hash_array, hash_bytes
from diffmem.data.formats import suffixes
from diffmem.data.notes import count, named
from diffmem.data.roles import notes_on_folders
from diffmem.data.survey import Survey, unread_notes
from diffmem.data.trees import Tree

_MAX_FILE_BYTES = 1 << 30
SHORTLIST = "diffmem.shortlist"
"""Metadata of a table whose images are those of a larger set that are near some images: JSON with how many were `searched`."""


@dataclass(frozen=True)
class Raw:
    """One picture, not yet decoded: encoded bytes, a PIL image or an array, or the problem of getting at it."""

    id: str
    payload: bytes | Image.Image | np.ndarray[Any, Any] | None
    captions: tuple[str, ...] = ()
    problem: str | None = None
    note: str | None = None
    label: str | None = None
    repeats: int = 1

    @property
    def caption(self) -> str | None:
        """The first of its captions."""
        return self.captions[0] if self.captions else None

    @property
    def digest(self) -> str:
        """Content hash of the encoded bytes, or of mode and pixels of a picture in memory."""
        if isinstance(self.payload, bytes):
            return hash_bytes(self.payload)
        if isinstance(self.payload, np.ndarray):
            return hash_array(self.payload)
        if self.payload is None:
            return hash_bytes(b"")
        try:
            pixels = self.payload.tobytes()
        except Exception:
            # A closed or broken lazy image raises almost anything, and `decode` says which of this picture. Its id stands in
            # for its pixels, so that it counts as equal to no other.
            pixels = f"no pixels: {self.id}".encode()
        return hash_bytes(f"{self.payload.mode} {self.payload.size} ".encode() + pixels)

    def decode(self, max_pixels: int) -> Decoded:
        """The picture, or why there is none."""
        if self.problem is not None:
            return Decoded(None, self.problem)
        if isinstance(self.payload, np.ndarray):
            return decode_array(self.payload, max_pixels)
        if isinstance(self.payload, Image.Image):
            return decode_image(self.payload, max_pixels)
        return decode_bytes(self.payload, max_pixels, self.id)


class ImageSource(ABC):
    """Pictures with unique ids in a fixed order.

    Attributes:
        name: what messages call it.
        ids: of all pictures.
        notes: sentences on what is there and is not read.
        caption_problem: why captions are ambiguous or unreadable, None where they are not.
        shortlist: of images chosen from a larger set for being near some images: how that was searched, see `SHORTLIST`.
    """

    name: str
    ids: Sequence[str]
    notes: Sequence[str] = ()
    caption_problem: str | None = None
    shortlist: Mapping[str, Any] | None = None

    @abstractmethod
    def read(self, start: int, stop: int) -> Iterator[Raw]:
        """The pictures at positions start … stop − 1, one at a time."""

    def words(self, start: int, stop: int) -> Iterator[Raw]:
        """As `read`, of the captions, labels and repeats alone: `payload` is None."""
        for raw in self.read(start, stop):
            yield replace(raw, payload=None)


class FileSource(ImageSource):
    """The picture files of a folder or archive, each called what lies beside it says.

    Ids are their relative names, with forward slashes.
    """

    def __init__(self, tree: Tree, found: Survey, reading: Reading) -> None:
        self.name, self._tree = tree.name, tree
        self.ids = found.files.pictures
        self._words = CaptionReader(tree, found.files, reading)
        self.caption_problem = self._words.problem
        self.notes = [
            *unread_notes(tree.name, len(tree.files) + len(tree.left_out), found.unread), *self._words.notes
        ]  # fmt: skip
        self.notes += notes_on_folders(tree.name, found.files.pictures)
        if found.sniffed:
            self.notes.append(
                f"{count(len(found.sniffed), 'file')} of {tree.name} are read as pictures, which their names do not say "
                f"(training scripts pass over them): {named(found.sniffed)}"
            )

    def read(self, start: int, stop: int) -> Iterator[Raw]:
        """The pictures at positions start … stop − 1, each read when it is asked for."""
        for raw in self.words(start, stop):
            try:
                size = self._tree.size(raw.id)
                if size > _MAX_FILE_BYTES:
                    problem = f"the file has {size:,} bytes, more than the limit of {_MAX_FILE_BYTES:,}"
                    yield replace(raw, problem=problem)
                    continue
                yield replace(raw, payload=self._tree.read(raw.id))
            except OSError as error:
                yield replace(raw, problem=f"the file cannot be read ({error.strerror or error})")

    def words(self, start: int, stop: int) -> Iterator[Raw]:
        """What the pictures are called."""
        for name in self.ids[start:stop]:
            words, note = self._words.words(name)
            yield Raw(name, None, tuple(words.captions), None, note, words.label, self._words.repeats_of(name))


def suffix_list() -> str:
    """The suffixes of pictures that are read, for messages."""
    return ", ".join(sorted(suffixes()))
