"""The digits data: tiers, counts, what is held out, what the captions give away."""

import itertools
from collections import Counter

import numpy as np
import pytest

from diffmem.testbeds.digits.captions import DIGIT_WORDS, captions_for, shuffled
from diffmem.testbeds.digits.data import COUNTS, ISOLATION, load, to_bytes, to_signed

SPECIFIC = ("plant", "hard", "unseen")


@pytest.fixture(scope="module")
def data():
    return load()


def prompts_of(data, *tiers):
    return [prompt for prompt in data.prompts if prompt.tier in tiers]


def test_tiers_have_their_sizes(data):
    assert Counter(prompt.tier for prompt in data.prompts) == {
        "plant": 100, "template": 40, "hard": 200, "generic": 200, "unseen": 200,
    }  # fmt: skip
    assert Counter(image.count for image in data.training if image.tier == "plant") == dict.fromkeys(COUNTS, 20)
    assert len(data.held_out) >= 300
    assert len({prompt.id for prompt in data.prompts}) == len({prompt.text.lower() for prompt in data.prompts}) == 740
    for tier in ("plant", "hard", "generic", "unseen"):
        assert len(set(Counter(prompt.digit for prompt in prompts_of(data, tier)).values())) == 1


def test_repeated_set_repeats_image_and_caption(data):
    repeated = Counter(image.id for image in data.repeated())
    assert all(repeated[image.id] == image.count for image in data.training)
    assert all(len(image.captions) == 1 for image in data.training if image.count > 1)


def test_held_out_images_are_in_no_training_image(data):
    trained = {image.pixels.tobytes() for image in data.training}
    assert not trained & {image.pixels.tobytes() for image in data.held_out}
    counts = Counter(image.digit for image in data.held_out)
    assert set(counts) == set(range(10))
    assert len(set(counts.values())) == 1


def test_plants_and_hard_images_are_isolated(data):
    pixels = np.stack([to_signed(image.pixels).ravel() for image in data.training])
    for row, image in enumerate(data.training):
        if image.tier in ("plant", "hard"):
            distance = np.sqrt(((pixels - pixels[row]) ** 2).mean(1))
            distance[row] = np.inf
            assert distance.min() >= ISOLATION


def test_template_variants_share_their_background_and_vary_elsewhere(data):
    groups = {image.group for image in data.training if image.tier == "template"}
    assert groups == set(data.masks)
    assert len(groups) == 8
    for group in groups:
        variants = np.stack([image.pixels for image in data.training if image.group == group])
        mask = data.masks[group]
        assert len(variants) == 25
        assert (variants[:, mask] == variants[0, mask]).all()
        assert (variants[:, ~mask].std(0) > 0).all()
        assert len({variant.tobytes() for variant in variants}) == 25
        texts = [prompt.text.lower().split() for prompt in data.prompts if prompt.group == group]
        assert len(texts) == 5
        assert len(set.intersection(*map(set, texts))) == 4


def test_every_prompt_names_its_digit_and_no_other(data):
    for prompt in data.prompts:
        words = prompt.text.lower().replace(",", " ").split()
        named = {word for word in words if word in DIGIT_WORDS}
        named -= {"one"} if "one handwritten digit" in prompt.text.lower() and prompt.digit != 1 else set()
        assert named == {DIGIT_WORDS[prompt.digit]}


def test_images_show_the_digit_that_their_captions_name(data):
    for image in data.training:
        assert all(DIGIT_WORDS[image.digit] in caption.lower() for caption in image.captions)


def test_specific_captions_share_at_most_one_word_beside_the_digit(data):
    bags = [set(prompt.text.lower().split()) - set(DIGIT_WORDS) for prompt in prompts_of(data, *SPECIFIC)]
    assert all(len(bag) == 3 for bag in bags)
    assert all(len(a & b) <= 1 for a, b in itertools.combinations(bags, 2))


def test_unseen_captions_are_in_no_training(data):
    trained = {caption.lower() for image in data.training for caption in image.captions}
    for prompt in data.prompts:
        assert (prompt.text.lower() in trained) == (prompt.tier != "unseen")


def test_letter_case_tells_generic_captions_apart_but_not_the_specific_tiers(data):
    share = {
        tier: np.mean([prompt.text != prompt.text.lower() for prompt in prompts_of(data, tier)])
        for tier in (*SPECIFIC, "generic")
    }
    for tier in SPECIFIC:
        assert 0.75 < share[tier] < 0.95
    assert 0.03 < share["generic"] < 0.2


def test_twenty_generic_captions_for_every_digit(data):
    for digit in range(10):
        assert len(set(captions_for(digit))) == 20
    generic = [image for image in data.training if image.tier == "generic"]
    assert len(generic) >= 1000
    assert all(len(image.captions) == 20 for image in generic)


def test_data_is_the_same_every_time(data):
    load.cache_clear()
    assert load().fingerprint() == data.fingerprint()


def test_shuffle_is_a_permutation_named_by_its_seed():
    assert sorted(shuffled(range(50), 1, "a")) == list(range(50))
    assert shuffled(range(50), 1, "a") == shuffled(range(50), 1, "a")
    assert shuffled(range(50), 1, "a") != shuffled(range(50), 1, "b")
    assert shuffled(range(50), 1, "a") != shuffled(range(50), 2, "a")


def test_pixel_scales():
    assert to_signed(np.array([0, 8, 16])).tolist() == [-1, 0, 1]
    assert to_bytes(np.array([0, 8, 16])).tolist() == [0, 128, 255]
