"""Rows of a run in append-only Parquet parts: nothing finished is lost, nothing half-written or damaged is read."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from diffmem.atomic import sweep, write_atomic
from diffmem.errors import DataError, IncompleteRun
from diffmem.runs.completeness import row_changes
from diffmem.runs.schemas import ORDER, SCHEMAS, check_row, schema_of

_log = logging.getLogger(__name__)

Row = Mapping[str, object]
ASIDE, RECOMPUTED = ".corrupt", ".recomputed"
"""What is put behind the name of a damaged part, before and after its rows are computed again."""


class RunStore:
    """The rows of one run directory, one folder of parts per stage: `parts/<stage>/<time>-<checksum>.parquet`.

    Parts are never modified, so any number of processes can append at once. Names sort by the time of writing: "later"
    below is the order of the names. A part whose bytes are not those of its name is set aside as `<name>.corrupt`, and
    as `<name>.recomputed` once a command has computed its rows again. (The names of diffmem 0.1.0 hold a random number;
    of such a part the pages' own checksums and the columns are verified.)

    Args:
        path: the run directory; it is created with the first part.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._swept: set[str] = set()

    def append(self, stage: str, rows: Sequence[Row]) -> Path | None:
        """Write rows as one new part, whole or not at all; returns its path, None for no rows.

        Raises:
            ValueError, TypeError: a row that the stage's schema cannot hold; nothing is written.
            IncompleteRun: the disk is full; nothing is left behind.
        """
        for row in rows:
            check_row(stage, row)
        return self._write(stage, rows)

    def writer(self, stage: str, rows: int = 1000, seconds: float | None = None, megabytes: float = 64.0) -> RowWriter:
        """A buffer in front of `append`, as a context manager; see RowWriter.

        `seconds` is by default the environment's DIFFMEM_FLUSH_SECONDS, else 20: what a kill can lose at most.
        """
        if seconds is None:
            seconds = float(os.environ.get("DIFFMEM_FLUSH_SECONDS", "20"))
        return RowWriter(self, stage, rows, seconds, megabytes)

    def finished(self, stage: str, retry_errors: bool = False) -> set[bytes]:
        """The keys that have a row; with `retry_errors`, error rows do not count."""
        schema = schema_of(stage)
        errors_count = not retry_errors or "status" not in schema.names
        keys: set[bytes] = set()
        for _, table in self._parts(stage, ["key"] if errors_count else ["key", "status"]):
            if not errors_count:
                table = table.filter(np.asarray(table["status"]) != "error")
            keys.update(table["key"].to_pylist())
        return keys

    def read(self, stage: str, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows, one per key, sorted by `ORDER`: independent of the order in which they were computed.

        Of several rows with one key an ok row wins over any other, then the later part wins.

        Args:
            stage: one of the stages.
            columns: the columns wanted; all by default.
        """
        schema = schema_of(stage)
        wanted = list(columns) if columns is not None else schema.names
        _check_columns(stage, schema, wanted)
        needed = {*wanted, *ORDER[stage], "key", "status"}
        names = [name for name in schema.names if name in needed]
        tables = [table for _, table in self._parts(stage, names)]
        if not tables:
            return schema.empty_table().select(wanted)
        whole = pa.concat_tables(tables)
        whole = whole.filter(_winners(whole))
        return whole.sort_by([(name, "ascending") for name in ORDER[stage]]).select(wanted)

    def stream(self, stage: str, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The rows that `read` gives, part by part in the order of writing: memory holds one part and all keys."""
        schema = schema_of(stage)
        wanted = list(columns) if columns is not None else schema.names
        _check_columns(stage, schema, wanted)
        judged = [name for name in ("key", "status") if name in schema.names]
        parts = list(self._parts(stage, judged))
        if not parts:
            return
        wins = _winners(pa.concat_tables([table for _, table in parts]))
        start = 0
        for path, judged_table in parts:
            stop = start + judged_table.num_rows
            mask, start = wins[start:stop], stop
            if mask.any() and (table := self._load(path, wanted)) is not None:
                yield table.filter(mask).select(wanted)

    def parts_of(self, stage: str) -> dict[bytes, Path]:
        """Key -> the part that holds its row; see `read` for which row it is."""
        names = [name for name in ("key", "status") if name in schema_of(stage).names]
        parts = list(self._parts(stage, names))
        if not parts:
            return {}
        whole = pa.concat_tables([table for _, table in parts])
        wins = _winners(whole)
        paths = [path for path, table in parts for _ in range(table.num_rows)]
        return {key: paths[place] for place, key in enumerate(whole["key"].to_pylist()) if wins[place]}

    def read_part(self, stage: str, path: Path, columns: Sequence[str]) -> pa.Table:
        """All rows of one part; none where it is damaged."""
        table = self._load(path, list(columns))
        return schema_of(stage).empty_table().select(list(columns)) if table is None else table

    def damaged(self) -> list[str]:
        """The parts ("stage/name") that are damaged and whose rows nothing has computed again; reads every part."""
        for stage in SCHEMAS:
            for path in self._files(stage):
                self._load(path, [] if _NAME.fullmatch(path.name) else schema_of(stage).names)
        ignored = [path for path in _ignored if path.parent.parent.parent == self.path]
        aside = [path.with_suffix("") for path in self.path.glob(f"parts/*/*{ASIDE}")]
        return sorted({f"{path.parent.name}/{path.name}" for path in [*ignored, *aside]})

    def damage(self) -> tuple[str, ...]:
        """What a reader of the run must know of damaged, lost and foreign parts, in sentences; none where all are whole."""
        names = self.damaged()
        if not names:
            return row_changes(self)
        listed = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        return (
            f"{len(names)} damaged part{'s were' if len(names) > 1 else ' was'} left out of '{self.path}' ({listed}): the rows "
            "in it are missing here until the same command has run again.",
        )

    def settle(self, *stages: str) -> None:
        """Note that the rows of the stages' damaged parts are computed again; the parts are kept."""
        for stage in stages:
            for path in (self.path / "parts" / stage).glob(f"*{ASIDE}"):
                os.replace(path, path.with_name(path.name.removesuffix(ASIDE) + RECOMPUTED))  # noqa: PTH105

    def _write(self, stage: str, rows: Sequence[Row]) -> Path | None:
        schema = schema_of(stage)
        folder = self.path / "parts" / stage
        if stage not in self._swept:
            sweep(folder)
            self._swept.add(stage)
        if not rows:
            return None
        table = pa.Table.from_pylist([dict(row) for row in rows], schema=schema)
        sink = pa.BufferOutputStream()
        table = table.replace_schema_metadata({_STAGE: stage})
        packing = {name: "NONE" if name == "png" else "ZSTD" for name in schema.names}  # PNG is packed already
        pq.write_table(table, sink, compression=packing, write_page_checksum=True)
        data = memoryview(sink.getvalue())
        path = folder / f"{time.time_ns():016x}-{_checksum(data)}.parquet"
        write_atomic(path, data)
        return path

    def _parts(self, stage: str, columns: list[str]) -> Iterator[tuple[Path, pa.Table]]:
        for path in self._files(stage):
            table = self._load(path, columns)
            if table is not None:
                yield path, table

    def _files(self, stage: str) -> list[Path]:
        folder = self.path / "parts" / stage
        if os.path.lexists(folder) and not folder.is_dir():
            raise DataError(
                f"'{folder}' is no folder; it holds the rows of '{stage}'. Move it away and run the same command."
            )
        return sorted(folder.glob("[!.]*.parquet"))

    def _load(self, path: Path, columns: list[str]) -> pa.Table | None:
        """One part, checksums verified; None for a part that is damaged, which is set aside with a warning."""
        schema = schema_of(path.parent.name)
        sealed = _NAME.fullmatch(path.name) is not None
        try:
            _verify(path)
            with path.open("rb") as file, pq.ParquetFile(file, page_checksum_verification=True) as part:
                written_for = (part.schema_arrow.metadata or {}).get(_STAGE, path.parent.name.encode()).decode()
                if written_for != path.parent.name:
                    raise _Damaged(f"its rows are those of '{written_for}'")
                _check_schema(part.schema_arrow, schema, sealed)
                table = part.read(columns=[name for name in columns if name in part.schema_arrow.names])
            if not sealed:
                _check_nulls(table, schema)
        except FileNotFoundError:  # another process has just set it aside
            return None
        except Exception as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk's trouble, not the file's
            if sealed and not isinstance(error, _Damaged):
                raise  # its bytes are as they were written
            _set_aside(path, error)  # a reader of damaged metadata may end in any way
            return None
        return _completed(table, schema, columns).replace_schema_metadata(None)


class _Damaged(Exception):
    """A part that is not as it was written, or not of this stage."""


class RowWriter:
    """Buffered rows of one stage: written every so many rows, seconds or megabytes, and at the end however it comes.

    An exception or Ctrl-C in the block writes what is in the buffer before it goes on. A kill loses at most the rows
    of the last `seconds` and of the batch then at work.

    Args:
        store: where to.
        stage: the stage of all rows.
        rows: most rows in the buffer.
        seconds: longest time a row waits, looked at when rows come.
        megabytes: most bytes of binary values in the buffer.
    """

    def __init__(self, store: RunStore, stage: str, rows: int, seconds: float, megabytes: float) -> None:
        schema_of(stage)
        self._store, self._stage = store, stage
        self._rows, self._seconds, self._bytes = rows, seconds, megabytes * 1e6
        self._buffer: list[Row] = []
        self._held = 0
        self._since = time.monotonic()

    def write(self, row: Row) -> None:
        """Take one row; it is on the disk after the next flush.

        Raises:
            ValueError, TypeError: a row the schema cannot hold; rows taken before are unaffected.
            IncompleteRun: the disk is full; the buffer is kept and tried again at the end.
        """
        check_row(self._stage, row)
        if not self._buffer:
            self._since = time.monotonic()
        self._buffer.append(dict(row))
        self._held += sum(len(value) for value in row.values() if isinstance(value, bytes))
        late = time.monotonic() - self._since >= self._seconds
        if late or len(self._buffer) >= self._rows or self._held >= self._bytes:
            self.flush()

    def write_many(self, rows: Iterable[Row]) -> None:
        """Take several rows."""
        for row in rows:
            self.write(row)

    def flush(self) -> None:
        """Write the buffer as one part; it is emptied only after that has worked."""
        if self._buffer:
            self._store._write(self._stage, self._buffer)
            self._buffer, self._held = [], 0

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.flush()
        except IncompleteRun:
            if not isinstance(error, IncompleteRun):  # else the same full disk is on its way up already
                raise


def _winners(table: pa.Table) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which rows represent their key: an ok row before any other, then the later one."""
    count = table.num_rows
    keys = _words(table["key"])
    halves = np.sort(keys[:, 0])
    if not (halves[1:] == halves[:-1]).any():  # no two keys are equal: what most runs hold
        return np.ones(count, dtype=bool)
    ok = np.asarray(table["status"]) == "ok" if "status" in table.column_names else np.ones(count, dtype=bool)
    order = np.lexsort((np.arange(count), ok, keys[:, 0], keys[:, 1]))
    ordered = keys[order]
    last = np.ones(count, dtype=bool)
    last[:-1] = (ordered[1:] != ordered[:-1]).any(axis=1)
    wins = np.zeros(count, dtype=bool)
    wins[order[last]] = True
    return wins


def _words(keys: pa.ChunkedArray) -> np.ndarray[tuple[int, int], np.dtype[np.uint64]]:
    """Keys as two numbers each, [n, 2], without a Python object per key."""
    words = [np.zeros((0, 2), dtype=np.uint64)]
    for chunk in keys.chunks:
        values = np.frombuffer(chunk.buffers()[1], dtype=np.uint64).reshape(-1, 2)
        words.append(values[chunk.offset : chunk.offset + len(chunk)])
    return np.concatenate(words)


def _completed(table: pa.Table, schema: pa.Schema, columns: Sequence[str]) -> pa.Table:
    """The table with all these columns: null where a part was written before a column came to the schema."""
    for name in columns:
        if name not in table.column_names and schema.field(name).nullable:
            table = table.append_column(schema.field(name), pa.nulls(table.num_rows, schema.field(name).type))
    return table.select([name for name in columns if name in table.column_names])


def _check_columns(stage: str, schema: pa.Schema, columns: Sequence[str]) -> None:
    unknown = [name for name in columns if name not in schema.names]
    if unknown:
        raise KeyError(f"'{stage}' has no columns {unknown}; it has {schema.names}.")


_STAGE = b"diffmem.stage"
_NAME = re.compile(r"[0-9a-f]{16}-([0-9a-f]{32})\.parquet")
_verified: set[tuple[str, int, int, int]] = set()
_ignored: set[Path] = set()


def _checksum(data: memoryview | bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def _verify(path: Path) -> None:
    """Compare a part's bytes with its name, once per process."""
    try:
        status = path.stat()
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise _Damaged("it is a loop of links") from error
    if not stat.S_ISREG(status.st_mode):
        raise _Damaged("it is no regular file")
    name = _NAME.fullmatch(path.name)
    known = (str(path.absolute()), status.st_ino, status.st_size, status.st_mtime_ns)
    if name is None or known in _verified:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()[:32]
    if found != name[1]:
        raise _Damaged("its checksum is not that of its name")
    _verified.add(known)


def _check_schema(found: pa.Schema, schema: pa.Schema, sealed: bool) -> None:
    """Whether a part holds the stage's columns; more of them only where diffmem (a newer one) has written it."""
    foreign = [name for name in found.names if name not in schema.names]
    if foreign and not sealed:
        raise _Damaged(f"it has the foreign columns {', '.join(foreign)[:80]}")
    for field in schema:
        if found.get_field_index(field.name) < 0:
            if not field.nullable:
                raise _Damaged(f"it has no column {field.name}")
        elif found.field(field.name).type != field.type:
            raise _Damaged(f"its column {field.name} is {found.field(field.name).type} instead of {field.type}")


def _check_nulls(table: pa.Table, schema: pa.Schema) -> None:
    for name in table.column_names:
        if table[name].null_count and not schema.field(name).nullable:
            raise _Damaged(f"its column {name} has empty places")


def _set_aside(path: Path, error: Exception) -> None:
    aside = path.with_name(path.name + ASIDE)
    try:
        os.replace(path, aside)  # noqa: PTH105
        outcome = f"set aside as {aside.name}"
    except OSError as failure:
        if failure.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT):
            raise
        if path in _ignored:
            return
        _ignored.add(path)
        outcome = "left where it is (the folder is read-only) and ignored"
    _log.warning(
        "The part %s of '%s' is damaged (%s) and was %s; the same command computes its rows again.",
        path.name,
        path.parent.name,
        " ".join(str(error).split())[:120],
        outcome,
    )
