"""Gates: what trips, what passes, that typos are refused before the work, and that an unreadable gate never passes."""

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.report.made import small_run
from tests.tiny import picture, tiny_sd

from diffmem.cli.app import main
from diffmem.cli.gates import ALIASES, WORDS, check_gates, known_names, parse_gate, readable_values
from diffmem.errors import GateTripped, NothingJudged, UsageError
from diffmem.report.digest import build_digest
from diffmem.report.shape import Digest

VERDICT = {
    "state": "reproduces", "sentence": "It does.", "share": 0.06, "share_interval": [0.03, 0.1], "excess": 0.05,
    "excess_interval": [0.02, 0.09], "bound": None,
}  # fmt: skip
SUMMARY = {
    "copies": {"prompts_copied": 3, "realised_fpr": None, "calibrated": True}, "images": {"errors": 0},
    "check": {"passed": True}, "verdict": VERDICT,
}  # fmt: skip


def check(gate, summary=SUMMARY):
    check_gates([parse_gate(gate)], summary)


@pytest.mark.parametrize(
    "gate",
    ["copies>0", "copies >= 3", "copies==3", "copies.prompts_copied<4", "errors<=0", "copies!=2", "verdict==reproduces",
     "verdict!=no-excess", "copies.rate>5%", "copies.rate>5 %", "copies.rate>0.05", "copies.rate.low<4%",
     "copies.rate.high>9e-2", "excess>4.9%", "excess.low>=.02", "verdict.excess.high<=0.09", "check==passed",
     "calibration==calibrated"],
)  # fmt: skip
def test_tripped(gate):
    with pytest.raises(GateTripped, match=r" is "):
        check(gate)


@pytest.mark.parametrize(
    "gate",
    ["copies>3", "errors>0", "copies<3e0", "verdict==unknown", "copies.rate>6%", "excess.low>2%", "check==failed",
     "calibration!=calibrated"],
)  # fmt: skip
def test_passed(gate):
    check(gate)


@pytest.mark.parametrize(
    "gate", ["copies", "copies>", ">0", "copies>many", "copis>0", "check.passed>0", "verdict>0", "verdict>reproduces",
             "copies==reproduces", "copies.rate>5%%", "copies=>1"],
)  # fmt: skip
def test_unreadable_gates_are_usage_errors(gate):
    with pytest.raises(UsageError):
        check(gate)


@pytest.mark.parametrize("gate", ["copies.realised_fpr>0", "bound>5%"])
def test_a_value_that_was_not_computed_passes_no_gate(gate):
    with pytest.raises(NothingJudged, match="no value"):
        check(gate)


@pytest.mark.parametrize("gate", ["copies>5", "verdict==reproduces", "excess>50%", "copies.rate>50%"])
def test_an_unknown_verdict_passes_no_gate_on_copies(gate):
    unknown = SUMMARY | {"verdict": VERDICT | {"state": "unknown", "sentence": "Unknown: the check failed."}}
    with pytest.raises(NothingJudged, match="the check failed"):
        check(gate, unknown)
    check("errors>0", unknown)
    with pytest.raises(GateTripped):
        check("verdict==unknown", unknown)


@given(st.integers(-9, 9), st.sampled_from([">", ">=", "<", "<=", "==", "!="]), st.integers(-9, 9))
def test_operators(value, sign, limit):
    gate = parse_gate(f"x{sign}{limit}")
    assert (gate.name, gate.sign, gate.limit) == ("x", sign, limit)
    trips = eval(f"{value} {sign} {limit}")
    if trips:
        with pytest.raises(GateTripped):
            check_gates([gate], {"x": value})
    else:
        check_gates([gate], {"x": value})


@given(st.floats(0, 100, allow_nan=False))
def test_a_percentage_is_a_hundredth(value):
    assert parse_gate(f"x>{value!r}%").limit == pytest.approx(value / 100)


def test_every_name_that_a_run_has_is_known_before_the_run(tmp_path):
    """Else a gate that could be read at the end would be refused at the start."""
    small_run(tmp_path / "run")
    values = readable_values(build_digest(tmp_path / "run", methods=False).as_dict())
    known = known_names(Digest)
    below = tuple(name for name in known if name.endswith("."))
    unknown = [
        name
        for name, value in values.items()
        if value is not None and name not in known and not name.startswith(below) and name not in WORDS
    ]
    assert unknown == ["verb"]
    for name, path in ALIASES.items():
        assert path in known, name


@pytest.mark.parametrize(
    ("gate", "hint"),
    [("verdict==reproduce", "'reproduces'"), ("verdikt==unknown", "'verdict'"), ("copies.rat>5%", "'copies.rate'"),
     ("check==fail", "'failed'"), ("copies.prompts_copeid>1", "'copies.prompts_copied'")],
)  # fmt: skip
def test_typos_are_refused_from_the_class_alone(gate, hint):
    with pytest.raises(UsageError, match=f"Did you mean {hint}"):
        parse_gate(gate, Digest)


def test_an_audit_is_gated_with_exit_code_1(tmp_path, capsys):
    tiny_sd().save_pretrained(tmp_path / "m")
    (tmp_path / "train").mkdir()
    for i in range(20):
        picture(i).save(tmp_path / "train" / f"{i}.png")
    command = ["audit", str(tmp_path / "m"), "x", "--train", str(tmp_path / "train"), "--out", str(tmp_path / "r"),
               "--images-per-prompt", "1", "--steps", "1", "--score", "score-difference", "--quiet"]  # fmt: skip
    assert main([*command, "--fail-if", "images.maid>1"]) == 2
    assert "Did you mean 'images.made'" in capsys.readouterr().err
    assert not (tmp_path / "r").exists(), "nothing was computed for a gate that cannot be read"
    assert main([*command, "--fail-if", "images.made>0"]) == 1
    assert "gate tripped" in capsys.readouterr().err.lower()
    assert main([*command, "--fail-if", "images.made>1"]) == 0
    assert main([*command, "--fail-if", "verdict==reproduces"]) == 3, "an uncalibrated run passes no gate on copies"
    assert main([*command, "--fail-if", "verdict==unknown"]) == 1
    run, junit = str(tmp_path / "r"), tmp_path / "gates.xml"
    for verb in ("show", "report"):
        assert main([verb, run, "--fail-if", "images.made>0"]) == 1
        assert main([verb, run, "--fail-if", "images.made>1"]) == 0
        assert main([verb, run, "--fail-if", "images.made"]) == 2
    gates = ["images.made>1", "images.made>0", "verdict==reproduces"]
    assert main(["show", run, *(word for gate in gates for word in ("--fail-if", gate)), "--junit", str(junit)]) == 1
    suite = ElementTree.parse(junit).getroot()[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("3", "1", "1")
    assert [case.get("name") for case in suite.findall("testcase")] == gates
    assert [[part.tag for part in case] for case in suite.findall("testcase")] == [[], ["failure"], ["error"]]
