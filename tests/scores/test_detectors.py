"""Detectors of the field against closed forms and plain loops."""

import itertools

import numpy as np
import pytest
import torch
from tests.tiny import tiny_sd
from tests.tiny_families import pixart, sana, sd3, sdxl

from diffmem.errors import ScoreRefused
from diffmem.models.attention import cross_attentions, recorded
from diffmem.models.ode import ddim_update, guided, ode_step
from diffmem.models.schedule import DiscreteSchedule, FlowSchedule
from diffmem.models.target import Target
from diffmem.scores.prompt.attention import ending_mask
from diffmem.scores.spec import parse_score
from diffmem.stages.score.executor import Executor, Noises
from diffmem.stages.score.plan import nfe_per_prompt_seed
from diffmem.testbeds.closed_form import MixtureDenoiser

SHAPE = (2, 2, 2)


def mixture(prediction="epsilon", schedule=None):
    """Two broad components; only the first answers to "a"."""
    random = torch.Generator().manual_seed(0)
    means = torch.randn(2, *SHAPE, generator=random, dtype=torch.float64)
    variances = torch.rand(2, 8, generator=random, dtype=torch.float64) + 0.2
    return MixtureDenoiser(means, variances, captions=["a", "b"], prediction=prediction, schedule=schedule)


def values(denoiser, spec, prompts=("a", "b"), draws=2):
    executor = Executor(denoiser, [parse_score(spec)], Noises(denoiser.sample_shape, 3))
    rows = executor.run(
        list(prompts),
        denoiser.encode_prompts(list(prompts)),
        [(i, d) for i in range(len(prompts)) for d in range(draws)],
    )
    found = list(rows)
    assert not any(r.error for r in found), found[0].error
    return executor, {(r.prompt, r.draw): r for r in found}


def jacobian(denoiser, x, t, cond, kind=None):
    """d f / d x at one x, [8, 8]."""
    found = torch.autograd.functional.jacobian(lambda y: denoiser.predict(y[None], t, cond, kind)[0], x)
    return found.reshape(8, 8)


@pytest.mark.parametrize(("prediction", "schedule"), [("epsilon", DiscreteSchedule.linear()), ("flow", FlowSchedule())])
def test_sharpness_is_the_jacobian_of_the_pull_along_the_pull(prediction, schedule):
    denoiser = mixture(prediction, schedule)
    _, rows = values(denoiser, "sharpness:at=ratio,ratio=1,step=0.0001")
    t, noises = denoiser.schedule.time_at_ratio(1.0), Noises(SHAPE, 3)
    for i, prompt in enumerate("ab"):
        cond = denoiser.encode_prompts([prompt])
        for draw in range(2):
            x = noises.of_draw(draw).double()
            delta = denoiser.predict(x[None], t, cond) - denoiser.predict(x[None], t, denoiser.null())
            change = jacobian(denoiser, x, t, cond) - jacobian(denoiser, x, t, denoiser.null())
            expected = float((change @ delta.flatten()).norm())
            assert rows[(i, draw)].values["sharpness:at=ratio,ratio=1.0,step=0.0001"] == pytest.approx(
                expected, rel=2e-2
            )


def test_the_curvature_gap_is_the_difference_of_the_diagonals():
    # Axis-parallel single components have diagonal Jacobians, so every sign vector gives the diagonal exactly.
    means = torch.zeros(2, *SHAPE, dtype=torch.float64)
    variances = torch.stack([torch.linspace(0.1, 0.8, 8), torch.ones(8)]).double()
    denoiser = MixtureDenoiser(means, variances, captions=["a", "b"])
    _, rows = values(denoiser, "curvature-gap:probes=1,step=0.001", prompts=("a",), draws=1)
    t = denoiser.schedule.time_at_ratio(0.2)
    x = Noises(SHAPE, 3).of_draw(0).double()
    cond, null = denoiser.encode_prompts(["a"]), denoiser.null()
    alone = torch.diagonal(jacobian(denoiser, x, t, cond))
    # The mixture's own Jacobian is not diagonal; what its rows add along the sign vector is part of the estimate.
    from diffmem.scores.prompt.curvature import probes

    v = probes(1, torch.Size(SHAPE), 0)[0].double().flatten()
    gap = alone - v * (jacobian(denoiser, x, t, null) @ v)
    (row,) = rows.values()
    assert row.values[next(iter(row.values))] == pytest.approx(float(gap.square().mean().sqrt()), rel=2e-2)


def test_flipd_of_a_gaussian_is_its_closed_form():
    # One Gaussian with variance 1 in three directions and none in five.
    means = torch.zeros(1, *SHAPE, dtype=torch.float64)
    denoiser = MixtureDenoiser(means, torch.tensor([[1.0] * 3 + [0.0] * 5]).double(), captions=["a"])
    _, rows = values(denoiser, "flipd:of=conditional,probes=1,step=0.001,steps=20", prompts=("a",), draws=4)
    times, cond = denoiser.schedule.sampling_times(20), denoiser.encode_prompts(["a"])
    for draw in range(4):
        x = Noises(SHAPE, 3).of_draw(draw)[None].double()
        for t, after in itertools.pairwise(times[:18]):
            x = ode_step(denoiser, x, t, after, cond)
        alpha, sigma = denoiser.schedule.at(times[17])
        s = torch.tensor([alpha**2 + sigma**2] * 3 + [sigma**2] * 5, dtype=torch.float64)
        # eps = sigma x / s, so sigma tr J = sum sigma^2 / s
        expected = 8 - float((sigma**2 / s).sum()) + float((sigma * x.flatten() / s).square().sum())
        (parts,) = rows[(0, draw)].components.values()
        assert parts["dimension"] == pytest.approx(expected, rel=2e-3)
        (value,) = rows[(0, draw)].values.values()
        assert value == -parts["dimension"]


