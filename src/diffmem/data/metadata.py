"""Tables beside pictures that say what each is called.

They are metadata.csv, .jsonl or .parquet of a Hugging Face imagefolder, and the fine-tuning metadata (.json) of
sd-scripts. Links between rows and pictures are counted both ways.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from diffmem.data.notes import count, named, printable
from diffmem.data.picture_names import PictureNames
from diffmem.data.tables import Table, find_column, parse_csv, parse_jsonl, parse_parquet
from diffmem.data.text import decode_text
from diffmem.data.trees import Tree
from diffmem.errors import DataError

NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
CAPTION_COLUMNS = ("caption", "text", "prompt", "txt")
SEVERAL = ("captions", "texts", "prompts", "sentences", "sentences_raw")
"""Columns of lists of captions per picture, of which the first is the picture's caption."""
LABEL_COLUMNS = ("label", "class", "digit", "cls")
_FILE, _FILES = "file_name", "file_names"


@dataclass
class Words:
    """What a picture is called.

    Attributes:
        captions: all its captions, the first one first.
        label: its class, or None.
    """

    captions: list[str] = field(default_factory=list)
    label: str | None = None


@dataclass
class Metadata:
    """Words by picture, from all metadata of a tree.

    Attributes:
        words: by the picture's name.
        tables: names of the files that they are from.
        notes: sentences on rows without a picture, pictures without a row, columns that are there too.
    """

    words: dict[str, Words] = field(default_factory=dict)
    tables: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_metadata(
    tree: Tree, pictures: Sequence[str], tables: Sequence[str], trained: Sequence[str], column: str | None = None,
    caption_column: str | None = None, encoding: str | None = None,
) -> Metadata:  # fmt: skip
    """The words that metadata files give to pictures.

    Args:
        tree: the files.
        pictures: names of the pictures among them.
        tables: names of metadata.csv, .jsonl, .parquet.
        trained: names of sd-scripts' fine-tuning metadata.
        column: of the file names, where a table has several (`image_file_name`, `mask_file_name`).
        caption_column: of the captions; None: by its name.
        encoding: of text files; None: the byte-order mark decides, then UTF-8.

    Raises:
        DataError: a table that cannot be read, has no column of file names, or several and none was named; none of its
            rows is of a picture that is there.
    """
    found = Metadata()
    known = PictureNames(pictures)
    kinds = {posixpath.splitext(name)[1].lower() for name in tables}
    if len(kinds) > 1:
        raise DataError(
            f"{tree.name} holds metadata of several kinds ({named(list(tables))}); keep one kind, for they may differ."
        )
    for name in tables:
        _read_table(tree, name, known, (column, caption_column, encoding), found)
    for name in trained:
        _read_trained(tree, name, known, encoding, found)
    if found.tables:
        lacking = [name for name in pictures if name not in found.words]
        if lacking:
            found.notes.append(
                f"{len(lacking):,} of {count(len(pictures), 'picture')} have no row in "
                f"{named(found.tables, 2)}: {named(lacking)}"
            )
    return found


def texts_of(row: Mapping[str, Any], columns: Sequence[str]) -> list[str]:
    """The captions of a row, from the first of these columns that holds any; blank ones do not count."""
    for column in columns:
        value = row.get(column)
        if isinstance(value, str) and column.lower() in SEVERAL and value.lstrip().startswith("["):
            try:
                value = json.loads(value)
            except ValueError:
                value = [value]  # a caption may begin with a bracket
        if value is not None and column.lower() in SEVERAL and not isinstance(value, (list, tuple, str)):
            where = row.get(_FILE) or row.get("id") or "a row"
            raise DataError(f"{column} = {value!r} ({where}); expected a list of texts.")
        several = [_inner(one) for one in (value if isinstance(value, (list, tuple)) else [value])]
        texts = [printable(str(text)) for text in several if isinstance(text, (str, int, float)) and str(text).strip()]
        if texts:
            return texts
    return []


def _inner(value: Any) -> Any:
    """The text of a record in a list of captions, as COCO's and Flickr's splits keep them."""
    if not isinstance(value, Mapping):
        return value
    return next((value[name] for name in ("raw", "caption", "text", "sentence") if name in value), None)


def label_of(row: Mapping[str, Any], columns: Iterable[str] = LABEL_COLUMNS) -> str | None:
    """The class that a row names, or None."""
    for name in columns:
        value = row.get(name)
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # a number beside rows without one
        if isinstance(value, (str, int)) and value != "":
            return str(value)
    return None


def caption_columns(columns: Sequence[str], asked: str | None = None, name: str = "") -> list[str]:
    """The columns that captions are read from, first choice first; the one asked for alone. Raises DataError if not there."""
    if asked is not None:
        found = find_column(columns, (), asked, "captions", name)
        return [] if found is None else [found]
    folded = {column.lower(): column for column in reversed(columns)}
    return [folded[name] for name in (*SEVERAL, *CAPTION_COLUMNS) if name in folded]


def is_trained(value: Any) -> bool:
    """Whether JSON is sd-scripts' fine-tuning metadata: by picture, an object with a caption or tags."""
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(entry, dict) for entry in value.values())
        and any("caption" in entry or "tags" in entry for entry in value.values())
    )


def trained_words(entry: Mapping[str, Any]) -> list[str]:
    """The caption that sd-scripts trains on: the caption, with the tags behind it where there are both."""
    parts = [str(entry[key]).strip() for key in ("caption", "tags") if isinstance(entry.get(key), str)]
    text = ", ".join(part for part in parts if part)
    return [text] if text else []


