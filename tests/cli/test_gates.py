"""Gates: what trips, what passes, and that an unreadable gate never passes silently."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.tiny import picture, tiny_sd

from diffmem.cli.app import main
from diffmem.cli.gates import check_gates, parse_gate
from diffmem.errors import GateTripped, UsageError

SUMMARY = {"copies": {"prompts_copied": 3, "realised_fpr": None}, "images": {"errors": 0}, "check": {"passed": True}}


@pytest.mark.parametrize(
    "gate", ["copies>0", "copies >= 3", "copies==3", "copies.prompts_copied<4", "errors<=0", "copies!=2"]
)
def test_tripped(gate):
    with pytest.raises(GateTripped, match=r"is [03]"):
        check_gates([gate], SUMMARY)


@pytest.mark.parametrize("gate", ["copies>3", "errors>0", "copies<3e0"])
def test_passed(gate):
    check_gates([gate], SUMMARY)


@pytest.mark.parametrize(
    "gate", ["copies", "copies>", ">0", "copies>many", "copis>0", "copies.realised_fpr>0", "check.passed>0"]
)
def test_unreadable_gates_are_usage_errors(gate):
    with pytest.raises(UsageError):
        check_gates([gate], SUMMARY)


@given(st.integers(-9, 9), st.sampled_from([">", ">=", "<", "<=", "==", "!="]), st.integers(-9, 9))
def test_operators(value, sign, limit):
    assert parse_gate(f"x{sign}{limit}") == ("x", sign, limit)
    trips = eval(f"{value} {sign} {limit}")
    if trips:
        with pytest.raises(GateTripped):
            check_gates([f"x{sign}{limit}"], {"x": value})
    else:
        check_gates([f"x{sign}{limit}"], {"x": value})


def test_an_audit_is_gated_with_exit_code_1(tmp_path, capsys):
    tiny_sd().save_pretrained(tmp_path / "m")
    (tmp_path / "train").mkdir()
    for i in range(20):
        picture(i).save(tmp_path / "train" / f"{i}.png")
    command = ["audit", str(tmp_path / "m"), "x", "--train", str(tmp_path / "train"), "--out", str(tmp_path / "r"),
               "--images-per-prompt", "1", "--steps", "1", "--score", "score-difference", "--quiet"]  # fmt: skip
    assert main([*command, "--fail-if", "images.made>0"]) == 1
    assert "gate tripped" in capsys.readouterr().err.lower()
    assert main([*command, "--fail-if", "images.made>1"]) == 0
    assert main([*command, "--fail-if", "images.maid>1"]) == 2
    assert "Did you mean 'images.made'" in capsys.readouterr().err
    run = str(tmp_path / "r")
    for verb in ("show", "report"):
        assert main([verb, run, "--fail-if", "images.made>0"]) == 1
        assert main([verb, run, "--fail-if", "images.made>1"]) == 0
        assert main([verb, run, "--fail-if", "images.made"]) == 2
