import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from diffmem.copies.descriptors.l2 import L2Parameters, L2Tiled
from diffmem.copies.index import CopyIndex
from diffmem.copies.neighbors import top_k
from diffmem.copies.vectors import Vectors
from diffmem.data.images import load_images
from diffmem.errors import DataError, IncompatibleRun, UsageError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (23, 8, 8), dtype=np.uint8)
DESCRIPTOR = L2Tiled.of(side=8, channels=1)


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "train").mkdir()
    for i, pixels in enumerate(PIXELS):
        (tmp_path / "train" / f"{i:02d}.png").write_bytes(b"broken" if i in (0, 7) else png(pixels))
    (tmp_path / "train" / "03.txt").write_text("a caption")
    return tmp_path / "train"


def good():
    return [i for i in range(23) if i not in (0, 7)]


def check(index, folder):
    assert index.ids == [f"{i:02d}.png" for i in good()]
    assert set(index.problems) == {"00.png", "07.png"} and "known format" in index.problems["00.png"]
    np.testing.assert_array_equal(index.vectors[:], PIXELS[good()].reshape(-1, 64).astype(np.float32) / np.float32(255))
    assert index.complete and len(index) == 21
    item = index.image("03.png")
    assert item.caption == "a caption" and np.array_equal(np.asarray(item.image), PIXELS[3])


@pytest.mark.parametrize("part_rows", [1, 4, 1000])
def test_build_load_and_search(folder, tmp_path, part_rows):
    done = []
    arguments = {"batch": 5, "part_rows": part_rows, "progress": done.append}
    index = CopyIndex.build(load_images(folder), DESCRIPTOR, tmp_path / "index", **arguments)
    check(index, folder)
    assert sum(done) == 23
    loaded = CopyIndex.load(tmp_path / "index", DESCRIPTOR)
    check(loaded, folder)
    memory = CopyIndex.build(str(folder), DESCRIPTOR)
    check(memory, folder)
    assert index.fingerprint == loaded.fingerprint == memory.fingerprint
    found = [
        top_k(index.describe([Image.fromarray(PIXELS[9])]), i.vectors, 3, i.metric) for i in (index, loaded, memory)
    ]
    for similarity, rows in found:
        assert index.ids[rows[0, 0]] == "09.png" and similarity[0, 0] == 1
        np.testing.assert_array_equal(rows, found[0][1])
    assert loaded.duplicates().count == 21


class Interrupted(L2Tiled):
    """Stops after a number of batches, as a kill would."""

    def __init__(self, left):
        super().__init__(L2Parameters(side=8, channels=1))
        self.left, self.described = left, 0

    def describe(self, images):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        self.described += len(images)
        return super().describe(images)


def test_an_interrupted_build_goes_on(folder, tmp_path):
    for calls in range(3):
        with pytest.raises(KeyboardInterrupt):
            CopyIndex.build(folder, Interrupted(2 if calls else 1), tmp_path / "i", batch=3, part_rows=3)
        if calls:
            assert not CopyIndex.load(tmp_path / "i").complete
    last = Interrupted(99)
    check(CopyIndex.build(folder, last, tmp_path / "i", batch=3, part_rows=3), folder)
    assert 0 < last.described < 15
    again = Interrupted(0)  # nothing is left to describe
    check(CopyIndex.build(folder, again, tmp_path / "i"), folder)


def test_changed_images_are_refused(folder, tmp_path):
    CopyIndex.build(folder, DESCRIPTOR, tmp_path / "i")
    (folder / "05.png").write_bytes(png(PIXELS[6]))
    with pytest.raises(IncompatibleRun, match=r"'05\.png' differs"):
        CopyIndex.build(folder, DESCRIPTOR, tmp_path / "i")
    assert "changed since" in CopyIndex.load(tmp_path / "i").image("05.png").problem
    (folder / "05.png").write_bytes(png(PIXELS[5]))
    (folder / "99.png").write_bytes(png(PIXELS[5]))
    with pytest.raises(IncompatibleRun, match="23 images there, 24 now"):
        CopyIndex.build(folder, DESCRIPTOR, tmp_path / "i")


