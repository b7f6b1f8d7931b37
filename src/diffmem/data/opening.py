"""Which source a path or an object in memory stands for: pictures, tables, archives, arrays; never two at once."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffmem.data.archives import is_archive, open_archive, open_archives
from diffmem.data.arrays import MemorySource, is_tensor, split_array
from diffmem.data.captions import Files, Reading
from diffmem.data.image_sources import FileSource, ImageSource, suffix_list
from diffmem.data.notes import printable
from diffmem.data.roles import splits_among, up_to_split
from diffmem.data.survey import Survey, is_table, survey, unread_notes
from diffmem.data.trees import FolderTree, Tree
from diffmem.errors import DataError, UsageError


def open_path(path: Path, column: str | None, reading: Reading, id_column: str | None) -> ImageSource:
    """The source for a folder, file or pattern; arguments as of `load_images`.

    Raises:
        DataError: nothing there that is read, or more than one thing.
    """
    try:
        if path.is_file():
            return _open_file(path, column, reading, id_column)
        if not path.is_dir():
            matching = sorted(path.parent.glob(path.name)) if "*" in path.name else []
            if matching and all(is_table(file) for file in matching):
                return open_tables(matching, column, id_column, reading)
            if matching and all(is_archive(file) for file in matching):
                inside = open_archives(str(path), {printable(file.name): file for file in matching})
                return _open_tree(path, inside, survey(inside), column, reading, id_column)
            raise DataError(_not_there(path))
    except (OSError, ValueError) as error:
        raise DataError(f"'{path}' cannot be opened ({getattr(error, 'strerror', None) or error}).") from error
    if (path / "dataset_dict.json").exists():  # what the datasets library writes for several
        _refuse_splits(path, sorted(child.name for child in path.iterdir() if child.is_dir()))
    tree = FolderTree(path)
    return _open_tree(path, tree, survey(tree), column, reading, id_column)


def _not_there(path: Path) -> str:
    if "://" in str(path) or str(path).startswith(("http:", "https:")):
        return f"'{path}' is an address; nothing is downloaded. Fetch it and give the file."
    pattern = ""
    if set("*{[") & set(path.name):
        pattern = " A pattern (* alone) may name several tables or several archives, otherwise give their folder."
    return (
        f"'{path}' does not exist; expected a folder of images, an image, an archive, a parquet file, or "
        f"hf:OWNER/NAME of a data set.{pattern}"
    )


def _open_file(path: Path, column: str | None, reading: Reading, id_column: str | None) -> ImageSource:
    if is_archive(path):
        tree = open_archive(path)
        return _open_tree(path, tree, survey(tree), column, reading, id_column)
    if is_table(path):
        return open_tables([path], column, id_column, reading)
    tree = FolderTree(
        path.parent, [child for child in path.parent.glob(f"{glob.escape(path.stem)}*") if child.is_file()]
    )
    found = survey(tree)
    name = printable(path.name)
    if name not in found.files.pictures:
        why = dict(found.unread).get(name, "no picture, table or archive that is read")
        if name in (*found.files.metadata, *found.files.trained):
            raise DataError(f"'{path}' says what the pictures beside it are called; give their folder: {path.parent}.")
        raise DataError(f"'{path}' cannot be read as images: {why}; expected one of {suffix_list()}.")
    kept = Files([name], beside={name: found.files.beside.get(name, {})})
    source = FileSource(tree, Survey(kept, sniffed=[n for n in found.sniffed if n == name]), reading)
    source.name = printable(str(path.parent))
    return source


def _open_tree(
    path: Path, tree: Tree, found: Survey, column: str | None, reading: Reading, id_column: str | None
) -> ImageSource:
    """The source for what lies in a folder or archive: its pictures, or its tables, or the archives in it."""
    pictures = found.files.pictures
    if pictures:
        for parent, names in _folders(pictures).items():
            _refuse_splits(path / parent, splits_among(names))
        tables = [name for name in found.tables if _holds_pictures(tree, name)]
        if tables:
            raise DataError(
                f"'{path}' holds {len(pictures)} images and {len(tables)} tables of images; name the folder or file to use."
            )
        found.unread += [(name, "a table without pictures") for name in found.tables]
        found.unread += [(name, "an archive among pictures; unpack it, or name it alone") for name in found.archives]
        return FileSource(tree, found, reading)
    local = {name: place for name in tree.files if (place := tree.local(name)) is not None}
    tables = [name for name in (*found.tables, *found.files.metadata) if name in local and _holds_pictures(tree, name)]
    if tables:
        _refuse_splits(path, _splits_of_files(tables))
        source = open_tables([local[name] for name in sorted(tables)], column, id_column, reading)
        rest = [(name, "a table without pictures") for name in found.tables if name not in tables]
        rest += [(name, "an archive beside tables") for name in found.archives]
        unread = [*found.unread, *rest]
        source.notes = [*source.notes, *unread_notes(tree.name, len(tree.files) + len(tree.left_out), unread)]
        return source
    if found.archives and len(local) == len(tree.files):
        _refuse_splits(path, _splits_of_files(found.archives))
        inside = open_archives(tree.name, {name: local[name] for name in found.archives})
        inside.left_out += [(name, reason) for name, reason in found.unread]
        return _open_tree(path, inside, survey(inside), column, reading, id_column)
    if found.tables:  # opening them says what they lack
        named = [local[name] for name in found.tables if name in local]
        return open_tables(named, column, id_column, reading)
    found.unread += [(name, "an archive within an archive; unpack the outer one") for name in found.archives]
    said = "; ".join(unread_notes(tree.name, len(tree.files) + len(tree.left_out), found.unread))
    raise DataError(
        f"'{path}' holds no images ({suffix_list()}), no parquet files and no archives of images. {said}".strip()
    )


def open_memory(source: Any) -> ImageSource:
    """The source for pictures in memory. Raises UsageError for what is none."""
    if isinstance(source, Image.Image):
        return MemorySource([source])
    if type(source).__name__ == "NpzFile":
        arrays = list(source)
        if len(arrays) != 1:
            raise UsageError(
                f"A .npz file of {len(arrays)} arrays ({', '.join(arrays)}); give one: file[{arrays[0]!r}]."
            )
        source = source[arrays[0]]
    if (
        not isinstance(source, (np.ndarray, Sequence, Mapping))
        and hasattr(source, "__array__")
        and hasattr(source, "shape")
    ):
        source = source if is_tensor(source) else np.asarray(source)  # JAX, TensorFlow, CuPy on the host
    if isinstance(source, np.ndarray) or is_tensor(source):
        return MemorySource(split_array(source))
    if isinstance(source, (Sequence, Mapping)) and not isinstance(source, (bytes, bytearray)):
        return MemorySource(source)
    raise UsageError(
        f"Images from a {type(source).__name__}; expected a folder, a file, a PIL "
        "image, an array or tensor, or a sequence or mapping of them (of a Dataset or DataFrame: its column of images)."
    )


def _holds_pictures(tree: Tree, name: str) -> bool:
    from diffmem.data.table_images import has_pictures

    place = tree.local(name)
    if place is None or not is_table(place):
        return False
    return has_pictures(place)


def _folders(pictures: Sequence[str]) -> dict[str, dict[str, None]]:
    """The folders among pictures by the folder that they are in."""
    found: dict[str, dict[str, None]] = {}
    for folder in dict.fromkeys(name.rpartition("/")[0] for name in pictures):
        while folder:
            parent, _, base = folder.rpartition("/")
            found.setdefault(parent, {})[base] = None
            folder = parent
    return found


def _splits_of_files(names: Sequence[str]) -> list[str]:
    """The splits among tables or archives, by what their names begin with: `data/train-00000-of-00002` by `data/train`."""
    return splits_among(dict.fromkeys(map(up_to_split, names)))


def _refuse_splits(path: Path, splits: Sequence[str]) -> None:
    if splits:
        raise DataError(
            f"'{path}' holds a dataset of several splits ({', '.join(splits)}); name one: {path / splits[-1]} "
            f"(tables by a pattern, {path / splits[-1]}-*.parquet)."
        )


def open_tables(files: list[Path], column: str | None, id_column: str | None, reading: Reading) -> ImageSource:
    """The source for the files of one table."""
    # Imported here: sets in memory and folders need no pyarrow.
    from diffmem.data.table_images import TableSource

    return TableSource(files, column, id_column, reading)
