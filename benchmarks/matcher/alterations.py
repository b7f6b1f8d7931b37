"""What copies are altered by: 24 transforms at three strengths, each a function of picture, strength, random numbers and
another picture."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont, ImageOps

Alteration = Callable[[Image.Image, int, np.random.Generator, Image.Image], Image.Image]
STRENGTHS = ("weak", "middle", "strong")


def crop(image, strength, rng, other):
    """A random square part of 75, 50 or 25 % of the area, enlarged."""
    return _part(image, (0.75, 0.5, 0.25)[strength] ** 0.5, rng)


def flip(image, strength, rng, other):
    """Mirrored; then cut to 95 % of the area; then to 81 %."""
    mirrored = ImageOps.mirror(image)
    return mirrored if strength == 0 else _part(mirrored, (1, 0.95, 0.81)[strength] ** 0.5, rng)


def turn(image, strength, rng, other):
    """By 180 degrees, by 90, by 270 and mirrored."""
    turned = image.transpose(
        (Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270)[strength]
    )
    return ImageOps.mirror(turned) if strength == 2 else turned


def rotate(image, strength, rng, other):
    """By 3, 10 or 20 degrees either way, corners black."""
    angle = (3, 10, 20)[strength] * rng.choice([-1, 1])
    return image.rotate(float(angle), Image.Resampling.BICUBIC)


def shift(image, strength, rng, other):
    """By 3.5, 10 or 20 % in both directions, the edge repeated."""
    step = max(1, round((0.035, 0.1, 0.2)[strength] * image.width))
    dx, dy = (int(v) for v in step * rng.choice([-1, 1], 2))
    pixels = np.asarray(image)
    padded = np.pad(pixels, ((step, step), (step, step), (0, 0)), "edge")
    return Image.fromarray(padded[step - dy : step - dy + image.height, step - dx : step - dx + image.width])


def scale(image, strength, rng, other):
    """Enlarged 1.1, 1.25 or 1.6 times about the centre."""
    return _box(image, 1 / (1.1, 1.25, 1.6)[strength], 0.5, 0.5)


def aspect(image, strength, rng, other):
    """Stretched 1.1, 1.25 or 1.5 times in one direction, cut to the old size."""
    factor, wide = (1.1, 1.25, 1.5)[strength], rng.random() < 0.5
    w, h = image.size
    stretched = image.resize((round(w * factor), h) if wide else (w, round(h * factor)), Image.Resampling.BICUBIC)
    left, top = (stretched.width - w) // 2, (stretched.height - h) // 2
    return stretched.crop((left, top, left + w, top + h))


def jpeg(image, strength, rng, other):
    """JPEG of quality 70, 30 or 10."""
    packed = io.BytesIO()
    image.save(packed, "JPEG", quality=(70, 30, 10)[strength])
    return Image.open(packed).convert("RGB")


def noise(image, strength, rng, other):
    """Gaussian noise of 8, 20 or 40 grey levels."""
    pixels = np.asarray(image, np.float64) + rng.normal(0, (8, 20, 40)[strength], (image.height, image.width, 3))
    return _image(pixels)


def blur(image, strength, rng, other):
    """Gaussian blur with a radius of 1.5, 3 or 6 % of the side."""
    return image.filter(ImageFilter.GaussianBlur((0.015, 0.03, 0.06)[strength] * image.width))


def low_resolution(image, strength, rng, other):
    """Reduced to 70, 50 or 33 % and enlarged again."""
    small = max(2, round(image.width * (0.7, 0.5, 0.33)[strength]))
    return image.resize((small, small), Image.Resampling.BICUBIC).resize(image.size, Image.Resampling.BICUBIC)


def median(image, strength, rng, other):
    """Median of 3 × 3 pixels, once, twice or four times (for small pictures; 5 × 5 above 64 pixels)."""
    for _ in range((1, 2, 4)[strength]):
        image = image.filter(ImageFilter.MedianFilter(5 if image.width > 64 else 3))
    return image


def colour(image, strength, rng, other):
    """Hue turned, saturation and contrast changed."""
    turn_, factor = (8, 20, 50)[strength], (1.15, 1.35, 1.7)[strength]
    hsv = np.asarray(image.convert("HSV")).copy()
    hsv[..., 0] += np.uint8(turn_ if rng.random() < 0.5 else 256 - turn_)
    changed = Image.fromarray(hsv, "HSV").convert("RGB")
    changed = ImageEnhance.Color(changed).enhance(factor if rng.random() < 0.5 else 1 / factor)
    return ImageEnhance.Contrast(changed).enhance(factor if rng.random() < 0.5 else 1 / factor)


def light(image, strength, rng, other):
    """Gamma 1.2, 1.6 or 2.2, or its inverse."""
    gamma = (1.2, 1.6, 2.2)[strength] ** rng.choice([-1, 1])
    return _image(255 * (np.asarray(image, np.float64) / 255) ** gamma)


def grey(image, strength, rng, other):
    """Half of its colour; none; none and less contrast."""
    plain = ImageOps.grayscale(image).convert("RGB")
    if strength == 0:
        return Image.blend(image, plain, 0.5)
    return plain if strength == 1 else ImageEnhance.Contrast(plain).enhance(0.6)


def posterise(image, strength, rng, other):
    """16, 8 or 4 levels per channel."""
    step = 256 / (16, 8, 4)[strength]
    return _image(np.floor(np.asarray(image, np.float64) / step) * step + step / 2)


def text(image, strength, rng, other):
    """One, two or four lines of words over it."""
    image = image.copy()
    size = max(6, image.width // 6)
    font = ImageFont.load_default(size)
    drawn = ImageDraw.Draw(image)
    for _ in range((1, 2, 4)[strength]):
        at = (rng.uniform(-0.1, 0.3) * image.width, rng.uniform(0, 0.85) * image.height)
        words = " ".join(rng.choice(["FOR", "SALE", "stock", "photo", "copy", "NEW", "2026"], 2))
        drawn.text(at, words, font=font, fill=tuple(int(v) for v in rng.integers(0, 256, 3)))
    return image


def bar(image, strength, rng, other):
    """Bars of one colour above and below, 20, 35 or 50 % of the picture."""
    height = round((0.1, 0.175, 0.25)[strength] * image.height)
    pixels = np.asarray(image).copy()
    pixels[:height] = pixels[image.height - height :] = rng.integers(0, 256, 3)
    return Image.fromarray(pixels)


def border(image, strength, rng, other):
    """Reduced to 90, 75 or 60 % of the side within a border of one colour."""
    plain = Image.new("RGB", image.size, tuple(int(v) for v in rng.integers(0, 256, 3)))
    return _placed(image, plain, (0.9, 0.75, 0.6)[strength], 0.5, 0.5)


def paste(image, strength, rng, other):
    """Reduced to 75, 60 or 45 % of the side and pasted somewhere into another picture."""
    return _placed(image, other, (0.75, 0.6, 0.45)[strength], *rng.random(2))


def half(image, strength, rng, other):
    """The left or right 70, 50 or 35 % of it, the rest another picture's."""
    pixels, filled = np.asarray(image), np.asarray(other).copy()
    width = round((0.7, 0.5, 0.35)[strength] * image.width)
    side = slice(0, width) if rng.random() < 0.5 else slice(image.width - width, None)
    filled[:, side] = pixels[:, side]
    return Image.fromarray(filled)


