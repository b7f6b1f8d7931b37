import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import binom

from diffmem.copies.calibration import calibrate
from diffmem.copies.descriptors.l2 import L2Tiled
from diffmem.copies.index import CopyIndex
from diffmem.copies.match import match
from diffmem.copies.statistics import DISTANCES, neighbourhood
from diffmem.data.images import load_images
from diffmem.errors import UsageError
from diffmem.evaluation.proportion import clopper_pearson

DESCRIPTOR = L2Tiled.of(side=2, channels=3)  # 12 values: distances of distinct images vary a good deal


def draw(rng, n):
    return rng.uniform(size=(n, 12)).astype(np.float32)


def index_of(rng, n=250, planted=False):
    vectors = draw(rng, n)
    if planted:  # a fifth of the set are copies of a few images, some of them slightly changed
        extra = vectors[rng.integers(0, 6, n // 4)]
        vectors = np.concatenate(
            [vectors, extra + rng.normal(0, 0.002, extra.shape) * (rng.random((len(extra), 1)) < 0.5)]
        )
    return CopyIndex.from_vectors(vectors.astype(np.float32), DESCRIPTOR)


@pytest.mark.parametrize("statistic", DISTANCES)
@pytest.mark.parametrize("planted", [False, True])
@pytest.mark.parametrize("held_out", [False, True])
def test_false_positives_are_as_stated(statistic, planted, held_out):
    rng = np.random.default_rng(7)
    nominal, runs, fresh, rates = 0.05, 25, 300, []
    for _ in range(runs):
        index = index_of(rng, planted=planted)
        threshold = calibrate(index, draw(rng, 150) if held_out else None, nominal, statistic=statistic)
        assert threshold.reference == ("held-out" if held_out else "train-train distinct groups")
        # Changed copies of one image differ by .003 and must be one group.
        assert index.duplicates().count == 250
        rates.append(threshold.flags(neighbourhood(draw(rng, fresh), index).oriented(statistic)).mean())
    # One run's rate has a standard deviation of about .02 from its 150 references alone, the mean of 25 of .004.
    assert 0.7 * nominal < np.mean(rates) < 1.2 * nominal


def test_the_default_statistic_is_the_descriptors():
    index = index_of(np.random.default_rng(0))
    assert calibrate(index).statistic == L2Tiled.statistic == "normalised"


@pytest.mark.parametrize("statistic", DISTANCES)
def test_copies_are_flagged(statistic):
    rng = np.random.default_rng(0)
    index = index_of(rng, planted=True)
    threshold = calibrate(index, draw(rng, 400), 0.01, statistic=statistic)
    copies = index.vectors[:100] + rng.normal(0, 0.01, (100, 12))
    assert threshold.flags(neighbourhood(copies, index).oriented(statistic)).mean() > 0.95
    assert all(threshold.is_copy(m) for m in match(index.vectors[:5], index))


def test_the_threshold_is_the_stated_order_statistic():
    rng = np.random.default_rng(0)
    index, heldout = index_of(rng), draw(rng, 199)
    values = np.sort(neighbourhood(heldout, index).oriented("similarity"))
    threshold = calibrate(index, heldout, 0.05, statistic="similarity")
    assert threshold.value == np.nextafter(values[190 - 1], 2)  # ⌈200 · .95⌉ = 190
    assert threshold.n_reference == 199 and threshold.realised_fpr == 9 / 199
    assert threshold.realised_interval == clopper_pearson(9, 199)
    assert threshold.calibrated and threshold.note == ""
    assert not threshold.flags(np.array([values[189], np.nan])).any() and threshold.flags(values[190:]).all()


@pytest.mark.parametrize(("n", "measurable"), [(98, False), (99, True)])
def test_too_few_held_out_images_fall_back_to_the_training_set(n, measurable):
    rng = np.random.default_rng(0)
    threshold = calibrate(index_of(rng), draw(rng, n), 0.01)
    assert threshold.calibrated
    if measurable:
        assert threshold.reference == "held-out" and threshold.realised_fpr == 0
    else:
        assert threshold.reference == "train-train distinct groups"
        assert "98 held-out images are too few" in threshold.note and "at least 99" in threshold.note


@pytest.mark.parametrize(("statistic", "value"), [("similarity", 0.85), ("ratio", -1 / 3), ("normalised", -1.0)])
def test_nothing_to_calibrate_on_is_said(statistic, value):
    rng = np.random.default_rng(0)
    threshold = calibrate(index_of(rng, 60), draw(rng, 50), 0.01, statistic=statistic)
    assert not threshold.calibrated and threshold.reference is None and threshold.realised_fpr is None
    assert threshold.value == pytest.approx(value)
    assert "50 held-out" in threshold.note and "60 train-train" in threshold.note and "Not calibrated" in threshold.note


def test_several_images_per_prompt_share_the_rate():
    rng = np.random.default_rng(0)
    index, heldout = index_of(rng), draw(rng, 400)
    four = calibrate(index, heldout, 0.05, images_per_prompt=4, statistic="similarity")
    assert four.per_image_fpr == pytest.approx(1 - 0.95**0.25)
    assert four.value > calibrate(index, heldout, 0.05, statistic="similarity").value and "independent" in four.note
    flags = four.flags(neighbourhood(draw(rng, 4 * 2000), index).oriented("similarity")).reshape(-1, 4).any(1)
    assert 0.02 < flags.mean() < 0.08


def test_held_out_images_that_are_not_held_out_are_left_out():
    rng = np.random.default_rng(0)
    index, heldout = index_of(rng), draw(rng, 300)
    plain = calibrate(index, heldout, 0.01)
    leaked = np.concatenate([heldout, index.vectors[:40], heldout[:7], heldout[:7] + np.float32(1e-4)])
    found = calibrate(index, leaked, 0.01)
    assert dataclasses.replace(found, note="") == plain
    assert "14 held-out images are near-duplicates of other" in found.note
    assert "40 held-out images are near-duplicates of training" in found.note


def test_held_out_images_from_an_image_set():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (420, 2, 2, 3), dtype=np.uint8)
    index = CopyIndex.build(list(pixels[:200]), DESCRIPTOR)
    images = [*pixels[200:], Image.new("RGB", (2, 2)), "missing.png"]
    threshold = calibrate(index, load_images(images), 0.01)
    assert threshold.n_reference == 220 and "2 held-out images are unreadable or degenerate" in threshold.note
    vectors = DESCRIPTOR.describe([Image.fromarray(p) for p in pixels[200:]])
    assert threshold.value == calibrate(index, vectors, 0.01).value


@pytest.mark.parametrize("options", [{"fpr": 0}, {"fpr": 1}, {"images_per_prompt": 0}, {"statistic": "x"}])
def test_arguments_out_of_range(options):
    with pytest.raises(UsageError, match="expected a rate"):
        calibrate(index_of(np.random.default_rng(0), 20), **options)


@given(st.integers(1, 300), st.data())
def test_clopper_pearson_is_exact(n, data):
    hits = data.draw(st.integers(0, n))
    low, high = clopper_pearson(hits, n)
    assert low <= hits / n <= high
    # At its ends, a result at least (at most) as extreme has probability 2.5 %.
    assert hits == 0 or binom.sf(hits - 1, n, low) == pytest.approx(0.025, rel=1e-6)
    assert hits == n or binom.cdf(hits, n, high) == pytest.approx(0.025, rel=1e-6)


def test_the_uncertainty_of_the_threshold_is_that_of_an_order_statistic():
    rng = np.random.default_rng(3)
    index, heldout = index_of(rng), draw(rng, 199)
    found = calibrate(index, heldout, 0.05, statistic="similarity")
    low, high = found.fpr_interval
    rates = []  # of thresholds at the same place among 199 uniform numbers
    for _ in range(4000):
        rates.append(1 - np.sort(rng.random(199))[190 - 1])
    assert np.quantile(rates, [0.025, 0.975]) == pytest.approx([low, high], abs=0.003)


def test_a_rate_that_so_few_references_cannot_state_is_refused_and_the_lowest_one_named():
    rng = np.random.default_rng(0)
    threshold = calibrate(index_of(rng, 60), draw(rng, 50), 0.01)
    assert not threshold.calibrated and threshold.fpr_interval is None
    assert "the lowest that they can state is 0.02 per image" in threshold.note  # 1 / 51


def smooth(rng, n, side=16):
    """Skies: gradients that are alike by pixels and show nothing."""
    y, x = np.mgrid[0:side, 0:side] / side
    slopes, level = rng.normal(0, 0.06, (n, 2, 1, 1)), rng.normal(0.6, 0.02, (n, 1, 1))
    sky = level + slopes[:, 0] * y + slopes[:, 1] * x
    return (np.rint(255 * np.repeat(sky[..., None], 3, -1)) / 255).astype(np.float32)


def test_smooth_pictures_that_are_like_each_other_stay_references():
    """Left out of the references for being like training images, skies would be called copies of each other."""
    rng = np.random.default_rng(0)
    descriptor = L2Tiled.of(side=16, channels=3)
    noisy = rng.uniform(size=(300, 16, 16, 3)).astype(np.float32)
    skies = smooth(rng, 300)
    train = np.concatenate([noisy[:100], skies[:100]]).reshape(200, -1)
    heldout = np.concatenate([noisy[100:200], skies[100:200], noisy[:20] + np.float32(0.004)]).reshape(220, -1)
    threshold = calibrate(CopyIndex.from_vectors(train, descriptor), heldout, 0.05)
    assert threshold.n_reference >= 195 and "held-out images are near-duplicates of training" in threshold.note
    index = CopyIndex.from_vectors(train, descriptor)
    fresh = np.concatenate([noisy[200:], skies[200:]]).reshape(200, -1)
    assert threshold.flags(neighbourhood(fresh, index).oriented(threshold.statistic)).mean() < 0.12


def test_the_statistic_verified_needs_the_descriptor_aligned():
    with pytest.raises(UsageError, match="descriptor aligned"):
        calibrate(index_of(np.random.default_rng(0), 20), statistic="verified")
