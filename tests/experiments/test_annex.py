"""The annex: every clause has a figure or says that it was not tested, and figures are those of the run."""

import re

import pytest

from diffmem.cli.app import main
from diffmem.data.images import as_images
from diffmem.errors import DataError
from diffmem.experiments._run import Run, open_run
from diffmem.experiments.annex.clauses import CLAUSES
from diffmem.experiments.annex.page import figures, write_annex
from diffmem.experiments.mitigate.summary import MitigateSummary
from diffmem.report.prose import percent
from diffmem.runs.facts import write_fact
from tests.report.test_verdict import made_run, planted_fact
from tests.tiny import picture


def plain(page):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


def test_every_clause_has_a_figure_or_says_that_it_was_not_tested(tmp_path):
    folder = made_run(tmp_path / "r", 2)
    run = open_run(folder)
    page = plain(write_annex(run).read_text(encoding="utf-8"))
    assert "Evidence, not compliance" in page and "none says that a clause is met" in page
    found = figures(folder, run.summary, None)
    for clause in CLAUSES:
        assert clause.name in page and clause.figures
        assert all(found[name] for name in clause.figures)
    for name in ("control", "membership", "duplicates", "base", "safeguards"):
        assert "not tested" in found[name][0], name
    assert run.summary.verdict.sentence in found["verdict"][0]
    assert f"Up to {percent(run.summary.verdict.bound)} of such prompts" in found["bound"][0]
    assert "Recall: not measured." in found["matcher"]
    assert "Positive control" not in page.split("What was not tested")[0].split("What was tested")[1]
    assert "<img" not in page and "leak" not in page


def test_figures_follow_what_the_run_has(tmp_path):
    folder = made_run(tmp_path / "r", 11, label=lambda i: i < 20)
    write_fact(folder, "control", planted_fact(20, 15))
    from diffmem.copies.descriptors import make_descriptor
    from diffmem.copies.index import CopyIndex

    images = as_images({f"t{i}": picture(0 if i < 3 else i) for i in range(12)})
    CopyIndex.build(images, make_descriptor("l2-tiled", images), folder / "index" / "l2-tiled")
    found = figures(folder, open_run(folder).summary, None)
    assert "of 40 that stayed out, 0" in found["control"][0]
    assert (
        (found["duplicates"][0])
        == "12 training images with l2-tiled: 10 distinct pictures, 1 of them there more than once (the most repeated 3 times)."
    )
    assert "Recall on labelled prompts: 11 of 20" in " ".join(found["matcher"])
    assert "Recall on planted pictures that come out: 15 of 20" in " ".join(found["matcher"])


def test_safeguards_are_those_of_a_run_of_mitigate(tmp_path):
    folder = made_run(tmp_path / "r", 2)
    row = {
        "setting": "random-tokens", "status": "ok", "copied_before": 0.5, "copied_after": 0.1, "copied_after_low": 0.05,
        "copied_after_high": 0.2,
    }  # fmt: skip
    summary = MitigateSummary(headline="random-tokens leaves 10 %.", model="m", alignment=None, rows=(row,))
    page = plain(write_annex(folder, Run(tmp_path / "m", "mitigate", summary)).read_text(encoding="utf-8"))
    assert "random-tokens leaves 10 %." in page and "5 % to 20 %" in page
    with pytest.raises(DataError, match="takes one of diffmem mitigate"):
        write_annex(folder, folder)


def test_the_verb_writes_it_and_hides_prompts(tmp_path, capsys):
    folder = made_run(tmp_path / "r", 2, text=lambda i: f"a secret number {i**9:x} of {i}")
    assert main(["report", str(folder), "--annex", "--out", str(tmp_path / "annex.html"), "--hash-prompts"]) == 0
    assert "evidence, not compliance" in capsys.readouterr().out
    page = (tmp_path / "annex.html").read_text(encoding="utf-8")
    assert "secret" not in page and "sha256:" in page
    assert main(["report", str(folder), "--safeguards", str(folder)]) == 2
    with pytest.raises(DataError, match="an annex is written of an audit"):
        write_annex(Run(tmp_path, "mitigate", MitigateSummary(headline="", model="m", alignment=None, rows=())))
