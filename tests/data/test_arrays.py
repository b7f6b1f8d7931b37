"""Arrays and tensors of any usual layout and range mean the same picture, or are refused with a sentence."""

import numpy as np
import pytest
import torch
from PIL import Image

from diffmem.data.images import as_images
from diffmem.errors import UsageError

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 12, 9, 3), dtype=np.uint8)
UNIT = PIXELS.astype(np.float32) / 255
CHW = np.ascontiguousarray(UNIT.transpose(0, 3, 1, 2))


@pytest.mark.parametrize(
    "given",
    [
        PIXELS,
        list(PIXELS),
        UNIT,
        CHW,
        list(CHW),
        UNIT * 2 - 1,
        list(CHW * 2 - 1),
        PIXELS.astype(np.int64),
        PIXELS.astype(np.float64),
        torch.from_numpy(CHW),
        list(torch.from_numpy(CHW)),
        torch.from_numpy(CHW * 2 - 1).requires_grad_(),
        torch.from_numpy(PIXELS),
        [Image.fromarray(pixels) for pixels in PIXELS],
    ],
    ids=None,
)
def test_all_layouts_and_ranges_are_the_same_pictures(given):
    found = [np.asarray(item.image) for item in as_images(given)]
    np.testing.assert_array_equal(found, PIXELS)


def test_half_precision_stays_within_one_step():
    found = np.stack([item.image for item in as_images(torch.from_numpy(CHW).to(torch.bfloat16))])
    assert np.abs(found.astype(int) - PIXELS).max() <= 1


@pytest.mark.parametrize(
    "one",
    [PIXELS[0], UNIT[0], torch.from_numpy(CHW[0]), Image.fromarray(PIXELS[0])],
    ids=["HWC", "float", "tensor", "PIL"],
)
def test_a_single_picture_is_a_set_of_one(one):
    (item,) = as_images(one)
    np.testing.assert_array_equal(item.image, PIXELS[0])


def test_grey_bool_and_16_bits():
    grey = PIXELS[:, :, :, 0]
    assert np.array_equal(np.stack([item.image for item in as_images(grey)]), grey)
    assert np.array_equal(as_images(torch.from_numpy(grey[0])).by_id("000000").image, grey[0])
    assert np.array_equal(as_images([grey[0] > 99]).by_id("000000").image, (grey[0] > 99) * 255)
    deep = grey[0].astype(np.uint16) * 257
    assert np.array_equal(as_images([deep]).by_id("000000").image, grey[0])


def test_a_bright_picture_among_signed_ones_has_their_range(caplog):
    signed = np.stack([CHW[0] * 2 - 1, np.full_like(CHW[0], 0.5)])
    assert set(np.unique(as_images(signed).by_id("000001").image)) == {191}
    assert "[-1, 1]" in caplog.text


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (UNIT * 300.7, "lie in"),
        (UNIT - 5, "lie in"),
        (CHW[0], "may be 3 grey pictures"),
        (PIXELS.astype(np.int32) - 9, "int32"),
        (np.zeros((4, 8, 8, 7)), "shape"),
        (np.zeros((2, 2, 2, 2, 2)), "shape"),
        (np.full((2, 8, 8), np.nan), "finite"),
        (PIXELS.astype(complex), "complex"),
        (torch.zeros(2, 5, 8, 8), "shape"),
        ((item for item in PIXELS), "generator"),
        (3, "from a int"),
        (b"bytes", "from a bytes"),
        ([[PIXELS[0]]], "a list; expected a PIL image"),
        (torch.eye(8).to_sparse(), "cannot be read as pictures"),
    ],
    ids=None,
)
def test_what_cannot_be_meant_is_refused(given, words):
    with pytest.raises(UsageError, match=words):
        as_images(given)


def test_one_bad_array_among_good_ones_is_a_problem_of_its_own():
    items = list(as_images([UNIT[0], np.zeros((2, 2, 7)), PIXELS[1].tobytes(), object()]))
    assert [item.image is not None for item in items] == [True, False, False, False]
    assert "(2, 2, 7)" in items[1].problem and "a object" in items[3].problem
