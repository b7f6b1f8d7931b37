"""Pictures in parquet files and data sets: columns, ids, captions, memory."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tests.data.pictures import PIXELS, RNG, encode

from diffmem.data.images import load_images
from diffmem.data.prompts import load_prompts
from diffmem.errors import DataError
from diffmem.training.data import load_training_set


@pytest.mark.parametrize("layout", ["struct", "bytes", "large"])
@pytest.mark.parametrize("row_group", [2, 100])
def test_parquet_streams_and_finds_by_id(tmp_path, layout, row_group):
    data = [encode(p) for p in PIXELS]
    cells = pa.array([{"bytes": d, "path": None} for d in data]) if layout == "struct" else pa.array(data)
    if layout == "large":
        cells = cells.cast(pa.large_binary())
    table = pa.table({"Image": cells, "id": [f"k{i}" for i in range(7)], "caption": [f"c{i}" for i in range(7)]})
    (tmp_path / "d").mkdir()
    pq.write_table(table.slice(0, 4), tmp_path / "d" / "0.parquet", row_group_size=row_group)
    pq.write_table(table.slice(4), tmp_path / "d" / "1.parquet", row_group_size=row_group)
    images = load_images(tmp_path / "d")
    assert len(images) == 7
    assert [(i.id, i.caption) for i in images] == [(f"k{i}", f"c{i}") for i in range(7)]
    assert all(np.array_equal(np.asarray(i.image), p) for i, p in zip(images, PIXELS))
    for start in range(7):
        for stop in range(start, 8):
            assert [i.id for i in images.items(start, stop)] == [f"k{i}" for i in range(start, min(stop, 7))]
    assert np.array_equal(np.asarray(images.by_id("k5").image), PIXELS[5])
    assert [len(b) for b in images.batches(3)] == [3, 3, 1]


def test_the_first_of_several_captions_is_the_pictures(tmp_path):
    (tmp_path / "folder").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "folder" / "a.png")
    row = {"file_name": "a.png", "captions": ["one", "two"], "text": None}
    (tmp_path / "folder" / "metadata.jsonl").write_text(json.dumps(row))
    png = (tmp_path / "folder" / "a.png").read_bytes()
    pq.write_table(pa.table({"image": [png], "captions": [["one", "two"]]}), tmp_path / "same.parquet")
    for source in (tmp_path / "folder", tmp_path / "same.parquet"):
        (item,) = load_images(source)
        assert item.caption == "one"
        assert load_training_set(source).images[0].captions == ("one", "two")


def test_parquet_without_ids_numbers_rows_and_records_missing_images(tmp_path):
    (tmp_path / "beside.png").write_bytes(encode(PIXELS[1]))
    outside = tmp_path.parent / "outside.png"
    outside.write_bytes(encode(PIXELS[2]))
    cells = [
        {"bytes": encode(PIXELS[0]), "path": None},
        {"bytes": None, "path": "beside.png"},
        {"bytes": None, "path": "../outside.png"},
        {"bytes": None, "path": None},
        None,
    ]
    pq.write_table(pa.table({"image": pa.array(cells)}), tmp_path / "t.parquet")
    items = list(load_images(tmp_path / "t.parquet"))
    assert [i.id for i in items] == [f"{i:06d}" for i in range(5)]
    assert [i.image is not None for i in items] == [True, True, False, False, False]
    assert "outside the folder" in items[2].problem
    assert "empty" in items[3].problem and "empty" in items[4].problem


def test_parquet_column_errors_list_the_columns(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"a": [b"1"], "b": [b"2"], "c": ["x"]}), path)
    with pytest.raises(DataError, match=r"several columns of bytes: a \(binary\), b"):
        load_images(path)
    with pytest.raises(DataError, match="'c' holds string"):
        load_images(path, column="c")
    assert load_images(path, column="A")  # one of them, in any case
    pq.write_table(pa.table({"c": ["x"]}), path)
    with pytest.raises(DataError, match="no column of images"):
        load_images(path)


def test_ids_that_occur_again_are_numbered_and_named(tmp_path, caplog):
    pq.write_table(pa.table({"image": [b"1", b"2", b"3"], "id": [4, 5, 4]}), tmp_path / "t.parquet")
    assert load_images(tmp_path / "t.parquet").ids == ["4", "5", "4#2"]
    assert "'4' in rows 1, 3" in caplog.text
    assert load_images(tmp_path / "t.parquet", id_column="").ids == ["000000", "000001", "000002"]


def saved_dataset(folder, pictures, shards=2):
    """What `datasets.save_to_disk` writes: Arrow streams, names of classes in the schema's metadata."""
    features = {"label": {"names": ["cat", "dog", "eel"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema(
        [("image", kind), ("text", pa.string()), ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    rows = [
        {"image": {"bytes": encode(picture), "path": None}, "text": f"caption {i}", "label": i % 3}
        for i, picture in enumerate(pictures)
    ]
    folder.mkdir(parents=True)
    for number in range(shards):
        with pa.ipc.new_stream(folder / f"data-{number:05d}-of-{shards:05d}.arrow", schema) as stream:
            part = rows[number * len(rows) // shards : (number + 1) * len(rows) // shards]
            stream.write_table(pa.Table.from_pylist(part, schema), max_chunksize=3)
    (folder / "state.json").write_text("{}")
    pq.write_table(pa.Table.from_pylist(rows, schema), folder.parent / "same.parquet")
    return folder


@pytest.mark.parametrize("captions", [[b"a fox", b"a hen"], [[b"a fox", b"red"], [b"a hen"]]])
def test_captions_may_be_bytes(tmp_path, captions, caplog):
    pictures = [encode(np.full((4, 4, 3), level, np.uint8)) for level in (9, 99)]
    name = "captions" if isinstance(captions[0], list) else "caption"
    pq.write_table(pa.table({"image": pictures, name: captions}), tmp_path / "p.parquet")
    assert [item.caption for item in load_images(tmp_path / "p.parquet")] == ["a fox", "a hen"]
    assert "not read" not in caplog.text


def test_datasets_saved_to_disk_read_as_their_parquet_twins(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (11, 6, 6, 3)).astype(np.uint8)
    folder = saved_dataset(tmp_path / "saved" / "train", pictures)
    images, twin = load_images(folder), load_images(folder.parent / "same.parquet")
    assert images.ids == twin.ids and images.fingerprint == twin.fingerprint
    for item, picture, i in zip(images, pictures, range(11), strict=True):
        assert (np.asarray(item.image) == picture).all() and item.caption == f"caption {i}"
    assert [item.caption for item in images.items(4, 8)] == [f"caption {i}" for i in range(4, 8)]
    assert images.by_id(images.ids[7]).caption == "caption 7"
    one, two = load_training_set(folder), load_training_set(folder.parent / "same.parquet")
    assert one.fingerprint == two.fingerprint and [x.label for x in one.images[:4]] == ["cat", "dog", "eel", "cat"]
    assert [prompt.text for prompt in load_prompts(folder)] == [f"caption {i}" for i in range(11)]
    (tmp_path / "saved" / "dataset_dict.json").write_text("{}")
    with pytest.raises(DataError, match=r"several splits \(train\); name one"):
        load_images(tmp_path / "saved")
    (tmp_path / "junk.arrow").write_bytes(b"junk")
    with pytest.raises(DataError, match="as Arrow"):
        load_images(tmp_path / "junk.arrow")


def test_datasets_of_the_hub_are_their_converted_parquet_files(tmp_path, monkeypatch):
    """As the hub's client keeps them: the branch of converted files, read offline."""
    pictures = np.random.default_rng(0).integers(0, 256, (5, 6, 6, 3)).astype(np.uint8)
    saved_dataset(tmp_path / "saved" / "train", pictures)
    kept = tmp_path / "hub" / "datasets--someone--birds"
    split = kept / "snapshots" / ("a" * 40) / "default" / "train"
    split.mkdir(parents=True)
    (tmp_path / "saved" / "same.parquet").rename(split / "0000.parquet")
    (kept / "refs" / "refs" / "convert").mkdir(parents=True)
    (kept / "refs" / "refs" / "convert" / "parquet").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for source in ("hf:someone/birds", "hf:someone/birds/default/train"):
        images, twin = load_images(source), load_images(tmp_path / "saved" / "train")
        assert images.fingerprint == twin.fingerprint and images.name == source
        assert [image.label for image in load_training_set(source).images[:3]] == ["cat", "dog", "eel"]
    with pytest.raises(DataError, match=r"cannot be had from the Hugging Face hub .*Offline"):
        load_images("hf:someone/birds/default/test")  # which splits there are is asked of the hub
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda *_, **__: ["a/b/0.parquet", "a/b/1.parquet"])
    with pytest.raises(DataError, match="has no default/test; name one: hf:someone/birds/a/b"):
        load_images("hf:someone/birds/default/test")
    with pytest.raises(DataError, match="cannot be had"):
        load_images("hf:someone/fish")
    with pytest.raises(DataError, match="expected hf:OWNER/NAME or"):
        load_images("hf:birds")


def test_reading_parquet_needs_bounded_memory(tmp_path):
    row = RNG.integers(0, 256, 1 << 20, dtype=np.uint8).tobytes()  # a megabyte that does not compress
    options = {"compression": "none", "use_dictionary": False, "write_batch_size": 4}
    with pq.ParquetWriter(tmp_path / "t.parquet", pa.schema({"image": pa.binary()}), **options) as writer:
        writer.write_table(pa.table({"image": [bytes([i]) + row for i in range(160)]}), row_group_size=160)
    before = pa.total_allocated_bytes()
    peak = 0
    for _ in load_images(tmp_path / "t.parquet"):
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert 0 < peak < 90e6  # of 160 MB in one row group


def test_tables_that_are_something_else_say_what(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(DataError, match="git lfs pull"):
        load_images(tmp_path / "a.parquet")
    cells = pa.array([{"bytes": None, "path": "/etc/hostname"}])
    pq.write_table(pa.table({"image": cells}), tmp_path / "b.parquet")
    (item,) = load_images(tmp_path / "b.parquet")
    assert "outside the folder" in item.problem
