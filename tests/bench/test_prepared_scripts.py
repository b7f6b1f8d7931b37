"""Scripts that others run on a GPU or with real weights run from end to end on tiny models, on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_every_section_of_the_gpu_benchmark_gives_its_figures(tmp_path):
    out = tmp_path / "tiny.json"
    done = subprocess.run(
        [str(BENCHMARKS / "gpu/run.sh"), str(out), "--tiny", "--device", "cpu", "--seconds", "500"],
        capture_output=True, text=True,
        env=os.environ | {"PYTHON": sys.executable}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    sections = json.loads(out.read_text())["sections"]
    assert {name: found.get("problem") for name, found in sections.items()} == dict.fromkeys(sections)
    assert sections["score"]["score_share"] > 0 and sections["search"]["search_share"] > 0
    assert all(row["status"] == "ok" for name, row in sections["images"].items() if ":" in name or name == "vgr")


@pytest.mark.slow
def test_the_run_on_real_weights_goes_through_on_stand_ins(tmp_path):
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "real" / "run.py"), "--tiny", "--out", str(tmp_path)], capture_output=True,
        text=True, check=False, env=os.environ | {"PYTHONPATH": str(BENCHMARKS.parent / "src")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((tmp_path / "result.json").read_text())
    rows = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    assert sum(row["memorized"] for row in rows) == 4 and all("score-difference" in row for row in rows)
    assert Path(result["stable_diffusion"]["page"]).exists() and Path(result["lora"]["page"]).exists()
