"""The plan's union and the executor: each evaluation once, numbers equal to a plain loop, batched equals one by one."""

import numpy as np
import pytest
import torch
from tests.tiny import tiny_sd

from diffmem.models.ode import ddim_update, guided
from diffmem.models.schedule import FlowSchedule
from diffmem.models.target import Target
from diffmem.scores.spec import parse_score, parse_scores
from diffmem.stages.score.executor import Executor, Noises
from diffmem.stages.score.plan import Plan, nfe_per_prompt_seed, row_scores
from diffmem.testbeds.closed_form import empirical_bayes

PROMPTS = ["a", "bc", "a long one", "x"]
ALL = ["score-difference", "alignment", "anisotropy-paper", "score-difference:over=steps,k=3,steps=10"]


@pytest.fixture(scope="module")
def denoiser():
    return Target.from_pipeline(tiny_sd()).denoiser


def run(denoiser, scores, prompts=PROMPTS, draws=2, micro_batch=64, noise="bank", seed=3):
    executor = Executor(
        denoiser, row_scores(parse_scores(scores)), Noises(denoiser.sample_shape, seed, noise), micro_batch
    )
    pairs = [(i, d) for i in range(len(prompts)) for d in range(draws)]
    rows = list(executor.run(prompts, denoiser.encode_prompts(prompts), pairs))
    assert [(r.prompt, r.draw) for r in rows] == pairs
    return executor, {(r.prompt, r.draw): r for r in rows}


def test_values_equal_a_plain_loop(denoiser):
    _, rows = run(denoiser, ALL)
    schedule, noises = denoiser.schedule, Noises(denoiser.sample_shape, 3)
    with torch.no_grad():
        for i, prompt in enumerate(PROMPTS):
            cond = denoiser.encode_prompts([prompt])
            for draw in range(2):
                x = noises.of_draw(draw)[None]
                row = rows[(i, draw)]
                first = schedule.sampling_times(50)[0]
                delta = denoiser.predict(x, first, cond) - denoiser.predict(x, first, denoiser.null())
                assert row.values["score-difference"] == pytest.approx(float(delta.norm()), rel=1e-5)
                t = schedule.time_at_ratio(0.2)
                u = denoiser.predict(x, t, denoiser.null(), "epsilon")
                cos = torch.cosine_similarity(u, denoiser.predict(x, t, cond, "epsilon") - u, dim=1).mean()
                assert row.values["alignment"] == pytest.approx(float(cos), abs=1e-5)
                late = schedule.sampling_times(50)[-3]
                u = denoiser.predict(x, late, denoiser.null())
                cos = torch.cosine_similarity(u, denoiser.predict(x, late, cond) - u, dim=1).mean()
                assert row.values["anisotropy-paper"] == pytest.approx(
                    float(delta.norm() + 2 * cos), rel=1e-5, abs=1e-5
                )
                norms, y, times = [], x, schedule.sampling_times(10)
                for step in range(3):
                    c, u = denoiser.predict(y, times[step], cond), denoiser.predict(y, times[step], denoiser.null())
                    norms.append(float((c - u).norm()))
                    y = ddim_update(denoiser, y, guided(u, c, 7.5), times[step], times[step + 1])
                label = parse_score(ALL[3]).label
                assert row.values[label] == pytest.approx(np.mean(norms), rel=1e-5)


@pytest.mark.parametrize("noise", ["bank", "per-prompt"])
def test_batched_equals_one_by_one_in_any_order(denoiser, noise):
    _, whole = run(denoiser, ALL, noise=noise)
    _, single = run(denoiser, ALL, noise=noise, micro_batch=1)
    order = [2, 0, 3, 1]
    _, shuffled = run(denoiser, ALL, prompts=[PROMPTS[i] for i in order], noise=noise, micro_batch=3)
    for (i, draw), row in whole.items():
        for label, value in row.values.items():
            assert single[(i, draw)].values[label] == pytest.approx(value, rel=1e-5, abs=1e-5)
            assert shuffled[(order.index(i), draw)].values[label] == pytest.approx(value, rel=1e-5, abs=1e-5)


def test_noise_regimes_differ_as_they_should(denoiser):
    bank = Noises(denoiser.sample_shape, 0)
    own = Noises(denoiser.sample_shape, 0, "per-prompt")
    rows = [(0, 0), (1, 0)]
    x = bank.of_rows(rows, ["a", "b"])
    assert torch.equal(x[0], x[1])
    y = own.of_rows(rows, ["a", "b"])
    assert not torch.equal(y[0], y[1])
    assert torch.equal(y[1], own.of_rows([(0, 0)], ["b"])[0])


@pytest.mark.parametrize("noise", ["bank", "per-prompt"])
@pytest.mark.parametrize("scores", [["score-difference"], ["alignment"], ["anisotropy"], ["anisotropy-paper"], ALL])
def test_metered_nfe_equals_network_calls_and_the_plan(denoiser, scores, noise):
    counted = 0
    honest = denoiser.forward

    def counting(x, t, cond):
        nonlocal counted
        counted += len(x)
        return honest(x, t, cond)

    denoiser.forward = counting
    try:
        executor, _ = run(denoiser, scores, micro_batch=3, noise=noise)
    finally:
        denoiser.forward = honest
    assert executor.nfe.forward == counted == executor.plan.nfe(len(PROMPTS), 2, noise == "bank")


