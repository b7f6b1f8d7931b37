"""What a GPU gives diffmem: section by section, each a process with a time limit, its JSON written before the next begins.

Real Stable Diffusion 1 and XL configurations with random bfloat16 weights, nothing is downloaded. Goals: `score` at 90 % of
the bare network's throughput, search at 80 % of the bare product's, images within 5 % of the pipeline's own time.

    benchmarks/gpu/run.sh result.json                 on a GPU, at most four minutes
    benchmarks/gpu/run.sh tiny.json --tiny --device cpu    the same code on tiny models (a test runs it)
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

SECTIONS = {"network": 60, "score": 40, "generate": 40, "images": 35, "search": 45, "describe": 20}
"""Sections in order of worth, and the most seconds each may take."""
GOALS = {"score_share": 0.9, "search_share": 0.8, "generate_share": 0.95}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=240.0, help="for all sections together")
    parser.add_argument("--section", choices=SECTIONS, help="one section in this process")
    options = parser.parse_args()
    if options.section is not None:
        sys.path.insert(0, str(Path(__file__).parent))
        import sections

        print(json.dumps(getattr(sections, options.section)(sections.Setting(options.tiny, options.device))))
        return
    from diffmem.runs.provenance import provenance

    started = time.monotonic()
    result = {"goals": GOALS, "tiny": options.tiny, "provenance": provenance().model_dump(mode="json"), "sections": {}}
    for name, most in SECTIONS.items():
        left = min(most, options.seconds - (time.monotonic() - started))
        result["sections"][name] = section(name, left, options) if left > 2 else {"problem": "no time was left"}
        result["seconds"] = time.monotonic() - started
        options.out.write_text(json.dumps(result, indent=1) + "\n")
        print(f"{name}: {json.dumps(result['sections'][name])}"[:2000], flush=True)


def section(name, seconds, options):
    """What a section prints as its last line, or why there is nothing."""
    command = [sys.executable, __file__, str(options.out), "--section", name, "--device", options.device]
    begun = time.monotonic()
    try:
        done = subprocess.run(
            command + ["--tiny"] * options.tiny, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return {"problem": f"stopped after {seconds:.0f} s"}
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return {"problem": lines[-1] if lines else f"exit code {done.returncode}"}
    return json.loads(done.stdout.strip().splitlines()[-1]) | {"seconds": time.monotonic() - begun}


if __name__ == "__main__":
    main()
