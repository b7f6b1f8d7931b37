"""The frame of the command line: exit codes, one-line errors, lazy verbs, output that machines and people can read."""

import io
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import tomllib
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import diffmem
from diffmem.cli import output
from diffmem.cli.app import VERBS, _with_names_of_today, build_app, main
from diffmem.cli.verbs import JOBS, RENAMED

SOURCE = Path(diffmem.__file__).parents[1]

DUMMY = '''
import os, signal, sys, errno, logging
from diffmem import errors

def dummy(what: str = "", *, times: int = 1) -> int | None:
    """Say hello to someone, at length.

    A sentence that goes on
    in another line of the source.

    - a list
    - stays one

    Args:
        what: what to do about it.
        times: how often.
    """
    if what == "print":
        print("data " * times)
    if what == "lines":
        for i in range(200_000):
            print("line", i)
    if what == "code":
        return times
    if what == "bug":
        raise RuntimeError("a defect")
    if what == "ctrl-c":
        raise KeyboardInterrupt
    if what == "term":
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    if what == "disk":
        raise OSError(errno.ENOSPC, "No space left on device", "/somewhere/file")
    if what == "warn":
        logging.getLogger("diffmem.runs.store").warning("a part was set aside")
    if what.startswith("errors."):
        raise getattr(errors, what.removeprefix("errors."))("found this,\\n  expected that")
'''


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    (tmp_path / "diffmem_dummy_verb.py").write_text(DUMMY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("DIFFMEM_TRACEBACK", raising=False)
    verbs = {"dummy": ("diffmem_dummy_verb:dummy", "One line."), "absent": ("no_such_module:absent", "Another.")}

    def call(*argv):
        code = main(list(argv), verbs)
        out, err = capsys.readouterr()
        return code, out, err

    yield call
    sys.modules.pop("diffmem_dummy_verb", None)


def python(code, *args, **env):
    return subprocess.run(
        [sys.executable, *args, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(SOURCE), **env},
    )


@pytest.mark.parametrize(
    ("error", "code"),
    [("DataError", 2), ("ModelError", 2), ("GateTripped", 1), ("IncompleteRun", 3), ("IncompatibleRun", 4)],
)
def test_each_error_is_one_line_and_its_exit_code(run, error, code):
    assert run("dummy", f"errors.{error}") == (code, "", "diffmem: error: found this, expected that\n")


def test_traceback_on_request(run, monkeypatch):
    monkeypatch.setenv("DIFFMEM_TRACEBACK", "1")
    code, _, err = run("dummy", "errors.DataError")
    assert code == 2 and "Traceback" in err and err.endswith("diffmem: error: found this, expected that\n")


def test_success_and_a_verbs_own_code(run):
    assert run("dummy", "print", "--times", "2") == (0, "data data \n", "")
    assert run("dummy", "code", "--times", "3")[0] == 3


@pytest.mark.parametrize("argv", [["dummy", "--tmes", "2"], ["dummy", "--times", "two"], ["dummy", "a", "b", "c"]])
def test_wrong_arguments_are_usage(run, argv):
    code, out, err = run(*argv)
    assert code == 2 and out == "" and err.startswith("diffmem: error: ") and err.count("\n") == 1
    assert argv[-1] in err or argv[-2] in err


def test_wrong_option_suggests_the_right_one(run):
    assert "--times" in run("dummy", "--tmes", "2")[2]


def test_unknown_verb_suggests_and_imports_nothing(run):
    code, _, err = run("dumy")
    assert code == 2 and "Did you mean 'dummy'?" in err and "absent" in err
    assert "diffmem_dummy_verb" not in sys.modules


def test_help_lists_verbs_without_importing_them(run):
    code, out, _ = run("--help")
    assert code == 0 and "One line." in out and "Another." in out
    assert "diffmem_dummy_verb" not in sys.modules
    assert run()[1] == out


def test_help_of_a_verb_shows_its_docstring(run):
    code, out, _ = run("dummy", "--help")
    assert code == 0 and "at length" in out and "how often" in out
    assert "A sentence that goes on in another line of the source.\n" in out
    assert "- a list\n- stays one\n" in out


def test_version(run):
    assert run("--version") == (0, f"{diffmem.__version__}\n", "")


def test_interrupts_ask_to_run_again(run):
    for what in ("ctrl-c", "term"):
        assert run("dummy", what) == (3, "", "diffmem: stopped; the same command goes on where it left\n")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_full_disk_is_incomplete_not_a_crash(run):
    code, _, err = run("dummy", "disk")
    assert code == 3 and "disk is full (/somewhere/file)" in err and "Traceback" not in err


def test_a_defect_is_neither_a_gate_nor_usage(run):
    code, _, err = run("dummy", "bug")
    assert code == 70 and "RuntimeError: a defect" in err


def test_log_warnings_reach_stderr_once(run):
    assert run("dummy", "warn")[2] == "diffmem: warning: a part was set aside\n"
    assert run("dummy", "warn")[2] == "diffmem: warning: a part was set aside\n"


def test_closed_pipe_is_quiet(run, tmp_path):
    code = "import sys; from diffmem.cli.app import main; sys.exit(main(['d', 'lines'], {'d': ('diffmem_dummy_verb:dummy', '')}))"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{SOURCE}{os.pathsep}{tmp_path}"},
    )
    assert process.stdout.readline() == "line 0\n"
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(60) == 141


