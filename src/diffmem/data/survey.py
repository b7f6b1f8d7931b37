"""What lies in a folder or archive: pictures, tables, captions, and what is not read, so that every file is accounted for."""

from __future__ import annotations

import posixpath
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePath

from diffmem.data.captions import BESIDE, Files, is_trained_file
from diffmem.data.decode import decode_bytes
from diffmem.data.formats import begins_as_picture, suffixes, why_not_read
from diffmem.data.metadata import NAMES
from diffmem.data.notes import count, grouped, named
from diffmem.data.roles import masks_among
from diffmem.data.trees import Tree

_TABLES = (".parquet", ".pq", ".arrow")
_ARCHIVES = (".tar", ".zip")
_CLASS = ".cls"  # a WebDataset's number or name of a class
_FEW_COLOURS = 32
_KNOWN = frozenset({"state.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "canaries.json"})


def is_table(path: PurePath) -> bool:
    """Whether the file's name says that it is a table of pictures: parquet, or what `datasets.save_to_disk` writes."""
    return path.suffix.lower() in _TABLES


@dataclass
class Survey:
    """The files of a tree, each in exactly one place.

    Attributes:
        files: pictures, and what says how they are called.
        tables: parquet and Arrow files.
        archives: tar and zip files.
        unread: (name, reason) of all others.
        sniffed: pictures whose names do not say that they are some.
        known: what the datasets library or diffmem itself keeps beside its data.
    """

    files: Files
    tables: list[str] = field(default_factory=list)
    archives: list[str] = field(default_factory=list)
    unread: list[tuple[str, str]] = field(default_factory=list)
    sniffed: list[str] = field(default_factory=list)
    known: list[str] = field(default_factory=list)


def survey(tree: Tree) -> Survey:
    """Sort the files of a tree by what they are for."""
    found = Survey(Files([]), unread=list(tree.left_out))
    beside: list[tuple[str, str]] = []
    for name in tree.files:
        base = posixpath.basename(name)
        suffix = posixpath.splitext(base)[1].lower()
        if suffix in suffixes():
            found.files.pictures.append(name)
        elif base.lower() in NAMES:
            found.files.metadata.append(name)
        elif suffix in _TABLES:
            found.tables.append(name)
        elif suffix in _ARCHIVES:
            found.archives.append(name)
        elif suffix in BESIDE or suffix == _CLASS:
            beside.append((name, suffix))
        elif (reason := why_not_read(suffix)) is not None:
            found.unread.append((name, reason))
        elif _is_picture(tree, name):
            found.files.pictures.append(name)
            found.sniffed.append(name)
        elif suffix in (".csv", ".tsv", ".jsonl", ".ndjson"):
            found.unread.append(
                (name, "a table, but none of those that are read beside pictures (metadata.csv, .jsonl, .parquet)")
            )
        else:
            found.unread.append((name, "no picture, table or caption"))
    masks = masks_among(found.files.pictures, lambda name: _is_flat(tree, name))
    found.unread += masks
    found.files.pictures = sorted(set(found.files.pictures) - {name for name, _ in masks})
    _sort_beside(tree, beside, found)
    return found


def unread_notes(name: str, total: int, unread: Sequence[tuple[str, str]]) -> list[str]:
    """A sentence per reason on the files that are not read: how many, the first names, why."""
    notes = []
    for reason, names in grouped(unread).items():
        notes.append(f"{len(names):,} of {count(total, 'file')} of {name} not read ({named(names)}): {reason}")
    return notes


def _sort_beside(tree: Tree, beside: Sequence[tuple[str, str]], found: Survey) -> None:
    """Caption files to their pictures: `a.txt` is of `a.png`; where `a.png` and `a.jpg` lie there, of both."""
    stems: dict[str, list[str]] = {}
    loose: dict[str, list[str]] = {}
    for picture in found.files.pictures:
        folder, base = posixpath.split(picture)
        stems.setdefault(posixpath.splitext(picture)[0], []).append(picture)
        # Some tools write `a.png.txt`; a WebDataset's key ends at the first dot; Windows does not know upper case.
        for stem in (picture, posixpath.join(folder, base.split(".")[0]), posixpath.splitext(picture)[0].lower()):
            loose.setdefault(_folded(stem), []).append(picture)
    for name, suffix in beside:
        stem = name[: -len(suffix)]
        pictures = stems.get(stem) or list(dict.fromkeys(loose.get(_folded(stem), [])))
        for picture in pictures if suffix == _CLASS else ():
            found.files.classes.setdefault(picture, name)
        for picture in pictures if suffix != _CLASS else ():
            known = found.files.beside.setdefault(picture, {})
            if BESIDE[suffix] in known:
                found.unread.append((name, f"a second {suffix} file of a picture"))
            known.setdefault(BESIDE[suffix], name)
        if pictures:
            continue
        if suffix == ".json" and posixpath.basename(name) in _KNOWN:
            found.known.append(name)
        elif suffix == ".json" and is_trained_file(tree, name):
            found.files.trained.append(name)
        elif suffix == _CLASS:
            found.unread.append((name, "no class of a picture that is there"))
        elif suffix == ".json":
            found.unread.append((name, "no record of a picture that is there"))
        else:
            found.unread.append((name, "no caption of a picture that is there"))


def _folded(name: str) -> str:
    """A name as Windows and macOS compare it: without case, in composed Unicode."""
    return unicodedata.normalize("NFC", name).lower()


def _is_picture(tree: Tree, name: str) -> bool:
    try:
        return begins_as_picture(tree.read(name, 32))
    except OSError:
        return False  # counted with the files that are not read


def _is_flat(tree: Tree, name: str) -> bool:
    """Whether a picture has no colours, or few, as masks have; one that cannot be read counts as such."""
    try:
        image = decode_bytes(tree.read(name), name=name).image
    except OSError:
        return True
    if image is None or image.mode == "L":
        return True
    if image.getcolors(_FEW_COLOURS) is not None:
        return True
    red, green, blue = image.split()
    return red.tobytes() == green.tobytes() == blue.tobytes()
