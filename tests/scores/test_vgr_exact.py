"""The volume growth rate against closed forms: Gaussians, isolated points, mixtures, duplicates."""

import itertools
import math

import pytest
import torch
from tests.scores.vgr_cases import SCHEDULES, VPSDE, compute, ends, gaussian_logs, normal, rotation

from diffmem.scores.image.vgr.flow import Flow
from diffmem.scores.image.vgr.grid import noise_grid
from diffmem.scores.image.vgr.paper import Euler
from diffmem.scores.spec import parse_image_score
from diffmem.testbeds.closed_form import empirical_bayes, gaussian_mixture


def gaussian(schedule, size=12, seed=0):
    """One Gaussian with eigenvalues from 1e-3 to 2, rotated; mean off the origin."""
    variances = torch.logspace(-3, math.log10(2), size, dtype=torch.float64)
    turn = rotation(size, seed)
    prediction = "flow" if schedule.kind == "flow" else "epsilon"
    covariance = (turn * variances) @ turn.T
    return (
        gaussian_mixture(0.3 * normal(1, size, seed=5), covariance[None], prediction=prediction, schedule=schedule),
        variances,
        turn,
    )


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_spectrum_of_a_rotated_gaussian(name):
    schedule = SCHEDULES[name]
    denoiser, variances, _ = gaussian(schedule)
    expected = gaussian_logs(variances, schedule).sort().values
    [result] = compute(parse_image_score("vgr-exact:steps=60"), denoiser, normal(1, 12))
    found = torch.tensor(result.components["spectrum"], dtype=torch.float64)
    # The first training timesteps of a discrete schedule are far apart: directions at their level pay for it.
    torch.testing.assert_close(found, expected, atol=3e-3 if name == "ddpm" else 3e-4, rtol=0)
    assert result.value == pytest.approx(float(expected.sum()), abs=1e-2)
    assert result.components["cap"] == pytest.approx(math.log(ends(schedule)[1][1] / ends(schedule)[0][1]))
    assert result.components["beyond_cap"] == 0


@pytest.mark.parametrize("solver", ["heun", "ddim"])
@pytest.mark.parametrize("steps", [3, 11])
@pytest.mark.parametrize("name", SCHEDULES)
def test_an_isolated_image_reaches_the_cap_for_any_number_of_steps(name, steps, solver):
    schedule = SCHEDULES[name]
    prediction = "flow" if schedule.kind == "flow" else "v"
    denoiser = empirical_bayes(normal(1, 9), prediction=prediction, schedule=schedule)
    cap = math.log(ends(schedule)[1][1] / ends(schedule)[0][1])
    for score, k in (("vgr-subspace:k=4,", 4), ("vgr-bottom:k=4,", 4), ("vgr-trace:probes=2,", 9)):
        score = parse_image_score(f"{score}steps={steps},solver={solver}")
        [result] = compute(score, denoiser, normal(1, 9))
        assert result.value == pytest.approx(k * cap, abs=1e-9)
        assert result.components["share_of_cap"] == pytest.approx(1)
        assert result.components["round_trip"] < 1e-9


def test_the_released_procedure_gives_its_known_number_for_an_isolated_image():
    denoiser = empirical_bayes(normal(1, 9), schedule=VPSDE())
    # Explicit Euler steps back and forth do not undo each other here; the row's limit is set aside for this.
    [result] = compute(parse_image_score("vgr-paper:k=5,limit=10"), denoiser, normal(1, 9))
    assert result.value / 5 == pytest.approx(4.633616, abs=1e-6)
    assert result.components["cap"] == pytest.approx(4.5577, abs=1e-4)
    assert result.nfe.forward == 7 * 1000


def mixture(schedule):
    size, count = 6, 3
    variances = 0.05 + 0.4 * normal(count, size, seed=1).abs()
    covariances = torch.stack([(rotation(size, i) * v) @ rotation(size, i).T for i, v in enumerate(variances)])
    return gaussian_mixture(normal(count, size, seed=9), covariances, torch.tensor([0.5, 0.3, 0.2]), schedule=schedule)


def test_the_log_likelihood_of_a_mixture():
    denoiser = mixture(VPSDE())
    x = denoiser.means[:2] + 0.3 * normal(2, 6, seed=3)
    [exact, _] = found = compute(parse_image_score("vgr-likelihood:volume=exact,steps=160"), denoiser, x)
    flow = Flow(denoiser, denoiser.null(), noise_grid(VPSDE(), 160))
    latents = flow.to_noise(x)
    change = denoiser.log_density(x, VPSDE.t_min) - denoiser.log_density(latents, VPSDE.t_max)
    for i, result in enumerate(found):
        assert result.components["log_volume"] == pytest.approx(float(change[i]), abs=1e-3)
        assert result.components["latent_norm2"] == pytest.approx(float(latents[i].square().sum()))
        # What is left is how far the latents' density is from N(0, I) at alpha_T = .0066.
        assert result.value == pytest.approx(float(denoiser.log_density(x, VPSDE.t_min)[i]), abs=0.02)
        assert result.value == result.components["log_likelihood"]
    volume = compute(parse_image_score("vgr-exact:steps=160"), denoiser, x)[0]
    assert exact.components["log_volume"] == pytest.approx(volume.value)
    assert volume.components["log_likelihood"] == pytest.approx(exact.value)
    # Enough probes determine the trace; with them the two volumes differ by quadrature only.
    many = compute(parse_image_score("vgr-likelihood:probes=500,steps=50"), denoiser, x)[0]
    assert many.value == pytest.approx(exact.value, abs=4 * many.error_bar + 5e-3)


