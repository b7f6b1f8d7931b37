"""The copy rule against a brute-force computation, and on cases with a known answer."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffmem.testbeds.digits.data import load, to_signed
from diffmem.testbeds.digits.matching import RATIO, References


@pytest.fixture(scope="module")
def references():
    return References(load())


def brute_force(image):
    """d1, d2 and nearest group by the definition, one group after the other."""
    data = load()
    pictures = {}
    for member in data.training:
        pictures.setdefault(member.group, to_signed(member.pixels).astype(np.float64))

    def distance(group, mask):
        mask = mask & data.masks.get(group, np.ones((8, 8), bool))
        return np.sqrt(((image - pictures[group])[mask] ** 2).mean())

    everywhere = np.ones((8, 8), bool)
    nearest = min(pictures, key=lambda group: distance(group, everywhere))
    region = data.masks.get(nearest, everywhere)
    return (
        distance(nearest, everywhere),
        min(distance(group, region) for group in pictures if group != nearest),
        nearest,
    )


def test_every_group_is_there_once(references):
    assert sorted(references.groups) == sorted({image.group for image in load().training})


@settings(max_examples=25, deadline=None)
@given(row=st.integers(0, len(load().training) - 1), noise=st.floats(0, 0.8), seed=st.integers(0, 99))
def test_matches_agree_with_brute_force(row, noise, seed):
    image = to_signed(load().training[row].pixels).astype(np.float64)
    image = np.clip(image + noise * np.random.default_rng(seed).normal(size=(8, 8)), -1, 1)
    references = References(load())
    matches = references.match(image[None])
    first, second, nearest = brute_force(image)
    assert matches.first[0] == pytest.approx(first, abs=1e-7)
    assert matches.second[0] == pytest.approx(second, abs=1e-7)
    assert references.groups[matches.nearest[0]] == nearest
    assert matches.copies[0] == (first < RATIO * second)


def test_training_images_are_copies_of_themselves(references):
    training = load().training
    matches = references.match(np.stack([to_signed(image.pixels) for image in training]))
    assert matches.copies.all()
    assert [references.groups[index] for index in matches.nearest] == [image.group for image in training]


def test_template_with_another_patch_is_a_copy_of_its_template(references):
    for image in load().training:
        if image.tier == "template":
            mask = load().masks[image.group]
            other = np.where(mask, to_signed(image.pixels), 0.123)
            matches = references.match(other[None])
            assert matches.copies[0]
            assert references.groups[matches.nearest[0]] == image.group


def test_held_out_images_are_not_copies(references):
    matches = references.match(np.stack([to_signed(image.pixels) for image in load().held_out]))
    assert matches.copies.mean() < 0.02


def test_image_between_two_training_images_is_no_copy(references):
    hard = [image for image in load().training if image.tier == "hard"]
    a, b = (to_signed(image.pixels) for image in hard[:2])
    assert not references.match(((a + b) / 2)[None]).copies[0]
