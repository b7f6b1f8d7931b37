"""Data sets as people have them: each input gives the right words, or what was not used is said by name."""

import gzip
import io
import json
import logging
import tarfile
import unicodedata
import zipfile

import numpy as np
import PIL
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tests.tiny import picture

from diffmem.data.images import load_images
from diffmem.data.prompts import load_prompts
from diffmem.errors import DataError, DiffmemError


def png(seed=0):
    out = io.BytesIO()
    picture(seed).save(out, "PNG")
    return out.getvalue()


def put(folder, **files):
    """Files by name, `__` for a slash: bytes, text, or None for a picture."""
    for name, content in files.items():
        file = folder / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else png() if content is None else content)
    return folder


def tar(file, mode="w", **files):
    with tarfile.open(file, mode) as opened:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            opened.addfile(info, io.BytesIO(content))
    return file


def rows(file, **columns):
    pq.write_table(pa.table(columns), file)
    return file


def words(source, **options):
    return [(i.id, i.captions, i.label) for i in load_images(source, **options).words()]


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO, logger="diffmem.data")
    return lambda: " ".join(record.getMessage() for record in caplog.records)


class TestClasses:
    def test_a_webdataset_has_its_classes_in_cls_files(self, tmp_path, said):
        file = tar(
            tmp_path / "a.tar", **{"0.png": png(), "0.cls": b"3\n", "1.png": png(1), "1.cls": b"7", "2.cls": b"1"}
        )
        assert words(file) == [("0.png", (), "3"), ("1.png", (), "7")]
        assert "2.cls" in said() and "no class of a picture" in said()

    def test_columns_of_a_converted_webdataset(self, tmp_path):
        file = rows(tmp_path / "a.parquet", jpg=[png()], txt=["a fox"], cls=[3], __key__=["k1"], __url__=["u"])
        assert words(file) == [("k1", ("a fox",), "3")]

    @pytest.mark.parametrize("place", ["", "data__", "v1__images__"])
    def test_splits_are_no_classes_at_any_depth(self, tmp_path, place):
        put(tmp_path, **{f"{place}train__a.png": None, f"{place}test__b.png": None})
        with pytest.raises(DataError, match=r"several splits \(test, train\)"):
            load_images(tmp_path)


class TestCaptions:
    def test_lists_and_records_of_captions(self, tmp_path):
        sentences = [[{"raw": "a fox", "tokens": ["a", "fox"]}, {"raw": "an animal", "tokens": ["an"]}]]
        assert words(rows(tmp_path / "a.parquet", image=[png()], sentences=sentences))[0][1] == ("a fox", "an animal")
        assert words(rows(tmp_path / "b.parquet", image=[png()], sentences_raw=[["x", "y"]]))[0][1] == ("x", "y")
        karpathy = {"images": [{"filename": "a.png", "sentences": [{"raw": "a fox"}, {"raw": "a dog"}]}]}
        (tmp_path / "c.json").write_text(json.dumps(karpathy))
        assert [p.text for p in load_prompts(tmp_path / "c.json")] == ["a fox", "a dog"]

    @pytest.mark.parametrize(
        ("name", "values"),
        [("additional_feature", ["x"]), ("caption", [3]), ("caption", [{"en": "x"}]), ("en_text", ["x"])],
    )
    def test_columns_that_are_not_read_as_captions_are_named(self, tmp_path, said, name, values):
        assert words(rows(tmp_path / "a.parquet", **{"image": [png()], name: values})) == [("000000", (), None)]
        assert "no column of captions" in said() and name in said()

    def test_an_empty_list_of_captions_is_an_empty_prompt(self, tmp_path):
        made = load_prompts(rows(tmp_path / "a.parquet", caption=[["x", "y"], []]))
        assert [(p.text, p.problem) for p in made] == [("x", None), ("y", None), ("", "empty prompt")]

    def test_names_in_another_unicode_form(self, tmp_path):
        composed, apart = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
        put(tmp_path, **{f"{composed}.png": None, f"{apart}.txt": "a fox"})
        assert words(tmp_path)[0][1] == ("a fox",)

    def test_two_files_of_training_metadata_that_differ(self, tmp_path, said):
        put(tmp_path, **{"a.png": None, "meta_cap.json": json.dumps({"a": {"caption": "one"}}),
                         "meta_lat.json": json.dumps({"a": {"caption": "two", "train_resolution": [8, 8]}})})  # fmt: skip
        assert words(tmp_path)[0][1] == ("one", "two")
        assert "another caption than the files before" in said()

    def test_masks_of_pictures_are_no_pictures(self, tmp_path, said):
        put(tmp_path, **{"a.png": None, "a-masklabel.png": None, "a-condlabel.png": None})
        assert [key for key, *_ in words(tmp_path)] == ["a.png"]
        assert "a-masklabel.png" in said() and "OneTrainer" in said()


