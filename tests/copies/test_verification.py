import json

import numpy as np
import pytest
from PIL import Image
from skimage import data

from diffmem.copies.descriptors import make_descriptor
from diffmem.copies.descriptors.aligned import Aligned
from diffmem.copies.descriptors.efficientnet import EfficientNet
from diffmem.copies.descriptors.l2 import L2Tiled
from diffmem.copies.index import CopyIndex
from diffmem.copies.match import match
from diffmem.copies.rule import CopyRule
from diffmem.copies.statistics import neighbourhood
from diffmem.copies.verification import SHARED, is_proven
from diffmem.errors import DataError, ModelError, UsageError

SIDE = 32
FEATURES = [False, pytest.param(True, marks=pytest.mark.skipif(not EfficientNet.is_installed(), reason="no weights"))]


def pictures(count, side=64):
    found = []
    for name in ("astronaut", "coffee", "immunohistochemistry", "chelsea", "rocket"):
        whole = Image.fromarray(getattr(data, name)())
        for y in range(0, whole.height - side, side):
            found += [whole.crop((x, y, x + side, y + side)) for x in range(0, whole.width - side, side)]
    order = np.random.default_rng(1).permutation([i for i, p in enumerate(found) if np.asarray(p).std() > 40])
    return [found[i].resize((SIDE, SIDE), 4) for i in order[:count]]


PICTURES = pictures(60)
TRAIN, FRESH = PICTURES[:45], PICTURES[45:]


def index_of(features=False, images=TRAIN, path=None):
    return CopyIndex.build(
        [np.asarray(image) for image in images], Aligned.of(side=SIDE, channels=3, features=features), path
    )


def crop(image, x=0.1, y=0.15, side=0.75):
    return image.resize(image.size, 3, (x * SIDE, y * SIDE, (x + side) * SIDE, (y + side) * SIDE))


def flip(image):
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


@pytest.mark.parametrize("features", FEATURES)
def test_altered_copies_stand_far_above_pictures_that_are_none(features):
    index = index_of(features)
    altered = [flip(i) for i in TRAIN[:4]] + [crop(i) for i in TRAIN[4:8]]
    found = match(altered, index)
    assert sum(m.row == i for i, m in enumerate(found)) >= 7
    none = match(FRESH[:6], index)
    # Some of the parts are all but smooth.
    assert sum(m.verified > max(n.verified for n in none) for m in found) >= 7
    assert all(m.alignment.mirrored for m in found[:4]) and not any(m.alignment.mirrored for m in found[4:])
    # The fit of pictures that are mostly straight edges is loose.
    assert np.median([m.alignment.scale for m in found[4:]]) == pytest.approx(1 / 0.75, rel=0.06)


def test_a_picture_like_many_training_images_is_no_copy_of_one():
    """A wall: every training image shows as much of it as any other, so none is singled out."""
    wall = np.asarray(Image.fromarray(data.brick()).convert("RGB"))
    parts = [wall[y : y + 96, x : x + 96] for y in range(0, 480, 96) for x in range(0, 480, 96)]
    parts = [Image.fromarray(part).resize((SIDE, SIDE), 4) for part in parts]
    index = index_of(images=parts[:20] + TRAIN)
    found = match(parts[20:], index)
    walls, evidence = ([m.verified for m in found], [m.alignment.evidence for m in found])
    assert max(evidence) > 50 and max(walls) < 6


def test_what_the_training_set_shows_once_is_no_proof():
    """Pieces of a wall of which one is trained share no part; mirrored copies are proven."""
    wall = Image.fromarray(data.brick()).convert("RGB")
    places = [(x, y) for y in range(0, 432, 80) for x in range(0, 432, 80)]
    pieces = [wall.crop((x, y, x + 80, y + 80)).resize((48, 48), 4) for x, y in places]
    others = [
        Image.fromarray(getattr(data, name)()).convert("RGB").resize((48, 48), 4) for name in ("chelsea", "coffee")
    ]
    index = CopyIndex.build(
        [np.asarray(image) for image in (pieces[0], *others)], Aligned.of(side=48, channels=3, features=False)
    )
    found = match([*pieces[1:], *(flip(image) for image in others)], index)
    proven = is_proven([m.verified for m in found], [m.alignment.evidence for m in found])
    assert max(m.verified for m in found[:-2]) > SHARED and not proven[:-2].any() and proven[-2:].all()
    assert is_proven([30, 29.9, 30, np.nan, 30], [900, 1e3, 899, 1e3, np.nan]).tolist() == [True, *4 * [False]]


