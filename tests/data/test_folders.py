"""What lies in folders of pictures: every file is a picture, says how one is called, or is named as not read."""

import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from diffmem.data.images import load_images
from diffmem.data.prompts import load_prompts
from diffmem.errors import DataError, UsageError
from diffmem.training.data import load_training_set

RNG = np.random.default_rng(0)


def pictures(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / name)
    return folder


def texts(source, **options):
    return [prompt.text for prompt in load_prompts(source, **options)]


# --- files that are no pictures, or cannot be read


@pytest.mark.parametrize("name", ["a.heic", "b.jxl", "c.dng", "d.psd", "e.mp4", "f.zip", "g.svg", "h.npz", "notes.md"])
def test_files_that_are_not_read_are_counted_and_named(tmp_path, caplog, name):
    pictures(tmp_path, "1.png")
    (tmp_path / name).write_bytes(b"something")
    images = load_images(tmp_path)
    list(images)
    assert name in caplog.text and ("1 of 2 files" in caplog.text or "1 of 2 pictures" in caplog.text)


def test_pictures_that_cannot_be_decoded_are_named_once_all_were_looked_at(tmp_path, caplog):
    pictures(tmp_path, "1.png", "2.png", "3.png")
    (tmp_path / "1.png").write_bytes(b"<html><body>404")
    (tmp_path / "2.png").write_bytes((tmp_path / "3.png").read_bytes()[:40])
    (tmp_path / "4.png").write_bytes(b"")
    (tmp_path / "5.jpg").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    images = load_images(tmp_path)
    assert not caplog.text
    list(images)
    list(images)
    assert caplog.text.count("4 of 5 pictures") == 1
    for words in ("1.png (", "web page", "2.png (", "4.png (the image is empty", "5.jpg (", "git lfs pull"):
        assert words in caplog.text
    assert set(images.problems) == {"1.png", "2.png", "4.png", "5.jpg"}


def test_hidden_files_links_to_nothing_and_circles_are_named(tmp_path, caplog):
    folder = pictures(tmp_path / "set", "1.png", ".2.png", "._1.png", "__MACOSX/3.png", ".cache/4.png")
    (folder / "Thumbs.db").write_bytes(b"x")
    (folder / "gone.png").symlink_to(tmp_path / "nowhere")
    (folder / "again").symlink_to(folder)
    os.mkfifo(folder / "pipe.png")
    assert load_images(folder).ids == ["1.png"]
    for name in (".2.png", "._1.png", "__MACOSX", ".cache", "Thumbs.db", "gone.png", "again", "pipe.png"):
        assert name in caplog.text, name


def test_suffixes_in_any_case_and_names_that_are_no_utf8(tmp_path, caplog):
    pictures(tmp_path, "A.PNG", "b.JpEg")
    (tmp_path / "A.PNG").rename(tmp_path / os.fsdecode(b"caf\xe9.PNG"))
    images = load_images(tmp_path)
    assert images.ids == ["b.JpEg", "caf\\udce9.PNG"] and all(item.image is not None for item in images)
    assert images.fingerprint and not caplog.text


def test_a_picture_without_a_suffix_is_read_and_said(tmp_path, caplog):
    pictures(tmp_path, "1.png", "2.jpg")
    (tmp_path / "2.jpg").rename(tmp_path / "noname")
    (tmp_path / "1.png").rename(tmp_path / "1.jpg")  # a PNG all the same
    assert [item.image is not None for item in load_images(tmp_path)] == [True, True]
    assert "noname" in caplog.text


def test_a_folder_of_files_that_are_not_read_says_which(tmp_path):
    (tmp_path / "a.cr2").write_bytes(b"x")
    with pytest.raises(DataError, match=r"a\.cr2.*raw"):
        load_images(tmp_path)


