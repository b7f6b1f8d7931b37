"""Schedules follow the scheduler's own config."""

import pytest
import torch
from tests.tiny import tiny_ddpm, tiny_sd

from diffmem.errors import UsageError
from diffmem.models.schedule import DiscreteSchedule, FlowSchedule
from diffmem.models.target import Target


def test_third_last_step_of_ddim_50_is_41_with_offset_and_40_without():
    assert Target.from_pipeline(tiny_sd()).denoiser.schedule.sampling_times(50)[-3] == 41
    assert Target.from_pipeline(tiny_ddpm(kind="ddim")).denoiser.schedule.sampling_times(50)[-3] == 40


def test_levels_equal_the_schedulers_alphas():
    pipe = tiny_sd()
    schedule = Target.from_pipeline(pipe).denoiser.schedule
    t = torch.tensor([0, 41, 500, 999])
    alpha, sigma = schedule.alpha_sigma(t)
    torch.testing.assert_close(alpha**2, pipe.scheduler.alphas_cumprod[t].double())
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(4, dtype=torch.float64))


def test_zero_terminal_snr_has_alpha_zero_at_the_first_step():
    schedule = Target.from_pipeline(tiny_sd("v_prediction", zero_snr=True)).denoiser.schedule
    first = schedule.sampling_times(50)[0]
    assert schedule.at(first) == (0.0, 1.0)


def test_prediction_comes_from_the_config():
    for declared, expected in (("epsilon", "epsilon"), ("v_prediction", "v"), ("sample", "x0")):
        assert Target.from_pipeline(tiny_sd(declared)).denoiser.prediction == expected
        assert Target.from_pipeline(tiny_ddpm(declared)).denoiser.prediction == expected


@pytest.mark.parametrize("schedule", [DiscreteSchedule.linear(), FlowSchedule()])
@pytest.mark.parametrize("ratio", [0.1, 0.2, 1.0, 5.0])
def test_time_at_ratio(schedule, ratio):
    alpha, sigma = schedule.at(schedule.time_at_ratio(ratio))
    assert sigma / alpha == pytest.approx(ratio, rel=0.05)


def test_sampling_times_descend_and_start_at_the_noisy_end():
    for schedule in (DiscreteSchedule.linear(), FlowSchedule()):
        times = schedule.sampling_times(10)
        assert len(times) == 10
        assert times == sorted(times, reverse=True)
        assert times[0] == schedule.t_max


def test_times_outside_are_refused():
    with pytest.raises(UsageError, match="outside"):
        DiscreteSchedule.linear().at(1000)
    with pytest.raises(UsageError, match="does not fit"):
        DiscreteSchedule.linear().sampling_times(2000)
