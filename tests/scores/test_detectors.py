"""Detectors of the field against closed forms and plain loops."""

import functools
import itertools

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from scipy.stats import entropy
from tests.tiny import tiny_sd
from tests.tiny_families import pixart, sana, sd3, sdxl

from diffmem.errors import ScoreRefused, UsageError
from diffmem.models.attention import cross_attentions, recorded
from diffmem.models.ode import ddim_update, guided, ode_step
from diffmem.models.schedule import DiscreteSchedule, FlowSchedule
from diffmem.models.target import Target
from diffmem.scores.prompt.attention import end_tokens, ending_mask
from diffmem.scores.prompt.curvature import probes
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


STEP = {"ratio": 0.001, "first": 1.0}  # pure noise bends little: a long step is as exact there and loses no digits


def time_of(denoiser, at):
    return denoiser.schedule.time_at_ratio(1.0) if at == "ratio" else denoiser.schedule.sampling_times(50)[0]


@pytest.mark.parametrize(
    ("prediction", "schedule", "at"),
    [
        ("epsilon", DiscreteSchedule.linear(), "ratio"),
        ("flow", FlowSchedule(), "ratio"),
        ("v", DiscreteSchedule.linear(), "first"),
    ],
)
def test_sharpness_is_the_jacobian_of_the_pull_along_the_pull(prediction, schedule, at):
    denoiser = mixture(prediction, schedule)
    _, rows = values(denoiser, f"sharpness:at={at},ratio=1,step={STEP[at]}")
    t, noises = time_of(denoiser, at), Noises(SHAPE, 3)
    for i, prompt in enumerate("ab"):
        cond = denoiser.encode_prompts([prompt])
        for draw in range(2):
            x = noises.of_draw(draw).double()
            delta = denoiser.predict(x[None], t, cond) - denoiser.predict(x[None], t, denoiser.null())
            change = jacobian(denoiser, x, t, cond) - jacobian(denoiser, x, t, denoiser.null())
            expected = float((change @ delta.flatten()).norm())
            (value,) = rows[(i, draw)].values.values()
            assert value == pytest.approx(expected, rel=2e-2)


@pytest.mark.parametrize(
    ("prediction", "schedule", "at"),
    [
        ("epsilon", DiscreteSchedule.linear(), "ratio"),
        ("v", DiscreteSchedule.linear(), "ratio"),
        ("flow", FlowSchedule(), "ratio"),
        ("epsilon", DiscreteSchedule.linear(), "first"),
    ],
)
def test_the_curvature_gap_is_hutchinsons_mean_of_the_difference_of_the_exact_hessians(prediction, schedule, at):
    denoiser = mixture(prediction, schedule)
    _, rows = values(denoiser, f"curvature-gap:at={at},ratio=1,probes=3,step={STEP[at]}", draws=1)
    t, x = time_of(denoiser, at), Noises(SHAPE, 3).of_draw(0)[None].double()
    alpha, sigma = denoiser.schedule.at(t)
    signs = [v.double().flatten() for v in probes(3, torch.Size(SHAPE), 0)]
    for i, prompt in enumerate("ab"):
        with_prompt, without = (
            denoiser.score_jacobian(x, t, cond)[0] for cond in (denoiser.encode_prompts([prompt]), denoiser.null())
        )
        change = sigma * (without - with_prompt) / (1 if prediction == "epsilon" else alpha)
        gap = torch.stack([v * (change @ v) for v in signs]).mean(0)
        (value,) = rows[(i, 0)].values.values()
        assert value == pytest.approx(float(gap.square().mean().sqrt()), rel=2e-2)


def test_sign_vectors_give_the_diagonal_on_average():
    signs = torch.cat([v.flatten(1) for v in probes(4000, torch.Size(SHAPE), 0)])
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    torch.testing.assert_close(signs.T @ signs / 4000, torch.eye(8), atol=0.06, rtol=0)


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