def test_several_splits_are_not_mixed(tmp_path):
    pictures(tmp_path / "images", "train/1.png", "test/1.png")
    with pytest.raises(DataError, match="several splits"):
        load_images(tmp_path / "images")
    data = tmp_path / "tables" / "data"
    data.mkdir(parents=True)
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        pq.write_table(pa.table({"image": [name.encode()]}), data / f"{name}.parquet")
    with pytest.raises(DataError, match="several splits"):
        load_images(tmp_path / "tables")
    assert len(load_images(data / "train-*.parquet")) == 2


# --- Hugging Face's imagefolder


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("column", ["file_name", "image_file_name"])
def test_metadata_of_every_kind(tmp_path, kind, column):
    pictures(tmp_path, "a.png", "sub/b.png", "sub/deep/c.png")
    rows = [{column: "a.png", "text": 'one, and "two"'}, {column: "sub\\b.png", "text": "three"}]
    table = {key: [row[key] for row in rows] for key in rows[0]}
    if kind == "csv":
        (tmp_path / "metadata.csv").write_text(
            f'\ufeff{column},text\r\na.png,"one, and ""two"""\r\nsub\\b.png,three\r\n', "utf-8"
        )
    elif kind == "jsonl":
        (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    else:
        pq.write_table(pa.table(table), tmp_path / "metadata.parquet")
    nested = {"csv": f"{column},text\nc.png,four\n", "jsonl": json.dumps({column: "c.png", "text": "four"})}
    if kind != "parquet":
        (tmp_path / "sub" / "deep" / f"metadata.{kind}").write_text(nested[kind])
    found = {item.id: item.caption for item in load_images(tmp_path)}
    assert found == {
        "a.png": 'one, and "two"',
        "sub/b.png": "three",
        "sub/deep/c.png": None if kind == "parquet" else "four",
    }


def test_rows_and_pictures_without_the_other_are_counted_both_ways(tmp_path, caplog):
    pictures(tmp_path, *(f"{i}.png" for i in range(5)))
    rows = [{"file_name": f"{i}.{'png' if i < 2 else 'jpg'}", "text": f"caption {i}"} for i in range(6)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, [*rows, {"text": "of nothing"}])))
    assert texts(tmp_path) == ["caption 0", "caption 1"]
    assert "4 of 7 rows" in caplog.text and "2.jpg (2.png is there)" in caplog.text and "5.jpg" in caplog.text
    assert "3 of 5 pictures have no row" in caplog.text and "4.png" in caplog.text
    assert "1 row of 'metadata.jsonl'" in caplog.text
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows[2:])))
    with pytest.raises(DataError, match=r"Of 4 rows .* none"):
        load_prompts(tmp_path)
    assert len(load_images(tmp_path)) == 5, "pictures can be matched all the same"


def test_names_in_another_unicode_form_are_found(tmp_path):
    pictures(tmp_path, "cafe\u0301.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\ncaf\u00e9.png,coffee\n", "utf-8")
    assert texts(tmp_path) == ["coffee"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("name,text\n1.png,a\n", "no column file_name"),
        ("a_file_name,b_file_name,text\n1.png,1.png,a\n", "several columns of file names"),
        ("file_name,text\n1.png,a,b\n", "3 fields under 2 columns"),
        ("", "no header"),
    ],
)
def test_metadata_that_cannot_be_read_is_refused_where_captions_count(tmp_path, content, words):
    pictures(tmp_path, "1.png")
    (tmp_path / "metadata.csv").write_text(content)
    for load in (load_prompts, load_training_set):
        with pytest.raises(DataError, match=words):
            load(tmp_path)
    assert len(load_images(tmp_path)) == 1


def test_one_of_several_columns_of_file_names_can_be_named(tmp_path):
    pictures(tmp_path, "1.png", "2.png")
    (tmp_path / "metadata.csv").write_text("input_file_name,target_file_name,text\n1.png,2.png,a\n")
    assert [item.caption for item in load_images(tmp_path, column="target_file_name")] == [None, "a"]