def _read_table(
    tree: Tree, name: str, known: PictureNames, how: tuple[str | None, str | None, str | None], found: Metadata
) -> None:
    asked, caption_column, encoding = how
    table = _parse(tree, name, encoding)
    files = _file_columns(table.columns)
    where = f"'{name}' of {tree.name}"
    if asked is not None and asked in table.columns:
        files = [asked]
    if not files:
        raise DataError(
            f"{where} has no column {_FILE} (or *_{_FILE}), which says which picture a row is of; it has: "
            f"{', '.join(table.columns) or 'none'}."
        )
    if len(files) > 1:
        raise DataError(
            f"{where} has several columns of file names ({', '.join(files)}); name the one to read (column)."
        )
    columns = caption_columns(table.columns, caption_column, where)
    labels = [name for name in table.columns if name.lower() in LABEL_COLUMNS]
    folder = posixpath.dirname(name)
    missing: list[str] = []
    nameless = 0
    unread = 0
    before = {picture for picture, words in found.words.items() if words.captions}
    others: list[str] = []
    for row in table.rows:
        written = row.get(files[0])
        several = written if isinstance(written, list) else [written]
        if not any(isinstance(one, str) and one.strip() for one in several):
            nameless += 1
            continue
        for one in several:
            picture = known.find(folder, str(one))
            if picture is None:
                alike = known.like(folder, str(one))
                missing.append(printable(str(one)) + (f" ({posixpath.basename(alike)} is there)" if alike else ""))
                continue
            words = found.words.setdefault(picture, Words())
            fresh = [text for text in texts_of(row, columns) if text not in words.captions]
            others += [picture] if fresh and picture in before else []
            words.captions += fresh
            own = label_of(row, labels)
            unread += own is None and any(row.get(one) not in (None, "") for one in labels)
            words.label = words.label or own
    if not found.words and table.rows:
        raise DataError(
            f"Of {count(len(table.rows), 'row')} of {where} none is of a picture that is there; named are: {named(missing)}."
        )
    found.tables.append(name)
    found.notes += _another(where, others)
    if unread:
        found.notes.append(
            f"{count(unread, 'class', 'classes')} of {where} not read: neither a text nor a whole number"
        )
    found.notes += _said(where, table, columns, missing, nameless, files[0])


def _another(where: str, pictures: Sequence[str]) -> list[str]:
    told = list(dict.fromkeys(pictures))
    if not told:
        return []
    return [f"{where} gives {count(len(told), 'picture')} another caption than the files before: {named(told)}"]


def _said(
    where: str, table: Table, columns: Sequence[str], missing: Sequence[str], nameless: int, file: str
) -> list[str]:
    notes = []
    if missing:
        notes.append(
            f"{len(missing):,} of {count(len(table.rows), 'row')} of {where} name files that are not there: {named(missing)}"
        )
    if nameless:
        notes.append(f"{count(nameless, 'row')} of {where} name no file in {file}")
    others = [name for name in columns if name != columns[0]]
    differing = [name for name in others if any(_differ(row, columns[0], name) for row in table.rows)]
    if differing:
        notes.append(
            f"captions are read from the column {columns[0]} of {where}; {', '.join(differing)} is there too and differs"
        )
    if not columns:
        notes.append(
            f"{where} has no column of captions ({', '.join((*CAPTION_COLUMNS, SEVERAL[0]))}; --column names another); it has: "
            f"{', '.join(table.columns)}"
        )
    return notes


def _differ(row: Mapping[str, Any], one: str, two: str) -> bool:
    a, b = texts_of(row, [one]), texts_of(row, [two])
    return bool(a and b and not set(b) <= set(a))


def _read_trained(tree: Tree, name: str, known: PictureNames, encoding: str | None, found: Metadata) -> None:
    entries = json.loads(decode_text(tree.read(name), f"'{name}'", encoding))
    missing, others = [], []
    folder = posixpath.dirname(name)
    for key, entry in entries.items():
        picture = known.find(folder, key) or known.by_stem(key)
        if picture is None:
            missing.append(printable(key))
            continue
        words = found.words.setdefault(picture, Words())
        fresh = [text for text in trained_words(entry) if text not in words.captions]
        others += [picture] if fresh and words.captions else []
        words.captions += fresh
    where = f"'{name}' of {tree.name}"
    if len(missing) == len(entries):
        raise DataError(
            f"None of the {len(entries)} entries of {where} is of a picture that is there: {named(missing)}."
        )
    found.tables.append(name)
    found.notes += _another(where, others)
    if missing:
        found.notes.append(
            f"{len(missing):,} of {len(entries):,} entries of {where} are of no picture there: {named(missing)}"
        )


def _parse(tree: Tree, name: str, encoding: str | None) -> Table:
    where = f"'{name}' of {tree.name}"
    try:
        data = tree.read(name)
    except OSError as error:
        raise DataError(f"Cannot read {where}: {error.strerror or error}.") from error
    if name.lower().endswith(".parquet"):
        return parse_parquet(data, where)
    text = decode_text(data, where, encoding)
    return parse_csv(text, where, [_FILE]) if name.lower().endswith(".csv") else parse_jsonl(text, where)


def _file_columns(columns: Sequence[str]) -> list[str]:
    exact = find_column(columns, (_FILE, _FILES), None, "files", "metadata")
    if exact is not None:
        return [exact]
    return [name for name in columns if name.lower().endswith((f"_{_FILE}", f"_{_FILES}"))]
