"""The exported digits: deterministic, isolated, captioned in the testbed's own words, and readable as a training set."""

import json

import numpy as np
import pytest

from diffmem.errors import UsageError
from diffmem.testbeds.digits import model_path
from diffmem.testbeds.digits.captions import DIGIT_WORDS
from diffmem.testbeds.digits.data import ISOLATION, load
from diffmem.testbeds.digits.export import MOST_CAPTIONS, export, isolated_digits
from diffmem.training.data import load_training_set


def test_the_folder_is_a_training_set_with_distinct_captions(tmp_path):
    data = load_training_set(export(tmp_path / "a", 60, 6, seed=3))
    assert len(data) == 60 and not data.unreadable
    assert {image.image.size for image in data.images} == {(8, 8)} and {i.image.mode for i in data.images} == {"L"}
    assert sorted(image.label for image in data.images) == sorted(str(digit) for digit in range(10) for _ in range(6))
    everything = [caption for image in data.images for caption in image.captions]
    assert len(everything) == len(set(everything)) == 60 * 6
    for image in data.images:
        word = DIGIT_WORDS[int(image.label)]
        assert all(word in caption.lower().replace(",", "").split() for caption in image.captions)
    vocabulary = json.loads((model_path() / "tokenizer" / "tokenizer.json").read_text())["model"]["vocab"]
    words = {word.strip(",") for caption in everything for word in caption.lower().split()}
    assert not {word for word in words if f"{word}</w>" not in vocabulary and word not in vocabulary}


def test_pictures_are_isolated_and_the_seed_decides(tmp_path):
    images, digits = isolated_digits()
    flat = images.reshape(len(images), -1) / 8
    nearest = [np.sqrt(np.square(np.delete(flat, at, 0) - flat[at]).mean(1)).min() for at in range(0, len(flat), 20)]
    assert min(nearest) >= ISOLATION
    one, same, other = (export(tmp_path / name, 30, 2, seed) for name, seed in (("1", 0), ("2", 0), ("3", 1)))
    files = sorted(path.name for path in one.iterdir())
    assert len(files) == 31
    assert all((one / name).read_bytes() == (same / name).read_bytes() for name in files)
    assert (one / "metadata.jsonl").read_bytes() != (other / "metadata.jsonl").read_bytes()
    export(one, 30, 2, 0)  # again into the same folder
    whole, rest = (load_training_set(place).images for place in (one, export(tmp_path / "4", 10, 2, 0, start=20)))
    assert [(i.id, i.captions) for i in rest] == [(i.id, i.captions) for i in whole[20:]]
    seen = {image.pixels.tobytes() for image in load().training}
    assert not {pixels.tobytes() for pixels in isolated_digits(unseen=True)[0]} & seen
    with pytest.raises(UsageError, match=f"ask for 1 to {len(digits)}"):
        export(tmp_path / "many", len(digits) + 1)
    with pytest.raises(UsageError, match=f"expected 1 to {MOST_CAPTIONS}"):
        export(tmp_path / "captions", 3, 0)
    with pytest.raises(UsageError, match="other pictures"):
        export(one, 10)
