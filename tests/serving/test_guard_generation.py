"""The guard that scores during generation: what the pipeline evaluates itself, when it stops, what it leaves behind."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from tests.tiny import network_of, tiny_sd
from tests.tiny_families import dit, flux, sdxl

import diffmem
from diffmem.errors import IncompatibleRun, UsageError
from diffmem.models.capture import capture
from diffmem.serving.decisions import GenerationRefused

PROMPTS = [f"{a} {b}" for a in ("sea", "hill", "wood", "lake") for b in ("red", "blue", "dark", "old", "wet", "big")]
STEPS = 4
FIRST = f"score-difference:steps={STEPS}"


def seeds(count, start=0):
    return [torch.Generator().manual_seed(start + i) for i in range(count)]


def shares(pipe, prompts, start=0, **more):
    settings = {"num_inference_steps": STEPS, "output_type": "np", "generator": seeds(len(prompts), start)} | more
    return pipe(prompts, **settings).images


def hooks(pipe):
    return len(network_of(pipe)._forward_hooks)


def between(calibration, values, rank):
    """The threshold with `rank` values at or above it."""
    ranked = sorted(values)
    value = (ranked[-rank] + ranked[-rank - 1]) / 2
    return calibration.threshold.model_copy(update={"value": value})


PROBE = 1
"""When it is made, and when our own code has changed the network, the guard looks at one evaluation of its own."""


class Evaluations:
    """Rows of network evaluations inside the block; a hook of others, so it goes in before the guard is made."""

    def __init__(self, pipe):
        self.network, self.rows = network_of(pipe), 0

    def __enter__(self):
        self.handle = self.network.register_forward_pre_hook(self.count)
        return self

    def count(self, module, args):
        self.rows += len(args[0])

    def __exit__(self, *_):
        self.handle.remove()


@pytest.fixture(scope="module")
def made():
    """A pipeline, its calibration on the first step, and the values of four prompts on their own noises."""
    pipe = tiny_sd()
    calibration = diffmem.guard.calibrate(pipe, PROMPTS, 0.2, regime="generation", score=FIRST)
    with diffmem.guard(pipe, threshold=calibration, action="log") as guard:
        shares(pipe, PROMPTS[:4])
    return pipe, calibration, [d.value for d in guard.decisions]


def test_the_score_is_that_of_the_pipelines_own_first_step(made):
    pipe, _, values = made
    denoiser = diffmem.Target.from_pipeline(pipe).denoiser
    with capture(denoiser) as calls:
        shares(pipe, PROMPTS[:4])
    unconditional, conditional = calls[0].output.chunk(2)
    expected = (conditional - unconditional).flatten(1).norm(dim=1)
    np.testing.assert_allclose(values, expected.numpy(), rtol=1e-6)


def test_over_several_steps_it_is_their_mean(made):
    pipe, _, _ = made
    calibration = diffmem.guard.calibrate(pipe, PROMPTS[:9], 0.2, regime="generation", steps=STEPS, guidance=3.0)
    assert calibration.threshold.score == "score-difference:over=steps,k=2,steps=4,guidance=3.0"
    denoiser = diffmem.Target.from_pipeline(pipe).denoiser
    with diffmem.guard(pipe, threshold=calibration, action="log") as guard, capture(denoiser) as calls:
        shares(pipe, PROMPTS[:3], guidance_scale=3.0)
    norms = [np.subtract(*call.output.chunk(2)).flatten(1).norm(dim=1).numpy() for call in calls[PROBE : PROBE + 2]]
    np.testing.assert_allclose([d.value for d in guard.decisions], np.mean(norms, 0), rtol=1e-6)


def test_a_batch_is_scored_as_its_images_alone(made):
    pipe, calibration, values = made
    with diffmem.guard(pipe, threshold=calibration, action="log") as guard:
        for i in range(4):
            shares(pipe, [PROMPTS[i]], i)
    np.testing.assert_allclose([d.value for d in guard.decisions], values, rtol=1e-5)


@pytest.mark.parametrize(
    ("more", "nfe"),
    [
        ({}, 0),
        ({"guidance_scale": 2.0}, 0),
        ({"negative_prompt": [""] * 3}, 0),
        ({"negative_prompt": ["old", "wet sea", "x"]}, 1),
        ({"negative_prompt": PROMPTS[:3]}, 1),
        ({"guidance_scale": 1.0}, 1),
        ({"num_images_per_prompt": 2, "generator": seeds(6)}, 0),
    ],
)
def test_what_passes_is_the_bare_pipelines_and_costs_only_what_it_does_not_evaluate_itself(made, more, nfe):
    pipe, calibration, values = made
    pristine = [g.get_state() for g in more.get("generator", [])]
    with Evaluations(pipe) as plain:
        bare = shares(pipe, PROMPTS[:3], **more)
    for generator, state in zip(more.get("generator", []), pristine, strict=True):
        generator.set_state(state)
    threshold = calibration.threshold.model_copy(update={"value": 1e9})
    cls = type(pipe)
    with Evaluations(pipe) as guarded, diffmem.guard(pipe, threshold=threshold, action="refuse") as guard:
        assert np.array_equal(shares(pipe, PROMPTS[:3], **more), bare)
    assert type(pipe) is cls and not hooks(pipe)
    assert [d.nfe for d in guard.decisions] == [nfe] * len(bare)
    assert guarded.rows == PROBE + plain.rows + nfe * len(bare)
    if "generator" not in more:
        # Neither the guidance nor a negative prompt (the prompt itself, which would hide it) lowers the score; what a
        # negative prompt itself scores counts, too.
        found = np.array([d.value for d in guard.decisions])
        assert (found >= np.array(values[:3]) * (1 - 1e-5)).all()
        if more.get("negative_prompt", PROMPTS[:3]) == PROMPTS[:3]:
            np.testing.assert_allclose(found, values[:3], rtol=1e-5)


def test_without_generators_the_noise_is_the_pipelines_own(made):
    pipe, calibration, values = made
    threshold = between(calibration, values, 1)
    torch.manual_seed(5)
    bare = shares(pipe, PROMPTS[:2], generator=None)
    torch.manual_seed(5)
    with diffmem.guard(pipe, threshold=threshold.model_copy(update={"value": 1e9}), action="refuse"):
        assert np.array_equal(shares(pipe, PROMPTS[:2], generator=None), bare)


def test_a_mixed_batch_is_stopped_at_the_first_step_and_the_others_are_made_again(made):
    pipe, calibration, values = made
    threshold, loud = between(calibration, values, 1), int(np.argmax(values))
    others = [i for i in range(4) if i != loud]
    generators = seeds(4)
    bare = shares(pipe, [PROMPTS[i] for i in others], generator=[generators[i] for i in others])
    with (
        Evaluations(pipe) as guarded,
        diffmem.guard(pipe, threshold=threshold, action="refuse", on_refuse="blank") as guard,
    ):
        images = shares(pipe, PROMPTS[:4])
    assert np.array_equal(images[others], bare) and not images[loud].any()
    assert [d.outcome for d in guard.decisions] == ["refused" if i == loud else "passed" for i in range(4)]
    assert [d.nfe for d in guard.decisions] == [2] * 4
    assert guarded.rows == PROBE + 4 * 2 + 3 * 2 * STEPS
    assert not hooks(pipe)


def test_a_stochastic_sampler_continues_from_the_same_random_numbers():
    from diffusers import DDPMScheduler

    pipe = tiny_sd()
    pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    calibration = diffmem.guard.calibrate(pipe, PROMPTS[:9], 0.2, regime="generation", score=FIRST)
    with diffmem.guard(pipe, threshold=calibration, action="log") as guard:
        bare = shares(pipe, PROMPTS[:2])
    values = [d.value for d in guard.decisions]
    kept, threshold = int(np.argmin(values)), between(calibration, values, 1)
    with diffmem.guard(pipe, threshold=threshold, action="refuse", on_refuse="blank"):
        images = shares(pipe, PROMPTS[:2])
    np.testing.assert_allclose(images[kept], bare[kept], atol=1e-5)


def test_over_several_steps_a_mixed_batch_goes_on_and_a_flagged_one_stops(made):
    pipe, _, _ = made
    calibration = diffmem.guard.calibrate(pipe, PROMPTS[:9], 0.2, regime="generation", steps=STEPS)
    with diffmem.guard(pipe, threshold=calibration, action="log") as guard:
        bare = shares(pipe, PROMPTS[:3])
    values = [d.value for d in guard.decisions]
    threshold, loud = between(calibration, values, 1), int(np.argmax(values))
    with (
        Evaluations(pipe) as guarded,
        diffmem.guard(pipe, threshold=threshold, action="refuse", on_refuse="blank") as guard,
    ):
        images = shares(pipe, PROMPTS[:3])
        mixed = guarded.rows
        shares(pipe, [PROMPTS[loud]], loud)
    others = [i for i in range(3) if i != loud]
    assert np.array_equal(images[others], bare[others]) and not images[loud].any()
    assert [d.nfe for d in guard.decisions] == [0, 0, 0, 4]
    assert (mixed, guarded.rows - mixed) == (PROBE + 3 * 2 * STEPS, 4)


def test_refusal_stops_the_call_and_leaves_nothing_behind(made):
    pipe, calibration, values = made
    cls, bare = type(pipe), shares(pipe, PROMPTS[:2])
    with (
        Evaluations(pipe) as counted,
        pytest.raises(GenerationRefused, match="2 of 2"),
        diffmem.guard(
            pipe, threshold=calibration.threshold.model_copy(update={"value": min(values) / 2}), action="refuse"
        ),
    ):
        shares(pipe, PROMPTS[:2])
    assert counted.rows == PROBE + 4  # both branches of the first step
    assert type(pipe) is cls and not hooks(pipe)
    assert np.array_equal(shares(pipe, PROMPTS[:2]), bare)


def test_a_mitigated_image_is_scored_at_its_own_first_step(made):
    pipe, calibration, values = made
    threshold, loud = between(calibration, values, 1), int(np.argmax(values))
    with diffmem.guard(pipe, threshold=threshold, mitigation="wen:steps=20,pull=0.05", on_refuse="blank") as guard:
        shares(pipe, PROMPTS[:4])
    decision = guard.decisions[loud]
    assert decision.attempts[-1].action == "mitigate"
    assert (decision.outcome == "mitigated") == (decision.attempts[-1].value < guard.detector.value)
    with diffmem.guard(
        pipe, threshold=threshold, mitigation="embedding-noise:strength=0", on_refuse="blank"
    ) as useless:  # fmt: skip
        shares(pipe, PROMPTS[:4])
    attempt = useless.decisions[loud].attempts[-1]
    assert attempt.why == "still above the threshold" and attempt.value == pytest.approx(max(values), rel=1e-5)
    assert useless.decisions[loud].nfe == 4  # the first step, twice


def test_calls_in_another_setting_are_refused(made):
    pipe, calibration, _ = made
    threshold = calibration.threshold.model_copy(update={"value": 1e9})
    with diffmem.guard(pipe, threshold=threshold, action="refuse") as guard:
        with pytest.raises(IncompatibleRun, match=r"times of the first steps: threshold \[751\], here \[501\]"):
            shares(pipe, PROMPTS[:1], num_inference_steps=2)
        with pytest.raises(IncompatibleRun, match=r"shape of the samples: threshold \[4, 8, 8\], here \[4, 8, 16\]"):
            shares(pipe, PROMPTS[:1], height=16, width=32)
        shares(pipe, PROMPTS[:1])
    assert [d.outcome for d in guard.decisions] == ["refused", "refused", "passed"]
    assert not hooks(pipe)
    along = diffmem.guard.calibrate(pipe, PROMPTS[:9], 0.2, regime="generation", steps=STEPS, guidance=2.0)
    with (
        diffmem.guard(pipe, threshold=along, action="refuse"),
        pytest.raises(IncompatibleRun, match=r"guidance: threshold 2, here 7\.5"),
    ):
        shares(pipe, PROMPTS[:1])


def test_thresholds_of_the_other_regime_are_refused(made):
    pipe, calibration, _ = made
    before = diffmem.guard.calibrate(pipe, PROMPTS, 0.2, draws=1)
    assert diffmem.guard(pipe, threshold=calibration).regime == "generation"
    assert diffmem.guard(pipe, threshold=before).regime == "before"
    with pytest.raises(IncompatibleRun, match="regime 'before', not for 'generation'"):
        diffmem.guard(pipe, threshold=before, regime="generation")
    with pytest.raises(IncompatibleRun, match="regime 'generation', not for 'before'"):
        diffmem.guard(pipe, threshold=calibration, regime="before")
    from diffmem.data.prompts import load_prompts
    from diffmem.stages.score.screen import screen

    with pytest.raises(IncompatibleRun, match='noise regime: threshold "the generation\'s own"'):
        screen(diffmem.Target.from_pipeline(pipe), load_prompts(PROMPTS[:2]), calibration)


def test_scores_that_a_generation_does_not_evaluate_are_refused(made):
    pipe, _, _ = made
    for arguments, message in (
        ({"score": "score-difference:over=ratio"}, "another time than the sampler's first"),
        ({"score": "text-uppercase"}, "image by image"),
        ({"score": FIRST, "steps": 50}, "steps = 4, but steps = 50 was given"),
        ({"draws": 2}, "one noise"),
    ):
        with pytest.raises(UsageError, match=message):
            diffmem.guard.calibrate(pipe, PROMPTS, 0.2, regime="generation", **arguments)
    with pytest.raises(UsageError, match="play a part"):
        diffmem.guard.calibrate(pipe, PROMPTS, 0.2, steps=4)
    with pytest.raises(UsageError, match="no regime"):
        diffmem.guard.calibrate(pipe, PROMPTS, 0.2, regime="after")


def test_threads_take_turns_and_get_their_own_images(made):
    pipe, calibration, values = made
    bare = [shares(pipe, [PROMPTS[0]], seed) for seed in range(4)]
    found = {}
    threshold = calibration.threshold.model_copy(update={"value": 1e9})
    with diffmem.guard(pipe, threshold=threshold, action="refuse") as guard:

        def work(seed):
            found[seed] = shares(pipe, [PROMPTS[0]], seed)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(np.array_equal(found[seed], bare[seed]) for seed in range(4))
    assert [d.nfe for d in guard.decisions] == [0] * 4
    assert values[0] in [pytest.approx(d.value, rel=1e-5) for d in guard.decisions]


@pytest.mark.parametrize(("build", "nfe"), [(sdxl, 0), (dit, 0), (lambda: flux(False), 1)])
def test_other_families(build, nfe):
    pipe = build()
    pipe.set_progress_bar_config(disable=True)
    denoiser = diffmem.Target.from_pipeline(pipe).denoiser
    prompts = PROMPTS[:9] if denoiser.family != "dit" else [str(i % 3) for i in range(9)]
    found = diffmem.guard.calibrate(pipe, prompts, 0.2, regime="generation", score=FIRST).threshold
    arguments = {**denoiser.generation_arguments(prompts[:2]), "num_inference_steps": STEPS, "output_type": "np"}
    bare = pipe(**arguments, generator=seeds(2)).images
    threshold = found.model_copy(update={"value": 1e9})
    with diffmem.guard(pipe, threshold=threshold, action="refuse") as guard:
        assert np.array_equal(pipe(**arguments, generator=seeds(2)).images, bare)
    assert [d.nfe for d in guard.decisions] == [nfe] * 2


def test_a_mixed_batch_whose_noise_cannot_be_set_goes_on():
    pipe = dit()
    pipe.set_progress_bar_config(disable=True)
    calibration = diffmem.guard.calibrate(pipe, [str(i % 3) for i in range(9)], 0.2, regime="generation", score=FIRST)
    arguments = {"class_labels": [0, 1], "num_inference_steps": STEPS, "output_type": "np"}
    with diffmem.guard(pipe, threshold=calibration, action="log") as guard:
        bare = pipe(**arguments, generator=torch.Generator().manual_seed(0)).images
    values = [d.value for d in guard.decisions]
    with diffmem.guard(
        pipe, threshold=between(calibration, values, 1), action="refuse", on_refuse="blank"
    ) as guard:  # fmt: skip
        images = pipe(**arguments, generator=torch.Generator().manual_seed(0)).images
    kept = int(np.argmin(values))
    assert np.array_equal(images[kept], bare[kept]) and not images[1 - kept].any()
    assert [d.nfe for d in guard.decisions] == [0, 0]
