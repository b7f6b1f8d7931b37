"""Prompt lists from txt, csv, jsonl, parquet or a Python sequence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from diffmem.data.fingerprint import hash_json
from diffmem.data.tables import Table, check_unique, find_column, read_csv, read_jsonl, read_parquet
from diffmem.data.text import read_text, split_lines
from diffmem.errors import DataError

PROMPT_COLUMNS = ("caption", "prompt", "text")
ID_COLUMNS = ("id", "prompt_id", "index")
_TRUE = {"true", "1", "1.0", "yes"}
_FALSE = {"false", "0", "0.0", "no"}
_NULL = {"", "null", "none", "nan", "na"}
_ID_DIGITS = 6


@dataclass(frozen=True)
class Prompt:
    """One prompt of a list.

    Attributes:
        id: unique within the list.
        text: as written, not stripped.
        label: True memorized, False not, None unknown.
        group: name of a set of prompts that belong together, if the list has such a column.
        extra: every other column of the row.
        problem: why this prompt cannot be used ("empty prompt"), None if it can; the engine makes an error row of it.
    """

    id: str
    text: str
    label: bool | None = None
    group: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None


@dataclass(frozen=True)
class PromptList(Sequence[Prompt]):
    """Prompts in the order of their source, where they came from and which columns were read."""

    prompts: tuple[Prompt, ...]
    source: str
    column: str | None = None
    id_column: str | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self.prompts)

    def __getitem__(self, index: Any) -> Any:
        return self.prompts[index]

    @cached_property
    def fingerprint(self) -> str:
        """Content hash of ids, texts, labels and groups in order; extra columns do not count."""
        return hash_json([[p.id, p.text, p.label, p.group] for p in self.prompts])

    def by_id(self, prompt_id: str) -> Prompt:
        """The prompt with this id; raises DataError if there is none."""
        found = self._positions.get(prompt_id)
        if found is None:
            raise DataError(f"There is no prompt '{prompt_id}' in {self.source} ({len(self)} prompts).")
        return self.prompts[found]

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {prompt.id: i for i, prompt in enumerate(self.prompts)}


def load_prompts(
    source: PromptList | str | Path | Sequence[str | Mapping[str, Any]],
    column: str | None = None,
    id_column: str | None = None,
    encoding: str | None = None,
) -> PromptList:
    """Read a prompt list.

    Args:
        source: a .txt (one prompt per line; blank lines count, except at the end), .csv or .tsv, .jsonl or .parquet
            file, a folder of pictures with captions (its captions are the prompts), or a Python sequence of strings or
            of rows (mappings). A lone string is a path.
        column: the column of the prompts; by default `caption`, `prompt` or `text`, in this order, in any case.
        id_column: the column of the ids; by default `id`, `prompt_id` or `index`; "" numbers the rows instead.
        encoding: of text files; by default the byte-order mark decides, then UTF-8.

    Returns:
        The list. Rows whose prompt is empty or no text are kept, with `problem` set.

    Raises:
        DataError: missing or unreadable file, no prompt column, duplicate or missing ids, a label that is none.
    """
    if isinstance(source, PromptList):
        return source
    if isinstance(source, (str, Path)):
        path = Path(source)
        if path.is_dir():
            from diffmem.data.folder_prompts import folder_prompts

            return folder_prompts(path)
        if not path.is_file():
            raise DataError(
                f"'{path}' does not exist; expected a prompt list (.txt, .csv, .tsv, .jsonl or .parquet) or a folder of "
                "pictures with captions."
            )
        table, name = _read(path, column, encoding), str(path)
    else:
        rows = tuple({"prompt": item} if isinstance(item, str) else dict(item) for item in source)
        table, name = Table(tuple(dict.fromkeys(key for row in rows for key in row)), rows), "a Python sequence"
    if not table.rows:
        raise DataError(f"{name} holds no prompts.")
    return _from_table(table, name, column, id_column)


def _read(path: Path, column: str | None, encoding: str | None) -> Table:
    suffix = path.suffix.lower()
    if suffix == ".txt":
        return Table(("prompt",), tuple({"prompt": line} for line in split_lines(read_text(path, encoding))))
    if suffix in (".csv", ".tsv"):
        return read_csv(path, [column.lower()] if column else PROMPT_COLUMNS, encoding)
    if suffix in (".jsonl", ".ndjson"):
        return read_jsonl(path, encoding)
    if suffix in (".parquet", ".pq"):
        return read_parquet(path)
    raise DataError(f"'{path}' ends in '{suffix}'; expected .txt, .csv, .tsv, .jsonl or .parquet.")


def _from_table(table: Table, name: str, column: str | None, id_column: str | None) -> PromptList:
    text_column = find_column(table.columns, PROMPT_COLUMNS, column, "prompts", name)
    if text_column is None:
        raise DataError(
            f"{name} has no column called {', '.join(PROMPT_COLUMNS)}; name the column of the prompts with --column. "
            f"It has: {', '.join(table.columns) or 'none'}."
        )
    key = None if id_column == "" else find_column(table.columns, ID_COLUMNS, id_column, "ids", name)
    label = find_column(table.columns, ("label",), None, "labels", name)
    group = find_column(table.columns, ("group",), None, "groups", name)
    known = {text_column, key, label, group}
    width = max(_ID_DIGITS, len(str(len(table.rows) - 1)))
    prompts = []
    for i, row in enumerate(table.rows):
        text, problem = _text(row.get(text_column))
        prompts.append(
            Prompt(
                id=f"{i:0{width}d}" if key is None else _id(row.get(key), key, name, i),
                text=text,
                label=_label(row.get(label), name, i) if label else None,
                group=None if group is None or row.get(group) in (None, "") else str(row[group]),
                extra={k: v for k, v in row.items() if k not in known},
                problem=problem,
            )
        )
    check_unique([prompt.id for prompt in prompts], name, 'id_column="" numbers the rows instead')
    return PromptList(tuple(prompts), name, text_column, key)


def _text(value: Any) -> tuple[str, str | None]:
    if value is None:
        return "", "empty prompt"
    if not isinstance(value, str):
        return str(value), f"the prompt is no text but a {type(value).__name__}"
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return value.encode("utf-8", "backslashreplace").decode(), "the prompt holds half a surrogate pair"
    return value, None if value.strip() else "empty prompt"


def _id(value: Any, column: str, name: str, row: int) -> str:
    text = "" if value is None else str(value).strip().encode("utf-8", "backslashreplace").decode()
    if not text:
        raise DataError(
            f"{name}, row {row + 1}: no id in column '{column}'; fill it, or id_column=\"\" numbers the rows."
        )
    return text


def _label(value: Any, name: str, row: int) -> bool | None:
    folded = "" if value is None else str(value).strip().lower()
    if folded in _NULL:
        return None
    if folded in _TRUE or folded in _FALSE:
        return folded in _TRUE
    raise DataError(f"{name}, row {row + 1}: label {value!r}; expected true, false, 1, 0 or nothing (unknown).")
