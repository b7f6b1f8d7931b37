import json
import unicodedata

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from diffmem.data.prompts import load_prompts
from diffmem.errors import DataError, UsageError

AWKWARD = [
    "plain",
    "with, comma; and\ttab",
    'a "quoted" word',
    "two\nlines",
    "form\x0cfeed \u2028 and \x85",
    "x" * 200_000,
    "ünï 日本",
]


def write_csv(path, rows, delimiter, encoding="utf-8"):
    def quote(s):
        return '"' + s.replace('"', '""') + '"'

    lines = [delimiter.join(["id", "Caption", "label"])]
    lines += [delimiter.join([str(i), quote(t), label]) for i, (t, label) in enumerate(rows)]
    path.write_bytes("\r\n".join(lines).encode(encoding))


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_csv_with_quotes_line_breaks_and_long_fields(tmp_path, delimiter, encoding):
    path = tmp_path / "p.csv"
    write_csv(path, [(t, "true") for t in AWKWARD], delimiter, encoding)
    prompts = load_prompts(path, labels="label")
    assert [p.text for p in prompts] == AWKWARD
    assert [p.id for p in prompts] == [str(i) for i in range(len(AWKWARD))]
    assert prompts.column == "Caption"
    assert all(p.label is True and p.problem is None for p in prompts)


def test_a_delimiter_inside_prompts_does_not_fool_the_header(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("prompt;url\na cat, a dog, a bird, a fish;x\nb, c, d;y\n")
    assert [p.text for p in load_prompts(path)] == ["a cat, a dog, a bird, a fish", "b, c, d"]
    path.write_text("a,b;what\nx;y\n")
    assert load_prompts(path, column="WHAT")[0].text == "y"


def test_same_prompts_in_every_format_have_one_fingerprint(tmp_path):
    rows = [{"id": str(i), "prompt": t, "label": [True, False, None][i % 3]} for i, t in enumerate(AWKWARD)]
    write_csv(tmp_path / "a.csv", [(r["prompt"], {True: "1", False: "0", None: ""}[r["label"]]) for r in rows], ",")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), "utf-8")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    sources = [*(tmp_path / name for name in ("a.csv", "a.jsonl", "a.parquet")), rows]
    lists = [load_prompts(source, labels="label") for source in sources]
    assert len({p.fingerprint for p in lists}) == 1
    assert all([q.label for q in p] == [r["label"] for r in rows] for p in lists)
    changed = load_prompts([{**rows[0], "prompt": "other"}, *rows[1:]])
    assert changed.fingerprint != lists[0].fingerprint


def test_txt_keeps_blank_lines_inside_and_drops_them_at_the_end(tmp_path):
    path = tmp_path / "p.txt"
    path.write_bytes("one\r\n\r\n thrée \x0c\x85 \n\n  \n".encode())
    prompts = load_prompts(path)
    assert [p.text for p in prompts] == ["one", "", " thrée \x0c\x85 "]
    assert [p.problem for p in prompts] == [None, "empty prompt", None]
    assert [p.id for p in prompts] == ["000000", "000001", "000002"]


@given(st.lists(st.text(st.characters(blacklist_categories=["Cs"]), min_size=1), min_size=1, max_size=8))
def test_sequences_keep_every_text(texts):
    prompts = load_prompts(texts)
    assert [p.text for p in prompts] == texts
    seen = [[c for c in text if not c.isspace() and unicodedata.category(c) != "Cf"] for text in texts]
    assert [p.problem is None for p in prompts] == [bool(characters) for characters in seen]
    assert load_prompts(prompts) is prompts


