"""What every registered score must keep to."""

import numpy as np
import pytest
from tests.tiny import tiny_ddpm, tiny_sd

from diffmem.evaluation.roc import auroc
from diffmem.models.target import Target
from diffmem.report.scores import per_prompt
from diffmem.scores import SCORES
from diffmem.scores.base import DenoiserScore, SetScore, TextScore
from diffmem.scores.spec import parse_score
from diffmem.stages.score.score import score
from diffmem.testbeds import digits

NETWORK = [n for n in SCORES if SCORES.get(n).about.access == "denoiser"]


@pytest.mark.parametrize("name", SCORES)
def test_it_says_what_a_reader_must_know(name):
    cls = SCORES.get(name)
    about = cls.about
    assert about.name == name
    for text in (about.summary, about.formula, about.reference, about.cost, about.fails_when):
        assert len(text) > 0
    assert about.access in ("prompts", "labels", "denoiser", "gradients", "training-set")
    assert issubclass(cls, DenoiserScore | TextScore | SetScore)
    assert parse_score(name).label == name
    for field, info in type(parse_score(name).parameters).model_fields.items():
        assert not info.is_required(), f"{field} needs a default"


SIGNED = [n for n in NETWORK if not SCORES.get(n).about.summary.startswith("experimental")]


@pytest.mark.parametrize("name", SIGNED)
def test_higher_means_more_memorized_on_a_trained_memorizer(name):
    # A trained network, on purpose: the sign of the alignment is a regularity of learned denoisers. For the exact
    # denoiser of a finite set it is negative at memorized prompts (see docs/design/findings.md).
    truth = digits.truth("text")
    plants = [row["caption"] for row in truth if row["label"] == "reproduced" and row["tier"] == "plant"][::3]
    others = [row["caption"] for row in truth if row["label"] == "not reproduced" and row["tier"] == "generic"][::9]
    result = score(Target.from_pretrained(digits.model_path("text")), plants + others, [name], draws=4)
    values = per_prompt(result.run.store)[name]
    numbers = np.array([values[p.id]["value"] for p in result.prompts])
    assert auroc(numbers[: len(plants)], numbers[len(plants) :]) > 0.9


@pytest.mark.parametrize("name", NETWORK)
def test_it_is_deterministic_and_leaves_the_model_as_it_was(name):
    target = Target.from_pipeline(tiny_sd())
    before = target.fingerprint
    prompts = [f"prompt {i}" for i in range(24)]
    one, two = (per_prompt(score(target, prompts, [name], draws=2).run.store) for _ in range(2))
    assert one == two
    assert Target.from_pipeline(target.pipeline).fingerprint == before
    assert not any(m._forward_hooks for m in target.pipeline.unet.modules())


@pytest.mark.parametrize("name", NETWORK)
def test_it_refuses_an_unconditional_model_with_the_reason(name):
    result = score(Target.from_pipeline(tiny_ddpm()), [f"p{i}" for i in range(24)], [name], draws=1)
    assert "takes no prompts" in result.refused[name]


@pytest.mark.parametrize("name", NETWORK)
def test_it_runs_on_v_prediction_with_zero_terminal_snr(name):
    target = Target.from_pipeline(tiny_sd("v_prediction", zero_snr=True))
    result = score(target, [f"prompt {i}" for i in range(24)], [name], draws=1)
    entries = per_prompt(result.run.store)[name]
    assert all(e["status"] == "ok" for e in entries.values())
    assert len({round(e["value"], 9) for e in entries.values()}) > 1
