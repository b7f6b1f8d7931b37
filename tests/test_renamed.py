"""Old names of arguments and fields work for one release more, say so, and change neither results nor files."""

from __future__ import annotations

import inspect
import json
import warnings

import numpy as np
import pytest

import diffmem as dm
from diffmem.copies import calibration as copies
from diffmem.evaluation.bootstrap import tpr_interval
from diffmem.evaluation.calibration import Setting, calibrate_threshold
from diffmem.evaluation.paired import compare_paired
from diffmem.evaluation.planning import plan_audit
from diffmem.evaluation.roc import tpr_at_fpr
from diffmem.evaluation.sequential import SequentialRule, calibrate_sequential
from diffmem.evaluation.tail import tail_tpr
from diffmem.experiments.lab.cell import training_name
from diffmem.experiments.lab.plan import GenerateSection, MeasureSection
from diffmem.experiments.robustness.conditions import RobustnessPlan
from diffmem.renamed import STORED
from diffmem.training.plan import OptimizerPlan, TrainPlan
from tests.fixtures.runs_0_1_0.make import copied

FIELDS = [
    (dm.experiments.Generation, {}, "draws", "images_per_prompt", 3),
    (dm.experiments.Matching, {}, "false_positives", "fpr", 0.05),
    (RobustnessPlan, {}, "draws", "images_per_prompt", 3),
    (OptimizerPlan, {"steps": 1}, "rate", "lr", 0.5),
    (GenerateSection, {}, "images", "images_per_cell", 7),
    (MeasureSection, {}, "false_positives", "fpr", 0.05),
]


@pytest.mark.parametrize(("model", "more", "old", "new", "value"), FIELDS)
def test_fields(model, more, old, new, value):
    with pytest.warns(DeprecationWarning, match=f"{old} is called {new} now"):
        given = model(**more, **{old: value})
    today = model(**more, **{new: value})
    assert given == today and getattr(today, new) == value and new in today.model_dump()
    with pytest.warns(DeprecationWarning, match=new):
        assert getattr(today, old) == value
    stored = json.loads(today.model_dump_json())
    assert stored[old] == value and new not in stored, "files keep the stored name: plans and runs keep their identity"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model.model_validate(stored, context=STORED) == today
    with pytest.raises((TypeError, ValueError), match="are the same"):
        model(**more, **{old: value, new: value})
    with pytest.raises(AttributeError):
        _ = today.nothing_of_the_kind
    assert model(**more).model_copy(update={new: value}) == today
    with pytest.raises(TypeError, match=f"has no {old}; its fields: .*{new}"):
        model(**more).model_copy(update={old: value})


def test_a_plan_of_0_1_0_names_the_same_training():
    sections = {"model": {"base": "testbed:digits"}, "data": {"images": "."}}
    old = TrainPlan(**sections, optimizer={"steps": 1, "rate": 0.5})
    new = TrainPlan(**sections, optimizer={"steps": 1, "lr": 0.5})
    assert training_name(old) == training_name(new) != training_name(TrainPlan(**sections, optimizer={"steps": 1}))


def test_a_stored_rule_is_read_without_a_warning():
    setting = Setting(score="s", version="1", parameters={}, draws=2, noise="bank", model="m")
    rule = calibrate_sequential(np.random.default_rng(0).normal(size=(400, 2)), 0.05, 0.05, setting, "r", "-")
    stored = json.loads(rule.model_dump_json())
    assert stored["false_alarms"] == rule.fpr == 0.05
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert SequentialRule.model_validate(stored, context=STORED) == rule


def test_arguments(tmp_path):
    run = copied("audit", tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        today = dm.evaluate(run, "measured", fpr=0.2)
    with pytest.warns(DeprecationWarning, match=r"evaluate\(\): rate is called fpr now"):
        assert dm.evaluate(run, "measured", rate=0.2) == today
    assert {row["nominal_fpr"] for row in today} <= {0.2, None} or all("nominal_fpr" not in row for row in today)
    with pytest.raises(TypeError, match="are the same"):
        dm.evaluate(run, fpr=0.2, rate=0.2)


@pytest.mark.parametrize(
    ("function", "old", "new"),
    [(dm.audit, "images", "images_per_prompt"), (dm.compare, "rate", "fpr"), (dm.evaluate, "rate", "fpr"),
     (dm.calibrate, "rate", "fpr"), (dm.calibrate, "spec", "score"), (dm.guard.calibrate, "false_alarms", "fpr"),
     (dm.lab, "part", "shard"), (copies.calibrate, "false_positives", "fpr"), (tpr_interval, "rate", "fpr"),
     (calibrate_threshold, "rate", "fpr"), (compare_paired, "rate", "fpr"), (plan_audit, "rate", "fpr"),
     (tpr_at_fpr, "rate", "fpr"), (tail_tpr, "rate", "fpr"), (calibrate_sequential, "false_alarms", "fpr")],
)  # fmt: skip
def test_every_function_that_had_another_word_takes_it(function, old, new):
    """The name is translated before the function is called: what is missing besides it is all that is complained of."""
    assert new in inspect.signature(function).parameters and old not in inspect.signature(function).parameters
    with (
        pytest.warns(DeprecationWarning, match=f"{old} is called {new} now"),
        pytest.raises(TypeError, match="missing"),
    ):
        function(**{old: 1})