def test_texts_that_cannot_be_prompts_are_kept_with_their_problem(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": null}\n{"prompt": 5}\n{"prompt": "\\ud800x"}\n{"other": 1}\n"just a string"\n')
    prompts = load_prompts(path)
    assert [p.problem for p in prompts][:2] == ["empty prompt", "the prompt is no text but a int"]
    assert "surrogate" in prompts[2].problem and prompts[2].text.encode()
    assert prompts[3].problem == "empty prompt" and prompts[3].extra == {"other": 1}
    assert prompts[4].text == "just a string" and prompts[4].problem is None


KINDS_OF_BYTES = {
    "binary": pa.binary(), "large": pa.large_binary(), "fixed": pa.binary(5),
    "dictionary": pa.dictionary(pa.int32(), pa.binary()),
    **({"view": pa.binary_view()} if hasattr(pa, "binary_view") else {}),  # pyarrow 15 has none
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS_OF_BYTES)
def test_columns_of_bytes_that_are_text_are_read(tmp_path, kind):
    """As Spark and older writers leave texts in parquet, unmarked."""
    texts = pa.array([b"a fox", "h\u00ea n".encode()])
    texts = texts.dictionary_encode() if kind == "dictionary" else texts.cast(KINDS_OF_BYTES[kind])
    pictures = [{"bytes": b"\x89PNG", "path": "1.png"}] * 2
    pq.write_table(pa.table({"image": pictures, "prompt": texts}), tmp_path / "p.parquet")
    prompts = load_prompts(tmp_path / "p.parquet")
    assert [p.text for p in prompts] == ["a fox", "h\u00ea n"] and {p.problem for p in prompts} == {None}
    assert (
        [p.text for p in load_prompts([{"prompt": b"a fox"}])]
        == [p.text for p in load_prompts([b"a fox"])]
        == ["a fox"]
    )


def test_bytes_that_are_no_text_are_named(tmp_path):
    pq.write_table(pa.table({"caption": [b"a fox", b"\xff\xfe"]}), tmp_path / "p.parquet")
    assert load_prompts(tmp_path / "p.parquet")[1].problem == "the prompt is bytes that are no UTF-8 text"
    pq.write_table(pa.table({"prompt": [b"\xff\xd8", b"\xff\xd8"]}), tmp_path / "jpg.parquet")
    with pytest.raises(DataError, match="not read, for they hold bytes that are no text: prompt"):
        load_prompts(tmp_path / "jpg.parquet")


def test_ids_groups_and_extra_columns():
    prompts = load_prompts(
        [{"Text": "a", "Index": 7, "group": "g", "url": "u"}, {"Text": "b", "Index": 8, "group": ""}]
    )
    assert [p.id for p in prompts] == ["7", "8"] and prompts.id_column == "Index"
    assert [p.group for p in prompts] == ["g", None]
    assert prompts[0].extra == {"url": "u"}
    assert prompts.by_id("8").text == "b"
    assert [p.id for p in load_prompts([{"text": "a", "id": 1}] * 2, id_column="")] == ["000000", "000001"]
    with pytest.raises(DataError, match="no prompt '9'"):
        prompts.by_id("9")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"text": "a", "id": ""}], ["row 1", "no id"]),
        ([{"sentence": "a", "url": "b"}], ["no column called", "sentence, url"]),
        ([], ["no prompts"]),
    ],
)
def test_broken_lists_are_named(rows, words):
    with pytest.raises(DataError) as error:
        load_prompts(rows)
    assert all(word in str(error.value) for word in words)


def test_labels_are_read_only_when_asked_for(caplog):
    rows = [{"text": "a", "label": "1"}, {"text": "b", "label": "maybe"}]
    assert [p.label for p in load_prompts(rows)] == [None, None]
    assert "--labels label" in caplog.text
    assert [p.extra for p in load_prompts(rows)] == [{"label": "1"}, {"label": "maybe"}]
    with pytest.raises(DataError, match="row 2: label 'maybe'"):
        load_prompts(rows, labels="label")
    with pytest.raises(DataError, match="no column 'memorized' for the labels"):
        load_prompts(rows, labels="memorized")


