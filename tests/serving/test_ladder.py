"""Escalation with an index of the training set: mitigate, other noise, refusal; blank images; arguments cut by row."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tests.tiny import tiny_sd

import diffmem
from diffmem.copies.calibration import calibrate as calibrate_copies
from diffmem.copies.descriptors import make_descriptor
from diffmem.copies.index import CopyIndex
from diffmem.copies.match import match
from diffmem.serving.decisions import GenerationRefused
from diffmem.serving.rows import rows_of

PROMPTS = [f"{a} {b}" for a in ("sea", "hill", "wood", "lake") for b in ("red", "blue", "dark", "old", "wet", "big")]
STEPS = 2
MITIGATION = "random-tokens:count=4"
PROMPT = PROMPTS[0]


def one(pipe, **more):
    arguments = {"num_inference_steps": STEPS, "generator": [torch.Generator().manual_seed(0)]} | more
    return pipe([PROMPT], **arguments)


@pytest.fixture(scope="module")
def pipe():
    return tiny_sd()


@pytest.fixture(scope="module")
def thresholds(pipe):
    """Per regime a threshold that flags nothing."""
    made = {
        "before": diffmem.guard.calibrate(pipe, PROMPTS, 0.2, draws=1),
        "generation": diffmem.guard.calibrate(
            pipe, PROMPTS, 0.2, regime="generation", score=f"score-difference:steps={STEPS}"
        ),
    }
    return {name: found.threshold.model_copy(update={"value": 1e9}) for name, found in made.items()}


@pytest.fixture(scope="module")
def copied(pipe):
    """What the prompt becomes: bare, mitigated, and with other noise."""
    from diffmem.mitigation.base import Record
    from diffmem.mitigation.spec import parse_mitigation
    from diffmem.models.pipelines.calls import Call
    from diffmem.randomness import gaussian

    bare = one(pipe).images[0]
    target = diffmem.Target.from_pipeline(pipe)
    with parse_mitigation(MITIGATION).apply(target):
        mitigated = one(pipe).images[0]
    call = Call(pipe, target.denoiser, {"prompt": [PROMPT], "generator": [torch.Generator().manual_seed(0)]}, Record())
    noise = gaussian((4, 8, 8), 0, "guard", 3, *call.names()[0])
    return bare, mitigated, one(pipe, latents=noise[None]).images[0]


def index_of(images):
    random = np.random.default_rng(0)
    rest = [Image.fromarray(random.integers(0, 255, (16, 16, 3), np.uint8)) for _ in range(120)]
    index = CopyIndex.build([*images, *rest], make_descriptor("l2-tiled"))
    # Random networks give images that are all alike, so that only the same image counts as a copy.
    same = match(rest[:1], index)[0].oriented("similarity") - 1e-3
    return {"index": index, "copy_threshold": replace(calibrate_copies(index, statistic="similarity"), value=same)}


@pytest.mark.parametrize("regime", ["before", "generation"])
@pytest.mark.parametrize(("known", "outcome"), [(0, "passed"), (1, "mitigated"), (2, "reseeded"), (3, "refused")])
def test_it_goes_up_step_by_step_until_nothing_matches(pipe, thresholds, copied, regime, known, outcome, caplog):
    with (
        caplog.at_level("INFO", "diffmem.guard"),
        diffmem.guard(
            pipe, threshold=thresholds[regime], mitigation=MITIGATION, on_refuse="blank", **index_of(copied[:known])
        ) as guard,
    ):
        image = one(pipe).images[0]
    (decision,) = guard.decisions
    assert decision.outcome == outcome
    assert [a.action for a in decision.attempts] == ["generate", "mitigate", "reseed"][: min(known + 1, 3)]
    assert [a.accepted for a in decision.attempts] == [False] * (len(decision.attempts) - 1) + [outcome != "refused"]
    expected = [*copied, None][known]
    assert np.array_equal(image, np.zeros((16, 16, 3)) if expected is None else expected)
    assert json.loads(caplog.records[-1].message)["outcome"] == outcome
    # Beyond one generation: the score (once before, and again for the mitigated prompt), and every image made again.
    score = {"before": 2 + (known > 0), "generation": 0}[regime]
    assert decision.nfe == score + 2 * STEPS * (len(decision.attempts) - 1)


@pytest.mark.parametrize("regime", ["before", "generation"])
def test_a_blank_image_needs_no_generation(pipe, thresholds, regime):
    threshold, kind = thresholds[regime].model_copy(update={"value": 0.0}), type(one(pipe))
    with diffmem.guard(pipe, threshold=threshold, action="refuse", on_refuse="blank") as guard:
        output = one(pipe)
        assert isinstance(output, kind)
        assert output.images[0].size == (16, 16) and not np.asarray(output.images[0]).any()
        assert one(pipe, output_type="np").images.shape == (1, 16, 16, 3)
        assert one(pipe, output_type="pt").images.shape == (1, 3, 16, 16)
        assert one(pipe, output_type="latent").images.shape == (1, 4, 8, 8)
        images, flags = one(pipe, return_dict=False)
        assert images[0].size == (16, 16) and flags is None
    assert {d.outcome for d in guard.decisions} == {"refused"}
    with diffmem.guard(pipe, threshold=threshold, action="refuse"), pytest.raises(GenerationRefused):
        one(pipe)


def test_what_belongs_to_the_call_is_not_cut_by_rows():
    arguments = {"prompt": ["a", "b"], "original_size": (64, 32), "timesteps": [9, 1], "latents": torch.arange(2)}
    cut = rows_of(arguments, 2, [1])
    assert cut["prompt"] == ["b"] and cut["original_size"] == (64, 32) and cut["timesteps"] == [9, 1]
    assert cut["latents"].tolist() == [1]
