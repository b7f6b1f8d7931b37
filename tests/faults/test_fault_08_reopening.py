"""Fault 8: `show` and `report` could not reopen every run; after `extract` they said "Copies were not searched"."""

from __future__ import annotations

import pytest
from PIL import Image

from diffmem.experiments import _run
from tests.faults.planted import fault, printed_json, run
from tests.fixtures.runs_0_1_0.make import copied

TODAY: tuple[str, ...] = ()
VERBS = [
    *(
        pytest.param(verb, id=verb)
        for verb in (
            "score",
            "generate",
            "audit",
            "mitigate",
            "measure",
            "against",
            "extract",
            "match",
            "canaries",
            "lab",
        )
    ),
    *(pytest.param(verb, id=verb, marks=fault(8)) for verb in TODAY),
]
STAGES = ("score", "generate", "measure")
"""Verbs that do a part of an audit; 0.1.0 did not say in a run which verb made it."""
NO_IMAGES = ("score", "measure", "match")
"""Verbs of 0.1.0 that kept no generated images."""


@pytest.mark.parametrize("verb", VERBS)
def test_fault_08_a_run_is_shown_under_its_own_name(verb, tmp_path, capsys):
    folder = copied(verb, tmp_path)
    summary = printed_json(capsys, "show", folder)
    assert summary["verb"] == ("audit" if verb in STAGES else verb)
    assert summary["headline"]
    code, out, _ = run(capsys, "show", folder)
    assert code == 0
    assert summary["headline"] in out
    assert ("Model    ?" not in out and "Copies were not searched" not in out) or verb in (
        "score",
        "generate",
        "measure",
    )


@pytest.mark.parametrize("verb", VERBS)
def test_fault_08_a_run_is_reported(verb, tmp_path, capsys):
    folder = copied(verb, tmp_path)
    code, out, err = run(capsys, "report", folder, "--out", tmp_path / "page.html", "--redact", "hash")
    assert code == 0, err
    assert str(tmp_path / "page.html") in out
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert verb in STAGES or "were not searched" not in page


@pytest.mark.parametrize("verb", VERBS)
def test_fault_08_the_library_opens_a_run(verb, tmp_path):
    opened = _run.open_run(str(copied(verb, tmp_path)))
    assert opened.verb == ("audit" if verb in STAGES else verb)
    assert opened.summary.headline
    images = list(opened.images())
    assert bool(images) == (verb not in NO_IMAGES)
    assert all(isinstance(picture, Image.Image) for _, picture in images)
    if verb != "match":
        assert opened.table("prompts" if verb != "measure" else "measures").num_rows
    assert opened.report(redact="blur").suffix == ".html"


def test_fault_08_open_run_is_a_name_of_the_library(tmp_path):
    import diffmem as dm

    opened = dm.open_run(str(copied("audit", tmp_path)))
    assert opened.table("matches").num_rows == 18