class TestContainers:
    @pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.tar.xz", "a.tar.bz2"])
    @pytest.mark.parametrize("alone", [True, False])
    def test_compressed_archives_are_named(self, tmp_path, name, alone):
        file = tar(
            tmp_path / name,
            f"w:{ {'tgz': 'gz'}.get(name[-3:].strip('.'), name.rpartition('.')[2]) }",
            **{"a.png": png()},
        )
        with pytest.raises(DataError, match=r"compressed archive.*unpack it"):
            load_images(file if alone else tmp_path)
        with pytest.raises(DataError, match="compressed"):
            load_prompts(file if alone else tmp_path)

    def test_an_archive_within_an_archive(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "in.zip", "w") as inner:
            inner.writestr("a.png", png())
        with zipfile.ZipFile(tmp_path / "out.zip", "w") as outer:
            outer.write(tmp_path / "in.zip", "in.zip")
        with pytest.raises(DataError, match=r"in.zip.*within an archive"):
            load_images(tmp_path / "out.zip")

    @pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv", "meta_cap.json"])
    def test_the_file_of_captions_in_place_of_the_folder(self, tmp_path, name):
        content = {"metadata.csv": "file_name,text\na.png,x\n", "meta_cap.json": json.dumps({"a": {"caption": "x"}})}
        put(tmp_path, **{"a.png": None, name: content.get(name, json.dumps({"file_name": "a.png", "text": "x"}))})
        with pytest.raises(DataError, match="give their folder"):
            load_images(tmp_path / name)

    @pytest.mark.parametrize("load", [load_images, load_prompts])
    def test_an_empty_path_and_the_home_folder(self, tmp_path, monkeypatch, load):
        with pytest.raises(DiffmemError, match="empty path"):
            load("")
        monkeypatch.setenv("HOME", str(put(tmp_path, **{"set__a.png": None, "set__a.txt": "a fox"})))
        assert len(load("~/set")) == 1


class TestPrompts:
    @pytest.mark.parametrize(
        ("lines", "said_of"),
        [
            ("a {red|blue} fox\n", "{red|blue}"), ("__animal__ in snow\n", "__animal__"), ("a fox BREAK a dog\n", "BREAK"),
            ("1. a fox\n2. a dog\n", "numbered"), ("0\ta fox\n1\ta dog\n", "numbered"), ('"a fox"\n"a dog"\n', "in quotes"),
        ],
    )  # fmt: skip
    def test_other_programs_notation_is_kept_and_said(self, tmp_path, said, lines, said_of):
        (tmp_path / "p.txt").write_text(lines)
        assert [p.text for p in load_prompts(tmp_path / "p.txt")] == lines.splitlines()
        assert said_of in said()

    @pytest.mark.parametrize(
        "lines", ["7 dwarfs\n2 foxes\n", "A BREAKFAST\nb\n", "{a} fox\n[b] dog\n", 'the "a" fox\nb\n']
    )
    def test_plain_prompts_raise_no_notes(self, tmp_path, said, lines):
        (tmp_path / "p.txt").write_text(lines)
        assert [p.text for p in load_prompts(tmp_path / "p.txt")] == lines.splitlines()
        assert said() == ""

    @pytest.mark.parametrize("text", ['{"prompt": "a fox"}\n{"prompt": "b"}\n', '["a", "b"]', '[\n "a",\n "b"\n]\n'])
    def test_json_in_a_file_of_lines(self, tmp_path, text):
        (tmp_path / "p.txt").write_text(text)
        with pytest.raises(DataError, match=r"holds .*JSON.*rename it"):
            load_prompts(tmp_path / "p.txt")

    @pytest.mark.parametrize("text", ["​", "﻿​ ‎"])
    def test_a_prompt_without_anything_to_see_is_empty(self, text):
        assert load_prompts([text, "a"]).prompts[0].problem == "empty prompt"

    def test_a_key_that_occurs_twice(self, tmp_path):
        (tmp_path / "p.jsonl").write_text('{"prompt": "a", "prompt": "b"}\n')
        with pytest.raises(DataError, match="'prompt' occurs twice"):
            load_prompts(tmp_path / "p.jsonl")

    def test_compressed_lists(self, tmp_path):
        (tmp_path / "p.txt.gz").write_bytes(gzip.compress(b"a fox\n"))
        with pytest.raises(DataError, match="compressed; unpack it"):
            load_prompts(tmp_path / "p.txt.gz")