def test_rows_of_one_id_are_captions_of_one_image_where_that_is_said(caplog):
    rows = [{"text": "a", "id": 1}, {"text": "b", "id": 2}, {"text": "c", "id": 1}]
    with pytest.raises(DataError, match=r"'1' in rows 1, 3.*--id id.*--id none"):
        load_prompts(rows)
    assert [(p.id, p.group) for p in load_prompts(rows, id_column="id")] == [("1", "1"), ("2", None), ("1#2", "1")]
    assert "'1' in rows 1, 3" in caplog.text
    again = [{"text": t, "id": i} for t, i in zip("abc", ("1", "1#2", "1"))]
    assert [p.id for p in load_prompts(again, id_column="id")] == ["1", "1#2", "1#3"]


def test_a_column_that_does_not_exist_lists_the_others():
    with pytest.raises(DataError, match=r"no column 'nope'.*it has: text"):
        load_prompts([{"text": "a"}], column="nope")


def test_wrong_encoding_names_offset_line_and_remedy(tmp_path):
    path = tmp_path / "p.txt"
    path.write_bytes("first\ncafé".encode("latin-1"))
    with pytest.raises(DataError, match=r"byte 0xe9 at offset 9 \(line 2\).*--encoding latin-1"):
        load_prompts(path)
    assert load_prompts(path, encoding="latin-1")[1].text == "café"
    with pytest.raises(UsageError, match="no text encoding 'klingon'"):
        load_prompts(path, encoding="klingon")
    path.write_bytes("abc".encode("utf-16-le"))
    with pytest.raises(DataError, match="utf-16-le"):
        load_prompts(path)
    path.write_bytes(b"\xff\xfea\x00b")
    with pytest.raises(DataError, match="utf-16"):
        load_prompts(path)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.csv", 'text\n"never closed\nnext\n', "broken quoting"),
        ("p.csv", "id,text\n1,a cat, a dog\n", "3 fields under 2 columns"),
        ("p.csv", "text,text\na,b\n", "two columns called 'text'"),
        ("p.csv", "", "no header"),
        ("p.jsonl", '{"text": "a"}\n{"text": \n', "line 2"),
        ("p.jsonl", "[1, 2]\n", "line 1: a list"),
        ("p.parquet", "no parquet", "as parquet"),
        ("p.doc", "x", "expected .txt"),
    ],
)
def test_broken_files_are_named(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(DataError, match=words):
        load_prompts(path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        load_prompts(tmp_path / "none.txt")
    with pytest.raises(DataError, match="no images"):
        load_prompts(str(tmp_path))


def test_the_captions_of_a_folder_of_pictures(tmp_path):
    for i in range(4):
        Image.new("L", (4, 4), i).save(tmp_path / f"{i}.png")
    with pytest.raises(DataError, match="None of the 4 pictures"):
        load_prompts(tmp_path)
    rows = [
        {"file_name": "0.png", "captions": ["one", " ", "two"], "label": "7"},
        {"file_name": "1.png", "text": "three"},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "3.txt").write_text("one")
    found = load_prompts(tmp_path)
    assert [(p.id, p.text, p.group) for p in found] == [
        ("0.png", "one", "0.png"), ("0.png#2", "two", "0.png"), ("1.png", "three", "1.png"),
    ]  # fmt: skip
    folder = tmp_path / "parquet"
    folder.mkdir()
    pictures = [{"bytes": (tmp_path / f"{i}.png").read_bytes(), "path": f"{i}.png"} for i in range(2)]
    table = pa.table({"image": pictures, "captions": [["a", "b"], ["c"]]})
    pq.write_table(table, folder / "train.parquet")
    assert [p.text for p in load_prompts(folder)] == ["a", "b", "c"]


def test_parquet_leaves_binary_columns_out(tmp_path):
    table = pa.table({"caption": ["a"], "image": pa.array([{"bytes": b"x", "path": None}]), "n": [1]})
    pq.write_table(table, tmp_path / "p.parquet")
    assert load_prompts(tmp_path / "p.parquet")[0].extra == {"n": 1}