def test_several_rows_of_a_picture_are_several_captions(tmp_path):
    pictures(tmp_path, "1.png", "2.png")
    (tmp_path / "metadata.csv").write_text("file_name,caption\n1.png,a\n2.png,b\n1.png,c\n1.png,a\n")
    assert [(p.id, p.text, p.group) for p in load_prompts(tmp_path)] == [
        ("1.png", "a", "1.png"), ("1.png#2", "c", "1.png"), ("2.png", "b", "2.png"),
    ]  # fmt: skip


def test_other_columns_of_captions_that_differ_are_said(tmp_path, caplog):
    pictures(tmp_path, "1.png")
    (tmp_path / "metadata.csv").write_text("file_name,text,caption\n1.png,a,b\n")
    assert texts(tmp_path) == ["b"] and "text is there too and differs" in caplog.text


def test_classes_are_folders_only_as_an_imagefolder_takes_them(tmp_path):
    def labels(folder):
        return {image.id: image.label for image in load_training_set(folder).images}

    classes = pictures(tmp_path / "classes", "cat/1.png", "dog/1.png")
    assert labels(classes) == {"cat/1.png": "cat", "dog/1.png": "dog"}
    for others in (("1.png", "dog/1.png"), ("dog/1.png", "dog/2.png"), ("00000/1.png", "00001/2.png")):
        folder = pictures(tmp_path / str(hash(others)), *others)
        assert set(labels(folder).values()) == {None}, others
    (classes / "metadata.csv").write_text("file_name,label,text\ncat/1.png,tiger,a\n")
    assert labels(classes) == {"cat/1.png": "tiger", "dog/1.png": None}


# --- sd-scripts


def test_caption_and_txt_that_differ_are_asked_for(tmp_path):
    pictures(tmp_path, "1.png", "2.png")
    for i in (1, 2):
        (tmp_path / f"{i}.caption").write_text(f"sks dog {i}")
        (tmp_path / f"{i}.txt").write_text(f"1dog, solo, {i}")
    for load in (load_prompts, load_training_set):
        with pytest.raises(DataError, match=r"2 pictures .*caption and txt.*--captions caption\|txt"):
            load(tmp_path)
    assert texts(tmp_path, captions="caption") == ["sks dog 1", "sks dog 2"]
    assert texts(tmp_path, captions="txt") == ["1dog, solo, 1", "1dog, solo, 2"]
    assert load_training_set(tmp_path, captions="txt").images[0].captions == ("1dog, solo, 1",)
    with pytest.raises(UsageError, match="no captions of the kind 'booru'"):
        load_images(tmp_path, captions="booru")


def test_a_stray_caption_file_beside_metadata_is_asked_for_and_agreeing_ones_are_not(tmp_path, caplog):
    pictures(tmp_path, "1.png", "2.png", "3.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\n1.png,a fox\n2.png,a dog\n")
    (tmp_path / "1.txt").write_text("a  fox\n")
    (tmp_path / "3.txt").write_text("a cat")
    assert texts(tmp_path) == ["a fox", "a dog", "a cat"]
    assert "2 from metadata, 1 from .txt files" in caplog.text
    (tmp_path / "1.txt").write_text("old tags")
    with pytest.raises(DataError, match="metadata and txt"):
        load_prompts(tmp_path)
    assert texts(tmp_path, captions="metadata") == ["a fox", "a dog"]


def test_folders_with_repeats(tmp_path, caplog):
    pictures(tmp_path, "10_sks dog/1.png", "10_sks dog/2.png", "1_dog/1.png")
    (tmp_path / "10_sks dog" / "2.txt").write_text("a sks dog on grass")
    found = {image.id: image for image in load_training_set(tmp_path).images}
    assert {key: image.repeats for key, image in found.items()} == {
        "10_sks dog/1.png": 10,
        "10_sks dog/2.png": 10,
        "1_dog/1.png": 1,
    }
    assert {image.label for image in found.values()} == {"sks dog", "dog"}
    assert found["10_sks dog/1.png"].captions == ("sks dog",)
    assert found["10_sks dog/2.png"].captions == ("a sks dog on grass",)
    assert "read as sd-scripts does" in caplog.text and "'10_sks dog' (10 repeats, 'sks dog')" in caplog.text
    assert load_training_set(tmp_path / "10_sks dog").fingerprint != load_training_set(tmp_path).fingerprint


