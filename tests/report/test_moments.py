"""What the page of methods says about norms and noise levels is what schedules and conversions do."""

import pytest
import torch

from diffmem.models.parameterization import convert
from diffmem.report.moments import moments, moments_markdown


def test_each_kind_of_schedule_has_its_moments():
    rows = {row["schedule"]: row for row in moments()}
    zero = [row for row in rows.values() if row["alpha at t_hi"] == 0]
    assert len(zero) == 2
    assert all(row["sigma/alpha at t_hi"] is None for row in zero)
    assert all(row["sigma/alpha at t_lo"] == pytest.approx(0.2, abs=0.01) for row in rows.values())
    assert [row["t_lo"] for name, row in rows.items() if "flow" in name] == [166.7, 166.7]
    text = moments_markdown()
    assert text.count("infinite") == 2
    assert all(name in text for name in rows)


@pytest.mark.parametrize(("source", "alpha", "sigma"), [("v", 0.6, 0.8), ("flow", 0.3, 0.7), ("v", 0.0, 1.0)])
def test_differences_of_v_and_of_the_velocity_are_those_of_epsilon_over_alpha(source, alpha, sigma):
    x, first, second = torch.randn(3, 1, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a, s = (torch.tensor([value], dtype=torch.float64) for value in (alpha, sigma))
    eps = convert(first, x, a, s, source, "epsilon") - convert(second, x, a, s, source, "epsilon")
    torch.testing.assert_close(eps, alpha * (first - second))
