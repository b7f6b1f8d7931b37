"""diffmem calibrate --regime generation: a threshold that a guard takes."""

from __future__ import annotations

import json

import pytest
from tests.tiny import tiny_sd

import diffmem
from diffmem.cli.app import main

PROMPTS = [f"{a} {b}" for a in ("sea", "hill", "wood", "lake") for b in ("red", "blue", "dark", "old", "wet", "big")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("model")
    tiny_sd().save_pretrained(place / "model")
    (place / "prompts.txt").write_text("\n".join(PROMPTS))
    return place


def calibrate(folder, *more):
    return main(
        ["calibrate", str(folder / "model"), "--reference", str(folder / "prompts.txt"), "--fpr", "0.2", "--out",
         str(folder / "safe.json"), "--json", *more]
    )  # fmt: skip


def test_a_guard_takes_it(folder, capsys):
    assert calibrate(folder, "--regime", "generation", "--steps", "4", "--guidance", "3") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["score"] == "score-difference:over=steps,k=2,steps=4,guidance=3.0"
    assert printed["noise"] == "the generation's own" and printed["draws"] == 1
    pipe = diffmem.Target.from_pretrained(folder / "model").pipeline
    python = diffmem.guard.calibrate(pipe, folder / "prompts.txt", 0.2, regime="generation", steps=4, guidance=3.0)
    assert printed["value"] == pytest.approx(python.threshold.value, rel=1e-6)
    with diffmem.guard(pipe, threshold=folder / "safe.json", action="log") as guard:
        pipe(PROMPTS[:2], num_inference_steps=4, guidance_scale=3.0)
    assert [d.nfe for d in guard.decisions] == [0, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--regime", "generation", "--draws", "2"), "--draws belongs to the regime 'before'"),
        (("--regime", "generation", "--score", "alignment"), "another time than the sampler's first"),
        (("--steps", "4"), "belong to --regime generation"),
    ],
)
def test_options_of_the_other_regime_are_refused(folder, capsys, options, message):
    assert calibrate(folder, *options) == 2
    assert message in capsys.readouterr().err
