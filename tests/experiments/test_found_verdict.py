"""Verdicts of match and extract: chance is counted, calls of one training image are one event, unknown says what would help."""

import numpy as np
import pytest

from diffmem.evaluation.chance import Chance, fewest_calls, most_not_excluded
from diffmem.experiments._verdict import of_extractions, of_matches

CALIBRATED = {"calibrated": True, "n_reference": 999, "per_image_fpr": 0.01}
UNCALIBRATED = {"calibrated": False, "n_reference": 20, "per_image_fpr": 0.01}


def rows(called, judged=300, one_picture=False, equal=0, undefined=0):
    found = [
        {"copy": i < called, "train_id": "t" if one_picture and i < called else f"t{i}", "similarity": 1.0 if i < equal else 0.9}
        for i in range(judged)
    ]  # fmt: skip
    return found + [{"copy": None, "train_id": f"u{i}", "similarity": 0.5} for i in range(undefined)]


def test_more_calls_than_chance_reproduce_and_one_less_does_not():
    needed = fewest_calls(300, Chance.of_rate(999, 0.01, 1))
    above = of_matches(rows(needed, undefined=3), CALIBRATED, True)
    assert (above.state, above.by, above.called, above.judged) == ("reproduces", "rate", needed, 300)
    assert (
        f"{needed} of 300 images are called copies of {needed} training images, 3 expected by chance" in above.sentence
    )
    below = of_matches(rows(needed - 1), CALIBRATED, True)
    assert below.state == "no-excess" and below.bound == most_not_excluded(needed - 1, 300)
    assert below.p_value > 0.01 >= above.p_value


def test_images_of_one_training_image_are_one_event_and_equal_ones_are_confirmed():
    assert of_matches(rows(40, one_picture=True), CALIBRATED, True).state == "no-excess"
    found = of_matches(rows(2, equal=1), CALIBRATED, True)
    assert (found.state, found.by) == (
        "reproduces",
        "pixel identity",
    ) and "Reproduces 1 training image:" in found.sentence
    assert of_matches(rows(2, equal=1), CALIBRATED, False).state == "no-excess", (
        "a network's equal vectors are no equal pictures"
    )
    assert of_matches(rows(2, equal=1), UNCALIBRATED, True).state == "reproduces", "nothing hides a confirmed pair"


@pytest.mark.parametrize(
    ("found", "needs"),
    [
        (of_matches(rows(9), UNCALIBRATED, True), "79 more held-out images"),
        (of_matches(rows(0, 5), CALIBRATED, True), "more image"),
        (of_matches(rows(0, 0, undefined=4), CALIBRATED, True), "set aside"),
        (of_extractions(2, 0, 50, None), "Give the training images"),
        (of_extractions(3, 1, 50, UNCALIBRATED), "--heldout"),
        (of_extractions(0, 0, 0, None), "errors"),
        (of_extractions(0, 0, 50, None, undecided=8), "Give the training images"),
        (of_extractions(2, 0, 50, CALIBRATED, undecided=1), "nearest training images"),
    ],
)
def test_unknown_says_what_would_change_it(found, needs):
    assert found.state == "unknown" and found.by is None and needs in found.needs


def test_a_safe_folder_is_said_to_reproduce_at_most_as_often_as_stated():
    """2,000 folders of 300 images that copy nothing, each with 999 references of its own."""
    random = np.random.default_rng(3)
    rates = random.beta(10, 990, 2000)  # what a threshold made for 1 % lets through
    wrong = sum(
        of_matches(rows(int(called)), CALIBRATED, True).state == "reproduces" for called in random.binomial(300, rates)
    )
    assert wrong <= 37


def test_extractions():
    assert of_extractions(1, 1, 50, CALIBRATED).state == "reproduces"
    assert of_extractions(200, 1, 500, CALIBRATED).state == "unknown", "one of 200 sets may be chance"
    none = of_extractions(0, 0, 60, CALIBRATED)
    assert none.state == "no-excess" and none.bound == most_not_excluded(0, 60)
    assert of_extractions(4, 0, 60, CALIBRATED).bound == most_not_excluded(4, 60)
