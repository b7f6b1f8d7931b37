"""Membership scores against closed forms: what a perfect memorizer, a Gaussian and a broken network give."""

import math

import pytest
import torch

from diffmem.errors import ScoreRefused
from diffmem.models.families.callable import CallableDenoiser
from diffmem.models.schedule import FlowSchedule
from diffmem.scores.image import IMAGE_SCORES
from diffmem.scores.image.base import ImageItem
from diffmem.scores.image.membership.common import time_of
from diffmem.scores.image.membership.sima import decoder_pullback
from diffmem.scores.spec import parse_image_score
from diffmem.testbeds.closed_form import empirical_bayes, gaussian_mixture

NAMES = ("loss", "pia", "sima", "secmi")
SHAPE = (1, 4, 4)


def pictures(count, seed=0):
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def items_of(model, images, captions=None):
    captions = captions or [None] * len(images)
    return [
        ImageItem(f"i{k}", x, x, c, model.encode_prompts([c]) if c is not None else model.null())
        for k, (x, c) in enumerate(zip(images, captions, strict=True))
    ]


def measure(model, images, text, seed=0, **more):
    return parse_image_score(text).compute(model, items_of(model, images, **more), seed)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v", "flow"])
def test_a_perfect_memorizer_gives_its_members_away_in_every_parameterisation(name, prediction):
    members, others = pictures(12), pictures(12, seed=1)
    schedule = FlowSchedule() if prediction == "flow" else None
    model = empirical_bayes(members, prediction=prediction, schedule=schedule)
    if prediction == "flow" and name != "loss":
        # A finite set has no density at sigma = 0; a narrow mixture does.
        model = gaussian_mixture(members, torch.full((12, 16), 1e-4), prediction="flow", schedule=schedule)
    seen, unseen = (measure(model, x, name) for x in (members, others))
    assert min(r.evidence for r in seen) > max(r.evidence for r in unseen)
    assert all(r.value == -r.evidence >= 0 for r in seen + unseen)


def test_loss_of_a_gaussian_is_its_closed_form():
    variance, score = 0.3, parse_image_score("loss:draws=2000")
    model = gaussian_mixture(torch.zeros(1, *SHAPE), torch.full((1, 16), variance))
    x0 = pictures(1)
    (got,) = score.compute(model, items_of(model, x0), 0)
    alpha, sigma = model.schedule.at(100.0)
    total = alpha**2 * variance + sigma**2
    # eps_hat - eps = sigma (alpha x0 + sigma eps) / total - eps
    expected = (sigma * alpha / total) ** 2 * float(x0.square().mean()) + (sigma**2 / total - 1) ** 2
    assert got.value == pytest.approx(expected, abs=4 * got.error_bar)
    assert got.error_bar < 0.01 * expected
    assert got.nfe.total == 2000
    assert got.components["time"] == 100


def test_pia_of_a_gaussian_is_its_closed_form():
    model = gaussian_mixture(torch.zeros(1, *SHAPE), torch.full((1, 16), 0.3))
    x0 = pictures(1)
    (a0, s0), (a, s) = model.schedule.at(0.0), model.schedule.at(200.0)
    first = s0 * x0 / (a0**2 * 0.3 + s0**2)
    again = s * (a * x0 + s * first) / (a**2 * 0.3 + s**2)
    (got,) = measure(model, x0, "pia")
    assert got.value == pytest.approx(float((first - again).abs().pow(4).sum() ** 0.25), rel=1e-5)
    (scaled,) = measure(model, x0, "pia:normalised=true,order=2")
    first = first / first.abs().mean() * math.sqrt(2 / math.pi)
    again = s * (a * x0 + s * first) / (a**2 * 0.3 + s**2)
    assert scaled.value == pytest.approx(float((first - again).norm()), rel=1e-5)


def test_sima_of_a_gaussian_is_its_closed_form():
    model = gaussian_mixture(torch.zeros(1, *SHAPE), torch.full((1, 16), 0.3))
    x0 = pictures(1)
    a, s = model.schedule.at(100.0)
    (got,) = measure(model, x0, "sima:order=2")
    assert got.value == pytest.approx(float(s * x0.norm() / (a**2 * 0.3 + s**2)), rel=1e-5)
    assert (got.nfe.total, got.evidence) == (1, -got.value)
    with pytest.raises(ScoreRefused, match="works on pixels"):
        parse_image_score("sima:drop=.4").check(model)