class TestTables:
    def test_columns_that_hold_each_value_once_and_views(self, tmp_path):
        table = pa.table(
            {"image": pa.array([png(), png()]).dictionary_encode(), "text": pa.array(["x", "y"]).dictionary_encode()}
        )
        pq.write_table(table, tmp_path / "a.parquet")
        assert words(tmp_path / "a.parquet") == [("000000", ("x",), None), ("000001", ("y",), None)]
        if not hasattr(pa, "binary_view"):
            return  # pyarrow 15 has none
        views = pa.table({"image": pa.array([png()], pa.binary_view()), "text": pa.array(["x"], pa.string_view())})
        pq.write_table(views, tmp_path / "b.parquet")
        assert words(tmp_path / "b.parquet") == [("000000", ("x",), None)]

    @pytest.mark.parametrize("columns", [{}, {"text": ["x"]}])
    def test_classes_in_the_names_of_folders(self, tmp_path, said, columns):
        for place in ("label=cat/year=2020", "label=a%20dog/year=2020"):
            (tmp_path / place).mkdir(parents=True)
            rows(tmp_path / place / "0.parquet", image=[png()], **columns)
        assert [label for _, _, label in words(tmp_path)] == ["a dog", "cat"]
        assert [item.label for item in load_images(tmp_path)] == ["a dog", "cat"]
        assert "folder names" in said() and "year" in said()

    def test_blanks_behind_the_delimiter(self, tmp_path):
        (tmp_path / "p.csv").write_text('name| number| comment\n1.jpg| 0| "a | b"\n1.jpg| 1| a fox\n')
        made = load_prompts(tmp_path / "p.csv", column="comment", id_column="name")
        assert [(p.text, p.group, p.extra) for p in made] == [
            ("a | b", "1.jpg", {"number": "0"}), ("a fox", "1.jpg", {"number": "1"}),
        ]  # fmt: skip

    def test_two_tables_that_differ_about_a_picture(self, tmp_path, said):
        put(tmp_path, **{"t__a.png": None, "metadata.csv": "file_name,text\nt/a.png,one\n",
                         "t__metadata.csv": "file_name,text\na.png,two\n"})  # fmt: skip
        assert words(tmp_path)[0][1] == ("one", "two")
        assert "another caption than the files before" in said()

    @pytest.mark.parametrize("start", ["{0}/", "/mnt/data/set/", "C:\\\\data\\\\"])
    def test_absolute_paths_in_metadata(self, tmp_path, start):
        put(tmp_path, **{"t__a.png": None, "b.png": None})
        name = (start.format(tmp_path) + "t/a.png").replace("\\\\", "\\")
        (tmp_path / "metadata.csv").write_text(f"file_name,text\n{name},a fox\n")
        assert words(tmp_path) == [("b.png", (), None), ("t/a.png", ("a fox",), None)]

    def test_classes_that_are_lists_are_counted_and_numbers_are_whole(self, tmp_path, said):
        put(tmp_path, **{"a.png": None, "b.png": None})
        rows = [{"file_name": "a.png", "label": ["x", "y"]}, {"file_name": "b.png", "label": 1.0}]
        (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
        assert [label for _, _, label in words(tmp_path)] == [None, "1"]
        assert "1 class of" in said() and "neither a text nor a whole number" in said()


class TestPictures:
    @pytest.mark.parametrize("place", ["@eaDir__a.jpg__SYNOPHOTO_THUMB_M", "#recycle__a", "lost+found__a"])
    def test_what_systems_leave_in_folders(self, tmp_path, said, place):
        put(tmp_path, **{"a.png": None, f"{place}.png": None})
        assert [key for key, *_ in words(tmp_path)] == ["a.png"]
        assert place.partition("__")[0] in said()

    def test_further_frames_and_pages_are_counted(self, tmp_path, said):
        frames = [picture(i) for i in range(3)]
        for name in ("a.tiff", "b.gif", "c.png"):
            frames[0].save(
                tmp_path / name, save_all=name != "c.png", append_images=frames[1:] if name != "c.png" else []
            )
        if int(PIL.__version__.split(".")[0]) > 10:  # which writes it with wrong offsets
            frames[0].save(tmp_path / "d.jpg", "MPO", save_all=True, append_images=frames[1:])  # a phone's photo
        assert len(list(load_images(tmp_path))) >= 3
        assert "2 pictures" in said() and "a.tiff (3), b.gif (3)" in said() and "d.jpg" not in said()

    def test_records_of_other_programs_beside_pictures(self, tmp_path, said):
        put(tmp_path, **{"a.png": None, "a.png.json": json.dumps({"tags": ["fox"], "category": "x"})})
        with pytest.raises(DataError, match=r"hold no caption .*a\.png\.json.*tags, category"):
            load_prompts(tmp_path)

    def test_one_array_of_a_npz_file_and_several(self, tmp_path):
        pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8)).astype(np.uint8)
        np.savez(tmp_path / "one.npz", images=pixels)
        np.savez(tmp_path / "two.npz", x_train=pixels, y_train=pixels)
        assert len(load_images(np.load(tmp_path / "one.npz"))) == 5
        with pytest.raises(DiffmemError, match=r"2 arrays \(x_train, y_train\)"):
            load_images(np.load(tmp_path / "two.npz"))

    def test_arrays_of_the_other_byte_order(self):
        (one,), (two,) = (load_images([np.full((4, 4), 40_000, kind)]) for kind in (">u2", "<u2"))
        assert np.asarray(one.image).tolist() == np.asarray(two.image).tolist() == [[156] * 4] * 4

    def test_a_closed_picture_is_a_problem_of_its_own(self, tmp_path):
        picture(0).save(tmp_path / "a.png")
        closed = Image.open(tmp_path / "a.png")
        closed.fp.close()
        first, second = load_images([closed, picture(1)])
        assert "closed" in first.problem and second.problem is None

    @pytest.mark.parametrize("listed", [True, False])
    def test_addresses_are_not_fetched_and_said(self, listed):
        if listed:
            (item,) = load_images(["https://example.org/a.jpg"])
            assert "address" in item.problem
        else:
            with pytest.raises(DataError, match="address"):
                load_images("https://example.org/a.jpg")


class TestOtherPrograms:
    def test_generation_parameters_are_no_prompts(self, tmp_path):
        (tmp_path / "p.txt").write_text("a fox\nNegative prompt: blurry\nSteps: 20, Sampler: Euler a, Seed: 1\n")
        with pytest.raises(DataError, match="generation parameters"):
            load_prompts(tmp_path / "p.txt")

    def test_a_place_for_the_prompt_is_said(self, tmp_path, said):
        (tmp_path / "styles.csv").write_text('name,prompt\noil,"{prompt}, oil painting"\n')
        assert [p.text for p in load_prompts(tmp_path / "styles.csv")] == ["{prompt}, oil painting"]
        assert "{prompt}" in said()

    def test_a_value_per_line_called_json(self, tmp_path):
        (tmp_path / "p.json").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
        with pytest.raises(DataError, match=r"rename it to \.jsonl"):
            load_prompts(tmp_path / "p.json")


@pytest.mark.parametrize("load", [load_images, load_prompts])
def test_the_home_folder_of_nobody(load):
    with pytest.raises(DataError, match="~nobody_of_this_name"):
        load("~nobody_of_this_name/pictures")
