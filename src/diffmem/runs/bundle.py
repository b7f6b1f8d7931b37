"""A sealed run in one file: its files, a chain of their hashes, and a seal over every byte.

The file is a ZIP archive of stored (never compressed) files in the order of their names. Its last file, `chain.json`, holds one
link per file, link_i = SHA-256(link_{i-1} | name | size | SHA-256 of the content); its comment, the last 64 bytes, is the
SHA-256 of everything before it: the seal. Whoever rewrites a file can write a new seal as well, so a seal proves something
only where it was kept elsewhere. Reading it runs nothing and unpacks nothing: files are read where they lie, at the sizes
that the archive really has.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from diffmem.atomic import atomic_stream
from diffmem.errors import DataError
from diffmem.keys import canonical_json

FORMAT = "diffmem-bundle-1"
PROTOCOL, CHAIN = "protocol.json", "chain.json"
RUN = "run/"
_SEAL = 64
_BLOCK = 1 << 20
_MOST = 1 << 24
"""Bytes that protocol and chain may have."""
_DATE = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Link:
    """One file of a bundle, and the hash of everything up to it."""

    name: str
    size: int
    sha256: str
    link: str


@dataclass(frozen=True)
class Checked:
    """What reading a bundle found.

    Attributes:
        seal: SHA-256 of the file but its last 64 bytes, as it is now.
        protocol: what was sealed; None where it cannot be read.
        links: of the chain that is in the file.
        problems: everything that is not as it was sealed; empty: nothing was changed, added, removed, renamed or moved.
    """

    seal: str
    protocol: Mapping[str, Any] | None
    links: tuple[Link, ...]
    problems: tuple[str, ...]


def write_bundle(out: Path, protocol: Mapping[str, Any], files: Mapping[str, Path]) -> str:
    """Write a bundle and give its seal.

    Args:
        out: the file; it appears only when it is whole.
        protocol: what was done, as JSON values.
        files: name in the bundle -> file; written in the order of their names.

    Raises:
        DataError: a file that changes while it is read.
    """
    links: list[Link] = []
    before = hashlib.sha256(FORMAT.encode()).hexdigest()
    with atomic_stream(out) as stream:
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED, strict_timestamps=True) as archive:
            archive.comment = b"0" * _SEAL
            texts = {PROTOCOL: canonical_json({"format": FORMAT, **protocol}).encode()}
            for name in [PROTOCOL, *sorted(files)]:
                content = hashlib.sha256()
                size = len(texts[name]) if name in texts else files[name].stat().st_size
                entry = _entry(name, size)
                with archive.open(entry, "w", force_zip64=size >= 1 << 31) as place:
                    for block in [texts[name]] if name in texts else _blocks(files[name]):
                        content.update(block)
                        place.write(block)
                if entry.file_size != size:
                    raise DataError(
                        f"'{files[name]}' changed while it was sealed; seal the run when no command works on it."
                    )
                before = _link(before, name, size, content.hexdigest())
                links.append(Link(name, size, content.hexdigest(), before))
            archive.writestr(_entry(CHAIN, 0), canonical_json([vars(link) for link in links]).encode())
        seal = _hash_before_seal(stream)
        stream.seek(-_SEAL, 2)
        stream.write(seal.encode())
    return seal


def check_bundle(path: Path) -> Checked:
    """Read a bundle and compare everything in it with its chain and its seal.

    Raises:
        DataError: there is no such file, or it is none that can be a bundle.
    """
    if not path.is_file():
        what = f"'{path}' is a folder, no sealed run" if path.is_dir() else f"There is no file '{path}'"
        raise DataError(f"{what}; `diffmem seal RUN` writes a run into one file.")
    with path.open("rb") as stream:
        size = stream.seek(0, 2)
        if size < _SEAL:
            return Checked("", None, (), ("the file is too short to be a bundle: it was cut off",))
        seal = _hash_before_seal(stream)
        stream.seek(-_SEAL, 2)
        written = stream.read(_SEAL)
        problems = [] if written == seal.encode() else ["the seal at the end of the file is not that of its content"]
        try:
            with zipfile.ZipFile(stream) as archive:
                return _compared(archive, seal, size, problems)
        except (
            zipfile.BadZipFile,
            OSError,
            ValueError,
            NotImplementedError,
            RuntimeError,
            EOFError,
            KeyError,
        ) as problem:
            what = f"the files in it cannot be read ({problem}): it was cut off, or bytes of it were changed"
            return Checked(seal, None, (), (*problems, what))


def read_file(path: Path, link: Link) -> bytes:
    """One file of a bundle that was checked."""
    with zipfile.ZipFile(path) as archive:
        return archive.read(link.name)


def _compared(archive: zipfile.ZipFile, seal: str, size: int, problems: list[str]) -> Checked:
    entries = archive.infolist()
    odd = [entry.filename for entry in entries if not _is_plain(entry, size)]
    names = [entry.filename for entry in entries]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    problems += [
        f"'{name}' is no plain file of a bundle (compressed, encrypted, or a path that leaves it)" for name in odd
    ]
    problems += [f"'{name}' is there twice" for name in twice]
    sound = {entry.filename: entry for entry in entries if entry.filename not in {*odd, *twice}}
    protocol = _json(archive, sound.get(PROTOCOL))
    links = _links(_json(archive, sound.get(CHAIN)))
    if not isinstance(protocol, dict) or protocol.get("format") != FORMAT:
        problems.append(f"{PROTOCOL} is missing, damaged, or not of the format {FORMAT}")
        protocol = None
    if links is None:
        problems.append(f"{CHAIN}, which holds the hashes, is missing or damaged")
        return Checked(seal, protocol, (), tuple(problems))
    listed = [link.name for link in links]
    problems += [f"'{name}' was removed" for name in listed if name not in names]
    problems += [f"'{name}' was added" for name in names if name not in {*listed, CHAIN}]
    if sorted(names) == sorted([*listed, CHAIN]) and names != [*listed, CHAIN]:
        problems.append("the files are in another order")
    before = hashlib.sha256(FORMAT.encode()).hexdigest()
    for link in links:
        entry = sound.get(link.name)
        if entry is not None and (entry.file_size != link.size or _content(archive, entry) != link.sha256):
            problems.append(f"'{link.name}' was changed")
        before = _link(before, link.name, link.size, link.sha256)
        if before != link.link:
            problems.append(f"the chain is broken at '{link.name}'")
            break
    return Checked(seal, protocol, links, tuple(problems))


def _content(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> str | None:
    """The hash of a file's content; None where the archive's own sum of it is wrong, or its header."""
    content = hashlib.sha256()
    try:
        with archive.open(entry) as stream:
            for block in _read(stream):
                content.update(block)
    except (zipfile.BadZipFile, EOFError):
        return None
    return content.hexdigest()


def _is_plain(entry: zipfile.ZipInfo, size: int) -> bool:
    """A stored file with a name that stays below the bundle, no larger than the bundle itself."""
    path = PurePosixPath(entry.filename)
    named = entry.filename == str(path) and not path.is_absolute() and ".." not in path.parts
    stored = entry.compress_type == zipfile.ZIP_STORED and entry.compress_size == entry.file_size <= size
    return named and stored and not entry.flag_bits & 0x1 and not any(c in entry.filename for c in "\\:\0")


def _json(archive: zipfile.ZipFile, entry: zipfile.ZipInfo | None) -> Any:
    if entry is None or entry.file_size > _MOST:
        return None
    try:
        return json.loads(archive.read(entry))
    except (ValueError, RecursionError):
        return None


def _links(values: Any) -> tuple[Link, ...] | None:
    try:
        links = tuple(Link(str(v["name"]), int(v["size"]), str(v["sha256"]), str(v["link"])) for v in values)
    except (TypeError, KeyError, ValueError):
        return None
    return links if len({link.name for link in links}) == len(links) else None


def _link(before: str, name: str, size: int, content: str) -> str:
    return hashlib.sha256(canonical_json([before, name, size, content]).encode()).hexdigest()


def _entry(name: str, size: int) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _DATE)
    entry.external_attr, entry.create_system, entry.file_size = 0o644 << 16, 3, size
    return entry


def _blocks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        yield from _read(stream)


def _read(stream: IO[bytes]) -> Iterator[bytes]:
    while block := stream.read(_BLOCK):
        yield block


def _hash_before_seal(stream: IO[bytes]) -> str:
    left, content = stream.seek(0, 2) - _SEAL, hashlib.sha256()
    stream.seek(0)
    while left > 0 and (block := stream.read(min(_BLOCK, left))):
        content.update(block)
        left -= len(block)
    return content.hexdigest()