@pytest.mark.parametrize("names", [("0_cat", "1_dog"), ("001_apple", "002_pear"), ("1_a", "2_b", "3_c")])
def test_numbered_classes_are_no_repeats(tmp_path, names):
    pictures(tmp_path, *(f"{name}/1.png" for name in names))
    images = load_training_set(tmp_path).images
    assert [image.label for image in images] == list(names) and {image.repeats for image in images} == {1}


def test_years_before_the_names_of_folders_are_no_repeats(tmp_path, caplog):
    """sd-scripts would show 2023_holiday 2,023 times per epoch, and whoever named it so means a year."""
    pictures(tmp_path, "2023_holiday/1.png", "2024_winter/1.png", "999_sks dog/1.png")
    found = {image.id: (image.repeats, image.label) for image in load_training_set(tmp_path).images}
    assert found["999_sks dog/1.png"] == (999, "sks dog")
    assert found["2023_holiday/1.png"][0] == found["2024_winter/1.png"][0] == 1
    assert "2 folders" in caplog.text and "2023_holiday, 2024_winter" in caplog.text and "count once" in caplog.text


def test_lines_of_a_caption_file_are_captions_each(tmp_path, caplog):
    pictures(tmp_path, "1.png", "2.png")
    (tmp_path / "1.txt").write_bytes("one\r\n\r\ntwo\r\n".encode("utf-16"))
    (tmp_path / "2.txt").write_text("\n")
    (item, other) = load_images(tmp_path)
    assert item.captions == ("one", "two") and item.caption == "one" and other.captions == ()
    assert "1 caption file" in caplog.text and "several lines" in caplog.text and "empty: 2.png" in caplog.text


def test_fine_tuning_metadata(tmp_path, caplog):
    pictures(tmp_path, "1.png", "2.png", "3.png")
    rows = {
        "1": {"caption": "a dog", "tags": "1dog, solo"},
        "/data/train/2.png": {"tags": "cat"},
        "gone": {"caption": "x"},
    }
    (tmp_path / "meta_lat.json").write_text(json.dumps(rows))
    assert texts(tmp_path) == ["a dog, 1dog, solo", "cat"]
    assert "1 of 3 entries" in caplog.text and "gone" in caplog.text and "3.png" in caplog.text


def test_captions_without_a_picture_are_named(tmp_path, caplog):
    pictures(tmp_path, "1.png")
    for name in ("1.txt", "2.txt", "3.caption"):
        (tmp_path / name).write_text("a dog")
    assert texts(tmp_path) == ["a dog"]
    assert "2 of 4 files" in caplog.text and "2.txt" in caplog.text and "3.caption" in caplog.text


def test_captions_belong_to_the_picture_of_their_whole_stem(tmp_path):
    pictures(tmp_path, "a.png", "a.v2.png", "b.jpg", "c.PNG")
    for name, text in {"a.txt": "plain", "a.v2.txt": "second", "b.jpg.txt": "with suffix", "C.TXT": "upper"}.items():
        (tmp_path / name).write_text(text)
    assert [item.caption for item in load_images(tmp_path)] == ["plain", "second", "with suffix", "upper"]


# --- img2dataset


