"""UNet pipelines whose scheduler goes straight from image to noise: schedule, times and samples are the scheduler's."""

import numpy as np
import pytest
import torch
from diffusers import (
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from tests.tiny import tiny_ddpm, tiny_sd

from diffmem.errors import ModelError, UsageError
from diffmem.models.families._schedulers import is_flow, prediction_of, schedule_of
from diffmem.models.generation import Sampling
from diffmem.models.ode import sample
from diffmem.models.target import Target
from diffmem.scores.prompt.score_difference import score_difference

SOLVERS = (DPMSolverMultistepScheduler, UniPCMultistepScheduler, DEISMultistepScheduler)


def flow_scheduler(cls=DPMSolverMultistepScheduler, **settings):
    return cls(**{"use_flow_sigmas": True, "prediction_type": "flow_prediction", "solver_order": 1} | settings)


def flow_sd(**settings):
    pipe = tiny_sd()
    pipe.scheduler = flow_scheduler(steps_offset=1, **settings)
    return pipe


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("cls", SOLVERS)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_solvers_on_flow_sigmas_give_a_flow_schedule_at_their_own_times(cls, shift):
    scheduler = flow_scheduler(cls, flow_shift=shift)
    schedule = schedule_of(scheduler)
    assert prediction_of(scheduler) == "flow"
    assert schedule.kind == "flow"
    for steps in (1, 7, 20, 50):
        scheduler.set_timesteps(steps)
        times = schedule.sampling_times(steps)
        assert times == [float(t) for t in scheduler.timesteps]
        for t, sigma in zip(times, scheduler.sigmas, strict=False):
            alpha, level = schedule.at(t)
            assert alpha + level == pytest.approx(1)
            # Times are fed rounded down to whole numbers of 1000.
            assert -1e-6 <= float(sigma) - level < 1e-3 + 1e-6
        assert times == sorted(times, reverse=True)


@pytest.mark.parametrize("cls", [FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler])
def test_flow_matching_classes_predict_the_velocity(cls):
    assert is_flow(cls())
    assert prediction_of(cls()) == "flow"
    schedule = schedule_of(cls())
    assert schedule.kind == "flow"
    assert schedule.at(schedule.sampling_times(10)[0]) == (0.0, 1.0)


def test_what_is_fed_along_a_trajectory_lies_where_the_schedule_says():
    """x = (1 - s) x0 + s eps: a network that knows x0 and eps makes the scheduler pass through exactly that x."""
    x0, eps = noise(1, 4, 8, 8), noise(1, 4, 8, 8).flip(-1)
    scheduler = flow_scheduler()
    scheduler.set_timesteps(10)
    schedule = schedule_of(scheduler)
    x = (1 - scheduler.sigmas[0]) * x0 + scheduler.sigmas[0] * eps
    for t in scheduler.timesteps:
        alpha, sigma = schedule.at(float(t))
        torch.testing.assert_close(x, alpha * x0 + sigma * eps, atol=1e-2, rtol=0)
        x = scheduler.step(eps - x0, t, x).prev_sample
    torch.testing.assert_close(x, x0, atol=1e-5, rtol=0)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_pipeline_takes_euler_steps_on_the_velocity(guidance):
    pipe = flow_sd()
    target = Target.from_pipeline(pipe)
    assert target.check().passed
    denoiser, x = target.denoiser, noise(2, 4, 8, 8)
    cond = denoiser.encode_prompts(["a", "b"])
    theirs = pipe(["a", "b"], latents=x, num_inference_steps=10, guidance_scale=guidance, output_type="latent").images
    pipe.scheduler.set_timesteps(10)
    y = x
    with torch.no_grad():
        for t, s, s_next in zip(
            pipe.scheduler.timesteps, pipe.scheduler.sigmas[:-1], pipe.scheduler.sigmas[1:], strict=True
        ):
            c, u = (denoiser.predict(y, float(t), k) for k in (cond, denoiser.null()))
            y = y + (s_next - s) * (u + guidance * (c - u))
        ours = sample(denoiser, x, cond, 10, guidance)
    torch.testing.assert_close(y, theirs, rtol=1e-4, atol=1e-4)
    # Ours reads s from the whole times that are fed, at most .001 from the solver's.
    assert float((ours - theirs).norm() / theirs.norm()) < 5e-3
    assert float((theirs - x).norm() / x.norm()) > 0.1


def test_second_order_solvers_come_to_the_same_end():
    x, images = noise(1, 4, 8, 8), []
    for order, steps in ((1, 200), (2, 40)):
        pipe = flow_sd(solver_order=order)
        images.append(pipe("a", latents=x, num_inference_steps=steps, guidance_scale=1.0, output_type="latent").images)
    assert float((images[0] - images[1]).norm() / images[0].norm()) < 0.02


def test_low_noise_lies_where_sigma_is_a_fifth_of_alpha():
    denoiser = Target.from_pipeline(flow_sd()).denoiser
    t = denoiser.schedule.time_at_ratio(0.2)
    assert t == pytest.approx(1000 / 6)
    alpha, sigma = denoiser.schedule.at(t)
    assert sigma / alpha == pytest.approx(0.2)


def test_norms_of_the_velocity_are_those_of_epsilon_over_alpha():
    """At one time the differences of all parameterisations are proportional, so they rank prompts alike."""
    denoiser = Target.from_pipeline(flow_sd()).denoiser
    x, t = noise(1, 4, 8, 8), 500.0
    cond = denoiser.encode_prompts(["a", "b", "c"])
    with torch.no_grad():
        u = denoiser.predict(x, t, denoiser.null())
        c = denoiser.predict(x.expand(3, -1, -1, -1), t, cond)
        own = score_difference(c, u.expand_as(c))
        eps = [denoiser.convert(part, x.expand(len(part), -1, -1, -1), t, "epsilon") for part in (c, u)]
    alpha, _ = denoiser.schedule.at(t)
    torch.testing.assert_close(score_difference(eps[0], eps[1].expand_as(c)), alpha * own, rtol=1e-4, atol=1e-6)


def test_an_unconditional_unet_can_be_a_flow_model_too():
    pipe = tiny_ddpm()
    pipe.scheduler = flow_scheduler()
    denoiser = Target.from_pipeline(pipe).denoiser
    assert denoiser.prediction == "flow"
    x = noise(2, *denoiser.sample_shape)
    with torch.no_grad():
        end = sample(denoiser, x, denoiser.null(), 5)
        u = denoiser.predict(x, denoiser.schedule.sampling_times(1)[0], denoiser.null())
        once = sample(denoiser, x, denoiser.null(), 1)
    assert end.shape == x.shape
    torch.testing.assert_close(once, x - 0.999 * u)


def test_mixes_without_meaning_are_refused():
    for settings in ({"prediction_type": "v_prediction"}, {"use_flow_sigmas": False}):
        with pytest.raises(ModelError, match="use_flow_sigmas"):
            prediction_of(flow_scheduler(**settings))
    assert prediction_of(flow_scheduler(prediction_type="epsilon")) == "epsilon"
    assert prediction_of(flow_scheduler(prediction_type="sample")) == "x0"


def test_only_samplers_that_know_flow_may_replace_the_pipelines_own():
    target = Target.from_pipeline(flow_sd())
    own, other = (target.generate(["a"], [0], 0, Sampling(steps=10, scheduler=s))[0] for s in (None, "unipc"))
    assert np.abs(np.asarray(own, float) - np.asarray(other, float)).mean() < 10
    with pytest.raises(UsageError, match=r"dpm\+\+, unipc"):
        target.generate(["a"], [0], 0, Sampling(steps=4, scheduler="euler"))
    target.pipeline.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(UsageError, match="leave it out"):
        target.generate(["a"], [0], 0, Sampling(steps=4, scheduler="dpm++"))
