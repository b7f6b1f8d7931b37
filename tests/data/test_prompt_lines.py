"""Text files that other programs write: sample prompts with options, web UIs' lines, tables under a wrong name."""

import json

import pytest

from diffmem.data.prompts import as_prompts, load_prompts
from diffmem.errors import DataError, UsageError


def read(tmp_path, text, name="p.txt", **options):
    (tmp_path / name).write_text(text, "utf-8")
    return load_prompts(tmp_path / name, **options)


def test_sample_prompts_of_sd_scripts(tmp_path, caplog):
    text = (
        "# samples\n\na dog, (best quality:1.2) --n low quality, blurry --w 512 --h 768 --d 1 --l 7.5 --s 28\na cat\n"
    )
    prompts = read(tmp_path, text)
    assert [p.text for p in prompts] == ["a dog, (best quality:1.2)", "a cat"]
    assert prompts[0].extra == {
        "negative_prompt": "low quality, blurry", "width": "512", "height": "768", "seed": "1", "guidance": "7.5", "steps": "28",
    }  # fmt: skip
    assert "--w" in caplog.text and "not applied" in caplog.text and "1 comment line" in caplog.text
    assert "(best quality:1.2)" in caplog.text


def test_options_of_other_programs_stay_words_and_are_said(tmp_path, caplog):
    prompts = read(tmp_path, "a fox --ar 16:9 --v 5\n# not a comment\n<lora:sks:0.8> a dog\na dash -- and more\n")
    assert prompts[0].text == "a fox --ar 16:9 --v 5" and len(prompts) == 4
    assert "--ar" in caplog.text and "begin with #" in caplog.text and "<lora:sks:0.8>" in caplog.text


def test_plain_captions_say_nothing(tmp_path, caplog):
    read(tmp_path, "a dog (brown)\nwell-known e-mail -- a photo\n#sunset at the sea\n50% off!\n")
    assert not caplog.text


def test_lines_of_a_web_ui(tmp_path, caplog):
    prompts = read(tmp_path, '--prompt "a dog" --negative_prompt "blurry" --steps 20\n--prompt "a cat"\n')
    assert [p.text for p in prompts] == ["a dog", "a cat"]
    assert prompts[0].extra["steps"] == "20" and "not applied" in caplog.text


@pytest.mark.parametrize("header", ["image,caption", "image_id\tcaption", "image_name| comment", "file_name,text"])
def test_a_table_called_txt_is_refused(tmp_path, header):
    with pytest.raises(DataError, match=r"rename it to \.csv"):
        read(tmp_path, f"{header}\n1.jpg,a dog\n")


@pytest.mark.parametrize(
    ("value", "texts", "ids"),
    [
        (["a", "b"], ["a", "b"], ["000000", "000001"]),
        ([{"id": 3, "text": "a"}], ["a"], ["3"]),
        ({"1": {"caption": "a", "tags": "b"}, "2": {"tags": "c"}}, ["a, b", "c"], ["1", "2"]),
        ({"images": [], "annotations": [{"image_id": 5, "id": 9, "caption": "a"}]}, ["a"], ["5"]),
        ([{"image": "x.jpg", "captions": ["a", "b"]}], ["a", "b"], ["000000", "000000#2"]),
    ],
)
def test_json_lists_coco_and_fine_tuning_metadata(tmp_path, value, texts, ids):
    prompts = read(tmp_path, json.dumps(value), "p.json")
    assert ([p.text for p in prompts], [p.id for p in prompts]) == (texts, ids)


def test_captions_of_coco_share_an_id(tmp_path):
    rows = {"annotations": [{"image_id": 5, "id": i, "caption": f"c{i}"} for i in range(2)]}
    with pytest.raises(DataError, match="--id id"):
        read(tmp_path, json.dumps(rows), "p.json")
    assert [(p.id, p.group) for p in read(tmp_path, json.dumps(rows), "p.json", id_column="id")] == [
        ("5", "5"),
        ("5#2", "5"),
    ]


@pytest.mark.parametrize(
    ("text", "words"), [("{", "no JSON"), ('{"a": 1}', "expected a list"), ("[1]", "expected a list")]
)
def test_other_json_is_refused(tmp_path, text, words):
    with pytest.raises(DataError, match=words):
        read(tmp_path, text, "p.json")


def test_other_columns_of_prompts_are_said(tmp_path, caplog):
    prompts = read(tmp_path, "prompt,text\na,b\n", "p.csv")
    assert [p.text for p in prompts] == ["a"] and "there is also text" in caplog.text


@pytest.mark.parametrize(("source", "words"), [("a red fox", r"\[prompt\]"), (3, "from a int"), ([["a"]], "is a list")])
def test_what_is_no_list_of_prompts_is_refused(source, words):
    with pytest.raises((DataError, UsageError), match=words):
        as_prompts(source)


def test_options_of_folders_and_lists_do_not_mix(tmp_path):
    with pytest.raises(UsageError, match="list of prompts"):
        read(tmp_path, "a\n", captions="txt")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match="holds pictures"):
        load_prompts(tmp_path / "folder", labels="label")


class Frame:
    """As a pandas data frame gives its rows."""

    columns = ("prompt", "n")

    def to_dict(self, how):
        return [{"prompt": "a", "n": 1}, {"prompt": "b", "n": 2}] if how == "records" else {}


def test_prompts_of_frames_tables_arrays_and_iterators():
    import numpy as np
    import pyarrow as pa

    table = pa.table({"prompt": ["a", "b"], "n": [1, 2]})
    for source in (Frame(), table, np.array(["a", "b"]), iter(["a", "b"]), ("a", "b")):
        assert [p.text for p in as_prompts(source)] == ["a", "b"], type(source)
    assert as_prompts(Frame())[1].extra == as_prompts(table)[1].extra == {"n": 2}
