"""Which images of a run count: as many per prompt as its last command asked for. More that earlier commands made are kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from diffmem.runs.facts import read_fact, write_fact
from diffmem.runs.store import RunStore

_FACT = "asked"


def record_asked(run: Path, draws: int) -> None:
    """Note how many images per prompt were asked for last; the threshold of a copy is made for so many."""
    write_fact(run, _FACT, {"images_per_prompt": draws})


def asked_draws(run: Path) -> int | None:
    """Images per prompt that count; None for all of them, as in runs of 0.1.0."""
    fact = read_fact(run, _FACT)
    return None if fact is None else int(fact["images_per_prompt"])


def asked_rows(run: Path, stage: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    """The rows of "images" or "matches" that count, part by part; see `RunStore.stream`."""
    draws = asked_draws(run)
    for table in RunStore(run).stream(stage, [*columns, *({"draw"} - {*columns})]):
        counted = table if draws is None else table.filter(pc.less(table["draw"], draws))
        if counted.num_rows:
            yield counted.select(list(columns))
