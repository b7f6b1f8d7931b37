"""Matching against shards that stream past gives what matching against the whole set gives, in bounded pieces, resumably."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.tiny import picture

from diffmem.cli.app import main
from diffmem.copies import pieces
from diffmem.copies.backends import TorchBackend
from diffmem.copies.metrics import Metric
from diffmem.copies.neighbors import top_k
from diffmem.data.images import load_images
from diffmem.data.shards import as_address, shards_of
from diffmem.errors import UsageError
from diffmem.runs.store import RunStore
from diffmem.stages.match import stream
from diffmem.stages.match.folders import match_images
from diffmem.stages.match.stage import Matching
from diffmem.stages.match.streamed import stream_index

DESCRIPTOR = "l2-tiled:side=16,channels=3"


def png(image):
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Three tar shards with equal pictures in different shards, wide ones that have other views, and one broken picture."""
    folder = tmp_path_factory.mktemp("sets")
    (folder / "train").mkdir()
    for shard in range(3):
        members = {f"{i:03d}.png": png(picture(100 * shard + i)) for i in range(50)}
        members["equal.png"] = png(picture(7))
        members["wide.png"] = png(picture(500 + shard).resize((24, 16)))
        members["000.txt"] = b"a caption"
        if shard == 1:
            members["broken.png"] = members["001.png"][:60]
        write_tar(folder / "train" / f"{shard:05d}.tar", members)
    for name, seeds in (("made", [7, 3, 105, 210, 1000, 1001, 1002]), ("heldout", range(2000, 2040))):
        (folder / name).mkdir()
        for i in seeds:
            picture(i, 0.01 if name == "made" else 0.0).save(folder / name / f"{i}.png")
    picture(501).resize((24, 16)).crop((4, 0, 20, 16)).save(folder / "made" / "view.png")
    return folder


def rows(found):
    kept = ("image", "train_id", "similarity", "ratio", "normalised", "copy", "view")
    return sorted((tuple(row[name] for name in kept) for row in found.rows), key=str)


@pytest.mark.parametrize("backend", [None, "torch:cpu"])
@pytest.mark.parametrize("statistic", ["normalised", "similarity"])
def test_the_rows_are_those_of_the_whole_set(sets, tmp_path, backend, statistic, monkeypatch):
    monkeypatch.setattr(stream, "PIECE", 20)  # several pieces per shard
    settings = Matching(descriptor=DESCRIPTOR, statistic=statistic, fpr=0.05)
    heldout = load_images(sets / "heldout")
    whole = match_images(sets / "made", load_images(sets / "train"), settings, heldout)
    near = stream_index(
        sets / "made", sets / "train", tmp_path, heldout=heldout, descriptor=DESCRIPTOR, backend=backend
    )
    found = match_images(sets / "made", near, settings, heldout)
    assert rows(found) == rows(whole), "similarity, ratio and normalised distance bit for bit"
    assert found.threshold.value == whole.threshold.value and found.threshold.calibrated
    assert near.chosen_from == 156
    by_image = {row["image"]: row for row in found.rows}
    assert by_image["7.png"]["train_id"] == "00000.tar/007.png", "of equal pictures the first"
    assert by_image["view.png"]["view"] != "whole picture"
    assert near.image("00000.tar/000.png").caption == "a caption"


def test_a_shortlist_leaves_out_what_is_far_and_an_uncalibrated_threshold_says_why(sets, tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "KEPT", 5)
    near = stream_index(sets / "made", sets / "train", tmp_path, descriptor=DESCRIPTOR)
    assert len(near) <= 2 * 5 * 8 < near.chosen_from
    found = match_images(sets / "made", near, Matching(descriptor=DESCRIPTOR, statistic="similarity"))
    whole = match_images(
        sets / "made", load_images(sets / "train"), Matching(descriptor=DESCRIPTOR, statistic="similarity")
    )
    assert {(r["image"], r["train_id"], r["similarity"]) for r in found.rows} == {
        (r["image"], r["train_id"], r["similarity"]) for r in whole.rows
    }
    assert not found.threshold.calibrated and "held-out" in found.threshold.note


def test_shards_are_the_unit_of_resume_and_a_second_audit_only_reads(sets, tmp_path, monkeypatch):
    assert stream_index(sets / "made", sets / "train", tmp_path, descriptor=DESCRIPTOR, shard=(0, 2)) is None
    done = RunStore(tmp_path).read("nearest", ["shard", "status", "unread"]).to_pylist()
    assert [(row["shard"], row["status"]) for row in done] == [("00000.tar", "ok"), ("00002.tar", "ok")]
    described = []
    monkeypatch.setattr(stream.Piece, "of", spy(stream.Piece.of, described))
    assert stream_index(sets / "made", sets / "train", tmp_path, descriptor=DESCRIPTOR) is not None
    assert len(described) == 1, "the shard that was left"
    assert stream_index(sets / "heldout", sets / "train", tmp_path, descriptor=DESCRIPTOR) is not None
    assert len(described) == 1, "other images, no shard is decoded again"
    file = sorted((tmp_path / "vectors").glob("*.npz"))[0]
    file.write_bytes(file.read_bytes()[:-40] + b"x" * 40)
    stream_index(load_images(sets / "made" / "3.png"), sets / "train", tmp_path, descriptor=DESCRIPTOR)
    assert len(described) == 2, "a damaged file is described again"


