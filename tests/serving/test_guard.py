"""The guard in front of a pipeline: what passes is untouched, what is flagged goes up the ladder, nothing is left behind."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from tests.tiny import tiny_ddpm, tiny_sd

import diffmem
from diffmem.copies.calibration import calibrate as calibrate_copies
from diffmem.copies.descriptors import make_descriptor
from diffmem.copies.index import CopyIndex
from diffmem.errors import IncompatibleRun, UsageError
from diffmem.serving.decisions import GenerationRefused, prompt_sha

PROMPTS = [f"{a} {b}" for a in ("sea", "hill", "wood", "lake") for b in ("red", "blue", "dark", "old", "wet", "big")]


def shares(pipe, prompts, seed=0, **more):
    generators = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
    return pipe(prompts, num_inference_steps=2, generator=generators, output_type="np", **more)


@pytest.fixture(scope="module")
def made():
    """A pipeline, and a threshold that lies between the calm and the loud prompt (whichever way round they are)."""
    pipe = tiny_sd()
    calibration = diffmem.guard.calibrate(pipe, PROMPTS, 0.2, draws=1)
    with diffmem.guard(pipe, threshold=calibration, action="log") as seen:
        shares(pipe, PROMPTS)
    values = {prompt: decision.value for prompt, decision in zip(PROMPTS, seen.decisions, strict=True)}
    ranked = sorted(values, key=values.__getitem__)
    middle = (values[ranked[-1]] + values[ranked[-2]]) / 2
    threshold = calibration.threshold.model_copy(update={"value": middle})
    return pipe, calibration, threshold, ranked[0], ranked[-1]


def test_what_passes_is_what_the_bare_pipeline_gives(made):
    pipe, _, threshold, calm, _ = made
    bare = shares(pipe, [calm, calm], 5).images
    cls = type(pipe)
    with diffmem.guard(pipe, threshold=threshold, action="refuse") as guard:
        guarded = shares(pipe, [calm, calm], 5).images
    assert np.array_equal(bare, guarded)
    assert type(pipe) is cls
    assert [d.outcome for d in guard.decisions] == ["passed", "passed"]
    assert guard.decisions[0].prompt_sha == prompt_sha(calm)


def test_a_passing_prompt_costs_its_draws_and_the_same_prompt_again_nothing(made):
    pipe, _, threshold, calm, _ = made
    with diffmem.guard(pipe, threshold=threshold, action="refuse") as guard:
        for _ in range(3):
            shares(pipe, [calm])
    # One draw: one conditional evaluation, and once in the guard's life the unconditional one.
    assert [d.nfe for d in guard.decisions] == [2, 0, 0]


def test_refusing_raises_or_gives_a_blank_image_and_leaves_the_others_alone(made):
    pipe, _, threshold, calm, loud = made
    bare = shares(pipe, [calm, loud, calm], 3).images
    with diffmem.guard(pipe, threshold=threshold, action="refuse"), pytest.raises(GenerationRefused, match="1 of 3"):
        shares(pipe, [calm, loud, calm], 3)
    with diffmem.guard(pipe, threshold=threshold, action="refuse", on_refuse="blank") as guard:
        images = shares(pipe, [calm, loud, calm], 3).images
    np.testing.assert_allclose(images[[0, 2]], bare[[0, 2]], atol=1e-5)
    assert not images[1].any()
    assert [d.outcome for d in guard.decisions] == ["passed", "refused", "passed"]
    with pytest.raises(GenerationRefused), diffmem.guard(pipe, threshold=threshold, action="refuse"):
        shares(pipe, [loud])
    assert np.array_equal(shares(pipe, [calm, loud, calm], 3).images, bare)


def test_mitigation_is_scored_again_and_escalates(made):
    pipe, _, threshold, calm, loud = made
    with diffmem.guard(
        pipe, threshold=threshold, action="mitigate", mitigation="wen:steps=20,pull=0.2", on_refuse="blank"
    ) as guard:
        shares(pipe, [calm, loud])
    first, second = guard.decisions
    assert first.outcome == "passed"
    attempt = second.attempts[-1]
    assert attempt.action == "mitigate" and attempt.value is not None
    assert (second.outcome == "mitigated") == (attempt.value < guard.detector.value) == attempt.accepted
    assert second.nfe > first.nfe


def test_a_mitigation_that_does_nothing_is_refused_in_the_end(made):
    pipe, _, threshold, _, loud = made
    with diffmem.guard(
        pipe, threshold=threshold, mitigation="embedding-noise:strength=0", on_refuse="raise"
    ) as guard, pytest.raises(GenerationRefused):  # fmt: skip
        shares(pipe, [loud])
    assert guard.decisions[0].attempts[-1].why == "still above the threshold"


def test_logging_changes_nothing_and_writes_json(made, caplog):
    pipe, _, threshold, calm, loud = made
    bare = shares(pipe, [calm, loud], 9).images
    heard = []
    with (
        caplog.at_level("INFO", "diffmem.guard"),
        diffmem.guard(pipe, threshold=threshold, action="log", on_decision=heard.append),
    ):
        assert np.array_equal(shares(pipe, [calm, loud], 9).images, bare)
    rows = [json.loads(record.message) for record in caplog.records if record.name == "diffmem.guard"]
    assert [row["outcome"] for row in rows] == ["passed", "logged"]
    assert [row["flagged"] for row in rows] == [False, True]
    assert loud not in caplog.text
    assert len(heard) == 2


def test_images_that_match_the_training_set_are_reseeded_or_refused(made):
    pipe, _, threshold, calm, _ = made
    first = pipe([calm], num_inference_steps=2, generator=[torch.Generator().manual_seed(0)]).images[0]
    random = np.random.default_rng(0)
    training = [first, *(Image.fromarray(random.integers(0, 255, (16, 16, 3), np.uint8)) for _ in range(120))]
    index = CopyIndex.build(training, make_descriptor("l2-tiled"))
    copies = calibrate_copies(index, statistic="similarity")
    with diffmem.guard(
        pipe, threshold=threshold, action="reseed", index=index, copy_threshold=copies, on_refuse="blank"
    ) as guard:
        pipe([calm], num_inference_steps=2, generator=[torch.Generator().manual_seed(0)])
    (decision,) = guard.decisions
    assert decision.flagged and decision.attempts[0].train_id == index.ids[0]
    assert decision.attempts[1].action == "reseed"
    assert decision.outcome == ("reseeded" if decision.attempts[1].accepted else "refused")


def test_threads_take_turns_and_get_their_own_images(made):
    pipe, _, threshold, calm, _ = made
    bare = [shares(pipe, [calm], seed).images for seed in range(4)]
    found = {}
    with diffmem.guard(pipe, threshold=threshold, action="refuse") as guard:

        def work(seed):
            found[seed] = shares(pipe, [calm], seed).images

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(np.array_equal(found[seed], bare[seed]) for seed in range(4))
    assert len(guard.decisions) == 4


def test_a_threshold_for_something_else_is_refused(made, tmp_path):
    pipe, calibration, threshold, _, _ = made
    with pytest.raises(IncompatibleRun, match="model fingerprint"):
        diffmem.guard(tiny_sd(seed=1), threshold=threshold, action="refuse")
    with pytest.raises(IncompatibleRun, match="score version"):
        diffmem.guard(pipe, threshold=threshold.model_copy(update={"version": "0"}), action="refuse")
    with pytest.raises(IncompatibleRun, match="root seed 1"):
        diffmem.guard(pipe, threshold=threshold, action="refuse", seed=1)
    with pytest.raises(UsageError, match="give `index`"):
        diffmem.guard(pipe, threshold=threshold, action="reseed")
    with pytest.raises(UsageError, match="no action"):
        diffmem.guard(pipe, threshold=threshold, action="warn")
    too_few = diffmem.guard.calibrate(pipe, PROMPTS[:5], 0.01, draws=1)
    with pytest.raises(UsageError, match="at least 99"):
        diffmem.guard(pipe, threshold=too_few, action="refuse")
    file = tmp_path / "threshold.json"
    file.write_text(json.dumps(calibration.as_dict()))
    assert diffmem.guard(pipe, threshold=file, action="refuse").detector.value == calibration.threshold.value


def test_a_pipeline_that_fails_leaves_the_guard_in_order(made):
    pipe, _, threshold, calm, _ = made
    with diffmem.guard(pipe, threshold=threshold, action="refuse") as guard:

        def fails(*_):
            raise ValueError("the user's own callback")

        with pytest.raises(ValueError, match="own callback"):
            shares(pipe, [calm], callback_on_step_end=fails)
        shares(pipe, [calm])
        with pytest.raises(UsageError, match="a guard already"):
            diffmem.guard(pipe, threshold=threshold, action="refuse").__enter__()
    assert guard.decisions[-1].outcome == "passed"


def test_a_model_without_prompts_is_refused(made):
    _, _, threshold, _, _ = made
    with pytest.raises(diffmem.errors.DiffmemError):
        diffmem.guard(tiny_ddpm(), threshold=threshold, action="refuse")
