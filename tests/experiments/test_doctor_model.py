"""doctor MODEL on every tiny family: what it says is what the model does."""

import json

import pytest
import torch

from diffmem.experiments.doctor.model import examine_model, sample_prompts
from diffmem.experiments.doctor.scores import sample_item
from diffmem.models.target import Target
from diffmem.report.matrix import WORKS, matrix
from diffmem.runs.timing import measure
from diffmem.scores import SCORES
from diffmem.scores.image import IMAGE_SCORES
from tests.tiny import tiny_ddpm, tiny_ldm, tiny_sd
from tests.tiny_families import FAMILIES

MAKERS = {
    "text-unet": tiny_sd,
    "zero-snr": lambda: tiny_sd("v_prediction", zero_snr=True),
    "pixel-unet": tiny_ddpm,
    "latent-unet": tiny_ldm,
    **FAMILIES,
}


@pytest.fixture(scope="module", params=MAKERS)
def examined(request):
    target = Target.from_pipeline(MAKERS[request.param]())
    return target, examine_model(target, budget=0)


def test_every_score_gets_an_answer_and_every_answer_a_reason(examined):
    target, exam = examined
    assert [s.score for s in exam.scores] == [*SCORES, *IMAGE_SCORES]
    for score in exam.scores:
        assert score.state in ("runs", "refuses"), score
        assert (score.state == "refuses") <= bool(score.reason)
        if score.state == "runs" and score.nfe:
            assert score.timing.seconds > 0
    json.dumps(exam.as_dict(), allow_nan=False)
    assert exam.sound, exam.check["message"]
    assert exam.facts["family"] == target.denoiser.family


def test_the_answers_are_those_of_the_matrix(examined):
    target, exam = examined
    label = target.denoiser.family + (" (distilled)" if target.denoiser.family == "flux" else "")
    expected = {row["score"]: row[label] == WORKS for row in matrix()}
    assert {s.score: s.state == "runs" for s in exam.scores if s.measures == "prompt"} == expected


def test_the_cost_of_an_image_is_estimated_where_the_budget_ends(examined):
    _, exam = examined
    assert exam.image.problem is None
    assert exam.image.timing.how.startswith("estimated")
    assert exam.image.timing.low is None


def test_the_times_are_those_of_the_schedule(examined):
    target, exam = examined
    low = exam.facts["t_lo"]
    assert low["sigma"] / low["alpha"] == pytest.approx(0.2, rel=0.1)
    assert exam.facts["t_hi"]["t"] == target.denoiser.schedule.sampling_times(50)[0]


def test_prompts_and_images_are_such_as_the_model_takes(examined):
    target, _ = examined
    prompts = sample_prompts(target.denoiser, 3)
    assert len(set(prompts)) == 3
    if target.denoiser.conditional:
        assert len(target.denoiser.encode_prompts(prompts)) == 3
    item = sample_item(target.denoiser)
    assert tuple(item.x0.shape) == target.denoiser.sample_shape


def test_with_a_budget_images_are_really_made_and_counted(monkeypatch):
    monkeypatch.setattr("diffmem.experiments.doctor.model.examine_scores", lambda *_: [])
    target = Target.from_pipeline(tiny_sd())
    calls = []
    target.pipeline.unet.register_forward_hook(lambda *_: calls.append(1))
    exam = examine_model(target, budget=60)
    assert exam.image.timing.how == "one image of 50 steps"
    assert exam.image.timing.runs == 3
    assert exam.image.timing.low <= exam.image.timing.seconds <= exam.image.timing.high
    assert len(calls) >= 4 * 50, "four images of 50 steps"


def test_a_broken_view_is_said():
    target = Target.from_pipeline(tiny_sd())
    honest = target.denoiser.forward
    target.denoiser.forward = lambda x, t, cond: 1.01 * honest(x, t, cond)
    exam = examine_model(target, budget=0)
    assert not exam.sound
    assert "does NOT see" in exam.check["message"]


def test_a_network_of_nan_fails_with_the_reason():
    pipe = tiny_sd()
    with torch.no_grad():
        pipe.unet.conv_out.bias.fill_(float("nan"))
    by = {s.score: s for s in examine_model(Target.from_pipeline(pipe), budget=0).scores}
    assert by["score-difference"].state == "fails"
    assert "NaN" in by["score-difference"].reason
    assert by["text-uppercase"].state == "runs"


def test_a_model_that_only_generates_has_facts_and_no_scores():
    exam = examine_model(Target.from_callable(generate=lambda prompts, seeds: [], name="service"))
    assert exam.facts["family"] is None
    assert exam.scores == ()
    assert exam.check["passed"] is None


def test_advice_for_a_known_model():
    exam = examine_model(Target.from_pipeline(tiny_sd()), "sd2.1", budget=0)
    assert exam.known.alias == "sd2.1"
    assert any("expected v" in text for text in exam.advice), "its prediction is not that of the known model"
    assert any("--guidance 7.5 --steps 50" in text for text in exam.advice)


def test_measure_leaves_the_warm_up_out_and_keeps_to_the_budget():
    calls = []
    assert measure(lambda: calls.append(1), 2, "x", runs=3).runs == 3
    assert len(calls) == 4
    assert measure(lambda: calls.append(1), 1, "x", runs=3, budget=0).runs == 1
