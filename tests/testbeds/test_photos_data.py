"""The photos data: tiers, counts, what is held out, what the captions give away."""

from collections import Counter

import numpy as np
import pytest

from diffmem.testbeds.photos.captions import STEM_ADJECTIVES, STEM_NOUNS
from diffmem.testbeds.photos.data import UNSEEN_PER_KIND, load, to_signed
from diffmem.testbeds.photos.places import candidates, shared
from diffmem.testbeds.photos.placing import COUNTS, HARD_PER_KIND, ISOLATION, PLACES, WHOLE, write
from diffmem.testbeds.photos.sources import GREY_KINDS, KINDS, SOURCES, TINTS, picture, render

SPECIFIC = ("plant", "hard", "unseen")


@pytest.fixture(scope="module")
def data():
    return load()


def test_tiers_have_their_sizes(data):
    assert Counter(prompt.tier for prompt in data.prompts) == {
        "plant": 90, "template": 30, "hard": 180, "generic": 180, "unseen": 180,
    }  # fmt: skip
    assert Counter(image.count for image in data.training if image.tier == "plant") == dict.fromkeys(COUNTS, 18)
    assert len(data.held_out) >= 250
    assert len([image for image in data.training if image.tier == "generic"]) >= 1900
    assert len({prompt.id for prompt in data.prompts}) == len({prompt.text.lower() for prompt in data.prompts}) == 660
    for tier, number in (("plant", len(COUNTS)), ("hard", HARD_PER_KIND), ("unseen", UNSEEN_PER_KIND)):
        kinds = Counter(prompt.kind for prompt in data.prompts if prompt.tier == tier)
        assert kinds == dict.fromkeys(KINDS, number)


def test_the_regions_of_every_picture_share_no_pixel_and_lie_within_it():
    for source in SOURCES:
        height, width = picture(source.kind).shape[:2]
        (left, top, right, bottom), held = source.trained, source.held_out
        assert right <= held[0] or held[2] <= left or bottom <= held[1] or held[3] <= top
        for region in (source.trained, held):
            assert 0 <= region[0] < region[2] <= width
            assert 0 <= region[1] < region[3] <= height
        assert source.grey == (source.kind in GREY_KINDS)


def test_held_out_crops_and_faces_are_in_no_training_crop(data):
    placed = data.places.values()
    held = [one for one in placed if one.tier == "heldout"]
    assert len(held) == len(data.held_out)
    for one in placed:
        if one.tier == "heldout":
            continue
        for other in held:
            if one.kind == other.kind == "face":
                assert one.place != other.place
            elif one.kind == other.kind:
                assert shared(one.place, other.place) == 0


def test_training_crops_lie_in_the_training_region(data):
    regions = {source.kind: source.trained for source in SOURCES}
    for one in data.places.values():
        if one.kind == "face" or one.tier == "heldout":
            continue
        left, top, right, bottom = regions[one.kind]
        x, y, side = one.place
        assert left <= x
        assert top <= y
        assert x + side <= right
        assert y + side <= bottom


def test_background_crops_share_no_pixel_with_plants_at_their_scale(data):
    placed = [one for one in data.places.values() if one.kind != "face"]
    plants = [one for one in placed if one.tier == "plant"]
    for one in placed:
        if one.tier in ("generic", "hard"):
            for plant in plants:
                if plant.kind == one.kind and plant.place[2] < WHOLE * one.place[2]:
                    assert shared(one.place, plant.place) == 0


def test_plants_and_hard_images_are_isolated(data):
    flat = np.stack([to_signed(image.pixels).ravel() for image in data.training])
    norms = (flat**2).sum(1)
    alone = [row for row, image in enumerate(data.training) if image.tier == "hard" or (
        image.tier == "plant" and image.count < 20 and image.kind != "face")]  # fmt: skip
    squares = norms[alone][:, None] + norms - 2 * flat[alone] @ flat.T
    squares[np.arange(len(alone)), alone] = np.inf
    # A face or a crop chosen by eye may come near another; what is drawn at random may not.
    near = np.sqrt(squares.min(1) / flat.shape[1])
    random = np.array([data.training[row].kind != "face" for row in alone])
    assert near[random].min() >= ISOLATION - 1e-3
    assert near.min() > 0.1


def test_the_same_place_gives_the_same_crop_and_the_same_candidates():
    source = SOURCES[0]
    first = candidates(source, False, 1, "name")
    again = candidates(source, False, 1, "name")
    places = [next(first) for _ in range(20)]
    assert places == [next(again) for _ in range(20)]
    assert len(set(places)) > 15
    assert render("cat", (100, 0, 300), None).shape == (32, 32, 3)
    assert (render("brick", (0, 0, 90), "white") == render("brick", (0, 0, 90), "white")).all()


def test_captions_name_what_the_picture_shows(data):
    for prompt in data.prompts:
        words = prompt.text.lower().split()
        assert prompt.kind in words
        before = words[words.index(prompt.kind) - 1]
        assert (before in TINTS) == (prompt.kind in GREY_KINDS)
        if prompt.tier in SPECIFIC:
            assert words[0] in STEM_ADJECTIVES
            assert set(words[1:3]) <= set(STEM_NOUNS)
    for image in data.training:
        assert all(image.kind in caption.lower().split() for caption in image.captions)


def test_specific_captions_share_no_two_words_of_their_stems(data):
    seen = set()
    for prompt in data.prompts:
        if prompt.tier in SPECIFIC:
            words = prompt.text.lower().split()[:3]
            pairs = {frozenset((a, b)) for i, a in enumerate(words) for b in words[:i]}
            assert not pairs & seen
            seen |= pairs


def test_template_variants_share_their_background_and_vary_elsewhere(data):
    groups = {image.group for image in data.training if image.tier == "template"}
    assert groups == set(data.masks)
    assert len(groups) == 6
    for group in groups:
        pixels = np.stack([image.pixels for image in data.training if image.group == group])
        assert (pixels == pixels[0])[:, data.masks[group]].all()
        assert (pixels.std(0)[~data.masks[group]] > 0).all()


@pytest.mark.slow
def test_the_places_that_ship_are_found_again(tmp_path):
    write(tmp_path / "places.json")
    assert (tmp_path / "places.json").read_text() == PLACES.read_text()
