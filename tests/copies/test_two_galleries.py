import numpy as np
import pytest

from diffmem.copies.calibration import calibrate
from diffmem.copies.descriptors.l2 import L2Tiled
from diffmem.copies.index import CopyIndex
from diffmem.copies.rule import CopyRule
from diffmem.copies.two_galleries import compare_galleries
from diffmem.errors import UsageError

DESCRIPTOR = L2Tiled.of(side=4, channels=3)


def draw(rng, n):
    return rng.uniform(size=(n, 48)).astype(np.float32)


def test_copies_are_an_excess_and_pictures_that_copy_nothing_are_none():
    rng = np.random.default_rng(0)
    train, other = (CopyIndex.from_vectors(draw(rng, 200), DESCRIPTOR) for _ in range(2))
    rule = calibrate(train, draw(rng, 200), 0.05)
    copies = train.vectors[:30] + rng.normal(0, 0.01, (30, 48)).astype(np.float32)
    found = compare_galleries(np.concatenate([copies, draw(rng, 70)]), train, other, rule)
    assert found.only_train >= 28 and found.excess.low > 0.15 and found.p < 1e-4 and found.size == 200
    assert found.excess.value == pytest.approx(found.train.value - found.control.value)
    # Without copies the excess is small beside that, and over several sets of pictures p is not small.
    nothing = [compare_galleries(draw(rng, 150), train, other, rule) for _ in range(5)]
    assert max(one.excess.value for one in nothing) < 0.1 and np.median([one.p for one in nothing]) > 0.05


def test_chance_resemblance_on_both_sides_cancels():
    """Generated images nearer to everything than the rule allows for: called on both sides, no excess."""
    rng = np.random.default_rng(1)
    train, other = (CopyIndex.from_vectors(draw(rng, 150), DESCRIPTOR) for _ in range(2))
    made = (0.5 + rng.normal(0, 0.02, (60, 48))).astype(np.float32)
    found = compare_galleries(made, train, other, CopyRule("similarity", 0.6))
    assert found.train.value > 0.9 and found.control.value > 0.9 and abs(found.excess.value) < 0.1


def test_the_larger_gallery_is_thinned_out():
    rng = np.random.default_rng(2)
    train, other = (CopyIndex.from_vectors(draw(rng, n), DESCRIPTOR) for n in (300, 100))
    found = compare_galleries(train.vectors[:50], train, other, CopyRule("similarity", 0.9), groups=np.arange(50) // 5)
    assert found.size == 100 and found.p is None and "training set was thinned out to 100" in found.note
    assert found.only_train == len(set(np.linspace(0, 299, 100).astype(int)) & set(range(50)))


def test_galleries_of_two_descriptors_and_no_images():
    rng = np.random.default_rng(3)
    train = CopyIndex.from_vectors(draw(rng, 20), DESCRIPTOR)
    other = CopyIndex.from_vectors(rng.uniform(size=(20, 16)).astype(np.float32), L2Tiled.of(side=4, channels=1))
    with pytest.raises(UsageError, match="describe both alike"):
        compare_galleries(draw(rng, 3), train, other, CopyRule("similarity", 0.9))
    with pytest.raises(UsageError, match="no generated images"):
        compare_galleries(draw(rng, 0), train, train, CopyRule("similarity", 0.9))
