"""Which noise levels a training draws: the stated densities, kept hashes of older plans, names in a lab's grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from tests.tiny import tiny_ddpm
from tests.training.test_training import plan_of

from diffmem.errors import UsageError
from diffmem.experiments.lab.factors import CHANGES, parse_treatment
from diffmem.models.schedule import FlowSchedule
from diffmem.models.target import Target
from diffmem.training.objective import KEPT_IN_ZONE, draw_time
from diffmem.training.plan import ChangesPlan


@pytest.fixture(scope="module")
def denoiser():
    return Target.from_pipeline(tiny_ddpm()).need_denoiser()


def drawn(denoiser, distribution, count=4000, **more):
    random = torch.Generator().manual_seed(1)
    return np.array([draw_time(denoiser, distribution, random, **more) for _ in range(count)])


def test_u_shaped_times_have_the_arcsine_density(denoiser):
    times = drawn(denoiser, "u-shaped")
    random = np.random.default_rng(0).random(len(times))  # whole times are steps of the share
    assert kstest((times + random) / 1000, "beta", (0.5, 0.5)).pvalue > 0.01
    assert kstest((drawn(denoiser, "uniform") + random) / 1000, "beta", (0.5, 0.5)).pvalue < 1e-6
    assert times.min() >= 0 and times.max() <= 999 and np.all(times == times.astype(int))


def test_one_of_ten_samples_of_the_zone_is_kept(denoiser):
    zone = (0.5, 2.0)

    def share_inside(times):
        alpha, sigma = denoiser.schedule.alpha_sigma(torch.from_numpy(times))
        ratio = (sigma / alpha).numpy()
        return np.mean((ratio >= zone[0]) & (ratio <= zone[1]))

    plain = share_inside(np.arange(1000.0))
    expected = plain * KEPT_IN_ZONE / (1 - plain + plain * KEPT_IN_ZONE)
    found = share_inside(drawn(denoiser, "outside-zone", zone=zone))
    assert 0 < plain < 0.9 and found == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / 4000))


def test_flows_draw_within_their_range():
    class Flow:
        schedule = FlowSchedule()

    for distribution in ("uniform", "logit-normal", "u-shaped", "outside-zone"):
        times = drawn(Flow(), distribution, 300)
        assert times.min() >= 0 and times.max() <= Flow.schedule.t_max


def test_older_plans_keep_their_hashes_and_newer_keys_are_told():
    assert not {"noise_levels", "zone"} & ChangesPlan().model_dump().keys()
    assert ChangesPlan(noise_levels="u-shaped").model_dump()["noise_levels"] == "u-shaped"
    told = ChangesPlan(noise_levels="outside-zone", zone=(0.1, 1.0)).model_dump()
    assert told["zone"] == (0.1, 1.0)
    with pytest.raises(UsageError, match="the smaller one first"):
        plan_of(changes={"noise_levels": "outside-zone", "zone": [2.0, 0.5]})


def test_a_lab_s_grid_knows_both_by_name():
    assert parse_treatment("train:u-shaped").training == {"noise_levels": "u-shaped"}
    assert parse_treatment("train:danger-zone + train:MC").training == CHANGES["danger-zone"] | CHANGES["MC"]