def test_the_same_picture_twice_in_the_training_set_does_not_hide_a_copy():
    twice = [*TRAIN[:20], *(flip(image) for image in TRAIN[:3])]
    once, both = (match([crop(i) for i in TRAIN[:3]], index_of(images=images)) for images in (TRAIN[:20], twice))
    assert all(two.verified > 0.85 * one.verified for one, two in zip(once, both, strict=True))


def test_equal_pictures_are_shown_first_and_are_copies():
    found = match(TRAIN[:3], index_of())
    assert [(m.row, m.similarity) for m in found] == [(0, 1), (1, 1), (2, 1)]
    assert all(CopyRule("verified", 1e9).is_copy(m) for m in found)


def test_the_order_of_the_queries_and_their_company_change_nothing():
    index = index_of()
    queries = index.describe([crop(i) for i in TRAIN[:2]] + FRESH[:1])
    together = neighbourhood(queries, index)
    alone = [neighbourhood(queries[i : i + 1], index) for i in range(3)]
    assert together.row[:, 0].tolist() == [int(one.row[0, 0]) for one in alone]
    assert together.verified == pytest.approx([float(one.verified[0]) for one in alone], rel=1e-4, abs=1e-4)


def test_training_images_are_not_matched_with_their_own_group():
    index = index_of()
    own = index.duplicates().group[:4]
    found = neighbourhood(index.vectors[:4], index, exclude=own)
    assert (found.row[:, 0] != np.arange(4)).all() and found.verified.max() < 10


def test_grey_and_tiny_pictures():
    rng = np.random.default_rng(0)
    small = [Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)) for _ in range(20)]
    index = CopyIndex.build([np.asarray(i) for i in small], Aligned.of(side=8, channels=1, features=False))
    found = match([flip(i) for i in small[:3]], index)
    assert [m.row for m in found] == list(range(3)) and all(m.alignment.mirrored for m in found)


def test_an_index_knows_whether_it_was_made_with_features(tmp_path):
    assert (
        index_of().fingerprint
        != CopyIndex.build([np.asarray(i) for i in TRAIN], L2Tiled.of(side=SIDE, channels=3)).fingerprint
    )
    index_of(path=tmp_path / "index")
    assert CopyIndex.load(tmp_path / "index").verifier is not None
    if EfficientNet.is_installed():
        with pytest.raises(DataError, match="aligned"):
            CopyIndex.load(tmp_path / "index", Aligned.of(side=SIDE, channels=3, features=True))
        kept = index_of(True, path=tmp_path / "with")
        match(FRESH[:1], kept)
        files = sorted(p.name for p in (tmp_path / "with").glob("features-*"))
        assert files == ["features-vectors-00000.npz"]
        again = match(FRESH[:1], CopyIndex.load(tmp_path / "with", Aligned.of(side=SIDE, channels=3, features=True)))
        assert again[0].verified == pytest.approx(match(FRESH[:1], kept)[0].verified)


def test_alignments_are_plain_json():
    (found,) = match([crop(TRAIN[0])], index_of())
    told = json.loads(json.dumps(found.alignment.as_dict()))
    assert set(told) >= {"area", "mirrored", "scale", "angle", "box", "corners", "words"} and 0 < told["area"] <= 1


def test_missing_weights_are_a_clear_error(monkeypatch, tmp_path):
    (tmp_path / "x.pth").write_bytes(b"something else")
    with pytest.raises(ModelError, match="expected 57934424"):
        EfficientNet.of(weights=tmp_path / "x.pth")
    monkeypatch.setattr("diffmem.copies.descriptors.efficientnet.find_spec", lambda _: None)
    with pytest.raises(ModelError, match="diffmem\\[features\\]"):
        EfficientNet.of()
    with pytest.raises(UsageError, match="diffmem\\[features\\]"):
        Aligned.of(side=SIDE, channels=3, features=True)
    assert not make_descriptor("aligned", None).features


@pytest.mark.skipif(not EfficientNet.is_installed(), reason="no weights")
def test_the_published_weights_recognise_a_cat_and_a_coffee():
    import torch

    from diffmem.copies.descriptors.efficientnet import _published
    from diffmem.copies.descriptors.lite0 import EfficientNetLite0

    state = torch.load(_published(), weights_only=True)
    network = EfficientNetLite0(state)
    for name, classes in (("chelsea", range(281, 288)), ("coffee", (967, 968, 925))):
        image = Image.fromarray(getattr(data, name)()).resize((224, 224))
        pixels = (torch.tensor(np.asarray(image, np.float32)).permute(2, 0, 1)[None] - 127) / 128
        with torch.inference_mode():
            top = network(pixels)[1].mean((2, 3)) @ state["_fc.weight"].T + state["_fc.bias"]
            fused = EfficientNetLite0(state).fused()(pixels)[1]
            assert torch.allclose(fused, network(pixels)[1], atol=1e-3)
        assert int(top.argmax()) in classes
