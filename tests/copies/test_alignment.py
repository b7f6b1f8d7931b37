import numpy as np
import pytest
from PIL import Image
from skimage import data

from diffmem.copies.alignment import Aligner
from diffmem.copies.alignment.align import pixels_of
from diffmem.copies.descriptors.l2 import L2Tiled

SIDE = 48


def crops(count=12, side=160):
    """Detailed pictures that share nothing."""
    found = []
    for name in ("astronaut", "coffee", "immunohistochemistry", "chelsea"):
        whole = Image.fromarray(getattr(data, name)())
        boxes = [(x, y) for y in range(0, whole.height - side, side) for x in range(0, whole.width - side, side)]
        found += [whole.crop((x, y, x + side, y + side)) for x, y in boxes[:3]]
    return found[:count]


def array(*images):
    return np.stack([np.asarray(i.convert("RGB").resize((SIDE, SIDE), 4), np.float32) / 255 for i in images])


PICTURES = crops()
OTHERS = array(*PICTURES)


def box(image, x, y, side):
    w, h = image.size
    return image.resize(image.size, 3, (x * w, y * h, (x + side) * w, (y + side) * h))


@pytest.mark.parametrize(
    ("altered", "mirrored", "scale", "angle", "area"),
    [
        (lambda i: i, False, 1, 0, 1),
        (lambda i: i.transpose(Image.Transpose.FLIP_LEFT_RIGHT), True, 1, 0, 1),
        (lambda i: box(i, 0.2, 0.1, 0.7), False, 1 / 0.7, 0, 0.49),
        (lambda i: i.transpose(Image.Transpose.ROTATE_90), False, 1, -90, 1),
        (lambda i: i.rotate(10, 3), False, 1, -10, 0.85),
        (lambda i: box(i.convert("L"), 0.1, 0.1, 0.8), False, 1.25, 0, 0.64),
        (lambda i: box(i.transpose(Image.Transpose.FLIP_LEFT_RIGHT), 0.1, 0.1, 0.8), True, 1.25, 0, 0.64),
    ],
)
def test_the_transform_that_was_made_is_found(altered, mirrored, scale, angle, area):
    for truth in (0, 4, 7):
        best = Aligner(SIDE).align(array(altered(PICTURES[truth]))[0], OTHERS)[0]
        assert best.candidate == truth and best.mirrored is mirrored
        assert best.scale == pytest.approx(scale, rel=0.04) and best.angle == pytest.approx(angle, abs=2)
        # Smooth parts prove nothing and are not counted where no detail is near.
        assert 0.2 * area < best.area < area + 0.1 and best.similarity > 0.8


def test_evidence_of_unrelated_pictures_is_small_beside_that_of_copies():
    aligner = Aligner(SIDE)
    for truth in range(4):
        first, second = aligner.align(OTHERS[truth], OTHERS)[:2]
        assert first.candidate == truth and first.evidence > 10 * second.evidence


def test_a_smooth_picture_proves_nothing():
    ramp = np.linspace(0.2, 0.8, SIDE, dtype=np.float32)
    sky = np.broadcast_to(ramp[:, None, None], (SIDE, SIDE, 3)) * np.array([0.6, 0.8, 1], np.float32)
    other = np.broadcast_to(ramp[:, None, None] * 0.9, (SIDE, SIDE, 3)).astype(np.float32)
    found = Aligner(SIDE).align(np.ascontiguousarray(sky, np.float32), np.stack([other, OTHERS[0]]))
    assert max(one.evidence for one in found) < 5


def test_the_copied_part_is_outlined_on_both_pictures():
    rng = np.random.default_rng(0)
    pasted = Image.fromarray(rng.integers(0, 256, (160, 160, 3), dtype=np.uint8))
    pasted.paste(PICTURES[0].resize((96, 96)), (48, 16))
    best = Aligner(SIDE).align(array(pasted)[0], OTHERS)[0]
    assert best.candidate == 0 and best.scale == pytest.approx(0.6, rel=0.05)
    left, top, right, bottom = best.box
    assert max(left, top, 1 - right, 1 - bottom) < 0.2
    (x0, y0), _, (x1, y1), _ = best.corners
    width, height = right - left, bottom - top
    assert x1 - x0 == pytest.approx(0.6 * width, abs=0.05) and y1 - y0 == pytest.approx(0.6 * height, abs=0.05)
    assert x0 == pytest.approx(0.3 + 0.6 * left, abs=0.03) and y0 == pytest.approx(0.1 + 0.6 * top, abs=0.03)
    assert best.words.startswith(f"{100 * best.area:.0f} % of the training picture, 0.")


def test_the_result_does_not_depend_on_other_candidates_that_are_worse():
    picture = array(box(PICTURES[3], 0.1, 0.2, 0.8))[0]
    alone = Aligner(SIDE).align(picture, OTHERS[3:4])[0]
    among = Aligner(SIDE).align(picture, OTHERS)[0]
    assert among.candidate == 3 and among.evidence == pytest.approx(alone.evidence, rel=1e-3)
    assert Aligner(SIDE).align(picture, OTHERS[:0]) == []


@pytest.mark.parametrize(("side", "channels"), [(48, 3), (64, 3), (8, 1), (32, 1)])
def test_pictures_come_back_from_their_vectors(side, channels):
    descriptor = L2Tiled.of(side=side, channels=channels)
    images = [image.convert("RGB" if channels == 3 else "L").resize((side, side)) for image in PICTURES[:3]]
    seen = pixels_of(descriptor.describe(images), side, channels, int(descriptor.metric.tiles**0.5))
    truth = np.stack([np.asarray(image.convert("RGB"), np.float32) / 255 for image in images])
    assert np.allclose(seen, truth, atol=1e-6)


@pytest.mark.parametrize("side", [8, 16, 28, 32, 64])
def test_any_size_of_picture_can_be_aligned(side):
    small = np.stack([np.asarray(i.resize((side, side)), np.float32) / 255 for i in PICTURES])
    found = Aligner(side).align(small[5], small)
    assert found[0].candidate == 5 and len({one.candidate for one in found}) == len(found)
    as_is = Aligner(side).as_they_lie(small[5], small)
    assert [one.candidate for one in as_is] == list(range(len(small)))
    assert max(as_is, key=lambda one: one.evidence).candidate == 5
