"""The report as a file: its policy, what redaction leaves out, that nothing in it can break out, and its size."""

import base64
import hashlib
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from tests.report.made import COMMAND, add_prompts, new_run, picture, score_row, small_run

import diffmem.report.html as html
from diffmem.errors import DataError
from diffmem.report.digest import build_digest
from diffmem.report.html import render, write_report
from diffmem.report.redaction import BLURRED, embed

HOSTILE = {
    "a": "</script><script>document.title='broken'</script>",
    "b": "<img src=x onerror=\"document.title='broken'\"> ' \" ` {{ 7*7 }} {% raw %}",
    "c": "\u202egnp.txt\u202c \u2028 \u2029 \x00\x1b[31m\x07 \u0301" + "\u0e49" * 60,
    "d": "A" * 1_000_000,
    "e": "</title></style><style>*{display:none}</style><svg onload=alert(1)><!-- --!> ]]> &lt;b&gt;",
}
VOID = {"meta", "img", "br", "input"}


class Page(HTMLParser):
    """Elements, attributes and text of a page; checks that elements close in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.found, self.blocks, self.text = [], [], {}, []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if self.open and self.open[-1] in ("script", "style"):
            self.blocks.setdefault(self.open[-1], []).append(data)

    def tags(self, name):
        return [attributes for tag, attributes in self.found if tag == name]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("html") / "run"
    small_run(folder)
    return folder


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile") / "run"
    small_run(folder, HOSTILE)
    return folder


@pytest.fixture(scope="module")
def digest(run):
    return build_digest(run)


def pictures_in(page):
    found = []
    for attributes in Page(page).tags("img"):
        kind, _, data = attributes["src"].partition(";base64,")
        assert kind in ("data:image/png", "data:image/webp")
        found.append(Image.open(io.BytesIO(base64.b64decode(data))))
    return found


@pytest.mark.parametrize("which", ["run", "hostile"])
def test_the_policy_admits_the_inline_blocks_and_nothing_else(which, request):
    page = Page(write_report(request.getfixturevalue(which)).read_text(encoding="utf-8"))
    policy = next(m["content"] for m in page.tags("meta") if m.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    for name in ("script", "style"):
        (block,) = page.blocks[name]
        digest = base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()
        assert rules[f"{name}-src"] == f"'sha256-{digest}'"
    for tag, attributes in page.found:
        assert tag not in ("link", "iframe", "object", "embed", "form", "base")
        assert not [name for name in attributes if name == "style" or name.startswith("on")]
        assert attributes.get("src", "data:").startswith("data:")
        assert attributes.get("href", "#").startswith("#")


def test_everything_has_a_name_for_those_who_do_not_see_it(run, digest):
    page = Page(render(run, digest))
    assert all(attributes["alt"] for attributes in page.tags("img"))
    ids = [attributes["id"] for _, attributes in page.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    for attributes in page.tags("svg"):
        assert attributes["role"] == "img"
        assert len(attributes["aria-label"]) > 20
    for attributes in page.tags("a"):
        assert attributes["href"][1:] in ids
    assert all("scope" in attributes for attributes in page.tags("th"))


def test_the_same_run_gives_the_same_file(run, digest):
    assert render(run, digest) == render(run, digest)


def test_hostile_prompts_are_shown_and_stay_text(hostile):
    text = write_report(hostile).read_text(encoding="utf-8")
    page = Page(text)
    assert len(page.tags("script")) == len(page.tags("style")) == len(page.tags("title")) - len(page.tags("svg")) == 1
    shown = "".join(page.text)
    assert HOSTILE["a"] in shown
    assert HOSTILE["b"] in shown
    assert "\\u202egnp.txt\\u202c" in shown
    assert "\\x00\\x1b[31m" in shown
    assert not re.search("[\u202e\u2028\u2029\x00\x1b]", text)
    assert len(text) < 200_000, "a prompt of 1 MB is cut"
    assert "1,000,000 characters" in shown


def test_small_pictures_are_embedded_as_they_are(run, digest):
    found = pictures_in(render(run, digest))
    assert len(found) == 10
    assert np.array_equal(np.asarray(found[0]), np.asarray(picture(0)))


def test_blurred_pictures_are_a_few_pixels_and_hash_leaves_none(run, digest):
    blurred = pictures_in(render(run, digest, "blur"))
    assert {image.size for image in blurred} == {(BLURRED, BLURRED)}
    page = render(run, digest, "hash")
    assert "data:image" not in page
    assert "t0.png" in page
    assert "Pictures are left out" in page


@pytest.mark.parametrize("size", [(8, 8), (2, 2), (1, 1), (600, 20)])
def test_a_blurred_picture_has_at_most_a_quarter_of_the_pixels_a_side(size):
    image = Image.new("L", size)
    found = embed(image, "blur")
    assert max(found.width, found.height) <= max(1, min(BLURRED, max(size) // 4))
    assert embed(image, "hash") is None


def test_large_pictures_are_scaled_down_without_their_metadata():
    image = picture(1, 800)
    image.info["comment"] = "secret"
    found = embed(image, "none")
    data = base64.b64decode(found.uri.partition(",")[2])
    assert (found.width, found.height) == (256, 256)
    assert b"secret" not in data


def test_hashed_prompts_are_nowhere_in_the_page(tmp_path):
    store = new_run(
        tmp_path / "r", {"generate": {"sampling": {"negative_prompt": "zebra zebra"}}}, (*COMMAND[:2], "zebra")
    )
    add_prompts(store, [("1", "a zebra in the snow", None), ("2", "zebra", None)])
    store.append("scores", [score_row("1", "s", 0, 1.0)])
    store.append("scores", [score_row("2", "s", 0, None, status="error", error="cannot tokenize 'zebra'")])
    path = write_report(tmp_path / "r", hash_prompts=True)
    text = path.read_text(encoding="utf-8")
    assert "zebra" not in text
    expected = hashlib.sha256(b"a zebra in the snow").hexdigest()[:16]
    assert f"sha256:{expected}" in text


def test_pictures_that_are_gone_are_said_to_be_and_name_no_path(run, digest, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "index")
    shutil.rmtree(copy / "parts" / "images")
    page = render(copy, digest)
    assert "data:image" not in page
    assert "its index is not in the run directory" in page
    assert str(tmp_path) not in page


def test_the_file_keeps_to_its_size_and_says_what_it_cut(run, digest, monkeypatch):
    whole = render(run, digest)
    monkeypatch.setattr(html, "IMAGE_BUDGET", 0)
    fewer = render(run, digest)
    assert len(pictures_in(fewer)) == 2
    assert "left out to keep the file small" in fewer
    monkeypatch.setattr(html, "LIMIT", len(fewer) - 1000)
    cut = render(run, digest)
    assert len(cut.encode()) <= len(fewer) - 1000
    assert "The first 2 of 5 prompts" in cut
    monkeypatch.setattr(html, "LIMIT", 1000)
    with pytest.raises(DataError, match="larger than"):
        render(run, digest)
    assert len(whole) > len(fewer)


def test_reports_of_runs_that_lack_a_part(tmp_path):
    store = new_run(tmp_path / "scores")
    add_prompts(store, [("a", "x", None)])
    store.append("scores", [score_row("a", "s", 0, 1.0)])
    new_run(tmp_path / "empty")
    for name in ("scores", "empty"):
        page = Page(write_report(tmp_path / name).read_text(encoding="utf-8"))
        assert "Copies were not searched" in "".join(page.text)
        assert "calibration" not in [attributes.get("id") for attributes in page.tags("section")]
        assert (tmp_path / name / "digest.json").exists()
    with pytest.raises(DataError, match="is a folder"):
        write_report(tmp_path / "empty", out=tmp_path)