@pytest.mark.parametrize(("prediction", "schedule"), [("v", DiscreteSchedule.linear()), ("flow", FlowSchedule())])
def test_flipd_is_the_dimension_without_the_prompt_minus_the_one_with_it(prediction, schedule):
    denoiser = mixture(prediction, schedule)
    _, rows = values(denoiser, "flipd:stop=-4,steps=5,probes=3,step=0.001,guidance=2", draws=1)
    times, x = denoiser.schedule.sampling_times(5), Noises(SHAPE, 3).of_draw(0)[None].double()
    cond = denoiser.encode_prompts(["a"])
    for t, after in itertools.pairwise(times[:2]):
        x = ode_step(denoiser, x, t, after, cond, 2.0)
    (_, sigma), found = denoiser.schedule.at(times[1]), {}
    for name, branch in (("dimension", cond), ("unconditional", denoiser.null())):
        change = jacobian(denoiser, x[0], times[1], branch, "epsilon")
        signs = [v.double().flatten() for v in probes(3, torch.Size(SHAPE), 0)]
        trace = sum(float(v @ change @ v) for v in signs) / 3
        found[name] = 8 - sigma * trace + float(denoiser.predict(x, times[1], branch, "epsilon").square().sum())
    (parts,) = rows[(0, 0)].components.values()
    assert parts == pytest.approx(found, rel=1e-2)
    (value,) = rows[(0, 0)].values.values()
    assert value == parts["unconditional"] - parts["dimension"]
    assert abs(value) > 0.03


@pytest.mark.parametrize(
    ("spec", "problem"),
    [("score-evolution:first=4,steps=5", "first <= 3"), ("flipd:stop=-6,steps=5", "expected -5 to -1")],
)
def test_stops_that_the_trajectory_does_not_have_are_refused(spec, problem):
    with pytest.raises(UsageError, match=problem):
        parse_score(spec)


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


def normed_sana(wide):
    """Sana with norms of the queries and keys: of all heads together (Sana 1.5), or of each."""
    from diffusers.models.normalization import RMSNorm

    pipe = sana()
    torch.manual_seed(5)
    for module in pipe.transformer.modules():
        if getattr(module, "is_cross_attention", False):
            size = module.inner_dim if wide else module.inner_dim // module.heads
            module.norm_q, module.norm_k = (RMSNorm(size, eps=1e-5, elementwise_affine=True) for _ in range(2))
            if not wide:
                module.set_processor(AttnProcessor2_0())
            with torch.no_grad():
                for norm in (module.norm_q, module.norm_k):
                    norm.weight.copy_(torch.rand(size) + 1)
    return pipe


@pytest.mark.parametrize(
    "pipe",
    [tiny_sd, pixart, sdxl, sana, functools.partial(normed_sana, True), functools.partial(normed_sana, False)],
    ids=["sd", "pixart", "sdxl", "sana", "norm of all heads", "norm of each head"],
)
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


def attention_by_hand(denoiser, x, t, cond):
    """The network's output and its cross-attention by diffusers' own scores, the mean over heads, in order of evaluation."""
    weights = {}

    def see(name, module, args, kwargs):
        query, key = module.to_q(args[0]), module.to_k(kwargs["encoder_hidden_states"])
        scores = module.get_attention_scores(module.head_to_batch_dim(query), module.head_to_batch_dim(key))
        weights[name] = scores.unflatten(0, (len(x), module.heads)).mean(1)

    hooks = [
        module.register_forward_pre_hook(functools.partial(see, name), with_kwargs=True)
        for name, module in cross_attentions(denoiser)
    ]
    with torch.no_grad():
        output = denoiser.predict(x, t, cond)
    for hook in hooks:
        hook.remove()
    return output, weights


def uneven_sd():
    """A tiny pipeline whose attention is far from even."""
    pipe = tiny_sd()
    with torch.no_grad():
        for name, module in pipe.unet.named_modules():
            if name.endswith("attn2"):
                module.to_q.weight.mul_(40)
    return Target.from_pipeline(pipe).denoiser


