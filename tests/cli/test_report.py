"""The verbs report, schema and show on a run made by hand."""

import json

import pytest
from tests.report.made import small_run

from diffmem.cli.app import main


@pytest.fixture
def run(tmp_path):
    small_run(tmp_path / "run")
    return tmp_path / "run"


def test_report_writes_page_and_digest_into_the_run(run, capsys):
    assert main(["report", str(run)]) == 0
    assert "pictures as they are" in capsys.readouterr().out
    assert "data:image/png" in (run / "report.html").read_text(encoding="utf-8")
    assert json.loads((run / "digest.json").read_text(encoding="utf-8"))["copies"]["found"] == 1


def test_a_report_that_leaves_the_run_is_blurred_unless_told_otherwise(run, tmp_path, capsys):
    out = tmp_path / "out.html"
    assert main(["report", str(run), "--out", str(out)]) == 0
    assert "pictures blurred" in capsys.readouterr().out
    assert 'class="blurred"' in out.read_text(encoding="utf-8")
    assert main(["report", str(run), "--out", str(out), "--redact", "none"]) == 0
    assert 'class="blurred"' not in out.read_text(encoding="utf-8")
    assert main(["report", str(run), "--out", str(out), "--redact", "hash", "--hash-prompts"]) == 0
    page = out.read_text(encoding="utf-8")
    assert "data:image" not in page
    assert ">prompt a<" not in page
    assert "sha256:" in page


def test_schema_prints_the_schema_that_a_digest_keeps(run, capsys):
    jsonschema = pytest.importorskip("jsonschema")
    assert main(["schema", "digest"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert main(["show", str(run), "--json"]) == 0
    jsonschema.validate(json.loads(capsys.readouterr().out), schema)


def test_show_says_what_the_report_says(run, capsys):
    assert main(["show", str(run)]) == 0
    text = capsys.readouterr().out
    assert "2 of 5 prompts gave images that are called copies of 1 training image" in text
    assert "0.750" in text
    assert "not measurable" in text
    assert "Copies most alike (1 of 1 training images)" in text


def test_no_run_is_a_usage_error(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "no run directory" in capsys.readouterr().err
