"""Figures of README and docs come from committed results: what `figures.toml` lists is formatted from JSON and compared."""

from __future__ import annotations

import json
import re
import tomllib
from functools import lru_cache
from pathlib import Path

import pytest
from scipy.stats import betabinom

ROOT = Path(__file__).parents[1]
FIGURES = tomllib.loads(Path(__file__).with_name("figures.toml").read_text(encoding="utf-8"))["figure"]
VERDICTS = ("shown", "not shown", "not tried")


@lru_cache
def result(file):
    return json.loads((ROOT / file).read_text(encoding="utf-8"))


def at(value, path):
    """The value at a path of keys; a table among them picks the one row of a list that has its values."""
    for step in path:
        if isinstance(step, dict):
            (value,) = [row for row in value if all(row[key] == wanted for key, wanted in step.items())]
        else:
            value = value[step]
    return value


def text(value, form):
    """A number as the docs write it: no zero before the point; `%` is in percent."""
    if form.endswith("%"):
        value, form = 100 * value, form[:-1]
    if form == "s":
        return str(value)
    return re.sub(r"^(-?)0\.(?=\d)", r"\1.", f"{value:{form}}")


def plain(page):
    return " ".join((ROOT / page).read_text(encoding="utf-8").split())


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: f"{figure['page']}: {figure['text'][:40]}")
def test_a_figure_is_that_of_its_committed_result(figure):
    values = [at(result(figure["file"]), path) for path in figure["values"]]
    forms = re.findall(r"\{(.*?)\}", figure["text"])
    assert len(forms) == len(values), "a format for each value"
    parts = iter([text(value, form) for value, form in zip(values, forms, strict=True)])
    expected = re.sub(r"\{.*?\}", lambda _: next(parts), figure["text"])
    assert " ".join(expected.split()) in plain(figure["page"])


def rows_of_papers():
    for page in sorted((ROOT / "docs" / "papers").glob("*.md")):
        for line in page.read_text(encoding="utf-8").splitlines():
            cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
            if line.startswith("|") and len(cells) == 5 and cells[0] != "element" and not cells[0].startswith("---"):
                yield pytest.param(page, cells, id=f"{page.stem}: {cells[0][:50]}")


@pytest.mark.parametrize(("page", "cells"), rows_of_papers())
def test_a_row_of_a_paper_has_a_committed_result_or_was_not_tried(page, cells):
    element, where, _, ours, verdict = cells
    assert verdict in VERDICTS, f"{element}: one of {', '.join(VERDICTS)}"
    for name in re.findall(r"`((?:src|benchmarks|docs|tests)?/?[\w./-]+\.(?:py|json|md))`", f"{where} {ours}"):
        home = name if (ROOT / name).exists() else f"src/diffmem/{name}"
        assert (ROOT / home).exists(), f"{page.name}: {name} does not exist"
    files = re.findall(r"`(benchmarks/[\w./-]+\.json)`", ours)
    assert bool(files) == (verdict != "not tried"), (
        f"{element}: a verdict rests on a committed JSON, and nothing else does"
    )
    if files:
        checked = [f for f in FIGURES if f["page"] == str(page.relative_to(ROOT)) and f["file"] in files]
        own = " ".join(ours.split())
        assert any(_fixed(f["text"]) in own for f in checked), f"{element}: no figure of `figures.toml` is in this row"


def _fixed(template):
    """The longest piece of a template that holds no value."""
    return max(re.split(r"\{.*?\}", " ".join(template.split())), key=len).strip()


def test_the_guard_s_realised_rates_are_within_what_305_captions_can_hold():
    """Threshold at the r-th of m exchangeable scores: flags among n others are beta-binomial (n, r, m + 1 - r)."""
    tails = {}
    for name, part in result("benchmarks/guard/result.json")["parts"].items():
        if "/refuse/" in name:
            flagged, count = part["others"]["flagged_first_image"][:2]
            reference = part["n_reference"]
            rank = int((reference + 1) * float(name.rsplit("/", 1)[1]) + 1e-9)
            tails[name] = (flagged, count, betabinom.sf(flagged - 1, count, rank, reference + 1 - rank))
    assert len(tails) == 16
    least = sorted(tails.values(), key=lambda row: row[2])[:2]
    assert [row[:2] for row in least] == [(25, 305), (8, 305)]
    assert [round(row[2], 3) for row in least] == [0.048, 0.053]
    for rank, ends in ((3, [0, 9]), (15, [6, 27])):
        assert list(betabinom.ppf([0.025, 0.975], 305, rank, 306 - rank)) == ends