def test_score_evolution_is_the_squared_change_between_stops():
    denoiser = Target.from_pipeline(tiny_sd()).denoiser
    executor, rows = values(denoiser, "score-evolution:steps=10", prompts=("a", "bc"), draws=1)
    x, cond, times = (
        Noises(denoiser.sample_shape, 3).of_draw(0)[None],
        denoiser.encode_prompts(["bc"]),
        denoiser.schedule.sampling_times(10),
    )
    pulls = []
    with torch.no_grad():
        for step in range(3):
            c, u = denoiser.predict(x, times[step], cond), denoiser.predict(x, times[step], denoiser.null())
            pulls.append(c - u)
            x = ddim_update(denoiser, x, guided(u, c, 7.5), times[step], times[step + 1])
    assert rows[(1, 0)].values["score-evolution:steps=10"] == pytest.approx(
        float((pulls[2] - pulls[1]).square().sum()), rel=1e-4
    )
    assert executor.nfe.total == 2 * 5 + 1


@pytest.mark.parametrize("pipe", [tiny_sd, pixart, sdxl, sana])
def test_recording_attention_changes_nothing_and_weights_sum_to_one(pipe):
    denoiser = Target.from_pipeline(pipe()).denoiser
    cond = denoiser.encode_prompts(["a fox", "a"])
    x = torch.randn(2, *denoiser.sample_shape, generator=torch.Generator().manual_seed(1))
    own = [module.processor for _, module in cross_attentions(denoiser)]
    with torch.no_grad():
        plain = denoiser.predict(x, 500.0, cond)
        with recorded(denoiser) as weights:
            seen = denoiser.predict(x, 500.0, cond)
    torch.testing.assert_close(plain, seen, rtol=1e-4, atol=1e-5)
    assert set(weights) == {name for name, _ in cross_attentions(denoiser)}
    for w in weights.values():
        torch.testing.assert_close(w.sum(2), torch.ones(w.shape[:2]))
    assert [module.processor for _, module in cross_attentions(denoiser)] == own


def test_the_ending_mask_is_the_attention_to_the_end_token():
    even = torch.full((2, 16, 5), 0.2)
    sharp = torch.zeros(2, 16, 5)
    sharp[0, 3, 2], sharp[1, 12, 4] = 1.0, 1.0
    weights = {"down_blocks.0.attn2": sharp, "down_blocks.1.attn2": even[:, :4], "up_blocks.0.attn2": even}
    mask = ending_mask(weights, torch.tensor([2, 4]), 4, 4)
    expected = torch.zeros(2, 1, 4, 4)
    expected[0, 0, 0, 3], expected[1, 0, 3, 0] = 1.0, 1.0
    torch.testing.assert_close(mask, expected)
    oblong = ending_mask({"x": torch.arange(8.0).reshape(1, 8, 1)}, torch.tensor([0]), 2, 4)
    torch.testing.assert_close(oblong, torch.arange(8.0).reshape(1, 1, 2, 4))


def test_an_even_mask_makes_bright_ending_the_norm_along_the_trajectory():
    pipe = tiny_sd()
    with torch.no_grad():
        for name, module in pipe.unet.named_modules():
            if name.endswith("attn2"):
                module.to_q.weight.zero_()  # every place attends evenly to all tokens
    denoiser = Target.from_pipeline(pipe).denoiser
    _, rows = values(denoiser, "bright-ending:steps=4")
    _, plain = values(denoiser, "score-difference:over=trajectory,steps=4")
    for key, row in rows.items():
        assert row.values["bright-ending:steps=4"] == pytest.approx(
            plain[key].values["score-difference:over=trajectory,steps=4"], rel=1e-4
        )
        assert row.components["bright-ending:steps=4"]["unmasked"] == pytest.approx(
            row.values["bright-ending:steps=4"], rel=1e-4
        )


def test_even_attention_has_the_entropy_of_the_number_of_tokens():
    pipe = tiny_sd()
    with torch.no_grad():
        for name, module in pipe.unet.named_modules():
            if name.endswith("attn2"):
                module.to_q.weight.zero_()
    denoiser = Target.from_pipeline(pipe).denoiser
    tokens = denoiser.encode_prompts(["a"]).tensors["encoder_hidden_states"].shape[1]
    _, rows = values(denoiser, "attention-entropy")
    np.testing.assert_allclose([row.values["attention-entropy"] for row in rows.values()], np.log(tokens), rtol=1e-5)


@pytest.mark.parametrize("name", ["bright-ending", "attention-entropy"])
def test_joint_attention_is_refused(name):
    with pytest.raises(ScoreRefused, match="jointly"):
        parse_score(name).needs(Target.from_pipeline(sd3()).denoiser)


@pytest.mark.parametrize(
    ("spec", "alone"),
    [("sharpness", 3), ("curvature-gap:probes=3", 7), ("flipd:steps=6", 11), ("score-evolution", 5), ("attention-entropy", 1),
     ("bright-ending:steps=5", 10)],
)  # fmt: skip
def test_the_stated_cost_is_what_is_counted(spec, alone):
    denoiser = Target.from_pipeline(tiny_sd()).denoiser
    prompts = [f"p{i}" for i in range(10)]
    executor, _ = values(denoiser, spec, prompts, draws=1)
    shared = 0 if spec == "attention-entropy" else 1
    assert executor.nfe.total == 10 * alone + shared
    assert nfe_per_prompt_seed(parse_score(spec), denoiser, 10, 1) == pytest.approx(alone + shared / 10)
