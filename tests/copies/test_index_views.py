"""Copies of what training saw of a picture are found, whatever the file looks like as it lies."""

import numpy as np
import pytest
from PIL import Image

from diffmem.copies.descriptors.l2 import L2Tiled
from diffmem.copies.duplicates import DuplicateGroups
from diffmem.copies.index import CopyIndex
from diffmem.copies.match import match
from diffmem.copies.statistics import neighbourhood
from diffmem.data.images import load_images
from diffmem.data.views import ALPHA_DROPPED, CENTRE_SQUARE, WHOLE

RNG = np.random.default_rng(1)


def smooth(height, width, channels=3):
    small = RNG.integers(0, 256, (6, 6, channels), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def build(images, path=None, **options):
    return CopyIndex.build(load_images(images), L2Tiled.of(side=16), path, **options)


@pytest.fixture
def oblong():
    return {f"{i:02d}": smooth(32, 48) for i in range(12)}


def test_the_centre_square_of_an_oblong_picture_is_matched_and_named(oblong):
    index = build(oblong)
    assert len(index) == 12 and len(index.views) == 12
    (found,) = match([oblong["07"].crop((8, 0, 40, 32))], index)
    assert (found.train_id, found.view) == ("07", CENTRE_SQUARE) and found.similarity == 1
    (whole,) = match([oblong["07"]], index)
    assert (whole.train_id, whole.view) == ("07", WHOLE)


def test_what_was_trained_without_alpha_is_matched():
    layers = np.array(smooth(32, 32, 4))
    layers[:, :16, 3], layers[:, 16:, 3] = 0, 255
    index = build({"cut": Image.fromarray(layers)} | {f"{i}": smooth(32, 32) for i in range(8)})
    (found,) = match([Image.fromarray(layers[:, :, :3])], index)
    assert (found.train_id, found.view) == ("cut", ALPHA_DROPPED) and found.similarity == 1


def test_neighbours_are_those_of_brute_force_over_all_views(oblong):
    oblong["dup"] = oblong["03"]
    index = build(oblong)
    groups = index.duplicates()
    queries = index.describe([smooth(32, 32) for _ in range(5)] + [oblong["03"], oblong["03"].crop((8, 0, 40, 32))])
    found = neighbourhood(queries, index, groups, nearest=4)
    everything = np.concatenate([index.vectors[:], index.view_vectors[:]])
    group = np.concatenate([groups.group, groups.group[index.views]])
    for query, row in zip(queries, range(len(queries)), strict=True):
        similarity = index.metric.exact(np.broadcast_to(query, everything.shape), everything)
        best = np.array([similarity[group == g].max() for g in range(groups.count)])
        np.testing.assert_array_equal(found.similarity[row], np.sort(best)[::-1][:4])
        np.testing.assert_array_equal(groups.group[found.row[row]], np.argsort(-best, kind="stable")[:4])


def test_an_excluded_group_is_excluded_in_all_views(oblong):
    index = build(oblong)
    groups = index.duplicates()
    found = neighbourhood(index.vectors[:], index, groups, exclude=groups.group)
    assert not (groups.group[found.row[:, 0]] == groups.group).any()


@pytest.mark.parametrize("part_rows", [1, 5, 1000])
def test_views_lie_on_disk_with_the_index(oblong, tmp_path, part_rows):
    memory = build(oblong)
    build(oblong, tmp_path / "index", part_rows=part_rows)
    loaded = CopyIndex.load(tmp_path / "index", L2Tiled.of(side=16))
    np.testing.assert_array_equal(loaded.view_vectors[:], memory.view_vectors[:])
    np.testing.assert_array_equal(loaded.views, memory.views)
    assert loaded.view_names == memory.view_names and loaded.fingerprint == memory.fingerprint
    loaded.append({"new": smooth(32, 48)})
    assert loaded.views[-1] == 12 and len(loaded.views) == 13


def test_a_set_of_square_pictures_has_no_views_and_the_fingerprint_of_before():
    index = build({str(i): smooth(16, 16) for i in range(3)})
    assert len(index.views) == 0 and isinstance(index.duplicates(), DuplicateGroups)
    found = neighbourhood(index.vectors[:], index)
    assert (found.view == -1).all()


def test_what_is_not_in_an_index_is_said_when_it_is_opened(tmp_path, caplog):
    folder = tmp_path / "train"
    folder.mkdir()
    for i in range(3):
        smooth(16, 16).save(folder / f"{i}.png")
    (folder / "broken.png").write_bytes(b"x")
    (folder / "raw.dng").write_bytes(b"x")
    CopyIndex.build(load_images(folder), L2Tiled.of(side=16), tmp_path / "index")
    caplog.clear()
    CopyIndex.load(tmp_path / "index", L2Tiled.of(side=16))
    assert "1 of 4 pictures of the index" in caplog.text and "broken.png" in caplog.text and "raw.dng" in caplog.text


def test_the_approximate_search_finds_views_too(oblong, tmp_path):
    pytest.importorskip("faiss")
    build(oblong, tmp_path / "index")
    index = CopyIndex.load(tmp_path / "index", L2Tiled.of(side=16))
    square = oblong["07"].crop((8, 0, 40, 32))
    exact = match([square, oblong["03"]], index)
    index.use_search("faiss")
    assert match([square, oblong["03"]], index) == exact and exact[0].view == CENTRE_SQUARE
    again = CopyIndex.load(tmp_path / "index", L2Tiled.of(side=16))
    again.use_search("faiss")
    assert match([square], again)[0].train_id == "07"
    assert len(list((tmp_path / "index").glob("*faiss-*.index"))) == 2


def test_an_interrupted_index_goes_on_with_its_views(oblong, tmp_path):
    class Interrupted(L2Tiled):
        left = 9

        def describe(self, images):
            Interrupted.left -= 1
            if Interrupted.left < 0:
                raise KeyboardInterrupt
            return super().describe(images)

    with pytest.raises(KeyboardInterrupt):
        CopyIndex.build(load_images(oblong), Interrupted.of(side=16), tmp_path / "index", part_rows=2, batch=2)
    index = build(oblong, tmp_path / "index", part_rows=3, batch=2)
    memory = build(oblong)
    np.testing.assert_array_equal(index.views, memory.views)
    np.testing.assert_array_equal(index.view_vectors[:], memory.view_vectors[:])


def test_names_that_are_no_utf8_do_not_end_an_index(tmp_path):
    import os

    folder = tmp_path / os.fsdecode(b"train-\xff")
    folder.mkdir()
    for name in (b"caf\xe9.png", b"plain.png"):
        smooth(16, 24).save(folder / os.fsdecode(name))
    index = CopyIndex.build(load_images(folder), L2Tiled.of(side=16), tmp_path / "index")
    assert index.ids == ["caf\\udce9.png", "plain.png"]
    loaded = CopyIndex.load(tmp_path / "index", L2Tiled.of(side=16))
    assert loaded.image(loaded.ids[0]).image is not None
