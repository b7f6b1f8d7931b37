"""Rows of a store, its parts, and scripts in a process of their own."""

import os
import subprocess
import sys
from pathlib import Path

import diffmem
from diffmem.keys import row_key

SOURCE = str(Path(diffmem.__file__).parents[1])


def score(number, status="ok", value=0.5, **more):
    row = {"key": row_key(n=number), "prompt_id": f"p{number:03d}", "score": "s", "version": "1", "status": status}
    row["value"] = value if status == "ok" else None
    row["error"] = "it broke" if status == "error" else None
    return row | more


def parts(store, stage="scores"):
    return sorted((store.path / "parts" / stage).glob("*.parquet"))


def run_script(code, *args, before=()):
    command = [*before, sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": SOURCE})


def in_the_manner_of_0_1_0(part):
    """The part under a name without a checksum."""
    return part.rename(part.with_name(part.name[:16] + "-" + "0" * 12 + ".parquet"))
