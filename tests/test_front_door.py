"""What `import diffmem` shows: ten names, every verb, the methods as objects, and old names for one release."""

from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import pytest

import diffmem as dm
from diffmem.cli.app import VERBS
from diffmem.errors import UsageError
from diffmem.method import parse_method
from diffmem.mitigation import MITIGATIONS
from diffmem.scores import IMAGE_SCORES, SCORES
from tests.fixtures.runs_0_1_0.make import copied
from tests.tiny import tiny_sd

TEN = {
    "Target",
    "Sampling",
    "load_prompts",
    "load_images",
    "score",
    "measure",
    "audit",
    "mitigate",
    "guard",
    "open_run",
}
OTHER_VERBS = ("claim", "review",
               "compare", "evaluate", "match", "extract", "curate", "robustness", "lab", "train", "generate", "index",
               "calibrate", "canaries", "export", "localize")  # fmt: skip
OLD = ("compare_runs", "evaluate_run", "extract_images", "match_images", "audit_lora", "measure_canaries", "run_lab",
       "write_report", "SCORES", "Generation", "LabPlan", "TrainPlan", "load_plan", "parse_mitigation")  # fmt: skip


def test_ten_names_and_no_torch():
    code = "import sys, diffmem as dm; print(*(n for n in dir(dm) if n[:2] != '__')); print('torch' in sys.modules)"
    names, torch = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert set(names.split()) == TEN
    assert torch == "False"
    assert "__version__" in dir(dm)


@pytest.mark.parametrize("verb", OTHER_VERBS)
def test_every_other_verb_is_a_function_of_its_name(verb):
    assert verb in VERBS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        function = getattr(dm, verb)
    assert callable(function) and function.__doc__


@pytest.mark.parametrize("name", OLD)
def test_old_names_work_and_say_what_to_use(name):
    with pytest.warns(DeprecationWarning, match=f"diffmem.{name} is deprecated; use diffmem"):
        assert getattr(dm, name) is not None


@pytest.mark.parametrize(
    ("room", "registries"), [("mitigations", (MITIGATIONS,)), ("scores", (SCORES, IMAGE_SCORES))]
)  # fmt: skip
def test_every_method_is_an_object_too(room, registries):
    """The object made without parameters is the method that its bare name gives."""
    place = getattr(dm, room)
    for registry in registries:
        for name in registry:
            made = getattr(place, "".join(part.capitalize() for part in name.split("-")))()
            assert type(made) is registry.get(name)
            assert made.label == parse_method(registry, name, "method").label == name


def test_parameters_are_those_of_the_text():
    made = dm.mitigations.RandomTokens(count=2)
    assert made.label == repr(made) == "random-tokens:count=2"
    assert made.parameters == parse_method(MITIGATIONS, "random-tokens:count=2", "mitigation").parameters
    assert parse_method(SCORES, dm.scores.Anisotropy(weights=(1, 2)).label, "score").parameters.weights == (1, 2)
    with pytest.raises(UsageError, match="count"):
        dm.mitigations.RandomTokens(count=-1)
    with pytest.raises(AttributeError, match="RandomTokens"):
        dm.mitigations.RandomToken


@pytest.mark.parametrize("room", ["copies", "training", "experiments"])
def test_rooms_hold_what_they_show(room):
    place = getattr(dm, room)
    assert dir(place) and all(getattr(place, name) is not None for name in dir(place))


def test_what_a_session_prints_is_short():
    target = dm.Target.from_pipeline(tiny_sd(), name="tiny")
    prompts = dm.load_prompts([f"a fox {i}" for i in range(30)])
    images = dm.load_images(np.zeros((3, 8, 8, 3), np.uint8))
    scored = dm.score(target, prompts, ["text-uppercase"], draws=1)
    for shown in (target, prompts, images, scored):
        assert len(repr(shown)) < 200
    assert "tiny" in repr(target) and " at 0x" not in repr(target)
    assert "30 prompts" in repr(scored)


def test_what_verbs_give_back_prints_in_one_line(tmp_path):
    calibrated = dm.calibrate(dm.Target.from_pipeline(tiny_sd()), dm.load_prompts([f"{i}" for i in range(20)]),
                              "text-uppercase", fpr=0.1)  # fmt: skip
    assert "text-uppercase >= " in repr(calibrated) and "fpr of 0.1, 20 prompts" in repr(calibrated)
    run = copied("audit", tmp_path)
    same = dm.compare(run, run)
    assert f"{len(same.rows)} figures" in repr(same)
    assert max(len(repr(shown)) for shown in (calibrated, same)) < 200