def template(image, strength, rng, other):
    """Its surroundings, with another picture's part over the middle 15, 30 or 45 % of the area."""
    side = round((0.15, 0.3, 0.45)[strength] ** 0.5 * image.width)
    pixels = np.asarray(image).copy()
    at = (image.width - side) // 2
    pixels[at : at + side, at : at + side] = np.asarray(other)[at : at + side, at : at + side]
    return Image.fromarray(pixels)


def two(image, strength, rng, other):
    """Two at once: mirrored and cut; cut and recoloured; rotated and noisy."""
    if strength == 0:
        return crop(flip(image, 0, rng, other), 0, rng, other)
    if strength == 1:
        return colour(crop(image, 1, rng, other), 1, rng, other)
    return noise(rotate(image, 1, rng, other), 1, rng, other)


def autoencoder(image, strength, rng, other):
    """Through the autoencoder of the testbed `photos`, once, twice or four times; larger pictures tile by tile."""
    for _ in range((1, 2, 4)[strength]):
        image = _through(image)
    return image


ALTERATIONS: dict[str, Alteration] = {
    function.__name__: function
    for function in (
        crop, flip, turn, rotate, shift, scale, aspect, jpeg, noise, blur, low_resolution, median, colour, light, grey,
        posterise, text, bar, border, paste, half, template, two, autoencoder,
    )
}  # fmt: skip


@lru_cache
def _autoencoder():
    from diffmem.testbeds.photos.autoencoder import load_from
    from diffmem.testbeds.photos.shipped import model_path

    return load_from(model_path() / "vae")


def _through(image) -> Image.Image:
    """Decoded from its latents; the autoencoder is made for 32 × 32 pixels, so larger pictures go through in tiles."""
    import torch

    from diffmem.testbeds.photos.autoencoder import decoded

    across = max(1, round(image.width / 32))
    pixels = np.asarray(image.resize((32 * across, 32 * across), Image.Resampling.BICUBIC), np.float32) / 127.5 - 1
    tiles = pixels.reshape(across, 32, across, 32, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, 32, 32)
    made = decoded(_autoencoder(), torch.from_numpy(np.ascontiguousarray(tiles))).numpy()
    whole = made.reshape(across, across, 3, 32, 32).transpose(0, 3, 1, 4, 2).reshape(32 * across, 32 * across, 3)
    return _image((whole + 1) * 127.5).resize(image.size, Image.Resampling.BICUBIC)


def _image(pixels) -> Image.Image:
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def _part(image, side, rng) -> Image.Image:
    return _box(image, side, *rng.random(2))


def _box(image, side, x, y) -> Image.Image:
    """The part of `side` times the picture's, at (x, y) of where it can lie, at the old size."""
    w, h = image.size
    left, top = x * (1 - side) * w, y * (1 - side) * h
    return image.resize((w, h), Image.Resampling.BICUBIC, (left, top, left + side * w, top + side * h))


def _placed(image, into, side, x, y) -> Image.Image:
    w, h = (round(side * length) for length in image.size)
    into = into.copy()
    into.paste(
        image.resize((w, h), Image.Resampling.LANCZOS), (round(x * (into.width - w)), round(y * (into.height - h)))
    )
    return into
