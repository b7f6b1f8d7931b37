"""The closed forms against automatic differentiation, brute force and each other."""

import itertools
import math

import pytest
import torch

from diffmem.models.ode import ode_step, sample
from diffmem.models.schedule import DiscreteSchedule, FlowSchedule
from diffmem.testbeds.closed_form import empirical_bayes, gaussian_mixture


def mixture(prediction="epsilon", schedule=None, seed=0, d=4, n=3):
    g = torch.Generator().manual_seed(seed)
    means = torch.randn(n, 1, 2, d // 2, generator=g, dtype=torch.float64)
    a = torch.randn(n, d, d, generator=g, dtype=torch.float64)
    covariances = 0.05 * a @ a.transpose(1, 2) + 0.01 * torch.eye(d, dtype=torch.float64)
    weights = torch.rand(n, generator=g, dtype=torch.float64) + 0.1
    return (
        gaussian_mixture(
            means, covariances, weights, captions=[f"c{i}" for i in range(n)], prediction=prediction, schedule=schedule
        ),
        covariances,
        weights,
    )


def test_density_equals_torch_distributions():
    model, covariances, weights = mixture()
    t = 300.0
    alpha, sigma = model.schedule.at(t)
    x = torch.randn(5, 1, 2, 2, dtype=torch.float64)
    parts = torch.distributions.MultivariateNormal(
        alpha * model.means, alpha**2 * covariances + sigma**2 * torch.eye(4, dtype=torch.float64)
    )
    expected = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(weights), parts).log_prob(
        x.reshape(5, 4)
    )
    torch.testing.assert_close(model.log_density(x, t), expected)


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v", "score"])
def test_prediction_is_the_gradient_of_the_density(prediction):
    model, _, _ = mixture(prediction)
    x = torch.randn(5, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    for cond in (model.null(), model.encode_prompts(["c1"])):
        (score,) = torch.autograd.grad(model.log_density(x, 400.0, cond).sum(), x)
        torch.testing.assert_close(model.predict(x.detach(), 400.0, cond, "score"), score)


def test_jacobian_of_the_score():
    model, _, _ = mixture()
    x = torch.randn(1, 1, 2, 2, dtype=torch.float64)
    expected = torch.autograd.functional.hessian(lambda v: model.log_density(v, 250.0).sum(), x).reshape(4, 4)
    torch.testing.assert_close(model.score_jacobian(x, 250.0)[0], expected)


def test_a_prompt_selects_its_component():
    model, covariances, _ = mixture()
    x = torch.randn(2, 1, 2, 2, dtype=torch.float64)
    alone = gaussian_mixture(model.means[2].reshape(1, 1, 2, 2), covariances[2:3])
    torch.testing.assert_close(
        model.predict(x, 100.0, model.encode_prompts(["c2"])), alone.predict(x, 100.0, alone.null())
    )
    torch.testing.assert_close(
        model.predict(x, 100.0, model.encode_prompts(["unknown"])), model.predict(x, 100.0, model.null())
    )


@pytest.mark.parametrize(
    ("prediction", "schedule"), [("epsilon", None), ("v", None), ("flow", FlowSchedule()), ("x0", FlowSchedule())]
)
def test_empirical_bayes_generates_its_images_and_nothing_else(prediction, schedule):
    images = torch.randn(6, 1, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    model = empirical_bayes(images, captions=list("abcdef"), prediction=prediction, schedule=schedule)
    noise = torch.randn(16, 1, 3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    made = sample(model, noise, model.null(), steps=100)
    distances = torch.cdist(made.reshape(16, -1), images.reshape(6, -1))
    assert distances.min(1).values.max() < 0.02
    assert len(distances.argmin(1).unique()) > 2
    prompted = sample(model, noise, model.encode_prompts(["d"]), steps=20)
    assert (prompted - images[3]).abs().max() < 1e-3


def test_all_parameterisations_are_the_same_model():
    x = torch.randn(3, 1, 2, 2, dtype=torch.float64)
    made = [sample(mixture(p)[0], x, mixture(p)[0].null(), steps=20) for p in ("epsilon", "x0", "v")]
    torch.testing.assert_close(made[0], made[1])
    torch.testing.assert_close(made[0], made[2])


@pytest.mark.parametrize("schedule", [DiscreteSchedule.linear(), FlowSchedule()])
@pytest.mark.parametrize(("method", "order"), [("ddim", 1), ("heun", 2)])
def test_ode_there_and_back_at_the_methods_order(schedule, method, order):
    # One component: between several, a start may fall on either side and no order holds.
    model, _, _ = mixture("flow" if schedule.kind == "flow" else "epsilon", schedule, n=1)
    x = torch.randn(8, 1, 2, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def error(steps):
        low, high = schedule.time_at_ratio(0.3), schedule.time_at_ratio(5.0)
        ratios = torch.logspace(math.log10(0.3), math.log10(5.0), steps + 1).tolist()
        times = [schedule.time_at_ratio(r) for r in ratios]
        times[0], times[-1] = low, high
        y = x
        for a, b in itertools.pairwise(times):
            y = ode_step(model, y, a, b, model.null(), method=method)
        for a, b in itertools.pairwise(times[::-1]):
            y = ode_step(model, y, a, b, model.null(), method=method)
        return float((y - x).norm())

    coarse, fine = (error(40), error(160)) if order == 1 else (error(10), error(40))
    assert fine < coarse / 4**order * 1.6
    assert fine < 0.2
