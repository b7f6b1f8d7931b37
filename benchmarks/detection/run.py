"""How well prompt scores tell captions that a bundled model reproduces: `diffmem bench`, kept as JSON.

`photos.json`: the suite photos. `anisotropy.json`: the tables of the anisotropy paper (suite anisotropy-paper) on all
bundled models. The digits by tier stand in `benchmarks/predictions/result.json`.

    python benchmarks/detection/run.py [photos anisotropy] [--draws 4]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from diffmem.bench.anisotropy import anisotropy_suite
from diffmem.bench.photos import photos_suite
from diffmem.runs.provenance import provenance

RUNS = {
    "photos": lambda draws: photos_suite(draws=draws, silent=True),
    "anisotropy": lambda draws: anisotropy_suite(draws=draws, silent=True),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="*", default=list(RUNS))
    parser.add_argument("--draws", type=int, default=4)
    options = parser.parse_args()
    for name in options.suites:
        report = {"draws": options.draws, "rows": RUNS[name](options.draws), "provenance": provenance().model_dump()}
        Path(__file__).with_name(f"{name}.json").write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
