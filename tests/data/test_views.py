import io

import numpy as np
import pytest
from PIL import Image

from diffmem.data import views as v
from diffmem.data.images import load_images

RNG = np.random.default_rng(0)


def noise(height, width, channels=3):
    return RNG.integers(0, 256, (height, width, channels), dtype=np.uint8)


def views(folder, image, name="a.png", **options):
    image.save(folder / name, **options)
    (item,) = load_images(folder)
    return {view.name: np.asarray(view.image) for view in item.views()}


def test_a_plain_square_picture_has_one_view(tmp_path):
    pixels = noise(20, 20)
    seen = views(tmp_path, Image.fromarray(pixels))
    assert list(seen) == [v.WHOLE] and np.array_equal(seen[v.WHOLE], pixels)


@pytest.mark.parametrize(("height", "width"), [(20, 30), (31, 20), (20, 21)])
def test_an_oblong_picture_is_seen_as_its_centre_square_too(tmp_path, height, width):
    pixels = noise(height, width)
    seen = views(tmp_path, Image.fromarray(pixels))
    top, left = (height - 20) // 2, (width - 20) // 2
    assert list(seen) == [v.WHOLE, v.CENTRE_SQUARE]
    np.testing.assert_array_equal(seen[v.CENTRE_SQUARE], pixels[top : top + 20, left : left + 20])


def test_the_centre_square_comes_at_the_models_size(tmp_path):
    Image.fromarray(noise(40, 64)).save(tmp_path / "a.png")
    (item,) = load_images(tmp_path)
    assert [view.image.size for view in item.views(16)] == [(64, 40), (16, 16)]


def test_transparency_is_seen_over_white_dropped_and_over_black(tmp_path):
    pixels = noise(16, 16, 4)
    pixels[:4, :, 3], pixels[4:, :, 3] = 0, 255
    seen = views(tmp_path, Image.fromarray(pixels))
    assert set(seen) == {v.WHOLE, v.ALPHA_DROPPED, v.ALPHA_OVER_BLACK}
    np.testing.assert_array_equal(seen[v.ALPHA_DROPPED], pixels[:, :, :3])
    assert (seen[v.WHOLE][:4] == 255).all() and (seen[v.ALPHA_OVER_BLACK][:4] == 0).all()


def test_an_alpha_channel_that_hides_nothing_makes_no_view(tmp_path):
    pixels = noise(16, 16, 4)
    pixels[:, :, 3] = 255
    assert list(views(tmp_path, Image.fromarray(pixels))) == [v.WHOLE]


@pytest.mark.parametrize("mode", ["LA", "P", "L"])
def test_transparency_of_other_modes_is_seen_dropped_too(tmp_path, mode):
    grey = noise(16, 16, 1)[:, :, 0]
    if mode == "LA":
        image, options = Image.fromarray(np.dstack([grey, np.where(grey > 99, 255, 0).astype(np.uint8)])), {}
    elif mode == "P":
        image, options = Image.fromarray(noise(16, 16)).quantize(16), {"transparency": 3}
    else:
        image, options = Image.fromarray(grey), {"transparency": int(grey[0, 0])}
    image.save(tmp_path / "a.png", **options)
    expected = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    seen = views(tmp_path, image, **options)
    np.testing.assert_array_equal(seen[v.ALPHA_DROPPED], expected)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_turned_photo_is_seen_unturned_too(tmp_path, orientation):
    image = Image.fromarray(noise(16, 24))
    exif = Image.Exif()
    exif[0x0112] = orientation
    seen = views(tmp_path, image, exif=exif)
    np.testing.assert_array_equal(seen[v.NOT_TURNED], np.asarray(image))
    assert f"{v.NOT_TURNED} + {v.CENTRE_SQUARE}" in seen


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_deep_grey_is_seen_cut_off_and_stretched_to_its_own_depth(tmp_path, bits):
    full = 2**bits - 1
    values = np.linspace(0, full, 256).reshape(16, 16).astype(np.uint16)
    seen = views(tmp_path, Image.fromarray(values))
    np.testing.assert_array_equal(seen[v.CLIPPED], np.minimum(values, 255))
    np.testing.assert_array_equal(seen[v.STRETCHED], np.rint(values / full * 255))
    assert seen[v.WHOLE].max() == round(full / 257)


def test_the_trainers_view_is_what_pillow_converts_to(tmp_path):
    """`Image.open(path).convert("RGB")`, the way of the diffusers scripts, is always among the views."""
    pixels = noise(20, 32, 4)
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray(RNG.integers(0, 4096, (16, 16), dtype=np.uint16))
    cases = [(Image.fromarray(pixels), {"exif": exif}), (deep, {}), (Image.fromarray(pixels[:, :, :3]), {"exif": exif})]
    for image, options in cases:
        seen = views(tmp_path, image, **options)
        opened = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
        assert any(np.array_equal(np.asarray(Image.fromarray(view).convert("RGB")), opened) for view in seen.values())


def test_pictures_in_memory_have_views_too():
    buffer = io.BytesIO()
    Image.fromarray(noise(16, 16, 4)).save(buffer, "PNG")
    for given in (Image.open(buffer), noise(16, 16, 4)):
        (item,) = load_images([given])
        assert v.ALPHA_DROPPED in {view.name for view in item.views()}
    (broken,) = load_images(["/nowhere.png"])
    assert broken.views() == ()
