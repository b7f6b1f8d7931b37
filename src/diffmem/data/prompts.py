"""Prompt lists from txt, csv, jsonl, parquet or a Python sequence."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffmem.atomic import user_path
from diffmem.data.captions import Captions
from diffmem.data.folder_prompts import folder_prompts
from diffmem.data.ids import unique_ids
from diffmem.data.metadata import SEVERAL, texts_of
from diffmem.data.notes import count, named, printable, say
from diffmem.data.prompt_json import read_json
from diffmem.data.prompt_lines import (
    literal_notes,
    looks_like_json,
    looks_like_parameters,
    looks_like_table,
    prompt_rows,
)
from diffmem.data.prompt_list import Prompt, PromptList
from diffmem.data.tables import Table, find_column, read_csv, read_jsonl, read_parquet
from diffmem.data.text import read_text, split_lines, text_of_bytes
from diffmem.errors import DataError, UsageError

__all__ = ["Prompt", "PromptList", "as_prompts", "load_prompts"]

PROMPT_COLUMNS = ("caption", "prompt", "text")
ID_COLUMNS = ("id", "prompt_id", "index")
_LABELS = ("memorized", "memorised", "is_memorized", "label", "labels", "target")
_TRUE = {"true", "1", "1.0", "yes"}
_FALSE = {"false", "0", "0.0", "no"}
_NULL = {"", "null", "none", "nan", "na"}
_ID_DIGITS = 6


def load_prompts(
    source: Any,
    column: str | None = None,
    id_column: str | None = None,
    encoding: str | None = None,
    labels: str | None = None,
    captions: Captions | None = None,
) -> PromptList:
    """Read a prompt list. What is there and is not read is said by the logger `diffmem.data`.

    Args:
        source: a .txt (one prompt per line; blank lines count, except at the end), .csv or .tsv, .json, .jsonl or .parquet
            file, a folder or archive of pictures with captions (its captions are the prompts), or a Python sequence of
            strings or of rows (mappings). A lone string is a path.
        column: the column of the prompts; by default `caption`, `prompt` or `text`, in this order, in any case.
        id_column: the column of the ids; by default `id`, `prompt_id` or `index`; "" numbers the rows instead. In a column
            that is named, ids may occur again (several captions of one image): they get `#2`, `#3`, ... and are a group.
        encoding: of text files; by default the byte-order mark decides, then UTF-8.
        labels: the column that says whether a prompt is memorized (true, false, 1, 0, nothing); none is read unless asked.
        captions: of a folder: where captions are read from, see `diffmem.data.captions`.

    Returns:
        The list. Rows whose prompt is empty or no text are kept, with `problem` set.

    Raises:
        DataError: missing or unreadable file, no prompt column, missing ids or ids that occur again, a label that is none.

    Examples:
        >>> import diffmem as dm
        >>> prompts = dm.load_prompts(["a red fox", "a hen"])
        >>> prompts, [prompt.text for prompt in prompts]
        (PromptList(2 prompts of a Python sequence), ['a red fox', 'a hen'])
    """
    if isinstance(source, PromptList):
        return source
    notes: list[str] = []
    if isinstance(source, (str, Path)):
        path = user_path(source)
        if not str(source).strip():
            raise UsageError("The prompts are an empty path; expected a file, a folder, or a list of prompts.")
        folder, file = _kind(path)
        if folder or path.suffix.lower() in (".zip", ".tar"):
            _refuse_for_folders(path, id=id_column, labels=labels)
            return folder_prompts(path, captions, column, encoding)
        if not file:
            raise DataError(
                f"'{printable(str(path))}' {_lack(path)}; expected a prompt list (.txt, .csv, .tsv, .json, .jsonl or "
                ".parquet) or a folder of pictures with captions (a single prompt goes into a list: [prompt])."
            )
        table, notes = _read(path, column, encoding)
        name = str(path)
    elif (rows := _rows_elsewhere(source)) is not None:
        table, name = _rows_of(rows), f"a {type(source).__name__}"
    elif isinstance(source, Sequence) and not isinstance(source, (bytes, bytearray)):
        if source and all(isinstance(item, Prompt) for item in source):
            return PromptList(tuple(source), "a Python sequence")
        table, name = _rows_of(source), "a Python sequence"
    else:
        raise UsageError(
            f"Prompts from a {type(source).__name__}; expected a file, a folder, a list of strings or of rows (mappings)."
        )
    if captions is not None:
        raise UsageError(f"captions={captions!r} belongs to a folder of pictures; {name} is a list of prompts.")
    if not table.rows:
        raise DataError(f"{name} holds no prompts.")
    prompts = _from_table(table, name, column, id_column, labels, notes)
    for note in notes:
        say(note)
    return prompts


def as_prompts(source: Any) -> PromptList:
    """Whatever a function takes as prompts, as a list: everything that `load_prompts` takes, with its defaults."""
    return load_prompts(source)


def _rows_elsewhere(source: Any) -> list[Any] | None:
    """Rows or texts of a data frame, an Arrow table, a data set or an array of strings; None for anything else."""
    if isinstance(source, (list, tuple)):
        return None
    for name, arguments in (("to_dict", ("records",)), ("to_pylist", ()), ("to_list", ()), ("tolist", ())):
        if callable(getattr(source, name, None)) and (name != "to_dict" or hasattr(source, "columns")):
            rows = getattr(source, name)(*arguments)
            return rows if isinstance(rows, list) else None
    return list(source) if isinstance(source, Iterator) else None


def _lack(path: Path) -> str:
    try:
        return "is a pipe or a device" if path.exists() else "does not exist"
    except (OSError, ValueError):
        return "does not exist"


def _kind(path: Path) -> tuple[bool, bool]:
    """Whether there is a folder, and whether there is a file; neither under a name that no file can have."""
    try:
        return path.is_dir(), path.is_file()
    except (OSError, ValueError):
        return False, False


def _rows_of(source: Sequence[Any]) -> Table:
    rows = []
    for place, item in enumerate(source):
        if isinstance(item, Mapping):
            row = {key: text_of_bytes(value) for key, value in item.items()}
        elif item is None or isinstance(item, (str, bytes, int, float)):
            row = {"prompt": text_of_bytes(item)}
        else:
            raise UsageError(f"Prompt {place} is a {type(item).__name__}; expected a string or a row (a mapping).")
        rows.append(row)
    return Table(tuple(dict.fromkeys(key for row in rows for key in row)), tuple(rows))


def _refuse_for_folders(path: Path, **options: str | None) -> None:
    for name, value in options.items():
        if value is not None:
            raise UsageError(
                f"--{name} {value} belongs to a prompt list; '{path}' holds pictures, whose captions are read."
            )


def _read(path: Path, column: str | None, encoding: str | None) -> tuple[Table, list[str]]:
    suffix = path.suffix.lower()
    if suffix in (".txt", ".text", ""):
        lines = split_lines(read_text(path, encoding))
        if (header := looks_like_table(lines, PROMPT_COLUMNS)) is not None:
            raise DataError(
                f"'{path}' begins with the header of a table ({header.strip()!r}), but its suffix says one prompt per line; "
                "rename it to .csv or .tsv."
            )
        if (kind := looks_like_json(lines)) is not None:
            raise DataError(
                f"'{path}' holds {kind}, but its suffix says one prompt per line; rename it to .jsonl or .json."
            )
        if (other := looks_like_parameters(lines)) is not None:
            raise DataError(
                f"'{path}' holds a web UI's generation parameters ({other.strip()[:60]!r} is no prompt); keep the prompts "
                "alone, one per line."
            )
        rows, notes = prompt_rows(lines, f"'{path}'")
        return Table(tuple(dict.fromkeys(("prompt", *(key for row in rows for key in row)))), tuple(rows)), notes
    if suffix in (".csv", ".tsv"):
        return read_csv(path, [column.lower()] if column else PROMPT_COLUMNS, encoding), []
    if suffix in (".jsonl", ".ndjson"):
        return read_jsonl(path, encoding), []
    if suffix == ".json":
        return read_json(path, encoding), []
    if suffix in (".parquet", ".pq"):
        return read_parquet(path), []
    if suffix in (".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar"):
        raise DataError(f"'{path}' is compressed; unpack it and give what is in it.")
    raise DataError(f"'{path}' ends in '{suffix}'; expected .txt, .csv, .tsv, .json, .jsonl or .parquet.")


def _from_table(
    table: Table, name: str, column: str | None, id_column: str | None, labels: str | None, notes: list[str]
) -> PromptList:
    text_column = find_column(table.columns, PROMPT_COLUMNS, column, "prompts", name)
    if text_column is None:
        text_column = find_column(table.columns, SEVERAL, None, "prompts", name)
    if text_column is None:
        raise DataError(
            f"{name} has no column called {', '.join(PROMPT_COLUMNS)}; name the column of the prompts with --column. "
            f"It has: {table.columns_in_words}."
        )
    key = None if id_column == "" else find_column(table.columns, ID_COLUMNS, id_column, "ids", name)
    label = None if labels is None else find_column(table.columns, (), labels, "labels", name)
    group = find_column(table.columns, ("group",), None, "groups", name)
    known = {text_column, key, label, group}
    rows = [(place, text, row) for place, row in enumerate(table.rows) for text in _several(row, text_column)]
    listed = len(rows) > len(table.rows)  # lists of captions: their ids repeat by what they are
    width = max(_ID_DIGITS, len(str(len(table.rows) - 1)))
    ids = [f"{place:0{width}d}" if key is None else _id(row.get(key), key, name, place) for place, _, row in rows]
    unique, said = unique_ids(ids, name)
    repeated = {item for item, number in Counter(ids).items() if number > 1}
    if said and id_column is None and not listed:
        raise DataError(
            f"{said[0].split(': they')[0]}; if rows of one id are captions of one image, say so (--id {key}), otherwise "
            "--id none numbers the rows."
        )
    notes += [f"{text}, as captions of one image" for text in said if not listed]
    prompts = []
    for (place, value, row), item, one in zip(rows, unique, ids, strict=True):
        text, problem = _text(value)
        prompts.append(
            Prompt(
                id=item,
                text=text,
                label=_label(row.get(label), name, place) if label else None,
                group=str(row[group])
                if group is not None and row.get(group) not in (None, "")
                else one
                if one in repeated
                else None,
                extra={k: v for k, v in row.items() if k not in known},
                problem=problem,
            )
        )
    unusable = [f"{prompt.id} ({prompt.problem})" for prompt in prompts if prompt.problem is not None]
    if unusable:
        notes.append(
            f"{len(unusable):,} of {count(len(prompts), 'prompt')} of {name} cannot be used: {named(unusable, 3)}"
        )
    if label is None and (unread := find_column(table.columns, _LABELS, None, "labels", name)) is not None:
        notes.append(
            f"the column '{unread}' of {name} is not read; if it says which prompts are memorized, ask for it: --labels {unread}"
        )
    others = [c for c in table.columns if c.lower() in PROMPT_COLUMNS and c != text_column]
    if others and column is None:
        notes.append(
            f"prompts of {name} are read from the column '{text_column}'; there is also {', '.join(others)} (--column)"
        )
    if not name.lower().endswith((".txt", ".text")):
        notes += literal_notes([prompt.text for prompt in prompts], name)
    return PromptList(tuple(prompts), name, text_column, key)


def _several(row: Mapping[str, Any], column: str) -> list[Any]:
    """The prompt of a row, or all of a list of captions."""
    value = row.get(column)
    if column.lower() in SEVERAL:
        return list(texts_of(row, [column])) or [None]
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        return list(value) or [None]
    return [value]


def _text(value: Any) -> tuple[str, str | None]:
    if value is None:
        return "", "empty prompt"
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace"), "the prompt is bytes that are no UTF-8 text"
    if not isinstance(value, str):
        return str(value), f"the prompt is no text but a {type(value).__name__}"
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return value.encode("utf-8", "backslashreplace").decode(), "the prompt holds half a surrogate pair"
    return value, None if any(not c.isspace() and unicodedata.category(c) != "Cf" for c in value) else "empty prompt"


def _id(value: Any, column: str, name: str, row: int) -> str:
    text = "" if value is None else str(value).strip().encode("utf-8", "backslashreplace").decode()
    if not text:
        raise DataError(f"{name}, row {row + 1}: no id in column '{column}'; fill it; --id none numbers the rows.")
    return text


def _label(value: Any, name: str, row: int) -> bool | None:
    folded = "" if value is None else str(value).strip().lower()
    if folded in _NULL:
        return None
    if folded in _TRUE or folded in _FALSE:
        return folded in _TRUE
    raise DataError(f"{name}, row {row + 1}: label {value!r}; expected true, false, 1, 0 or nothing (unknown).")
