"""The matrix of families by file and by capture: check, score, generate, LoRA, measure, on tiny pipelines of the real classes.

    python benchmarks/families/run.py

Writes result.json beside it and the table of docs/models.md. A cell is "yes", or says what there is instead or why not. About
three minutes on one core; tests/models/test_matrix.py measures every cell again.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.models.test_matrix import BY_CAPTURE, BY_FILE, CASES, PAGE, RESULT, cells, table_of

from diffmem.atomic import write_atomic
from diffmem.runs.provenance import provenance


def main():
    rows = []
    for how, name in CASES:
        maker = (BY_FILE if how == "file" else BY_CAPTURE)[name]
        with tempfile.TemporaryDirectory() as folder:
            rows.append({"model": name, "by": how} | cells(how, name, maker, Path(folder)))
        print(rows[-1], flush=True)
    write_atomic(
        RESULT, json.dumps({"rows": rows, "provenance": provenance().model_dump(mode="json")}, indent=1).encode()
    )
    page = PAGE.read_text(encoding="utf-8")
    start = page.index("| model | by |")
    stop = page.index("\n\n", start) + 1
    write_atomic(PAGE, (page[:start] + table_of(rows) + page[stop:]).encode())


if __name__ == "__main__":
    main()
