"""Generated images of a run as they are stored."""

from __future__ import annotations

from collections.abc import Collection

import pyarrow as pa
import pyarrow.compute as pc

from diffmem.runs.store import RunStore


def read_pngs(store: RunStore, keys: Collection[bytes]) -> dict[bytes, bytes]:
    """PNG bytes of the images with these keys, in one pass over the store."""
    found: dict[bytes, bytes] = {}
    wanted = pa.array(sorted(keys), pa.binary(16))
    if not keys:
        return found
    for table in store.stream("images", ["key", "png"]):
        rows = table.filter(pc.is_in(table["key"], value_set=wanted)).to_pylist()
        found |= {row["key"]: row["png"] for row in rows if row["png"] is not None}
    return found