def spy(make, calls):
    def called(*arguments):
        calls.append(arguments)
        return make(*arguments)

    return called


def test_a_broken_shard_is_an_error_row_and_is_said(sets, tmp_path, caplog):
    train = tmp_path / "train"
    train.mkdir()
    for file in (sets / "train").iterdir():
        (train / file.name).write_bytes(file.read_bytes())
    (train / "00001.tar").write_bytes(b"no archive")
    near = stream_index(sets / "made", train, tmp_path / "s", descriptor=DESCRIPTOR)
    assert near.chosen_from == 104
    assert "1 of 3 shards could not be read" in caplog.text and "00001.tar" in caplog.text


def test_tables_folders_and_addresses_are_shards(tmp_path):
    for shard in range(2):
        folder = tmp_path / "folders" / f"part{shard}"
        folder.mkdir(parents=True)
        pictures = [picture(10 * shard + i) for i in range(6)]
        for i, image in enumerate(pictures):
            image.save(folder / f"{i}.png")
        (tmp_path / "tables").mkdir(exist_ok=True)
        table = pa.table({"image": [png(image) for image in pictures], "id": [f"{shard}-{i}" for i in range(6)]})
        pq.write_table(table, tmp_path / "tables" / f"{shard}.parquet")
    pytest.importorskip("fsspec")
    for train, wanted in (
        (tmp_path / "folders", "part1/2.png"), (tmp_path / "tables", "1.parquet/1-2"),
        (f"file://{tmp_path}/tables/*.parquet", "1.parquet/1-2"),
    ):  # fmt: skip
        assert len(shards_of(train)) == 2
        near = stream_index(picture(12), train, tmp_path / "s", descriptor=DESCRIPTOR)
        found = match_images(picture(12), near, Matching(descriptor=DESCRIPTOR, statistic="similarity"))
        assert (found.rows[0]["train_id"], found.rows[0]["similarity"]) == (wanted, 1.0)
    assert as_address(Path("s3://bucket/train")) == "s3://bucket/train"


@pytest.mark.parametrize("metric", [Metric("cosine"), Metric("tiled-rms", 4)])
def test_torch_finds_what_numpy_finds_bit_for_bit(metric):
    random = np.random.default_rng(0)
    corpus = random.normal(size=(3000, 32)).astype(np.float32)
    corpus[1500:1600] = corpus[:100]  # equal rows: the first counts
    corpus[2000:2900] = corpus[3]
    queries = np.concatenate([corpus[:40] + random.normal(size=(40, 32)).astype(np.float32) / 50, corpus[:5]])
    for k in (1, 7, 64):
        ours = top_k(queries, corpus, k, metric, backend=TorchBackend("cpu", chunk=700, queries=16))
        theirs = top_k(queries, corpus, k, metric)
        np.testing.assert_array_equal(ours[0], theirs[0])
        np.testing.assert_array_equal(ours[1], theirs[1])


def test_rounding_bounds_what_float16_changes():
    random = np.random.default_rng(1)
    rows_, queries = random.normal(size=(500, 64)).astype(np.float32), random.normal(size=(20, 64)).astype(np.float32)
    for metric in (Metric("cosine"), Metric("tiled-rms", 4)):
        half, bound = pieces._halved(rows_, metric)
        assert half.dtype == np.float16
        for query in queries:
            wide = np.broadcast_to(query, rows_.shape)
            assert np.abs(metric.exact(wide, rows_) - metric.exact(wide, half)).max() <= bound < 2e-3
    large, bound = pieces._halved(rows_ * 1e6, Metric("cosine"))
    assert large.dtype == np.float32 and bound == 0.0


def test_the_command_streams_and_finishes(sets, tmp_path, capsys):
    arguments = ["match", str(sets / "made"), "--train", str(sets / "train"), "--descriptor", DESCRIPTOR, "--heldout",
                 str(sets / "heldout"), "--fpr", "0.05", "--stream", str(tmp_path), "--quiet"]  # fmt: skip
    assert main([*arguments, "--shard", "1/2"]) == 0
    assert "without --shard finishes" in capsys.readouterr().out
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sum(row["copy"] is True for row in found["matches"]) >= 4
    assert main([*arguments[:4], "--backend", "torch"]) == 2
    assert "belong to --stream" in capsys.readouterr().err
    with pytest.raises(UsageError, match="no backend"):
        stream_index(sets / "made", sets / "train", tmp_path, descriptor=DESCRIPTOR, backend="jax")
