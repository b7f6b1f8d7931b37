"""Matching a run again: what stays of the threshold that people set."""

import pytest
from tests.report.made import PLAN, image_row, picture

from diffmem.copies.descriptors import make_descriptor
from diffmem.copies.rule import BEFORE_REVIEW
from diffmem.data.images import as_images
from diffmem.report.review.threshold import reset_threshold
from diffmem.runs.directory import RunDirectory
from diffmem.runs.facts import read_fact, write_fact
from diffmem.stages.match.stage import Matching, build_index, match_stage


@pytest.fixture
def match_again(tmp_path):
    """Matches three images of one run, at a nominal false-positive rate per prompt."""
    train = as_images([picture(seed) for seed in range(40)])
    index = build_index(train, make_descriptor("l2-tiled", train), None)
    run = RunDirectory(tmp_path / "run", PLAN, {})
    run.store.append("images", [image_row(name, 0, picture(100 + n)) for n, name in enumerate("abc")])
    return run, lambda fpr: match_stage(run, Matching(fpr=fpr), index, None, 1).threshold


def set_by_people(run):
    fact = read_fact(run.path, "copies")
    theirs = fact["threshold"] | {"value": fact["threshold"]["value"] - 0.125, "note": "Set by review."}
    write_fact(run.path, "copies", fact | {"threshold": theirs, BEFORE_REVIEW: fact["threshold"]})
    return theirs["value"]


def test_the_same_calibration_keeps_the_threshold_of_a_review(match_again, caplog):
    run, again = match_again
    calibrated = again(0.1)
    value = set_by_people(run)
    for _ in range(2):
        assert again(0.1).value == value == read_fact(run.path, "copies")["threshold"]["value"]
    assert "replaced" not in caplog.text
    reset_threshold(run.path)
    assert again(0.1) == calibrated


def test_another_calibration_drops_the_threshold_of_a_review_and_says_so(match_again, caplog):
    run, again = match_again
    other = again(0.2)
    again(0.1)
    set_by_people(run)
    assert again(0.2) == other
    assert "was for another calibration and is replaced" in caplog.text
    assert BEFORE_REVIEW not in read_fact(run.path, "copies")
