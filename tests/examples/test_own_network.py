"""The newcomer's notebook, cell by cell, in an empty folder."""

import json
from pathlib import Path

import pytest
import torch

NOTEBOOK = Path(__file__).parents[2] / "examples" / "own_network.ipynb"


@pytest.mark.slow
def test_the_notebook_runs_from_a_network_and_an_array_to_findings(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    names: dict = {"__name__": "notebook"}
    with torch.random.fork_rng():
        for number, text in enumerate(code):
            exec(compile(text, f"cell {number}", "exec"), names)
    printed = capsys.readouterr().out
    assert "as x0 the loss on these images" in printed  # the wrong declaration is found out
    assert names["run"].summary.copies.images_copied > 8  # 16 pictures are far too few
    assert (tmp_path / "runs/mine/report.html").exists()
    assert sorted(names["own"])[8] < 0.7 * sorted(names["other"])[100]
    own = [line for text in code[1:] for line in text.splitlines() if line.strip()]
    assert len(own) <= 30, "a newcomer's way is to stay short"
