"""Zip and tar archives (WebDataset) hold the same sets as the folders that they were packed from."""

import io
import json
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from diffmem.data.images import load_images
from diffmem.data.prompts import load_prompts
from diffmem.errors import DataError
from diffmem.training.data import load_training_set

RNG = np.random.default_rng(0)


def png(size=8):
    buffer = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def samples(count, start=0):
    """Members of a WebDataset."""
    files = {}
    for i in range(start, start + count):
        files[f"{i:06d}.png"] = png()
        files[f"{i:06d}.txt"] = f"caption {i}".encode()
        files[f"{i:06d}.json"] = json.dumps({"caption": f"caption {i}", "url": "u", "label": i % 2}).encode()
    return files


def write_tar(path, files):
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_zip(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def write_folder(path, files):
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


@pytest.mark.parametrize("write", [write_tar, write_zip])
def test_an_archive_is_what_its_folder_is(tmp_path, write, caplog):
    files = samples(5) | {"sub/a.png": png(), "sub/a.caption": b"a fox", "metadata.jsonl": b""}
    del files["metadata.jsonl"]
    folder = load_images(write_folder(tmp_path / "folder", files))
    archive = load_images(write(tmp_path / f"set.{write.__name__[-3:]}", files))
    assert archive.ids == folder.ids and archive.fingerprint == folder.fingerprint
    assert [item.caption for item in archive] == [item.caption for item in folder]
    assert [item.id for item in archive.items(2, 4)] == folder.ids[2:4]
    assert np.array_equal(archive.by_id("000003.png").image, folder.by_id("000003.png").image)
    assert len(load_prompts(tmp_path / f"set.{write.__name__[-3:]}")) == 6
    assert not caplog.text.count("not read")


def test_shards_of_a_webdataset_are_one_set(tmp_path):
    for shard in range(3):
        write_tar(tmp_path / f"{shard:05d}.tar", samples(2))  # keys begin anew in each
    images = load_images(tmp_path)
    assert (
        images.ids[:3] == ["00000.tar/000000.png", "00000.tar/000001.png", "00001.tar/000000.png"] and len(images) == 6
    )
    assert [image.label for image in load_training_set(tmp_path).images] == ["0", "1"] * 3
    assert [item.id for item in images.items(3, 5)] == images.ids[3:5]


def test_one_broken_shard_is_named_and_the_others_are_read(tmp_path, caplog):
    write_tar(tmp_path / "00000.tar", samples(2))
    (tmp_path / "00001.tar").write_bytes(b"no archive" * 100)
    assert len(load_images(tmp_path)) == 2 and "00001.tar" in caplog.text
    with pytest.raises(DataError, match="cannot be read as a tar"):
        load_images(tmp_path / "00001.tar")


def test_a_tar_that_is_cut_off_says_so(tmp_path, caplog):
    data = write_tar(tmp_path / "a.tar", {f"{i}.png": png(64) for i in range(4)}).read_bytes()
    (tmp_path / "a.tar").write_bytes(data[: 3 * (len(data) // 4)])
    images = load_images(tmp_path / "a.tar")
    assert 1 <= len(images) <= 3 and all(item.image is not None for item in images)
    assert "not read" in caplog.text and ("cut off" in caplog.text or "damaged" in caplog.text)


def test_a_damaged_header_loses_one_member_and_says_so(tmp_path, caplog):
    path = write_tar(tmp_path / "a.tar", {f"{i}.png": png() for i in range(4)})
    with tarfile.open(path) as archive:
        place = archive.getmembers()[1].offset
    data = bytearray(path.read_bytes())
    data[place : place + 100] = b"\xff" * 100
    path.write_bytes(data)
    assert load_images(path).ids == ["0.png", "2.png", "3.png"]
    assert "damaged" in caplog.text


def test_joined_tars_are_read_to_their_end(tmp_path, caplog):
    one, two = (write_tar(tmp_path / f"{i}.tar", samples(2, start=2 * i)).read_bytes() for i in range(2))
    (tmp_path / "joined.tar").write_bytes(one + two)
    assert len(load_images(tmp_path / "joined.tar")) == 4 and "damaged" not in caplog.text


def test_members_that_are_hidden_lead_out_or_come_again_are_named(tmp_path, caplog):
    files = {"a.png": png(), "../out.png": png(), "/abs.png": png(), "__MACOSX/._a.png": b"x", "b.exe": b"x"}
    path = write_tar(tmp_path / "a.tar", files)
    with tarfile.open(path, "a") as archive:
        info = tarfile.TarInfo("a.png")
        archive.addfile(info, io.BytesIO(b""))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    images = load_images(path)
    assert images.ids == ["a.png"] and next(iter(images)).image is not None
    for words in ("../out.png", "/abs.png", "__MACOSX", "b.exe", "second member", "link.png"):
        assert words in caplog.text, words


def test_zip_members_that_are_damaged_or_encrypted(tmp_path, caplog):
    path = write_zip(tmp_path / "a.zip", {"a.png": png(), "b.png": png(), "inner.zip": b"PK"})
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("b.png").header_offset
    data[start + 60 : start + 70] = b"\0" * 10
    path.write_bytes(data)
    items = list(load_images(path))
    assert items[0].image is not None and "damaged in the archive" in items[1].problem
    assert "inner.zip" in caplog.text and "1 of 2 pictures" in caplog.text


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz"])
def test_compressed_tars_say_what_to_do(tmp_path, name):
    with tarfile.open(tmp_path / name, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.png"))
    with pytest.raises(DataError, match=r"unpack"):
        load_images(tmp_path / name)


def test_a_webdataset_is_read_in_bounded_memory(tmp_path):
    """The pictures are never all in memory: their bytes would be a hundred megabytes."""
    import tracemalloc

    big = RNG.integers(0, 256, 1 << 20, dtype=np.uint8).tobytes()
    write_tar(tmp_path / "a.tar", {f"{i:04d}.png": big for i in range(100)})
    tracemalloc.start()
    number = sum(1 for _ in load_images(tmp_path / "a.tar"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert number == 100 and peak < 20e6