def test_bright_ending_is_a_plain_loop():
    denoiser = uneven_sd()
    _, rows = values(denoiser, "bright-ending:steps=4", prompts=("a", "bcd"), draws=1)
    x, cond, times = (
        Noises(denoiser.sample_shape, 3).of_draw(0)[None],
        denoiser.encode_prompts(["bcd"]),
        denoiser.schedule.sampling_times(4),
    )
    pulls, seen = [], []
    for t, after in itertools.pairwise([*times, None]):
        conditional, weights = attention_by_hand(denoiser, x, t, cond)
        with torch.no_grad():
            unconditional = denoiser.predict(x, t, denoiser.null())
        pulls.append(conditional - unconditional)
        seen.append(weights)
        x = ddim_update(denoiser, x, guided(unconditional, conditional, 7.5), t, after)
    masks = []
    for weights in seen:
        (early,) = (w for name, w in weights.items() if name.startswith("down_blocks"))
        # start, b, c, d, end
        small = early[0, :, 4].reshape(1, 1, 4, 4)
        masks.append(torch.nn.functional.interpolate(small, size=(8, 8), mode="bilinear", align_corners=False))
    first, last = (float(torch.stack([(p * m).norm() for p in pulls]).mean() / m.mean()) for m in (masks[0], masks[-1]))
    plain = float(torch.stack([p.norm() for p in pulls]).mean())
    assert abs(last / first - 1) > 1e-2, "the step that is read makes a difference"
    assert abs(last / plain - 1) > 1e-2, "the mask makes a difference"
    assert rows[(1, 0)].values["bright-ending:steps=4"] == pytest.approx(last, rel=1e-3)
    assert rows[(1, 0)].components["bright-ending:steps=4"]["unmasked"] == pytest.approx(plain, rel=1e-3)


def test_the_end_token_is_where_the_pipelines_own_encoding_ends():
    lower = Target.from_pipeline(pixart()).denoiser  # its pipeline writes prompts in lower case
    ids = lower.pipeline.tokenizer("a fox").input_ids
    assert end_tokens(lower, ["A FOX"], lower.encode_prompts(["A FOX"])).tolist() == [len(ids) - 1]
    behind = Target.from_pipeline(sana()).denoiser  # its pipeline puts an instruction before the prompt
    both = behind.encode_prompts(["abc", "abd"])
    (differ,) = (both.tensors["encoder_hidden_states"].diff(dim=0).abs().sum(2)[0] > 0).nonzero(as_tuple=True)
    # Gemma reads forwards: what comes before the last letter is the same.
    assert end_tokens(behind, ["abc", "abd"], both).tolist() == [int(differ[0])] * 2


def test_attention_entropy_is_that_of_the_mean_attention():
    denoiser = uneven_sd()
    x, cond = Noises(denoiser.sample_shape, 3).of_draw(0)[None], denoiser.encode_prompts(["bcd"])
    _, weights = attention_by_hand(denoiser, x, denoiser.schedule.sampling_times(50)[0], cond)
    drawn = [w[0].mean(0).double().numpy() for w in weights.values()]
    expected = [entropy(a) for a in drawn]
    assert np.std(expected) > 1e-3, "layers differ"
    assert (
        abs(np.mean([entropy(w[0].double().numpy(), axis=1).mean() for w in weights.values()]) - np.mean(expected))
        > 0.01
    )
    _, rows = values(denoiser, "attention-entropy", prompts=("a", "bcd"), draws=1)
    assert rows[(1, 0)].values["attention-entropy"] == pytest.approx(np.mean(expected), rel=1e-4)
    for layer, alone in enumerate(expected):
        _, rows = values(denoiser, f"attention-entropy:layer={layer}", prompts=("a", "bcd"), draws=1)
        (value,) = rows[(1, 0)].values.values()
        assert value == pytest.approx(alone, rel=1e-4)


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
