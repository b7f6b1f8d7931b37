"""Zip and tar archives as trees of files: only their lists of members are held, contents are read when they are asked for.

A WebDataset (tar files of key.jpg, key.txt, key.json) is a tree of pictures with files of the same name beside them.
"""

from __future__ import annotations

import tarfile
import threading
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from diffmem.data.notes import printable
from diffmem.data.trees import HIDDEN, JoinedTree, Tree, is_hidden, safe_member
from diffmem.errors import DataError

SUFFIXES = (".tar", ".zip")
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".gz", ".7z", ".rar")
_BLOCK = 512
_MOST_BYTES = 1 << 30


def is_archive(path: Path) -> bool:
    """Whether a file's name is that of an archive that is read."""
    return path.suffix.lower() in SUFFIXES


def open_archive(path: Path) -> Tree:
    """The files of one archive.

    Raises:
        DataError: compressed in a way that cannot be read at any place, encrypted, or no archive at all.
    """
    if path.name.lower().endswith(_COMPRESSED):
        raise DataError(
            f"'{path}' is a compressed archive, in which no picture can be found alone; unpack it, or to .tar."
        )
    return ZipTree(path) if path.suffix.lower() == ".zip" else TarTree(path)


def open_archives(folder: str, paths: Mapping[str, Path]) -> Tree:
    """The files of several archives (the shards of a WebDataset) as one tree; one that is broken is left out by name."""
    trees: dict[str, Tree] = {}
    broken: list[tuple[str, str]] = []
    for name, path in paths.items():
        try:
            trees[name] = open_archive(path)
        except DataError as error:
            broken.append((name, str(error)))
    if not trees:
        raise DataError(broken[0][1])
    joined = JoinedTree(folder, trees)
    joined.left_out += broken
    return joined


class ZipTree(Tree):
    """The files of a zip archive."""

    def __init__(self, path: Path) -> None:
        self.name, self._path = printable(str(path)), path
        self.left_out = []
        self._lock = threading.Lock()
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
            raise DataError(f"'{path}' cannot be read as a zip archive ({error}).") from error
        self._members: dict[str, zipfile.ZipInfo] = {}
        for info in self._zip.infolist():
            if info.is_dir():
                continue
            name = _place(info.filename, self._members, self.left_out)
            if name is None:
                continue
            if info.flag_bits & 1:
                self.left_out.append((name, "encrypted"))
            else:
                self._members[name] = info
        self.files = sorted(self._members)

    def read(self, name: str, most: int | None = None) -> bytes:
        """The content of a member, or its first bytes; its checksum is compared."""
        info = self._members[name]
        if info.file_size > _MOST_BYTES:
            raise OSError(f"{info.file_size:,} bytes, more than the limit of {_MOST_BYTES:,}")
        try:
            with self._lock, self._zip.open(info) as file:
                return file.read(-1 if most is None else most)
        except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError, ImportError) as error:
            raise OSError(f"damaged in the archive: {error}") from error
        except Exception as error:  # zlib, bz2 and lzma each raise their own
            if type(error).__module__ in ("zlib", "lzma", "_lzma", "bz2", "builtins"):
                raise OSError(f"damaged in the archive: {error}") from error
            raise

    def size(self, name: str) -> int:
        """Bytes of a member, unpacked."""
        return self._members[name].file_size


class TarTree(Tree):
    """The files of an uncompressed tar archive, found again by their places in it."""

    def __init__(self, path: Path) -> None:
        self.name, self._path = printable(str(path)), path
        self.left_out = []
        self._members: dict[str, tuple[int, int]] = {}
        try:
            length = path.stat().st_size
            with path.open("rb") as file:
                if file.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
                    raise DataError(f"'{path}' is a compressed tar archive; unpack it, or to .tar without compression.")
                file.seek(0)
                self._scan(file, length)
        except (tarfile.TarError, OSError, ValueError, EOFError) as error:
            if not self._members:
                raise DataError(f"'{path}' cannot be read as a tar archive ({error}).") from error
            self.left_out.append((f"what follows {len(self._members)} members", f"the archive is damaged ({error})"))
        if not self._members and self.left_out:
            raise DataError(
                f"'{path}' cannot be read as a tar archive: {'; '.join(map(': '.join, self.left_out[:3]))}."
            )
        self.files = list(self._members)

    def read(self, name: str, most: int | None = None) -> bytes:
        """The content of a member, or its first bytes."""
        start, size = self._members[name]
        if size > _MOST_BYTES:
            raise OSError(f"{size:,} bytes, more than the limit of {_MOST_BYTES:,}")
        with self._path.open("rb") as file:
            file.seek(start)
            return file.read(size if most is None else min(size, most))

    def size(self, name: str) -> int:
        """Bytes of a member."""
        return self._members[name][1]

    def _scan(self, file: object, length: int) -> None:
        """List the members. Blocks that are no header are stepped over, as after damage or between joined archives."""
        expected = 0
        with tarfile.open(fileobj=file, mode="r:", ignore_zeros=True) as archive:  # type: ignore[call-overload]
            while (member := archive.next()) is not None:
                archive.members = []  # tarfile would keep every header that it has seen
                if member.offset > expected and self._is_damaged(expected, member.offset):
                    what = f"{member.offset - expected:,} bytes before '{printable(member.name)}'"
                    self.left_out.append((what, "the archive is damaged there"))
                expected = (
                    member.offset_data + -(-member.size // _BLOCK) * _BLOCK if member.isreg() else member.offset_data
                )
                if not member.isreg():
                    if not member.isdir():
                        self.left_out.append((printable(member.name), "no regular file"))
                    continue
                name = _place(member.name, self._members, self.left_out)
                if name is None:
                    continue
                if member.offset_data + member.size > length or member.issparse():
                    self.left_out.append(
                        (name, "cut off: the archive ends before it" if not member.issparse() else "sparse")
                    )
                    continue
                self._members[name] = (member.offset_data, member.size)
        if self._is_damaged(expected, length):
            self.left_out.append((f"{length - expected:,} bytes at the end", "the archive is damaged there"))

    def _is_damaged(self, start: int, stop: int) -> bool:
        """Whether a gap between members is more than the zeros that end an archive."""
        with self._path.open("rb") as file:
            file.seek(start)
            while start < stop:
                piece = file.read(min(1 << 20, stop - start))
                if not piece:
                    return False
                if piece.strip(b"\0"):
                    return True
                start += len(piece)
        return False


def _place(raw: str, known: object, left_out: list[tuple[str, str]]) -> str | None:
    """The name under which a member counts; None, and noted, where it is hidden, leads out, or comes a second time."""
    name = safe_member(raw)
    if name is None:
        left_out.append((printable(raw), "a name that leads out of the archive"))
    elif any(is_hidden(part) for part in PurePosixPath(name).parts):
        left_out.append((name, f"{HIDDEN} file"))
    elif name in known:  # type: ignore[operator]
        left_out.append((name, "a second member of this name"))
    else:
        return name
    return None
