"""Where pictures come from: a folder, parquet files, memory. Sources hand out undecoded content one at a time."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffmem.data.decode import SUFFIXES, Decoded, decode_array, decode_bytes, decode_image
from diffmem.data.fingerprint import hash_array, hash_bytes
from diffmem.data.tables import check_unique, read_jsonl
from diffmem.data.text import read_text
from diffmem.errors import DataError

_MAX_FILE_BYTES = 1 << 30


@dataclass(frozen=True)
class Raw:
    """One picture, not yet decoded: encoded bytes, a PIL image or an array, or the problem of getting at it."""

    id: str
    payload: bytes | Image.Image | np.ndarray[Any, Any] | None
    caption: str | None = None
    problem: str | None = None
    note: str | None = None

    @property
    def digest(self) -> str:
        """Content hash of the encoded bytes, or of mode and pixels of a picture in memory."""
        if isinstance(self.payload, bytes):
            return hash_bytes(self.payload)
        if isinstance(self.payload, np.ndarray):
            return hash_array(self.payload)
        if self.payload is None:
            return hash_bytes(b"")
        return hash_bytes(f"{self.payload.mode} {self.payload.size} ".encode() + self.payload.tobytes())

    def decode(self, max_pixels: int) -> Decoded:
        """The picture, or why there is none."""
        if self.problem is not None:
            return Decoded(None, self.problem)
        if isinstance(self.payload, np.ndarray):
            return decode_array(self.payload, max_pixels)
        if isinstance(self.payload, Image.Image):
            return decode_image(self.payload, max_pixels)
        return decode_bytes(self.payload, max_pixels)


class ImageSource(ABC):
    """Pictures with unique ids in a fixed order."""

    name: str
    ids: Sequence[str]

    @abstractmethod
    def read(self, start: int, stop: int) -> Iterator[Raw]:
        """The pictures at positions start … stop − 1, one at a time."""


class MemorySource(ImageSource):
    """PIL images, arrays or paths of picture files in a Python sequence or mapping of ids."""

    def __init__(self, images: Sequence[Any] | Mapping[str, Any]) -> None:
        self.name = "a Python sequence"
        if isinstance(images, Mapping):
            self.ids, self._images = [str(key) for key in images], list(images.values())
        else:
            self._images = list(images)
            self.ids = row_ids(len(self._images))

    def read(self, start: int, stop: int) -> Iterator[Raw]:
        """The pictures at positions start … stop − 1."""
        for key, item in zip(self.ids[start:stop], self._images[start:stop], strict=True):
            if isinstance(item, (str, Path)):
                yield read_file(Path(item), key)
            elif isinstance(item, (Image.Image, np.ndarray)):
                yield Raw(key, item)
            else:
                kind = type(item).__name__
                yield Raw(key, None, None, f"a {kind}; expected a PIL image, a NumPy array or the path of a picture")


class FolderSource(ImageSource):
    """Picture files below a folder; captions from metadata.jsonl (`file_name`; the first of several) or a .txt file beside.

    Ids are paths relative to the folder, with forward slashes.
    """

    def __init__(self, folder: Path, files: Sequence[Path]) -> None:
        self.name = str(folder)
        self._folder = folder
        self._files = list(files)
        self.ids = [path.relative_to(folder).as_posix() for path in self._files]
        self._captions = self._metadata()

    def read(self, start: int, stop: int) -> Iterator[Raw]:
        """The pictures at positions start … stop − 1, each read when it is asked for."""
        for key, path in zip(self.ids[start:stop], self._files[start:stop], strict=True):
            caption, note = self._caption(key, path)
            yield read_file(path, key, caption, note)

    def _metadata(self) -> dict[str, str]:
        captions: dict[str, str] = {}
        for table in sorted({path.parent for path in self._files} | {self._folder}):
            path = table / "metadata.jsonl"
            if not path.is_file():
                continue
            for row in read_jsonl(path).rows:
                name, several = row.get("file_name"), row.get("captions")
                known = [row.get(key) for key in ("caption", "text", "prompt")]
                known += several if isinstance(several, list) else [several]
                caption = next((text for text in known if isinstance(text, str)), None)
                if isinstance(name, str) and caption is not None:
                    captions[(table.relative_to(self._folder) / name).as_posix()] = caption
        return captions

    def _caption(self, key: str, path: Path) -> tuple[str | None, str | None]:
        if key in self._captions:
            return self._captions[key], None
        beside = path.with_suffix(".txt")
        if not beside.is_file():
            return None, None
        try:
            return read_text(beside).strip(), None
        except DataError as error:
            return None, f"no caption: {error}"


def read_file(path: Path, key: str, caption: str | None = None, note: str | None = None) -> Raw:
    """The content of one picture file; what cannot be read is a problem of this picture."""
    try:
        size = path.stat().st_size
        if size > _MAX_FILE_BYTES:
            return Raw(key, None, caption, f"the file has {size:,} bytes, more than the limit of {_MAX_FILE_BYTES:,}")
        return Raw(key, path.read_bytes(), caption, None, note)
    except OSError as error:
        return Raw(key, None, caption, f"the file cannot be read ({error.strerror or error})")


def is_table(path: Path) -> bool:
    """Whether the file's name says that it is a table of pictures: parquet, or what `datasets.save_to_disk` writes."""
    return path.suffix.lower() in (".parquet", ".pq", ".arrow")


def table_files(folder: Path) -> list[Path]:
    """All tables below a folder, sorted by path."""
    return scan(folder)[1]


def scan(folder: Path) -> tuple[list[Path], list[Path]]:
    """Picture files and tables (parquet, Arrow) below a folder, each sorted by path; hidden files and folders are left out.

    Links to folders are followed, each real folder once.
    """
    pictures: list[Path] = []
    tables: list[Path] = []
    visited: set[str] = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX")
        real = os.path.realpath(root)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        for name in files:
            path = Path(root, name)
            if name.startswith(".") or not path.is_file():
                continue
            if path.suffix.lower() in SUFFIXES:
                pictures.append(path)
            elif is_table(path):
                tables.append(path)

    def key(path: Path) -> str:
        return path.relative_to(folder).as_posix()

    return sorted(pictures, key=key), sorted(tables, key=key)


def row_ids(count: int) -> list[str]:
    """Zero-padded row numbers, at least six digits."""
    width = max(6, len(str(max(count - 1, 0))))
    return [f"{i:0{width}d}" for i in range(count)]


def require_unique(source: ImageSource) -> None:
    """Raise DataError naming the ids that occur more than once."""
    check_unique(source.ids, source.name, "leave the id column out to number the rows")