def test_another_descriptor_is_refused(folder, tmp_path):
    CopyIndex.build(folder, DESCRIPTOR, tmp_path / "i")
    for act in (CopyIndex.load, lambda path, descriptor: CopyIndex.build(folder, descriptor, path)):
        with pytest.raises(DataError, match="cannot search it"):
            act(tmp_path / "i", L2Tiled.of(side=4, channels=1))
    plain = CopyIndex.load(tmp_path / "i")
    with pytest.raises(UsageError, match="without its descriptor"):
        plain.describe([])
    assert plain.about["name"] == "l2-tiled" and plain.about["recipe"]["side"] == 8


def test_append_adds_a_set_with_new_ids(folder, tmp_path):
    index = CopyIndex.build(folder, DESCRIPTOR, tmp_path / "i")
    before = index.fingerprint
    assert index.duplicates().count == 21
    more = {f"new-{i}": PIXELS[i] for i in range(3)} | {"bad": np.full((2, 2), np.nan)}
    index.append(more)
    for one in (index, CopyIndex.load(tmp_path / "i")):
        assert one.ids[-3:] == ["new-0", "new-1", "new-2"] and len(one) == 24 and "bad" in one.problems
        assert one.fingerprint == index.fingerprint != before
        assert one.duplicates().count == 22
    assert np.array_equal(np.asarray(index.image("new-1").image), PIXELS[1])
    assert "in memory only" in CopyIndex.load(tmp_path / "i").image("new-1").problem
    with pytest.raises(DataError, match="'new-0'"):
        index.append(more)
    with pytest.raises(DataError, match="2 image sets"):
        CopyIndex.build(folder, DESCRIPTOR, tmp_path / "i")


def test_groups_are_kept_beside_the_index(tmp_path, monkeypatch):
    from diffmem.copies import index as module

    calls = []
    original = module.near_duplicates
    monkeypatch.setattr(module, "near_duplicates", lambda *a, **k: calls.append(a[2]) or original(*a, **k))
    pixels = np.repeat(PIXELS[:1], 5, 0)
    pixels[:, :3, :3] = RNG.integers(0, 256, (5, 3, 3))
    train = {f"{i:02d}": p for i, p in enumerate([*PIXELS, PIXELS[2], *pixels])}
    index = CopyIndex.build(train, DESCRIPTOR, tmp_path / "i")
    made = index.duplicates()
    read = CopyIndex.load(tmp_path / "i").duplicates()
    assert calls == [0.95]
    assert made.count == 23 and len(made.templates) == 1 and made.size.max() == 6
    assert (read.cut, read.chained, read.warning) == (made.cut, made.chained, made.warning)
    for one, two in zip(
        [made.group, made.size, made.first, made.templates[0].mean, made.templates[0].mask, made.templates[0].group],
        [read.group, read.size, read.first, read.templates[0].mean, read.templates[0].mask, read.templates[0].group],
        strict=True,
    ):
        np.testing.assert_array_equal(one, two)
    CopyIndex.load(tmp_path / "i").duplicates(0.9)
    assert calls == [0.95, 0.9]
    index.append({"new": PIXELS[5]})
    assert index.duplicates().count == 23 and len(index.duplicates().group) == 30
    (tmp_path / "i" / "groups.npz").write_bytes(b"damaged")
    assert CopyIndex.load(tmp_path / "i").duplicates().count == 23


def test_images_that_are_gone_or_moved(folder, tmp_path):
    CopyIndex.build(folder, DESCRIPTOR, tmp_path / "i")
    folder.rename(tmp_path / "moved")
    index = CopyIndex.load(tmp_path / "i")
    item = index.image("03.png")
    assert item.image is None and "not where it was indexed" in item.problem and item.caption == "a caption"
    found = CopyIndex.load(tmp_path / "i", sources=[tmp_path / "moved"]).image("03.png")
    assert np.array_equal(np.asarray(found.image), PIXELS[3])
    with pytest.raises(DataError, match="no image 'x'"):
        index.image("x")


