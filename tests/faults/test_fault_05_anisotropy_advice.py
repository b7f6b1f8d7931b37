"""Fault 5: anisotropy advised `--weights g1,g2`, which no verb has; `anisotropy:weights=1/2` works."""

from __future__ import annotations

import re

import pytest

from diffmem.scores.spec import parse_score
from tests.faults.planted import printed_json
from tests.tiny import tiny_sd


def test_fault_05_the_advice_can_be_followed(tmp_path, capsys):
    tiny_sd().save_pretrained(tmp_path / "model")
    found = printed_json(capsys, "score", tmp_path / "model", "a fox", "--score", "anisotropy", "--score",
                         "score-difference", "--draws", 1)  # fmt: skip
    advice = found["refused"]["anisotropy"]
    assert "--weights" not in advice
    (spec,) = re.findall(r"anisotropy:weights=[\d.]+/[\d.]+", advice)
    assert parse_score(spec).settings.weights == pytest.approx((1, 2))
