"""Pictures from folders and memory: what is read, in which mode, and what is named as a problem."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tests.data.pictures import PIXELS, encode, only, png_header_only

from diffmem.data.fingerprint import hash_items
from diffmem.data.images import load_images
from diffmem.errors import DataError, UsageError


def test_folder_is_recursive_sorted_and_case_insensitive(tmp_path):
    (tmp_path / "b" / ".hidden").mkdir(parents=True)
    for name in ("b/2.PNG", "a.jpeg.png", "b/10.png", ".x.png", "b/.hidden/3.png"):
        (tmp_path / name).write_bytes(encode(PIXELS[0]))
    (tmp_path / "notes.md").write_text("no image")
    (tmp_path / "b" / "2.txt").write_text("a caption\n")
    (tmp_path / "a.jpeg.txt").write_bytes(b"caf\xe9")
    images = load_images(tmp_path)
    assert images.ids == ["a.jpeg.png", "b/10.png", "b/2.PNG"]
    items = list(images)
    assert [item.caption for item in items] == [None, None, "a caption"]
    assert "latin-1" in items[0].note
    assert all(np.array_equal(np.asarray(item.image), PIXELS[0]) for item in items)
    assert images.by_id("b/10.png").digest == items[1].digest
    with pytest.raises(DataError, match="no image 'c'"):
        images.by_id("c")


def test_linked_folders_are_read_once_even_in_a_circle(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "1.png").write_bytes(encode(PIXELS[0]))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "back").symlink_to(tmp_path / "set")
    assert load_images(tmp_path / "set").ids == ["link/1.png"]


def test_metadata_jsonl_gives_captions(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "1.png").write_bytes(encode(PIXELS[0]))
    (tmp_path / "train" / "metadata.jsonl").write_text(json.dumps({"file_name": "1.png", "text": "hello"}))
    assert [item.caption for item in load_images(tmp_path)] == ["hello"]


@pytest.mark.parametrize("make", [lambda d: None, lambda d: (d / "a.txt").write_text("x")])
def test_nothing_there(tmp_path, make):
    make(tmp_path)
    with pytest.raises(DataError, match="holds no images"):
        load_images(tmp_path)


def test_missing_mixed_and_odd_sources(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        load_images(tmp_path / "no")
    with pytest.raises(DataError, match="holds no images"):
        load_images([])
    with pytest.raises(UsageError, match="from a int"):
        load_images(3)
    (tmp_path / "a.png").write_bytes(encode(PIXELS[0]))
    pq.write_table(pa.table({"image": [b"1"]}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="1 images and 1 tables"):
        load_images(tmp_path)
    (tmp_path / "junk.parquet").write_bytes(b"junk")
    with pytest.raises(DataError, match="as parquet"):
        load_images(tmp_path / "junk.parquet")


def test_broken_files_become_problems(tmp_path):
    good = encode(np.tile(PIXELS[0], (40, 40, 1)))
    cases = {
        "empty.png": (b"", "empty"),
        "text.jpg": (b"hello", "known format"),
        "cut.png": (good[: len(good) // 2], "broken or truncated"),
        "cut.jpg": (encode(np.tile(PIXELS[0], (40, 40, 1)), "JPEG")[:900], "broken or truncated"),
        "bomb.png": (png_header_only(60_000, 60_000), "limit of 64,000,000"),
        "huge.png": (png_header_only(9_000, 9_000), "more than the limit"),
        "hollow.png": (png_header_only(50, 50), "broken or truncated"),
        "eps.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", "known format"),
    }
    for name, (data, _) in cases.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "z.png").write_bytes(good)
    items = {item.id: item for item in load_images(tmp_path)}
    assert items.pop("z.png").problem is None
    for name, item in items.items():
        assert item.image is None and cases[name][1] in item.problem, (name, item.problem)


def test_pixel_cap_can_be_lowered(tmp_path):
    assert "6×6" not in (only(encode(PIXELS[0]), tmp=tmp_path).problem or "")
    assert "5×6 pixels, more than the limit of 29" in only(encode(PIXELS[0]), tmp=tmp_path, max_pixels=29).problem


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_unreadable_exif_data_leave_a_picture_as_it_is_and_are_said(tmp_path, kind):
    out = io.BytesIO()
    Image.fromarray(PIXELS[0]).save(out, kind, exif=b"Exif\0\0no header of a TIFF")
    (tmp_path / f"1.{kind.lower()}").write_bytes(out.getvalue())
    (item,) = load_images(tmp_path)
    assert item.image.size == PIXELS[0].shape[1::-1]
    assert item.note.startswith("not turned, for its EXIF data cannot be read (") and "TIFF" in item.note


def test_broken_pictures_in_memory_are_named_and_equal_to_no_other():
    pictures = [Image.open(io.BytesIO(encode(PIXELS[0])[:-30])) for _ in range(2)]
    items = list(load_images(pictures))
    assert all(item.image is None and "cannot be used (" in item.problem for item in items)
    assert items[0].digest != items[1].digest


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate a quarter clockwise
    item = only(encode(PIXELS[0], exif=exif), tmp=tmp_path)
    assert np.array_equal(np.asarray(item.image), np.rot90(PIXELS[0], -1))


def test_modes_become_rgb_or_l(tmp_path):
    grey = PIXELS[0][:, :, 0]
    alpha = np.dstack([PIXELS[0], np.full((6, 5), 128, np.uint8)])
    expected_over_white = PIXELS[0].astype(float) * 128 / 255 + 255 * 127 / 255
    deep = np.linspace(0, 65535, 30).astype(np.uint16).reshape(6, 5)
    palette = Image.fromarray(PIXELS[0]).quantize(8)
    cmyk = Image.fromarray(PIXELS[0]).convert("CMYK")

    item = only(encode(grey), tmp=tmp_path)
    assert item.image.mode == "L" and item.note is None and np.array_equal(np.asarray(item.image), grey)
    item = only(encode(alpha), tmp=tmp_path)
    assert item.image.mode == "RGB" and "over white" in item.note
    assert np.abs(np.asarray(item.image) - expected_over_white).max() <= 1
    opaque = np.dstack([PIXELS[0], np.full((6, 5), 255, np.uint8)])
    item = only(encode(opaque), tmp=tmp_path)
    assert item.note is None and np.array_equal(np.asarray(item.image), PIXELS[0])
    item = only(encode(deep), tmp=tmp_path)
    assert item.image.mode == "L" and "16-bit" in item.note
    assert np.array_equal(np.asarray(item.image), np.rint(deep / 257).astype(np.uint8))
    item = only(encode(palette), tmp=tmp_path)
    assert "palette" in item.note and np.array_equal(np.asarray(item.image), np.asarray(palette.convert("RGB")))
    item = only(encode(cmyk, "TIFF"), "x.tif", tmp=tmp_path)
    assert item.image.mode == "RGB" and "CMYK" in item.note
    item = only(encode(Image.fromarray(grey > 100)), tmp=tmp_path)
    assert item.image.mode == "L" and set(np.unique(item.image)) <= {0, 255}
    item = only(encode(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "x.tif", tmp=tmp_path)
    assert item.image is None and "floating-point" in item.problem


def test_palette_with_transparency_is_laid_over_white(tmp_path):
    image = Image.fromarray(np.zeros((4, 4), np.uint8)).convert("P")
    item = only(encode(image, transparency=0), tmp=tmp_path)
    assert item.image.mode == "RGB" and (np.asarray(item.image) == 255).all()


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.fromarray(np.full((4, 4), v, np.uint8)) for v in (10, 200)]
    item = only(encode(frames[0], "GIF", save_all=True, append_images=frames[1:]), "x.gif", tmp=tmp_path)
    assert "first of 2 frames" in item.note and np.asarray(item.image).max() <= 12


def test_pictures_in_memory():
    half = np.full((3, 4), 0.5)
    images = load_images(
        [Image.fromarray(PIXELS[0]), PIXELS[1], half, half[:, :, None], half * 3, np.zeros((2, 2, 7)), "no.png", 5]
    )
    items = list(images)
    assert np.array_equal(np.asarray(items[0].image), PIXELS[0]) and np.array_equal(
        np.asarray(items[1].image), PIXELS[1]
    )
    assert items[2].image.mode == items[3].image.mode == "L" and np.asarray(items[2].image)[0, 0] == 128
    assert [bool(i.problem) for i in items] == [False] * 4 + [True] * 4
    assert "[1.5, 1.5]" in items[4].problem and "(2, 2, 7)" in items[5].problem
    assert "cannot be read" in items[6].problem and "a int" in items[7].problem
    assert load_images({"a": PIXELS[0]}).by_id("a").image.size == (5, 6)
    assert len(load_images(np.stack(PIXELS))) == 7
    with pytest.raises(UsageError, match=r"None of the 1 pictures .*nan"):
        load_images([np.full((2, 2), np.nan)])


def test_fingerprint_is_of_content_and_order_not_of_place(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for i, pixels in enumerate(PIXELS):
            (tmp_path / folder / f"{i}.png").write_bytes(encode(pixels))
    first, second = load_images(tmp_path / "a"), load_images(tmp_path / "b")
    assert first.fingerprint == second.fingerprint == hash_items((i.id, i.digest) for i in first)
    (tmp_path / "b" / "3.png").write_bytes(encode(PIXELS[0]))
    assert load_images(tmp_path / "b").fingerprint != first.fingerprint
    assert load_images(PIXELS).fingerprint != load_images(PIXELS[::-1]).fingerprint


def test_a_file_that_disappears_is_a_problem(tmp_path):
    (tmp_path / "1.png").write_bytes(encode(PIXELS[0]))
    images = load_images(tmp_path)
    (tmp_path / "1.png").unlink()
    assert "cannot be read" in next(iter(images)).problem


@pytest.mark.parametrize(("name", "kind", "module"), [
    ("a.tga", "TGA", None), ("a.qoi", "QOI", None), ("a.heic", "HEIF", "pillow_heif"), ("a.jxl", "JXL", "pillow_jxl"),
])  # fmt: skip
def test_further_formats_are_read(tmp_path, name, kind, module):
    if module is not None:
        pytest.importorskip(module)
    from diffmem.data.formats import formats

    formats()
    if kind not in Image.SAVE:
        pytest.skip(f"this version of Pillow writes no {kind}")
    smooth = Image.fromarray(PIXELS[0]).resize((64, 64), Image.Resampling.BICUBIC)
    options = {"HEIF": {"quality": 100}, "JXL": {"lossless": True}}.get(kind, {})
    item = only(encode(smooth, kind, **options), name, tmp=tmp_path)
    assert (
        np.abs(np.asarray(item.image).astype(int) - np.asarray(smooth)).mean() < 8
    )  # HEIF halves the resolution of colours


def test_formats_of_plug_ins_that_are_not_there_say_what_to_install(monkeypatch):
    from diffmem.data import formats

    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    formats.formats.cache_clear()
    formats.suffixes.cache_clear()
    try:
        assert ".heic" not in formats.suffixes()
        assert "diffmem[formats]" in formats.why_not_read(".heic") and "pillow-jxl-plugin" in formats.why_not_read(
            ".jxl"
        )
    finally:
        formats.formats.cache_clear()
        formats.suffixes.cache_clear()
