import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import binom
from skimage import data as skimage_data

from diffmem.copies.calibration import calibrate, threshold_from
from diffmem.copies.descriptors.aligned import Aligned
from diffmem.copies.descriptors.l2 import L2Tiled
from diffmem.copies.index import CopyIndex
from diffmem.copies.match import match
from diffmem.copies.references import held_out
from diffmem.copies.statistics import DISTANCES, neighbourhood
from diffmem.copies.verification import SHARED
from diffmem.data.images import load_images
from diffmem.errors import UsageError
from diffmem.evaluation.proportion import clopper_pearson

DESCRIPTOR = L2Tiled.of(side=2, channels=3)  # 12 values: distances of distinct images vary a good deal


def draw(rng, n):
    return rng.uniform(size=(n, 12)).astype(np.float32)


def index_of(rng, n=250, planted=False):
    vectors = draw(rng, n)
    if planted:  # a fifth of the set are copies of a few images, some of them changed by less than 8 bits show
        extra = vectors[rng.integers(0, 6, n // 4)]
        vectors = np.concatenate(
            [vectors, extra + rng.normal(0, 0.0008, extra.shape) * (rng.random((len(extra), 1)) < 0.5)]
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
        # Changed copies of one image differ by .001 and must be one group.
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


def test_a_rate_that_held_out_images_cannot_state_gives_way_to_the_lowest_that_they_can():
    rng = np.random.default_rng(0)
    index, heldout = index_of(rng), draw(rng, 99)
    exact, above = calibrate(index, heldout, 0.01), calibrate(index, heldout[:98], 0.01)
    assert (exact.nominal_fpr, exact.asked_fpr, exact.n_effective) == (0.01, None, 99)
    assert above.reference == "held-out" and above.realised_fpr == 0
    assert (above.nominal_fpr, above.per_image_fpr, above.asked_fpr) == (
        pytest.approx(1 / 99),
        pytest.approx(1 / 99),
        0.01,
    )
    assert "98 held-out images can state no less than 0.01: that takes 99" in above.note
    four = calibrate(index, heldout, 0.01, images_per_prompt=4)
    assert four.per_image_fpr == pytest.approx(1 / 100) and four.nominal_fpr == pytest.approx(1 - 0.99**4)


def test_held_out_images_that_state_no_rate_up_to_five_percent_leave_it_to_the_training_set():
    rng = np.random.default_rng(0)
    threshold = calibrate(index_of(rng), draw(rng, 18), 0.01)
    assert threshold.reference == "train-train distinct groups" and threshold.nominal_fpr == 0.01
    assert "18 held-out images are too few" in threshold.note and "at least 99" in threshold.note
    assert "250 of them count as 124" in threshold.note


@pytest.mark.parametrize(("statistic", "value"), [("similarity", 0.85), ("ratio", -1 / 3), ("normalised", -1.0)])
def test_nothing_to_calibrate_on_is_said(statistic, value):
    rng = np.random.default_rng(0)
    threshold = calibrate(index_of(rng, 30), draw(rng, 15), 0.01, statistic=statistic)
    assert not threshold.calibrated and threshold.reference is None and threshold.realised_fpr is None
    assert threshold.value == pytest.approx(value) and threshold.fpr_interval is None
    assert "15 held-out" in threshold.note and "30 train-train" in threshold.note and "Not calibrated" in threshold.note
    assert "the lowest that they can state is 0.062 per image" in threshold.note  # 1 / 16


def test_training_images_that_are_alike_count_for_each_other():
    """The nearest pair gives the two highest values, so a threshold above both of 59 is exceeded at 2 in 60, not at 1."""
    rng = np.random.default_rng(1)
    rates, naive = [], []
    for _ in range(150):
        index = CopyIndex.from_vectors(draw(rng, 59), DESCRIPTOR)
        threshold = calibrate(index, None, 0.034, statistic="similarity")
        fresh = neighbourhood(draw(rng, 300), index).oriented("similarity")
        own = neighbourhood(index.vectors[:], index, exclude=index.duplicates().group).oriented("similarity")
        assert (threshold.n_reference, threshold.n_effective) == (59, 29)
        rates.append(threshold.flags(fresh).mean())
        naive.append((fresh > own.max()).mean())
    # A run's rate has a standard deviation of its own size, the mean of 150 a twelfth of it.
    assert np.mean(rates) == pytest.approx(1 / 30, rel=0.25) and np.mean(naive) > 1.5 / 60
    assert 0.94 < np.mean(np.array(rates) <= threshold.fpr_interval[1]) <= 1


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


def test_training_pictures_that_only_look_alike_are_references_too():
    """By pixels skies are one near-duplicate group; one of them alone would say nothing of the next sky."""
    rng = np.random.default_rng(2)
    noisy = rng.uniform(size=(200, 16, 16, 3)).astype(np.float32)
    skies = smooth(rng, 120)
    train = np.concatenate([noisy[:100], skies[:60], noisy[:3]]).reshape(163, -1)
    index = CopyIndex.from_vectors(train, L2Tiled.of(side=16, channels=3))
    assert index.duplicates().count < 140
    threshold = calibrate(index, None, 0.05)
    assert threshold.n_reference >= 155, "the three images that are there twice count once, the skies each"
    fresh = np.concatenate([noisy[100:], skies[60:]]).reshape(160, -1)
    assert threshold.flags(neighbourhood(fresh, index).oriented(threshold.statistic)).mean() < 0.12


def test_the_statistic_verified_needs_the_descriptor_aligned():
    with pytest.raises(UsageError, match="descriptor aligned"):
        calibrate(index_of(np.random.default_rng(0), 20), statistic="verified")


def parts_of_photos(side=48):
    """Parts of photos that do not overlap; the last 30 are of one brick wall, which shows the same again and again."""
    found = []
    for name, count in (("astronaut", 30), ("coffee", 30), ("brick", 30)):
        whole = Image.fromarray(getattr(skimage_data, name)()).convert("RGB")
        places = [(x, y) for y in range(0, whole.height - 79, 80) for x in range(0, whole.width - 79, 80)][:count]
        found += [whole.crop((x, y, x + 80, y + 80)).resize((side, side), 4) for x, y in places]
    return found


def test_proven_duplicates_leave_the_references_and_what_resembles_them_stays():
    parts = parts_of_photos()
    walls = parts[-25:]
    whole = [Image.fromarray(getattr(skimage_data, name)()).resize((48, 48), 4) for name in ("chelsea", "coffee")]
    train = [*parts[10:30], *parts[40:50], walls[0], *whole]
    flipped = [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in whole]
    descriptor = Aligned.of(side=48, channels=3, features=False)
    index = CopyIndex.build([np.asarray(image) for image in train], descriptor)
    heldout = load_images([np.asarray(image) for image in [*parts[:10], *parts[30:40], *walls[1:], *flipped]])
    names = [item.id for item in heldout.items()]
    found = held_out(index, heldout, index.duplicates(), "verified")
    proven, doubtful = found.notes[-2:]
    assert len(found.values) == 44 and (found.values >= SHARED).any()
    assert "2 held-out images are proven" in proven and all(name in proven for name in names[-2:])
    assert "stay references" in doubtful and "take them out" in doubtful
    # Walls that have not been seen are called no more often than stated: 1 in 45.
    threshold = threshold_from([found], "verified", SHARED, 0.05)
    assert threshold.value >= found.values.max() * 0.8 and threshold.calibrated