def test_the_anisotropy_screen_costs_two_and_shares_the_rest(denoiser):
    score = parse_score("anisotropy")
    assert nfe_per_prompt_seed(score, denoiser, prompts=1000, draws=4) == pytest.approx(2 + 2 / 1000)
    assert nfe_per_prompt_seed(parse_score("score-difference"), denoiser, 100, 4) == pytest.approx(1.01)
    assert nfe_per_prompt_seed(parse_score("text-uppercase"), denoiser, 100, 4) == 0


def test_the_difference_at_low_noise_shares_what_the_alignment_needs(denoiser):
    alone = Plan.for_scores(row_scores(parse_scores(["alignment"])), denoiser)
    both = Plan.for_scores(row_scores(parse_scores(["alignment", "score-difference:over=ratio"])), denoiser)
    assert alone == both
    _, rows = run(denoiser, ["score-difference:over=ratio"])
    t, x = denoiser.schedule.time_at_ratio(0.2), Noises(denoiser.sample_shape, 3).of_draw(1)[None]
    with torch.no_grad():
        delta = denoiser.predict(x, t, denoiser.encode_prompts(["bc"])) - denoiser.predict(x, t, denoiser.null())
    assert rows[(1, 1)].values["score-difference:over=ratio"] == pytest.approx(float(delta.norm()), rel=1e-5)


def test_scores_that_need_the_same_add_nothing(denoiser):
    one = Plan.for_scores(row_scores(parse_scores(["score-difference"])), denoiser)
    two = Plan.for_scores(row_scores(parse_scores(["score-difference", "score-difference:order=1"])), denoiser)
    assert one == two
    long = Plan.for_scores(
        row_scores(parse_scores(["score-difference:over=trajectory,steps=50", "score-difference:over=steps,k=5"])),
        denoiser,
    )
    assert long.per_row == 1 + 2 * 49
    assert long.per_draw == 1


def test_nan_of_one_prompt_leaves_the_others(denoiser):
    honest = denoiser.forward
    bad = denoiser.encode_prompts(["bc"]).tensors["encoder_hidden_states"][0]

    def broken(x, t, cond):
        out = honest(x, t, cond).clone()
        hit = (cond.tensors["encoder_hidden_states"] - bad).abs().flatten(1).amax(1) < 1e-6
        out[hit] = float("nan")
        return out

    denoiser.forward = broken
    try:
        _, rows = run(denoiser, ["score-difference", "alignment"])
    finally:
        denoiser.forward = honest
    assert {key for key, row in rows.items() if row.error} == {(1, 0), (1, 1)}
    assert "NaN" in rows[(1, 0)].error


def test_out_of_memory_halves_and_does_not_change_values(denoiser):
    honest, sizes = denoiser.forward, []

    def tight(x, t, cond):
        if len(x) > 2:
            raise RuntimeError("CUDA out of memory")
        return honest(x, t, cond)

    _, whole = run(denoiser, ["anisotropy"])
    denoiser.forward = tight
    try:
        executor = Executor(
            denoiser, row_scores(parse_scores(["anisotropy"])), Noises(denoiser.sample_shape, 3), 8, sizes.append
        )
        pairs = [(i, d) for i in range(4) for d in range(2)]
        rows = list(executor.run(PROMPTS, denoiser.encode_prompts(PROMPTS), pairs))
    finally:
        denoiser.forward = honest
    assert sizes == [4, 2]
    for row in rows:
        assert row.values == pytest.approx(whole[(row.prompt, row.draw)].values, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "v", "x0"])
def test_norms_and_cosines_agree_across_parameterisations_of_one_model(prediction):
    images = torch.randn(8, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    captions = [f"c{i}" for i in range(8)]
    rows = {}
    for kind in ("epsilon", prediction):
        model = empirical_bayes(images, captions, prediction=kind, dtype=torch.float64)
        rows[kind] = run(model, ["alignment", "score-difference"], prompts=captions, draws=1)[1]
        first = model.schedule.sampling_times(50)[0]
        alpha, sigma = model.schedule.at(first)
    scale = {"epsilon": 1.0, "v": alpha, "x0": alpha / sigma}[prediction]
    for key, row in rows["epsilon"].items():
        assert rows[prediction][key].values["alignment"] == pytest.approx(row.values["alignment"], abs=1e-4)
        assert rows[prediction][key].values["score-difference"] * scale == pytest.approx(
            row.values["score-difference"], rel=1e-3
        )


def test_flow_models_score_where_alpha_is_zero():
    images = torch.randn(8, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = empirical_bayes(images, [f"c{i}" for i in range(8)], prediction="flow", schedule=FlowSchedule())
    _, rows = run(model, ["score-difference", "alignment"], prompts=["c1", "unseen"], draws=2)
    assert model.schedule.at(model.schedule.sampling_times(50)[0])[0] == 0.0
    assert rows[(0, 0)].values["score-difference"] > 0.5
    assert rows[(1, 0)].values["score-difference"] == pytest.approx(0, abs=1e-9)
