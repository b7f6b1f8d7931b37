"""The parts of InvMM against brute force and the paper's table."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.scores.test_invmm import Bench, items_of, pictures

from diffmem.errors import ScoreRefused, UsageError
from diffmem.models.families.callable import CallableDenoiser
from diffmem.models.schedule import DiscreteSchedule, FlowSchedule
from diffmem.scores.image.invmm.check import Checker, Question
from diffmem.scores.image.invmm.objective import draw_times, reconstruction_losses, update_weight
from diffmem.scores.image.invmm.refine import bisect, strip, thinned
from diffmem.scores.image.invmm.settings import InvMMParameters, settings_for
from diffmem.scores.image.invmm.similarity import (
    SuccessTest,
    calibrated_beta,
    default_beta,
    descriptor_of,
    input_side,
    to_image,
)
from diffmem.scores.image.invmm.state import Inversion, kl_to_prior
from diffmem.scores.spec import parse_image_score
from diffmem.stages.measure.bench import pack, unpack
from diffmem.testbeds.closed_form import empirical_bayes


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_divergence_is_torch_s():
    mu, log_var = random(3, 2, 5), random(3, 2, 5, seed=1)
    normal = torch.distributions.Normal
    theirs = torch.distributions.kl_divergence(normal(mu, (0.5 * log_var).exp()), normal(0.0, 1.0))
    torch.testing.assert_close(kl_to_prior(mu, log_var), theirs.flatten(1).mean(1))


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v", "flow"])
@pytest.mark.parametrize("clamp", [None, 2.0])
def test_the_loss_is_the_error_of_x0(prediction, clamp):
    flow = prediction == "flow"
    model = empirical_bayes(
        random(3, 1, 2, 2), prediction=prediction, schedule=FlowSchedule() if flow else DiscreteSchedule.linear()
    )
    x0, mu, log_var = random(2, 1, 2, 2, seed=1), random(2, 1, 2, 2, seed=2), random(2, 1, 2, 2, seed=3)
    times, z = torch.tensor([[30.0, 900.0], [500.0, 999.0]], dtype=torch.float64), random(2, 2, 1, 2, 2, seed=4)
    got = reconstruction_losses(model, x0, mu, log_var, model.null().expand(2), times, z, clamp)
    for i in range(2):
        errors = []
        for j in range(2):
            alpha, sigma = model.schedule.at(float(times[i, j]))
            n = mu[i] + (0.5 * log_var[i]).exp() * z[i, j]
            eps = model.predict((alpha * x0[i] + sigma * n)[None], float(times[i, j]), model.null(), "epsilon")[0]
            weight = (sigma / alpha) ** 2 if clamp is None else min((sigma / alpha) ** 2, clamp)
            errors.append(weight * float((n - eps).square().mean()))
        assert float(got[i]) == pytest.approx(np.mean(errors), rel=1e-4)


def test_adam_is_torch_s_for_images_that_join_at_different_times():
    model = empirical_bayes(pictures(2))
    jobs = [Inversion.begin(item, 1.0, torch.device("cpu"), None) for item in items_of(model, pictures(2))]
    theirs = [torch.zeros(1, 4, 4, requires_grad=True) for _ in jobs]
    optimizers = [torch.optim.Adam([value], lr=0.1) for value in theirs]
    for step in range(6):
        for k, job in enumerate(jobs[: 1 if step < 3 else 2]):
            gradient = random(1, 4, 4, seed=10 * step + k).float()
            job.adam({"mu": gradient}, 0.1)
            theirs[k].grad = gradient
            optimizers[k].step()
    assert [job.step for job in jobs] == [6, 3]
    for job, value in zip(jobs, theirs, strict=True):
        torch.testing.assert_close(job.values["mu"], value.detach())


def test_lambda_grows_every_step_and_is_halved_where_nothing_improves():
    model = empirical_bayes(pictures(1))
    given_ = InvMMParameters(mode="paper", every=2, growth=0.5)
    settings = settings_for(model, given_)
    (item,) = items_of(model, pictures(1))
    job = Inversion.begin(item, settings.weight, torch.device("cpu"), None)
    found = []
    # Means of the window at steps 2, 4, 6: 4, 2.5 (improved), 2.4999 (did not).
    for step, loss in enumerate([4, 4, 1, 1, 2.49985, 2.49985], 1):
        job.step, job.window = step, [*job.window, loss]
        update_weight(job, settings)
        found.append(job.weight)
    # + .5 after each step, but at the third check half of 3.5 instead, as in the released loop.
    assert found == [1.5, 2.0, 2.5, 3.0, 3.5, 1.75]


def test_the_settings_of_the_paper():
    def table(model):
        s = settings_for(model, InvMMParameters(mode="paper"))
        assert (s.weight, s.improvement, s.relative, s.window, s.steps, s.clamp) == (1, 1e-3, False, 100, 2000, None)
        assert s.published and not (s.skip or s.one_first)
        return s.noises, s.every, s.growth, s.sampler_steps, s.guidance, s.prompt, s.rows

    def model(**more):
        return CallableDenoiser(lambda x, t, c: x, (1, 4, 4), **more)

    latent, text = {"encode_images": lambda x: x}, {"encode": lambda prompts: torch.zeros(len(prompts), 2), "null": ""}
    assert table(model()) == (32, 50, 1e-4, 200, (1.0,), "null", 75)
    assert table(model(**latent)) == (16, 10, 5e-4, 50, (1.0,), "null", 75)
    scales = tuple(float(g) for g in range(1, 8))
    assert table(model(**latent, **text)) == (16, 50, 1e-3, 50, scales, "invert", 75)
    flow = {"schedule": FlowSchedule(), "prediction": "flow"}
    assert table(model(**latent, **text, **flow)) == (16, 50, 1e-3, 50, scales[:5], "invert", 75)


def test_times_are_stratified_over_the_sampler_s_range_or_uniform():
    model = empirical_bayes(pictures(1))
    fast, paper = (settings_for(model, InvMMParameters(mode=m, noises=5)) for m in ("fast", "paper"))
    low, high = (f(model.schedule.sampling_times(20)) for f in (min, max))
    edges = np.linspace(low, high, 6)
    for step in range(20):
        times = draw_times(model, fast, 0, "a", step)
        assert (np.searchsorted(edges, times.numpy() + 0.5) - 1 == np.arange(5)).sum() >= 3
        assert (times >= low).all() and (times <= high).all() and (times == times.round()).all()
    many = torch.cat([draw_times(model, paper, 0, "a", step) for step in range(400)])
    assert many.min() >= 0 and many.max() <= 999
    assert many.mean() == pytest.approx(499.5, abs=20)
    flow = empirical_bayes(pictures(1), prediction="flow", schedule=FlowSchedule())
    assert (draw_times(flow, paper, 0, "a", 0) > 0).all()
    low, high = (f(flow.schedule.sampling_times(20)) for f in (min, max))
    assert low <= min(draw_times(flow, fast, 0, "a", 0)) <= max(draw_times(flow, fast, 0, "a", 0)) <= high
    assert not torch.equal(draw_times(model, fast, 0, "a", 0), draw_times(model, fast, 0, "b", 0))


def test_flow_times_are_those_of_the_shifted_training_grid():
    """Stable Diffusion 3 trains at s = 3 u / (1 + 2 u): s > 1/2 where 3 u > 1/2 + u, so u > 1/4: three times in four."""
    schedule = FlowSchedule(shift=3.0)
    u = torch.tensor([0.0, 0.249, 0.25, 0.999], dtype=torch.float64)
    # The grid's points are u = .001, .250, .251 and 1: 3 (.001) / 1.002, 3 (.25) / 1.5, .753 / 1.502 and 3 / 3.
    expected = torch.tensor([0.003 / 1.002, 0.5, 0.753 / 1.502, 1.0], dtype=torch.float64)
    torch.testing.assert_close(schedule.training_times(u) / 1000, expected)
    model = empirical_bayes(pictures(1), prediction="flow", schedule=schedule)
    settings = settings_for(model, InvMMParameters(mode="paper", noises=4000))
    times = draw_times(model, settings, 0, "a", 0) / 1000
    assert (times > 0.5).double().mean() == pytest.approx(0.75, abs=4 * (0.75 * 0.25 / 4000) ** 0.5)
    assert len(times.unique()) <= 1000
    straight = draw_times(empirical_bayes(pictures(1), prediction="flow", schedule=FlowSchedule()), settings, 0, "a", 0)
    assert (straight > 500).double().mean() == pytest.approx(0.5, abs=4 * (0.25 / 4000) ** 0.5)


def test_the_published_check_draws_new_noises_and_begins_at_the_noisiest_time():
    """Released: randn at every check, and DDIM of n steps at linspace(-1, 999, n + 1)[1:], here 249, 499, 749, 999."""
    seen = []
    real = empirical_bayes(pictures(2), dtype=torch.float32)

    def fn(x, t, tensors):
        if x.shape[0] == 3:
            seen.append((float(t[0]), x.clone()))
        return real.forward(x, t, real.null().expand(len(x)))

    leading = DiscreteSchedule(real.schedule.alphas_cumprod, lambda steps: [float(i) for i in range(steps)][::-1])
    model = CallableDenoiser(fn, (1, 4, 4), schedule=leading)
    stranger = items_of(model, 0.5 * pictures(3, seed=8)[2:])
    text = "invmm:similarity=l2-tiled,steps=2,every=1,noises=2,samples=3,sampler_steps=4,beta=0.999,rate=1e-9"
    for mode in ("paper", "fast"):
        seen.clear()
        score = parse_image_score(f"{text},mode={mode},one_first=false,skip=false,clamp=1e9")
        list(score.run(model, stranger, Bench(2)))
        starts = [x for t, x in seen if t == max(time for time, _ in seen)]
        assert len(starts) == 4, "at steps 0, 1 and 2, and the last one once more, which orders what was not reached"
        assert len({(x * 1e4).round().numpy().tobytes() for x in starts}) == (3 if mode == "paper" else 1)
        assert [t for t, _ in seen][:4] == ([999.0, 749.0, 499.0, 249.0] if mode == "paper" else [3.0, 2.0, 1.0, 0.0])


def test_the_published_success_test_is_sscd_at_a_half():
    def of(**more):
        return CallableDenoiser(lambda x, t, c: x, (1, 4, 4), **more)

    latent, text = {"encode_images": lambda x: x}, {"encode": lambda prompts: torch.zeros(len(prompts), 2), "null": ""}
    assert [input_side(of()), input_side(of(**latent)), input_side(of(**latent, **text))] == [32, 256, 320]
    score = parse_image_score("invmm:mode=paper")
    assert (score.similarity, score.beta) == ("sscd", 0.5)
    with pytest.raises(ScoreRefused, match="disc_large of sscd, and this file is not given"):
        score.check(of())
    other = parse_image_score("invmm:mode=paper,similarity=l2-tiled")
    other.check(of())
    assert (other.similarity, other.beta) == ("l2-tiled", 0.925)
    assert (parse_image_score("invmm").similarity, parse_image_score("invmm").beta) == ("l2-tiled", 0.925)


def test_similarity_is_one_minus_the_distance():
    descriptor = descriptor_of("l2-tiled", "", (1, 4, 4))
    test = SuccessTest(descriptor, 0.9)
    target = torch.zeros(1, 4, 4)
    images = torch.stack([target, target + 0.2, torch.full((1, 4, 4), torch.nan)])
    found = test.similarity(["a"] * 3, [target] * 3, images)
    assert found == pytest.approx([1, 0.9, -1], abs=0.005)
    assert default_beta("l2-tiled") == 0.925
    assert default_beta("sscd") == 0.5
    assert descriptor_of("l2-tiled", "", (3, 70, 130)).recipe["side"] == 64
    with pytest.raises(UsageError, match="no parameter 'weights'"):
        descriptor_of("l2-tiled", "x", (1, 4, 4))


def test_a_calibrated_threshold_is_the_nearest_neighbours_quantile():
    images = pictures(200)
    descriptor = descriptor_of("l2-tiled", "", (1, 4, 4))
    beta = calibrated_beta(list(images), descriptor, 0.05)
    flat = np.stack([np.asarray(to_image(x), np.float64).ravel() / 255 for x in images])
    distance = np.sqrt(((flat[:, None] - flat) ** 2).mean(2)) + 9 * np.eye(200)
    assert np.mean(1 - distance.min(1) >= beta) == pytest.approx(0.05, abs=0.01)
    with pytest.raises(UsageError, match="at least 20"):
        calibrated_beta(list(images[:10]), descriptor, 0.05)


def checker(model, test, **more):
    settings = settings_for(model, InvMMParameters(sampler_steps=3, **more))
    return Checker(model, test, settings, "ddim", 4, 5, 0)


def counting(model):
    """The model as a function that counts the rows it is asked for."""
    rows = []

    def fn(x, t, tensors):
        rows.append(len(x))
        return model.forward(x, t, model.null().expand(len(x)))

    return CallableDenoiser(fn, (1, 4, 4), schedule=model.schedule), rows


@pytest.mark.parametrize("one_first", [True, False])
def test_checking_one_sample_first_decides_the_same_and_costs_what_it_says(one_first):
    images = pictures(3)
    model, rows = counting(empirical_bayes(images, weights=torch.tensor([1.0, 1e-9, 1e-9]), dtype=torch.float32))
    test = SuccessTest(descriptor_of("l2-tiled", "", (1, 4, 4)), 0.9)
    jobs = [Inversion.begin(item, 1.0, torch.device("cpu"), None) for item in items_of(model, images)]
    answers = checker(model, test, one_first=one_first).ask([Question(job, [model.null()]) for job in jobs])
    assert [a.passed for a in answers] == [True, False, False]
    assert [len(a.images) for a in answers] == ([4, 1, 1] if one_first else [4, 4, 4])
    assert sum(rows) == sum(job.nfe.forward for job in jobs) == 3 * sum(len(a.images) for a in answers)


class Threshold:
    """A checker that passes from some scale on."""

    def __init__(self, at):
        self.at, self.asked = at, []

    def ask(self, questions):
        from diffmem.scores.image.invmm.check import Answer

        self.asked.append([q.scale for q in questions])
        return [Answer(q.scale >= self.at[q.job], 0.5) for q in questions]


@given(st.lists(st.floats(-0.5, 1.0), min_size=1, max_size=4), st.integers(0, 6), st.booleans())
def test_bisection_finds_the_least_passing_scale(at, halvings, from_prior):
    jobs = [object() for _ in at]
    fake = Threshold(dict(zip(jobs, at, strict=True)))
    passed = [(job, [], fake.ask([Question(job, [])])[0]) for job in jobs]
    for threshold, (scale, answer) in zip(at, bisect(fake, passed, halvings, from_prior), strict=True):
        assert answer.passed
        assert max(threshold, 0) <= scale <= max(threshold, 0) + 0.5**halvings
        if from_prior:
            assert (scale == 0) == (threshold <= 0)


def test_pictures_and_traces():
    grey = strip(torch.zeros(1, 8, 8), [torch.ones(1, 8, 8)] * 3)
    from diffmem.data.png import decode_png

    assert decode_png(grey).size == (4 * 66 + 2, 64)
    assert decode_png(strip(torch.zeros(3, 512, 512), [])).size == (260, 256)
    assert isinstance(to_image(torch.full((3, 4, 4), torch.nan)), Image.Image)
    rows = [[i] for i in range(1000)]
    assert len(thinned(rows)) == 100 and thinned(rows)[0] == [0] and thinned(rows)[-1] == [999]


def test_specs_and_refusals():
    score = parse_image_score("invmm:guidance=2,beta=0.9")
    assert score.settings.guidance == (2.0,)
    assert parse_image_score(score.label).parameters == score.parameters
    assert parse_image_score("invmm:guidance=1/2").settings.guidance == (1.0, 2.0)
    assert score.high_means == "less memorized"
    with pytest.raises(UsageError, match="mode"):
        parse_image_score("invmm:mode=quick")
    ends_at_zero = DiscreteSchedule(torch.linspace(1, 0, 10))
    with pytest.raises(ScoreRefused, match="alpha = 0"):
        score.check(CallableDenoiser(lambda x, t, c: x, (1, 4, 4), schedule=ends_at_zero))
    score.check(CallableDenoiser(lambda x, t, c: x, (1, 4, 4), schedule=ends_at_zero, prediction="v"))


def test_a_state_survives_the_engine_s_file(tmp_path):
    model = empirical_bayes(pictures(2), weights=torch.tensor([1.0, 0.3]), dtype=torch.float32)
    items, bench = items_of(model, pictures(2)[1:]), Bench(1, stop_after=12)
    with pytest.raises(KeyboardInterrupt):
        list(parse_image_score("invmm:every=5,noises=2,sampler_steps=4,beta=0.999").run(model, items, bench))
    state = bench.states["i0"]
    found = Inversion.load(items[0], unpack(pack(state), tmp_path / "x"), torch.device("cpu")).state()
    assert found["step"] == 10
    for kind in ("values", "first", "second"):
        for name, value in state[kind].items():
            assert torch.equal(found[kind].pop(name), value)
        state[kind].clear()
    assert found == state


def test_no_images_no_results():
    assert list(parse_image_score("invmm").run(empirical_bayes(pictures(1)), [], Bench(4))) == []