def test_nothing_usable(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"None of the 1 images.*'a\.png', not an image"):
        CopyIndex.build(tmp_path, DESCRIPTOR, tmp_path / "i")


def test_a_descriptor_that_fails_on_one_image_leaves_a_problem():
    class Sometimes(L2Tiled):
        def describe(self, images):
            vectors = super().describe(images)
            vectors[vectors[:, 0] == np.float32(PIXELS[2][0, 0] / 255)] = np.nan
            return vectors

    index = CopyIndex.build(list(PIXELS[:5]), Sometimes.of(side=8, channels=1), batch=2)
    assert index.ids == ["000000", "000001", "000003", "000004"]
    assert index.problems == {"000002": "the descriptor of this image is not finite"}


def in_the_manner_of_0_1_0(folder):
    """No checksums, and vectors of another shape."""
    meta = json.loads((folder / "meta.json").read_text())
    meta["parts"][0].pop("checksums")
    (folder / "meta.json").write_text(json.dumps({k: v for k, v in meta.items() if k != "checksum"}))
    np.save(folder / "vectors-00000.npy", np.zeros((2, 64), np.float32))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda d: (d / "meta.json").unlink(), "no copy index"),
        (lambda d: (d / "meta.json").write_text("{"), "damaged"),
        (lambda d: (d / "meta.json").write_text('{"schema": 1}'), "lacks descriptor"),
        (lambda d: (d / "meta.json").write_text('{"schema": 99}'), "schema 99"),
        (lambda d: (d / "vectors-00000.npy").unlink(), "damaged or missing"),
        (lambda d: (d / "vectors-00000.npy").write_bytes((d / "vectors-00000.npy").read_bytes()[:-9]), "damaged"),
        (lambda d: np.save(d / "vectors-00000.npy", np.zeros((2, 64), np.float32)), "not as it was written"),
        (in_the_manner_of_0_1_0, r"holds vectors \(2, 64\)"),
        (lambda d: np.save(d / "vectors-00000.npy", np.array([{}])), "damaged"),
        (lambda d: pq.write_table(pa.table({"id": ["a"]}), d / "items-00000.parquet"), "damaged"),
    ],
)
def test_damage_is_named(folder, tmp_path, damage, words):
    CopyIndex.build(folder, DESCRIPTOR, tmp_path / "i")
    damage(tmp_path / "i")
    with pytest.raises(DataError, match=words):
        CopyIndex.load(tmp_path / "i")


def test_meta_is_plain_json(folder, tmp_path):
    CopyIndex.build(folder, DESCRIPTOR, tmp_path / "i")
    meta = json.loads((tmp_path / "i" / "meta.json").read_text())
    assert meta["schema"] == 1 and meta["descriptor"]["fingerprint"] == DESCRIPTOR.fingerprint
    assert meta["sources"][0]["fingerprint"] == load_images(folder).fingerprint


def test_vectors_read_as_one_array():
    whole = RNG.normal(size=(20, 3)).astype(np.float32)
    parts = Vectors([whole[:7], whole[7:7], whole[7:8], whole[8:]], 3)
    assert parts.shape == (20, 3) and len(list(parts)) == 3
    np.testing.assert_array_equal(parts[3:15:2], whole[3:15:2])
    rows = np.array([19, 0, 7, 7, 8, 6])
    np.testing.assert_array_equal(parts[rows], whole[rows])
    assert parts[np.array([], int)].shape == (0, 3)
    with pytest.raises(IndexError):
        parts[np.array([20])]


def test_an_index_from_vectors():
    index = CopyIndex.from_vectors(np.eye(4), DESCRIPTOR)
    assert index.ids == ["000000", "000001", "000002", "000003"] and index.complete
    assert index.fingerprint != CopyIndex.from_vectors(2 * np.eye(4), DESCRIPTOR).fingerprint
    with pytest.raises(UsageError, match="4 vectors"):
        CopyIndex.from_vectors(np.eye(4), DESCRIPTOR, ["a", "b", "c", "a"])
