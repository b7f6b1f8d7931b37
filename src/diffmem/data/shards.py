"""The shards of a training set: archives, tables and folders that are read one at a time, here or from a remote file system."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from diffmem.atomic import user_path
from diffmem.data.archives import is_archive
from diffmem.data.fingerprint import hash_json
from diffmem.data.images import ImageSet, load_images
from diffmem.data.survey import is_table
from diffmem.errors import DataError


@dataclass(frozen=True)
class Shard:
    """One file or folder of a training set.

    Attributes:
        name: relative to the training set; ids of its images begin with it, as they do where all shards are one set.
        place: its path, or its address on a file system that fsspec knows.
        stamp: size and time, or what the remote file system says of its content: another one means another shard.
        alone: whether it is the whole set, so that ids need no name in front.
    """

    name: str
    place: str
    stamp: str
    alone: bool = False

    @contextmanager
    def images(self) -> Iterator[ImageSet]:
        """Its images; a remote file is fetched to a temporary one for as long as the block lasts."""
        if "://" not in self.place:
            yield load_images(self.place)
            return
        import fsspec

        with tempfile.TemporaryDirectory(prefix="diffmem-") as folder:
            file = Path(folder, Path(self.place).name)
            try:
                with fsspec.open(self.place, "rb") as source, file.open("wb") as copy:
                    shutil.copyfileobj(source, copy, 1 << 22)
            except OSError as problem:
                raise DataError(f"'{self.place}' cannot be fetched ({problem}).") from problem
            yield load_images(file)

    def id_of(self, image: str) -> str:
        """The id of an image among all shards."""
        return image if self.alone else f"{self.name}/{image}"


def shards_of(train: str | Path) -> list[Shard]:
    """The shards of a training set, sorted by name.

    Args:
        train: a folder of archives, tables or folders of images; a pattern of such files (train/*.tar); one of them; or an
            address that fsspec understands (s3://bucket/train-*.tar), of files.

    Raises:
        DataError: nothing there.
    """
    if "://" in str(train):
        return _remote(str(train))
    path = user_path(train)
    if path.is_file() or not path.exists():
        found = [path] if path.is_file() else sorted(path.parent.glob(path.name)) if "*" in path.name else []
        base = path.parent
    else:
        base = path
        children = sorted(child for child in path.iterdir() if not child.name.startswith("."))
        found = [child for child in children if child.is_file() and (is_archive(child) or is_table(child))]
        folders = [child for child in children if child.is_dir()]
        if not found and folders and not any(child.is_file() for child in children):
            found = folders
    if not found and path.is_dir():
        found, base = [path], path.parent
    if not found:
        raise DataError(f"'{train}' does not exist; expected a folder, a file, a pattern of files or an address.")
    alone = len(found) == 1
    return [Shard(place.relative_to(base).as_posix(), str(place), _stamp(place), alone) for place in found]


def _stamp(place: Path) -> str:
    files = [place] if place.is_file() else sorted(file for file in place.rglob("*") if file.is_file())
    about = [(file.relative_to(place).as_posix(), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hash_json(about)


def _remote(address: str) -> list[Shard]:
    if find_spec("fsspec") is None:
        raise DataError(f"'{address}' needs the library fsspec (pip install fsspec), or fetch it and give the folder.")
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(address)
        names = system.glob(path) if "*" in path else system.ls(path, detail=False) if system.isdir(path) else [path]
        named = sorted(str(name) for name in names if is_archive(Path(str(name))) or is_table(Path(str(name))))
        stamps = [str(system.ukey(name)) for name in named]
    except (OSError, ValueError, ImportError) as problem:
        raise DataError(f"'{address}' cannot be listed ({problem}).") from problem
    if not named:
        raise DataError(f"'{address}' names no archives or tables of images.")
    return [
        Shard(Path(name).name, system.unstrip_protocol(name), stamp, len(named) == 1)
        for name, stamp in zip(named, stamps, strict=True)
    ]  # fmt: skip


def as_address(path: Path) -> str:
    """What was typed where a path was expected: `Path` takes one slash from `s3://bucket/...`."""
    text = str(path)
    scheme, colon, rest = text.partition(":/")
    return f"{scheme}://{rest}" if colon and len(scheme) > 1 and scheme.isalnum() and not rest.startswith("/") else text