def test_the_frame_imports_nothing_heavy():
    heavy = "{'torch', 'diffusers', 'transformers', 'numpy', 'pyarrow', 'sklearn'} & set(sys.modules)"
    starts = ("import diffmem", "import diffmem.cli.output", "from diffmem.cli.app import main; main(['--help'])")
    for start in starts:
        done = python(f"import sys; {start}; print('HEAVY', {heavy})")
        assert done.returncode == 0 and done.stdout.splitlines()[-1] == "HEAVY set()", done


def test_real_verbs_live_where_the_table_says():
    for name, verb in VERBS.items():
        assert verb.path == f"diffmem.cli.{name}:{name}" and verb.summary.endswith(".")
        assert verb.job in JOBS and len(verb.examples) == 2


@pytest.mark.parametrize("line", [line for verb in VERBS.values() for line in verb.examples])
def test_examples_of_the_help_are_understood(line, capsys):
    build_app(VERBS).parse_args(shlex.split(line), print_error=False, exit_on_error=False)
    assert main([line.split()[0], "--help"]) == 0
    shown = capsys.readouterr().out.replace("\\\n", " ")
    assert " ".join(f"diffmem {line}".split()) in " ".join(shown.split())


def test_help_groups_verbs_by_job_and_shows_rare_options_last(capsys):
    main(["--help"])
    shown = capsys.readouterr().out
    places = [shown.index(job) for job in JOBS]
    assert places == sorted(places)
    main(["audit", "--help"])
    shown = capsys.readouterr().out
    assert shown.index("Examples:") < shown.index("Usage:") < shown.index("--heldout") < shown.index("Rarely needed")
    assert shown.index("Rarely needed") < shown.index("--micro-batch") and "--empty" not in shown


@pytest.mark.parametrize(
    ("old", "verb"), [(old, verb) for old, (_, verbs) in RENAMED.items() for verb in sorted(verbs)]
)
def test_options_of_the_last_release_still_work_and_say_their_names(old, verb, caplog):
    new, _ = RENAMED[old]
    line = next(line for line in VERBS[verb].examples if not {*line.split()} & {"make", new})
    words = _with_names_of_today(verb, [*shlex.split(line), old, "3" if "images" in old else "0.1"])
    build_app(VERBS).parse_args(words, print_error=False, exit_on_error=False)
    assert new in words and old not in words and f"{old} is called {new} now" in caplog.text


def test_an_old_name_behind_two_dashes_is_a_prompt(capsys):
    assert _with_names_of_today("generate", ["--images", "3", "--", "--images"]) == [
        "--images-per-prompt",
        "3",
        "--",
        "--images",
    ]


