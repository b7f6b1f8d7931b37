"""The page of two runs: counts and headline against planted calls, unlike settings, hidden prompts and pictures."""

import re

import numpy as np
import pytest

from diffmem.cli.app import main
from diffmem.errors import DataError
from diffmem.experiments.compare.page import headline
from diffmem.experiments.evaluate.compare import SHARE, compare
from diffmem.runs.manifest import update_manifest
from tests.report.test_verdict import made_run

EVIL = '<script>alert("x")</script>'


def text(i):
    letters = np.random.default_rng(i).integers(97, 123, 40)
    return EVIL if i == 0 else "".join(chr(int(n)) for n in letters)


@pytest.fixture
def runs(tmp_path):
    """Prompts 0 and 1 are called before, 1 to 20 after."""
    before = made_run(tmp_path / "before", {0: "t0", 1: "t1"}, text=text)
    after = made_run(tmp_path / "after", {i: f"t{i}" for i in range(1, 21)}, text=text)
    return before, after


def tiles(page):
    found = re.findall(r'<p class="what">([^<]+)</p><p class="big">(\d+) <small>of (\d+)', page)
    return {name: int(number) for name, number, _ in found}


def test_the_page_counts_what_was_planted(runs, tmp_path):
    page = compare(*runs).report(tmp_path / "page.html").read_text(encoding="utf-8")
    assert tiles(page) == {"After only": 19, "Both": 1, "Before only": 1, "Neither": 99}
    assert "The run after copies more: 1.7\u00a0% of the images were called copies before, 16.7\u00a0% after" in page
    assert page.count("<figure") == 21
    assert page.index("after only: 0 of 1 images called copies before, 1 of 1 after") < page.index("before only:")
    assert EVIL not in page and "&lt;script&gt;" in page
    assert "Pictures are blurred on this page" in page
    assert page.count("no-excess") >= 1 and page.count("reproduces") >= 1, "the verdict of either run"


def test_the_other_way_round_copies_fewer_and_equal_runs_show_no_difference(runs, tmp_path):
    back = compare(runs[1], runs[0])
    assert back.headline.startswith("The run after copies fewer")
    same = compare(runs[0], runs[0])
    assert same.headline.startswith("No difference is shown")
    page = same.report(tmp_path / "same.html", "hash", hash_prompts=True).read_text(encoding="utf-8")
    assert tiles(page) == {"After only": 0, "Both": 2, "Before only": 0, "Neither": 118}
    assert "sha256:" in page and "&lt;script" not in page and "data:image" not in page


def test_unlike_settings_are_refused_and_named_on_the_page(runs, tmp_path, capsys):
    update_manifest(
        runs[1], lambda m: m.model_copy(update={"plan": m.plan | {"generate": dict(m.plan["generate"]) | {"seed": 99}}})
    )
    arguments = ["compare", str(runs[0]), str(runs[1]), "--out", str(tmp_path / "page.html")]
    assert main(arguments) == 4
    assert not (tmp_path / "page.html").exists()
    assert main([*arguments, "--despite-settings"]) == 0
    assert "The run after copies more" in capsys.readouterr().out
    assert "Unlike settings, which a difference may come from" in (tmp_path / "page.html").read_text(encoding="utf-8")
    with pytest.raises(DataError, match="is a folder"):
        compare(runs[0], runs[0]).report(tmp_path)


def test_a_comparison_without_copies_says_so():
    assert headline([], {SHARE: "no training set was searched"}, SHARE) == (
        "Copies cannot be compared: no training set was searched"
    )