def test_the_mask_of_sima_leaves_out_what_hardly_moves_the_decoded_picture():
    class Latent(type(gaussian_mixture(torch.zeros(1, *SHAPE), torch.ones(1, 16)))):
        space = "latent"
        gains = torch.arange(1.0, 17.0).reshape(SHAPE)

        def decode(self, x0):
            return x0 * self.gains

    model = Latent(torch.zeros(1, *SHAPE), torch.full((1, 16), 0.3))
    x0 = pictures(2)
    weight = decoder_pullback(model, x0, 3, 0)
    torch.testing.assert_close(weight, (Latent.gains**2).expand(2, *SHAPE))
    a, s = model.schedule.at(100.0)
    found = measure(model, x0, "sima:order=2,drop=.5")
    expected = s * x0.flatten(1)[:, 8:].norm(dim=1) / (a**2 * 0.3 + s**2)
    assert [r.value for r in found] == pytest.approx(expected.tolist(), rel=1e-5)


def test_secmi_is_the_square_error_of_one_step_there_and_back():
    model = gaussian_mixture(torch.zeros(1, *SHAPE), torch.full((1, 16), 0.3))
    score = parse_image_score("secmi")
    assert score.times(model) == [0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110]

    def step(x, now, after):
        (a, s), (b, r) = model.schedule.at(now), model.schedule.at(after)
        eps = s * x / (a**2 * 0.3 + s**2)
        return b * (x - s * eps) / a + r * eps

    x = pictures(1).double()
    for now in range(0, 100, 10):
        x = step(x, now, now + 10)
    expected = float((step(step(x, 100, 110), 110, 100) - x).square().mean())
    (got,) = measure(model, pictures(1), "secmi")
    assert got.value == pytest.approx(expected, rel=1e-4)
    assert got.nfe.total == 12 == score.estimate(model).total


@pytest.mark.parametrize("name", NAMES)
def test_batches_seeds_and_captions(name):
    members = pictures(5)
    captions = [f"c{i}" for i in range(5)]
    model = empirical_bayes(members, captions)
    score = parse_image_score(name)
    items = items_of(model, pictures(5, seed=2), captions)
    together = score.compute(model, items, 3)
    alone = [score.compute(model, [item], 3)[0] for item in items]
    assert [r.value for r in together] == pytest.approx([r.value for r in alone], rel=1e-6)
    plain = measure(model, pictures(5, seed=2), name, seed=3)
    assert all(a.value != b.value for a, b in zip(together, plain, strict=True)), "the caption matters"


def test_only_the_loss_depends_on_the_seed():
    model = empirical_bayes(pictures(5))
    for name in NAMES:
        one, two = (measure(model, pictures(2, seed=2), name, seed=seed)[0].value for seed in (0, 1))
        assert (one != two) == (name == "loss")


@pytest.mark.parametrize("name", NAMES)
def test_a_nan_ends_its_own_image_only(name):
    def broken(x, t, tensors):
        return torch.where((x[:, :1, :1, :1] > 5), torch.nan, 0.5 * x)

    model = CallableDenoiser(broken, SHAPE)
    images = pictures(3)
    images[1] += 100
    results = measure(model, images, name)
    assert [r.error is None for r in results] == [True, False, True]
    assert results[1].value is None
    assert "NaN" in results[1].error


def test_what_does_not_exist_is_refused_with_the_reason():
    model = CallableDenoiser(lambda x, t, tensors: x, SHAPE, prediction="x0", schedule=FlowSchedule())
    for name in ("pia", "secmi"):
        with pytest.raises(ScoreRefused, match="use the score `loss`"):
            parse_image_score(name).check(model)
    parse_image_score("loss").check(model)


def test_times_are_shares_of_the_schedule():
    discrete, flow = empirical_bayes(pictures(2)), empirical_bayes(pictures(2), schedule=FlowSchedule())
    assert (time_of(discrete, 0.1), time_of(flow, 0.1)) == (100.0, 100.0)
    assert time_of(discrete, 0.9999) == 999.0


def test_they_are_registered_and_say_that_they_are_no_measure_of_memorization():
    for name in NAMES:
        about = IMAGE_SCORES.get(name).about
        assert about.name == name
        assert "membership reference" in about.summary
        assert parse_image_score(name).estimate(empirical_bayes(pictures(2))).total > 0