def test_a_random_start_measures_the_volume_of_its_own_frame():
    from diffmem.scores.image.vgr.kernel import random_frames

    schedule = VPSDE()
    denoiser, variances, turn = gaussian(schedule, size=10)
    [result] = compute(parse_image_score("vgr-subspace:k=4"), denoiser, normal(1, 10), names=["a"])
    frame = random_frames(["a"], 4, (10,), seed=0)[:, 0].T
    jacobian = (turn * gaussian_logs(variances, schedule).exp()) @ turn.T
    expected = 0.5 * torch.logdet(frame.T @ jacobian.T @ jacobian @ frame)
    assert result.value == pytest.approx(float(expected), abs=1e-2)
    assert result.components["log_likelihood"] is None


def test_the_bias_of_a_random_start_is_that_of_a_random_projection():
    """m of d directions grow by the cap, the others hardly: E log VGR_k = k cap + (1/2) sum psi((m-j)/2) - psi((d-j)/2)."""
    size, fixed, k, count = 24, 18, 4, 400
    variances = torch.cat([torch.full((fixed,), 1e-12), torch.ones(size - fixed)]).double()
    denoiser = gaussian_mixture(
        torch.zeros(1, size), ((rotation(size) * variances) @ rotation(size).T)[None], schedule=VPSDE()
    )
    names = [f"n{i}" for i in range(count)]
    x = torch.zeros(count, size, dtype=torch.float64)
    found = compute(parse_image_score(f"vgr-subspace:k={k},steps=4,limit=1e9"), denoiser, x, names=names)
    j = torch.arange(k, dtype=torch.float64)
    bias = 0.5 * float((torch.digamma((fixed - j) / 2) - torch.digamma((size - j) / 2)).sum())
    values = torch.tensor([result.value for result in found]) - k * found[0].components["cap"]
    error = float(values.std()) / math.sqrt(count)
    assert bias < -0.5 and error < 0.03
    assert float(values.mean()) == pytest.approx(bias, abs=4 * error)


def test_the_least_growing_directions_of_a_gaussian():
    schedule = VPSDE()
    size = 10
    variances = torch.tensor([1e-5] * 8 + [0.5, 1.0], dtype=torch.float64)
    denoiser = gaussian_mixture(
        torch.zeros(1, size), ((rotation(size) * variances) @ rotation(size).T)[None], schedule=schedule
    )
    logs = gaussian_logs(variances, schedule).sort().values
    [result] = compute(parse_image_score("vgr-bottom:k=4,steps=50"), denoiser, normal(1, size))
    random = compute(parse_image_score("vgr-subspace:k=4"), denoiser, normal(1, size))[0]
    # It starts from random directions, so it sees a little more than the least growing ones, and far less than random ones.
    assert float(logs[:4].sum()) - 0.02 <= result.value < float(logs[:4].sum()) + 3
    assert random.value > result.value + 3
    [everything] = compute(parse_image_score("vgr-bottom:k=10,steps=50"), denoiser, normal(1, size))
    assert everything.value == pytest.approx(float(logs.sum()), abs=1e-2)
    assert everything.components["log_likelihood"] is not None


def test_duplicates_of_a_perfect_memorizer_change_the_likelihood_and_hardly_the_volume():
    images = normal(6, 30, seed=2)
    even, often = (
        empirical_bayes(images, weights=torch.tensor(w), schedule=VPSDE()) for w in ([1.0] * 6, [20.0] + [1.0] * 5)
    )
    score = parse_image_score("vgr-exact")
    [one], [many] = (compute(score, denoiser, images[:1]) for denoiser in (even, often))
    cap = 30 * one.components["cap"]
    assert 0.95 * cap < one.value <= cap + 1e-6
    raised = many.components["log_likelihood"] - one.components["log_likelihood"]
    assert raised == pytest.approx(math.log((20 / 25) / (1 / 6)), abs=0.05)
    assert abs(many.value - one.value) < 0.02 * cap


def test_heun_is_of_order_two_ddim_and_euler_of_order_one():
    denoiser, variances, _ = gaussian(VPSDE())
    exact = float(gaussian_logs(variances, VPSDE()).sum())

    def errors(text, counts):
        found = (compute(parse_image_score(f"{text}steps={n},limit=10"), denoiser, normal(1, 12))[0] for n in counts)
        return [abs(result.value - exact) for result in found]

    ddim = errors("vgr-exact:solver=ddim,", (12, 24))
    assert 0.8 < math.log2(ddim[0] / ddim[1]) < 1.2
    # Euler on an isolated image: each step grows by 1 + pull/sigma - drift.
    cap, euler = math.log(ends(VPSDE())[1][1] / ends(VPSDE())[0][1]), []
    for steps in (4000, 8000):
        nodes = Euler(denoiser, denoiser.null(), steps).nodes
        grown = sum(math.log(1 + n.pull / VPSDE().at(n.t)[1] - n.drift) for n in nodes)
        euler.append(abs(grown - cap))
    assert 0.7 < math.log2(euler[0] / euler[1]) < 1.1
    heun = errors("vgr-exact:", (12, 24, 48))
    assert all(math.log2(a / b) > 1.8 for a, b in itertools.pairwise(heun)), heun