def test_version_is_the_one_of_the_package():
    pyproject = SOURCE.parent / "pyproject.toml"
    assert tomllib.loads(pyproject.read_text())["project"]["version"] == diffmem.__version__
    assert f"\nversion: {diffmem.__version__}\n" in (SOURCE.parent / "CITATION.cff").read_text()
    assert f"\n## {diffmem.__version__}" in (SOURCE.parent / "CHANGELOG.md").read_text()


def test_public_names_are_listed_and_unknown_ones_refused():
    shown = {name for name in dir(diffmem) if not name.startswith("__")}
    assert shown == set(diffmem.__all__) and len(shown) == 10 and "__version__" in dir(diffmem)
    with pytest.raises(AttributeError, match="no attribute 'tragte'"):
        diffmem.tragte


def table(rows, **options):
    stream = io.StringIO()
    output.emit_table(rows, file=stream, **options)
    return stream.getvalue()


def test_table_shows_chosen_columns_and_hostile_text_as_text():
    rows = [
        {"prompt": "[bold]a\x1b[31m\u202eb[/bold]", "value": 0.123456, "hidden": 1},
        {"prompt": "x" * 300, "value": None},
    ]
    text = table(rows, columns={"prompt": "Prompt", "value": "Value"}, title="Findings")
    assert "Findings" in text and "Prompt" in text and "0.1235" in text and "hidden" not in text
    assert "[bold]a\\x1b[31m\\u202eb[/bold]" in text and "\x1b" not in text
    assert "x" * 300 in text  # a pipe has no width: nothing is cut


def test_empty_table():
    assert json.loads(table([], json=True)) == []
    assert "Findings" in table([], columns=["a"], title="Findings")


def test_json_is_strict_and_complete():
    rows = [
        {
            "a": math.nan,
            "b": math.inf,
            "c": np.float32(0.5),
            "d": np.int64(3),
            "e": np.arange(2),
            "f": b"\x01",
            "g": "é",
        }
    ]
    rows[0] |= {"h": Path("x/y"), "i": datetime(2024, 1, 2, tzinfo=UTC), "j": {1: (True, None)}, "k": {"b", "a"}}
    assert json.loads(table(rows, columns=["a"], json=True)) == [
        {"a": None, "b": None, "c": 0.5, "d": 3, "e": [0, 1], "f": "01", "g": "é"}
        | {"h": "x/y", "i": "2024-01-02T00:00:00+00:00", "j": {"1": [True, None]}, "k": ["a", "b"]}
    ]
    with pytest.raises(TypeError, match="object has no JSON form"):
        output.strict({"a": object()})


def test_json_survives_any_text_on_any_terminal():
    hostile = "é \ud800 \x00 </script>"
    for encoding in ("ascii", "utf-8"):
        raw = io.BytesIO()
        stream = io.TextIOWrapper(raw, encoding=encoding, errors="backslashreplace")
        output.emit_json([hostile], stream)
        stream.flush()
        assert json.loads(raw.getvalue().decode(encoding)) == [hostile]


@given(st.text())
def test_plain_text_cannot_steer_a_terminal(text):
    shown = output.plain(text)
    assert not any(ord(char) < 32 or 127 <= ord(char) < 160 or 0x202A <= ord(char) <= 0x202E for char in shown)
    if text.isascii() and text.isprintable():
        assert shown == text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"),
        (True, "yes"),
        (1234567, "1,234,567"),
        (np.int32(1000), "1,000"),
        (0.123456, "0.1235"),
        (np.float32(2), "2.0"),
        (1.5e-9, "1.5e-09"),
        (math.nan, "-"),
        (math.inf, "inf"),
        (b"\xff", "ff"),
        ("a", "a"),
    ],
)
def test_cells(value, shown):
    assert output.cell(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0.0 s"),
        (9.96, "10 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.7, "1 h 00 min"),
        (7440, "2 h 04 min"),
        (86399, "1 d 00 h"),
        (266400, "3 d 02 h"),
        (None, "-"),
        (math.inf, "-"),
    ],
)
def test_durations(seconds, shown):
    assert output.duration(seconds) == shown


def test_percent():
    assert (output.percent(0.1234), output.percent(None), output.percent(1, 0)) == ("12.3 %", "-", "100 %")
