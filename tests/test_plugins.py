"""Methods of others: the example package is installed and used like ours, and a class of a file needs no package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from diffmem.cli.app import main
from diffmem.errors import UsageError
from diffmem.mitigation import MITIGATIONS
from diffmem.mitigation.spec import parse_mitigation
from diffmem.scores import IMAGE_SCORES, SCORES
from diffmem.scores.spec import parse_image_score, parse_score

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "examples" / "plugin" / "src" / "diffmem_wordplay"


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    """What a test registers is gone afterwards."""
    for registry in (SCORES, IMAGE_SCORES, MITIGATIONS):
        monkeypatch.setattr(registry, "_loaded", dict(registry._loaded))


OWN = """
from typing import ClassVar
import numpy as np
from diffmem.scores.base import About, Parameters, TextScore

class Settings(Parameters):
    letter: str = "e"

class Letters(TextScore):
    about: ClassVar[About] = About(
        name="{name}", summary="how often a letter occurs", formula="count", reference="a test", access="prompts",
        cost="none", fails_when="always",
    )
    def __init__(self, parameters: Settings | None = None) -> None:
        self.settings = parameters or Settings()
        super().__init__(self.settings)
    def compute(self, texts):
        return np.array([float(text.count(self.settings.letter)) for text in texts])
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """The environment of a process in which the example package is installed."""
    folder = tmp_path_factory.mktemp("installed")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    copy = tmp_path_factory.mktemp("source")
    subprocess.run(
        ["cp", "-r", str(ROOT / "examples" / "plugin"), str(copy)], check=True
    )  # a build writes beside its source
    subprocess.run([*install, "--target", str(folder), str(copy / "plugin")], check=True, timeout=300)
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT / "src"), str(ROOT)]),
        "OMP_NUM_THREADS": "1",
    }


def run(environment, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_an_installed_package_is_in_the_tables(environment):
    shown = run(environment, "diffmem", "methods", "late-difference")
    assert "norm of the text-conditional difference" in shown and "ratio" in shown
    assert "fewer-words" in run(environment, "diffmem", "methods", "--mitigations")


def test_the_contract_tests_run_on_it(environment):
    shown = run(
        environment, "pytest", "-q", "-p", "no:cacheprovider", "tests/scores/test_contract.py",
        "tests/mitigation/test_mitigation_contract.py", "-k",
        "(late-difference or fewer-words) and (says or leaves or refuses_an or neutral or digits-like or deterministic)",
    )  # fmt: skip
    assert "passed" in shown and "failed" not in shown and int(shown.split(" passed")[0].split()[-1]) >= 5


def test_a_score_of_a_file_is_used_by_its_class(tmp_path, capsys, monkeypatch):
    (tmp_path / "mine.py").write_text(OWN.format(name="letters-e"))
    monkeypatch.chdir(tmp_path)
    given = "./mine.py:Letters:letter=o"
    assert main(["score", "testbed:digits", "a fox on a log", "a hen", "--score", given, "--json", "--out", "run"]) == 0
    assert '"letters-e:letter=o": 3.0' in capsys.readouterr().out.replace("\n", " ")
    assert (
        main(["score", "testbed:digits", "a fox on a log", "--score", given, "--quiet", "--out", "run"]) == 0
    )  # resumes
    assert parse_score("letters-e").name == "letters-e"  # registered under its own name


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("./none.py:Letters", "does not exist"),
        ("./mine.py:Leters", "Did you mean 'Letters'"),
        ("./mine.py:Settings", "is no score"),
        ("./mine.py:np", "is no score"),
        ("./broken.py:Letters", "raises ZeroDivisionError"),
        ("./mine.py:Letters:lettre=o", "no parameter 'lettre'"),
        ("./taken.py:Letters", "calls itself 'anisotropy'"),
    ],
)
def test_what_a_file_lacks_is_said(given, said, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(OWN.format(name="letters-f"))
    (tmp_path / "taken.py").write_text(OWN.format(name="anisotropy"))
    (tmp_path / "broken.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=said):
        parse_score(given)


def test_a_score_is_no_mitigation_and_no_image_score(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(OWN.format(name="letters-g"))
    monkeypatch.chdir(tmp_path)
    for parse in (parse_mitigation, parse_image_score):
        with pytest.raises(UsageError, match=r"is no (mitigation|score): expected a subclass of"):
            parse("./mine.py:Letters")


def test_rows_of_an_edited_file_are_computed_again(tmp_path, capsys, monkeypatch):
    """Also where its author forgot to raise `version`: a resumed run must not show what the old code gave."""
    monkeypatch.chdir(tmp_path)
    command = ["score", "testbed:digits", "a fox", "--score", "./mine.py:Letters:letter=o", "--json", "--out", "run"]
    values = []
    for code in (OWN, OWN, OWN.replace("float(text.count", "10 * float(text.count")):
        (tmp_path / "mine.py").write_text(code.format(name="letters-h"))
        assert main(command) == 0
        values.append(json.loads(capsys.readouterr().out)["prompts"][0]["letters-h:letter=o"])
    assert values == [1.0, 1.0, 10.0]
    assert SCORES.get("letters-h").version != 1
