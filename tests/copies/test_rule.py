import numpy as np
import pyarrow as pa
import pytest

from diffmem.copies.calibration import calibrate
from diffmem.copies.descriptors.l2 import L2Tiled
from diffmem.copies.index import CopyIndex
from diffmem.copies.match import match
from diffmem.copies.rule import CopyRule
from diffmem.copies.statistics import DISTANCES

DESCRIPTOR = L2Tiled.of(side=8, channels=1)


def row(**values):
    return {"similarity": 0.9, "ratio": 0.5, "normalised": 0.8, "background": False} | values


@pytest.mark.parametrize(
    ("rule", "values", "verdict"),
    [
        (CopyRule("similarity", 0.85), {}, "copy"),
        (CopyRule("similarity", 0.95), {}, "no copy"),
        (CopyRule("normalised", -0.8), {}, "copy"),
        (CopyRule("normalised", -0.79), {}, "no copy"),
        (CopyRule("ratio", -0.4), {"ratio": None}, "cannot be judged"),
        (CopyRule("ratio", -0.4), {"ratio": float("nan")}, "cannot be judged"),
        (CopyRule("normalised", -0.4), {"normalised": None, "similarity": 1.0}, "copy"),
        (CopyRule("normalised", 0.1), {"normalised": 0.0, "similarity": 1.0}, "copy"),
        # Equal only in the background of a template: that is no equal picture.
        (CopyRule("normalised", -0.4), {"normalised": None, "similarity": 1.0, "background": True}, "cannot be judged"),
        (CopyRule("similarity", 0.85), {"background": None}, "copy"),  # as rows of old runs have it
    ],
)
def test_a_verdict_is_the_same_for_a_row_and_for_a_table(rule, values, verdict):
    assert rule.decide(row(**values)) == verdict
    _, copy = rule.judge(pa.Table.from_pylist([row(**values), row()]))
    assert copy.tolist() == [verdict == "copy", rule.is_copy(row())]


def test_a_picture_without_a_match_cannot_be_judged():
    assert CopyRule("similarity", 0.5).decide(None) == "cannot be judged"
    assert not CopyRule("similarity", 0.5).is_copy(None)


@pytest.mark.parametrize("statistic", DISTANCES)
@pytest.mark.parametrize("versions", [1, 4])
def test_one_training_picture_and_its_near_duplicates_suffice_for_a_verdict(statistic, versions):
    rng = np.random.default_rng(0)
    picture = rng.uniform(size=(1, 64)).astype(np.float32)
    train = picture + rng.normal(0, 0.002, (versions, 64)).astype(np.float32)
    threshold = calibrate(CopyIndex.from_vectors(train, DESCRIPTOR), statistic=statistic)
    index = CopyIndex.from_vectors(train, DESCRIPTOR)
    equal, near, other = match(np.concatenate([train[:1], picture, rng.uniform(size=(1, 64))]), index)
    assert [threshold.decide(found) for found in (equal, near, other)] == ["copy", "copy", "no copy"]
    assert (statistic == "similarity") != ("only one" in threshold.note)


def test_an_undefined_statistic_is_calibrated_as_the_one_that_stands_in():
    rng = np.random.default_rng(1)
    index = CopyIndex.from_vectors(np.repeat(rng.uniform(size=(1, 64)), 3, 0).astype(np.float32), DESCRIPTOR)
    threshold = calibrate(index, rng.uniform(size=(150, 64)).astype(np.float32), 0.05)
    assert threshold.statistic == "similarity" and threshold.calibrated and threshold.reference == "held-out"


def test_an_equal_picture_is_a_copy_whatever_the_statistic():
    rng = np.random.default_rng(2)
    train = rng.uniform(size=(30, 64)).astype(np.float32)
    for found in match(train, CopyIndex.from_vectors(train, DESCRIPTOR)):
        for statistic in DISTANCES:
            assert CopyRule(statistic, 5.0).is_copy(found)
