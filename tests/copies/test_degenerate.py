import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from diffmem.copies.degenerate import grey_entropy, is_degenerate, is_low_entropy

RNG = np.random.default_rng(0)


def noisy(level, spread, size=64):
    return Image.fromarray(np.clip(level + RNG.normal(0, spread, (size, size, 3)), 0, 255).round().astype(np.uint8))


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (Image.new("RGB", (64, 64)), "black"),
        (Image.new("L", (8, 8), 3), "black"),
        (Image.new("RGB", (64, 64), (200, 10, 30)), "constant"),
        (Image.new("L", (64, 64), 255), "constant"),
        (noisy(128, 1.0), "nearly constant"),
        (noisy(128, 4.0), None),
        (Image.linear_gradient("L"), None),
    ],
)
def test_reasons(image, reason):
    assert is_degenerate(image) == reason


def test_one_bright_pixel_or_one_coloured_channel_is_a_picture():
    image = Image.new("L", (8, 8))
    image.putpixel((3, 3), 255)
    assert is_degenerate(image) is None
    pixels = np.full((64, 64, 3), 100, np.uint8)
    pixels[:32, :, 2] = 160
    assert is_degenerate(Image.fromarray(pixels)) is None


def test_no_real_digit_is_set_aside():
    images = [Image.fromarray((d * 255 / 16).round().astype(np.uint8)) for d in load_digits().images]
    assert not any(is_degenerate(image) or is_low_entropy(image) for image in images)


def test_entropy_in_bits():
    assert grey_entropy(Image.new("L", (8, 8), 7)) == 0
    assert grey_entropy(Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))) == pytest.approx(8)
    half = Image.fromarray(np.repeat(np.array([[0], [255]], np.uint8), 8, 1))
    assert grey_entropy(half) == pytest.approx(1) and not is_low_entropy(half)
    assert is_low_entropy(Image.new("RGB", (4, 4), (9, 9, 9)))
