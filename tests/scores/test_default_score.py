"""One constant says which score ranks, calibrates and guards."""

import inspect
import json

import numpy as np
from tests.tiny import tiny_sd

from diffmem.cli.app import main
from diffmem.report.shape import PromptTable
from diffmem.report.table import ranking
from diffmem.scores import DEFAULT_SCORE, DEFAULT_SCORES
from diffmem.scores.base import DenoiserScore
from diffmem.scores.spec import parse_score
from diffmem.serving import guard
from diffmem.stages.score.screen import calibrate


def test_calibration_the_guard_and_the_ranking_use_it():
    assert DEFAULT_SCORE in DEFAULT_SCORES
    assert isinstance(parse_score(DEFAULT_SCORE), DenoiserScore), "row by row, so that a threshold can be calibrated"
    assert parse_score(DEFAULT_SCORE).label == DEFAULT_SCORE, "rows carry this very name"
    assert inspect.signature(calibrate).parameters["score"].default == DEFAULT_SCORE
    assert guard.SCORE == DEFAULT_SCORE
    assert ranking([*DEFAULT_SCORES]) == DEFAULT_SCORE


def test_without_it_another_of_its_kind_ranks_and_else_the_first():
    assert ranking(["anisotropy", "score-difference", "alignment"]) == "score-difference"
    assert ranking(["text-uppercase", "anisotropy"]) == "text-uppercase"
    assert ranking([]) is None


def test_json_says_by_which_score_it_ranks(tmp_path, capsys):
    tiny_sd().save_pretrained(tmp_path / "model")
    assert main(["score", str(tmp_path / "model"), "a fox", "a hen", "a cow", "--draws", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    values = [row[found["ranked_by"]] for row in found["prompts"]]
    assert found["ranked_by"] == DEFAULT_SCORE
    assert values == sorted(values, reverse=True)
    assert len(np.unique(values)) == 3


def test_tables_of_the_version_before_are_read():
    old = {"scores": ["anisotropy"], "ranking": "anisotropy", "total": 0, "rows": []}
    assert PromptTable.model_validate(old).ranked_by == "anisotropy"
