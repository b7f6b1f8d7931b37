"""Conversions: round trips where they exist, clear errors where they do not."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffmem.errors import UndefinedConversion
from diffmem.models.parameterization import convert

KINDS_VP = ["epsilon", "x0", "v", "score"]
KINDS_FLOW = ["epsilon", "x0", "flow", "score"]


def scene(angle, flow):
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64).unbind(0)
    x0, eps = x0[None], eps[None]
    alpha, sigma = (1 - angle, angle) if flow else (math.cos(angle * math.pi / 2), math.sin(angle * math.pi / 2))
    truth = {"epsilon": eps, "x0": x0, "v": alpha * eps - sigma * x0, "flow": eps - x0, "score": -eps / sigma}
    x = alpha * x0 + sigma * eps
    return x, torch.tensor([alpha], dtype=torch.float64), torch.tensor([sigma], dtype=torch.float64), truth


@given(angle=st.floats(0.02, 0.98), flow=st.booleans(), pair=st.tuples(st.integers(0, 3), st.integers(0, 3)))
def test_every_conversion_recovers_the_truth(angle, flow, pair):
    x, alpha, sigma, truth = scene(angle, flow)
    kinds = KINDS_FLOW if flow else KINDS_VP
    source, to = kinds[pair[0]], kinds[pair[1]]
    torch.testing.assert_close(convert(truth[source], x, alpha, sigma, source, to), truth[to], rtol=1e-7, atol=1e-7)


@given(angle=st.floats(0.02, 0.98))
def test_differences_of_all_parameterisations_are_proportional(angle):
    x, alpha, sigma, truth = scene(angle, flow=False)
    other = truth["v"] + torch.randn(truth["v"].shape, dtype=torch.float64)

    def to(kind):
        return convert(other, x, alpha, sigma, "v", kind) - convert(truth["v"], x, alpha, sigma, "v", kind)

    dv = to("v")
    torch.testing.assert_close(to("epsilon"), alpha * dv)
    torch.testing.assert_close(to("x0"), -sigma * dv)
    torch.testing.assert_close(to("score"), -alpha / sigma * dv)


@pytest.mark.parametrize(
    ("source", "to", "alpha"),
    [
        ("epsilon", "x0", 0.0),
        ("score", "x0", 0.0),
        ("x0", "epsilon", 1.0),
        ("epsilon", "score", 1.0),
        ("epsilon", "v", 0.0),
    ],
)
def test_conversions_that_do_not_exist_raise(source, to, alpha):
    x = torch.ones(1, 1, 2, 2)
    levels = torch.tensor([alpha]), torch.tensor([math.sqrt(1 - alpha**2)])
    with pytest.raises(UndefinedConversion, match="divides by"):
        convert(x, x, *levels, source, to)


def test_v_and_flow_have_epsilon_and_x0_at_both_ends():
    x = torch.ones(1, 1, 2, 2)
    for source in ("v", "flow"):
        for alpha, sigma in ((0.0, 1.0), (1.0, 0.0)):
            for to in ("epsilon", "x0"):
                result = convert(2 * x, x, torch.tensor([alpha]), torch.tensor([sigma]), source, to)
                assert torch.isfinite(result).all()