def test_files_of_img2dataset(tmp_path, caplog):
    for shard in ("00000", "00001"):
        pictures(tmp_path / shard, f"{shard}0000.jpg", f"{shard}0001.jpg")
        for i in range(2):
            (tmp_path / shard / f"{shard}000{i}.txt").write_text(f"first line {i}\nsecond line")
            record = {
                "caption": f"first line {i}\nsecond line",
                "url": "u",
                "key": f"{shard}000{i}",
                "status": "success",
            }
            (tmp_path / shard / f"{shard}000{i}.json").write_text(json.dumps(record))
        pq.write_table(pa.table({"url": ["u"] * 2, "caption": ["a", "b"]}), tmp_path / f"{shard}.parquet")
        (tmp_path / f"{shard}_stats.json").write_text("{}")
    images = load_images(tmp_path)
    assert len(images) == 4 and {len(item.captions) for item in images} == {1}
    assert [item.caption for item in images][:2] == ["first line 0\nsecond line", "first line 1\nsecond line"]
    assert "00000.parquet" in caplog.text and "00001_stats.json" in caplog.text
    assert {image.label for image in load_training_set(tmp_path).images} == {None}


def test_a_record_that_differs_from_the_caption_beside_it_is_asked_for(tmp_path):
    pictures(tmp_path, "1.jpg")
    (tmp_path / "1.txt").write_text("one")
    (tmp_path / "1.json").write_text(json.dumps({"caption": "another"}))
    with pytest.raises(DataError, match=r"txt and json"):
        load_prompts(tmp_path)
    assert texts(tmp_path, captions="json") == ["another"]


def test_parquet_of_img2dataset(tmp_path, caplog):
    pictures(tmp_path, "1.png")
    data = (tmp_path / "1.png").read_bytes()
    table = pa.table({"jpg": [data, None], "caption": ["a", "b"], "key": ["000000", "000001"], "url": ["u", "v"]})
    pq.write_table(table, tmp_path / "00000.parquet")
    items = list(load_images(tmp_path / "00000.parquet"))
    assert [item.id for item in items] == ["000000", "000001"] and items[1].problem
    assert "1 of 2 pictures" in caplog.text


def test_another_column_and_encoding_of_captions_can_be_named(tmp_path):
    pictures(tmp_path, "1.png", "2.png")
    (tmp_path / "metadata.csv").write_bytes(
        "file_name,additional_feature\n1.png,caf\u00e9\n2.png,tea\n".encode("latin-1")
    )
    with pytest.raises(DataError, match="--encoding latin-1"):
        load_prompts(tmp_path)
    with pytest.raises(DataError, match="no column of captions"):
        load_prompts(tmp_path, encoding="latin-1")
    assert texts(tmp_path, encoding="latin-1", column="additional_feature") == ["café", "tea"]
    with pytest.raises(DataError, match="no column 'nope'"):
        load_prompts(tmp_path, encoding="latin-1", column="nope")
    table = pa.table({"image": [b"1"], "alt": ["a dog"]})
    pq.write_table(table, tmp_path / "metadata.csv.parquet")
    assert [i.caption for i in load_images(tmp_path / "metadata.csv.parquet", caption_column="alt")] == ["a dog"]
    with pytest.raises(UsageError, match="is a table"):
        load_images(tmp_path / "metadata.csv.parquet", captions="txt")


def test_caption_files_that_cannot_be_read_are_named(tmp_path, caplog):
    pictures(tmp_path, "1.png", "2.png")
    (tmp_path / "1.txt").write_bytes("caf\u00e9".encode("latin-1"))
    (tmp_path / "2.txt").write_text("tea")
    assert texts(tmp_path) == ["tea"]
    assert "1 caption file" in caplog.text and "1.txt" in caplog.text and "latin-1" in caplog.text
    assert texts(tmp_path, encoding="latin-1") == ["café", "tea"]


def test_annotations_of_other_tools_are_no_captions_nor_classes(tmp_path):
    pictures(tmp_path, "1.png")
    (tmp_path / "1.json").write_text(json.dumps({"shapes": [{"label": "dog"}], "label": ["dog"], "imagePath": "1.png"}))
    (image,) = load_training_set(tmp_path).images
    assert image.captions == () and image.label is None
