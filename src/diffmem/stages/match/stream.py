"""Matching against a training set that streams past, shard by shard: only the images near the queries are kept.

decode -> describe -> exact nearest rows of each shard -> shortlist. The shortlist holds the pictures that are among the KEPT
nearest of any query, as they lie; it is described again in full precision and searched like any training set, so verification,
grouping, rescoring and ties are those of every other match.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from diffmem.atomic import atomic_stream
from diffmem.copies.backends import Backend, backend_of
from diffmem.copies.descriptors import DESCRIPTORS, make_descriptor
from diffmem.copies.descriptors.base import Descriptor
from diffmem.copies.metrics import Metric
from diffmem.copies.neighbors import top_k
from diffmem.copies.pieces import Piece
from diffmem.data.fingerprint import hash_array
from diffmem.data.image_sources import SHORTLIST
from diffmem.data.images import ImageSet
from diffmem.data.notes import named, say
from diffmem.data.shards import Shard
from diffmem.errors import DataError, NothingJudged
from diffmem.keys import row_key
from diffmem.runs.directory import RunDirectory
from diffmem.runs.microbatch import describe
from diffmem.runs.progress import Progress
from diffmem.runs.store import RunStore
from diffmem.runs.units import Report, Runner, Work

KEPT = 64
"""Nearest images of each query that come into the shortlist."""
PIECE = 16_384
"""Images of a shard that are described and searched at once; bounds the memory."""
STREAM_VERSION = 1


@dataclass
class StreamWork(Work[Shard]):
    """Shards for a runner's workers: each describes a shard, or reads what was kept of it, and searches the queries in it.

    Attributes:
        queries: [q, D] vectors of the generated and held-out images; they stay on every worker.
        descriptor: name and options.
        folder: of vectors and results.
        backend: of the search.
    """

    queries: NDArray[np.float32]
    descriptor: tuple[str, Mapping[str, Any]]
    folder: Path
    backend: str | None = None
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.name = hash_array(self.queries)

    def key(self, shard: Shard) -> bytes:
        """Of the row that says what of a shard is near the queries."""
        return row_key(
            stage="nearest", queries=self.name, shard=[shard.name, shard.stamp], descriptor=self.maker.fingerprint, kept=KEPT,
            version=STREAM_VERSION,
        )  # fmt: skip

    @property
    def maker(self) -> Descriptor:
        """The descriptor, made once per process."""
        if "_maker" not in self.__dict__:
            self.__dict__["_maker"] = make_descriptor(self.descriptor[0], None, **self.descriptor[1])
        made: Descriptor = self.__dict__["_maker"]
        return made

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_maker"}

    def open(self) -> Callable[[Shard], Report]:
        """Open the descriptor; the function that searches a shard."""
        search = _Search(self.queries, self.maker.metric, backend_of(self.backend))
        return lambda shard: self._do(shard, search)

    def _do(self, shard: Shard, search: _Search) -> Report:
        started = time.monotonic()
        try:
            with shard.images() as images:
                found, count, unread, error = self._searched(shard, images, search)
        except (DataError, OSError) as problem:
            return self.fail(shard, describe(problem))
        row = {
            "key": self.key(shard), "shard": shard.name, "queries": self.name, "images": count, "unread": unread,
            "rounding": error, "neighbours": _packed(found), "seconds": time.monotonic() - started, "status": "ok",
        }  # fmt: skip
        RunStore(self.folder).append("nearest", [row])
        return Report(done=1)

    def _searched(self, shard: Shard, images: ImageSet, search: _Search) -> tuple[list[NDArray[Any]], int, int, float]:
        found: list[NDArray[Any]] = []
        described, error = 0, 0.0
        for start in range(0, len(images), PIECE):
            name = row_key(
                shard=[shard.name, shard.stamp], descriptor=self.maker.fingerprint, start=start, piece=PIECE
            ).hex()
            file = self.folder / "vectors" / f"{name}.npz"
            piece = Piece.read(file)
            if piece is None:
                piece = Piece.of(images, start, min(start + PIECE, len(images)), self.maker)
                piece.write(file)
            described += len(piece.vectors)
            error = max(error, piece.error)
            found.append(search.nearest(piece.vectors, piece.positions, "whole"))
            found.append(search.nearest(piece.views, piece.view_positions, "view"))
        return found, len(images), len(images) - described, error

    def left(self, unit: Shard) -> Shard | None:
        """The shard itself, unless it is done."""
        return None if self.key(unit) in RunStore(self.folder).finished("nearest") else unit

    def halves(self, unit: Shard) -> Sequence[Shard]:
        """None: a shard is one item."""
        return ()

    def fail(self, unit: Shard, reason: str) -> Report:
        """An error row: the shard is not searched, and counted so."""
        row = {
            "key": self.key(unit), "shard": unit.name, "queries": self.name, "images": 0, "unread": 0, "status": "error",
            "error": reason,
        }  # fmt: skip
        RunStore(self.folder).append("nearest", [row])
        return Report(done=1, failed=1)


_PAIR = np.dtype([("query", "<i4"), ("view", "?"), ("position", "<i8"), ("similarity", "<f8")])


class _Search:
    """The queries of a worker, and how near an image must be to count: as near as the KEPT-th of all it has seen."""

    def __init__(self, queries: NDArray[np.float32], metric: Metric, backend: Backend | None) -> None:
        self.queries, self.metric, self.backend = queries, metric, backend
        self.best = {kind: np.full((len(queries), KEPT), -np.inf) for kind in ("whole", "view")}

    def nearest(self, vectors: NDArray[Any], positions: NDArray[np.int64], kind: str) -> NDArray[Any]:
        """Pairs of a query and an image of this piece that may be among its KEPT nearest of the whole set."""
        if not len(vectors) or not len(self.queries):
            return np.zeros(0, _PAIR)
        chunk = 4096 if self.backend is None else self.backend.chunk
        parts = (vectors[low : low + chunk].astype(np.float32) for low in range(0, len(vectors), chunk))
        similarity, row = top_k(self.queries, parts, KEPT, self.metric, backend=self.backend)
        near = (row >= 0) & (similarity >= self.best[kind][:, -1:])
        both = np.concatenate([self.best[kind], similarity], 1)
        self.best[kind] = -np.sort(-both, axis=1)[:, :KEPT]
        query, column = np.nonzero(near)
        found = np.empty(len(query), _PAIR)
        found["query"], found["view"], found["position"] = query, kind == "view", positions[row[query, column]]
        found["similarity"] = similarity[query, column]
        return found


def _packed(found: Sequence[NDArray[Any]]) -> bytes:
    return np.concatenate([np.zeros(0, _PAIR), *found]).tobytes()


@dataclass(frozen=True)
class Shortlist:
    """The training images that may matter to the queries.

    Attributes:
        file: a parquet file of them (id, image, caption), which `train=` of every verb takes.
        images: how many.
        searched: images of the training set that were compared.
        unread: images that could not be decoded or described.
        unsearched: shards that could not be read: name -> reason.
        unproven: queries with so many near images that rounding leaves open whether the very nearest is in the list.
    """

    file: Path
    images: int
    searched: int
    unread: int
    unsearched: Mapping[str, str]
    unproven: int


def stream_shards(
    shards: Sequence[Shard], work: StreamWork, runner: Runner | None, part: tuple[int, int] | None, silent: bool
) -> bool:
    """Search every shard that is not searched yet; whether all of them are, so that a shortlist can be made.

    Args:
        shards: the training set.
        work: what is done with each.
        runner: who does it; None for this process.
        part: (i, n): only every n-th shard, from the i-th.
        silent: no progress on stderr.
    """
    run = RunDirectory(work.folder, {"stream": {"descriptor": work.maker.fingerprint}}, {})
    mine = [shard for number, shard in enumerate(shards) if part is None or number % part[1] == part[0]]
    done = run.store.finished("nearest", retry_errors=True)
    todo = [shard for shard in mine if work.key(shard) not in done]
    with (
        run.stage("stream", len(mine), len(mine) - len(todo), () if part else ("nearest",)) as clock,
        Progress(len(mine), "streaming", unit="shards", done=clock.done, silent=silent or not todo) as bar,
    ):
        for report in _here(work, todo) if runner is None else runner.run(work, todo):
            clock.done += report.done
            bar.advance(report.done)
    finished = run.store.finished("nearest")
    return all(work.key(shard) in finished for shard in shards)


def _here(work: StreamWork, shards: Sequence[Shard]) -> Iterator[Report]:
    do = work.open()
    for shard in shards:
        yield do(shard)


def shortlist(shards: Sequence[Shard], work: StreamWork) -> Shortlist:
    """Merge what the shards hold near the queries, and keep the pictures themselves.

    Raises:
        NothingJudged: no shard could be read.
    """
    rows = {row["key"]: row for row in RunStore(work.folder).read("nearest").to_pylist() if row["queries"] == work.name}
    mine = [(number, shard, rows[work.key(shard)]) for number, shard in enumerate(shards)]
    sound = [(number, shard, row) for number, shard, row in mine if row["status"] == "ok"]
    failed = {shard.name: str(row["error"]) for _, shard, row in mine if row["status"] != "ok"}
    if not sound:
        raise NothingJudged(
            f"No shard of the training images could be read: {next(iter(failed.values()), 'there is none')}"
        )
    if failed:
        said = [f"{name} ({reason})" for name, reason in failed.items()]
        say(f"{len(failed)} of {len(shards)} shards could not be read and were not searched: {named(said)}")
    wanted, unproven = _wanted(sound, len(work.queries))
    about = {
        "searched": sum(row["images"] - row["unread"] for _, _, row in sound), "kept": KEPT,
        "unread": sum(row["unread"] for _, _, row in sound), "unsearched": failed, "unproven": unproven,
    }  # fmt: skip
    name = row_key(shards=[work.key(shard).hex() for shard in shards]).hex()[:12]
    file = work.folder / f"shortlist-{name}.parquet"
    schema = pa.schema(
        [("id", pa.string()), ("image", pa.binary()), ("caption", pa.string())], metadata={SHORTLIST: json.dumps(about)}
    )
    count = 0
    with atomic_stream(file) as sink, pq.ParquetWriter(sink, schema, compression="NONE") as writer:
        for number, shard, _ in sound:
            if number not in wanted:
                continue
            with shard.images() as images:
                found = [
                    {"id": shard.id_of(raw.id), "image": raw.payload, "caption": raw.caption}
                    for place in sorted(wanted[number])
                    for raw in images.raws(place, place + 1)
                ]  # fmt: skip
            writer.write_table(pa.Table.from_pylist(found, schema=schema))
            count += len(found)
    return Shortlist(file, count, about["searched"], about["unread"], failed, unproven)


def _wanted(rows: Sequence[tuple[int, Shard, Mapping[str, Any]]], queries: int) -> tuple[dict[int, set[int]], int]:
    """Positions by number of the shard of all images that are among the KEPT nearest of a query, and unproven queries."""
    pairs = [np.frombuffer(row["neighbours"], _PAIR) for _, _, row in rows]
    number = np.repeat([number for number, _, _ in rows], [len(part) for part in pairs])
    found = np.concatenate([np.zeros(0, _PAIR), *pairs])
    # Per query, images as they lie and views apart, nearest first; of equal ones the first of the set, as everywhere.
    order = np.lexsort((found["position"], number, -found["similarity"], found["view"], found["query"]))
    found, number = found[order], number[order]
    list_of = 2 * found["query"].astype(np.int64) + found["view"]
    start = np.searchsorted(list_of, np.arange(2 * queries))
    near = np.arange(len(found)) - start[list_of] < KEPT
    wanted: dict[int, set[int]] = {}
    for place, position in zip(number[near].tolist(), found["position"][near].tolist(), strict=True):
        wanted.setdefault(place, set()).add(position)
    error = max(float(row["rounding"] or 0.0) for _, _, row in rows)
    full = [i for i in start[0::2].tolist() if i + KEPT <= len(found) and list_of[i + KEPT - 1] == list_of[i]]
    spread = (found["similarity"][i] - found["similarity"][i + KEPT - 1] for i in full)
    return wanted, sum(bool(width <= 2 * error) for width in spread)


def work_of(
    queries: NDArray[np.float32], descriptor: Descriptor, options: Mapping[str, Any], folder: Path, backend: str | None
) -> StreamWork:
    """The work of searching these queries by a descriptor, which every worker makes again from its name and options."""
    again = DESCRIPTORS.get(descriptor.name).options_again(descriptor.recipe, options)
    return StreamWork(np.ascontiguousarray(queries, np.float32), (descriptor.name, again), folder, backend)
