"""Networks of one's own: what they are given, schedules, pixel ranges, classes, the built-in sampler. Truth: closed forms."""

import functools

import numpy as np
import pytest
import torch
from PIL import Image

from diffmem.errors import MitigationRefused, ModelError, ScoreRefused, UsageError
from diffmem.mitigation.spec import parse_mitigation
from diffmem.models.generation import Sampling
from diffmem.models.noise_levels import EDMSchedule, VESchedule
from diffmem.models.schedule import DiscreteSchedule, FlowSchedule
from diffmem.models.target import Target
from diffmem.stages.match.folders import match_images
from diffmem.stages.measure.measure import measure
from diffmem.stages.score.score import score

SHAPE = (1, 4, 4)
PICTURES = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1


def closest(x, alpha, sigma, pictures):
    """E[x0 | x] of a finite set, so that a sampler must end on its pictures; alpha and sigma [B]."""
    distance = (x[:, None] - alpha.reshape(-1, 1, 1, 1, 1) * pictures[None]).square().flatten(2).sum(2)
    weights = (-distance / (2 * sigma.reshape(-1, 1).square())).softmax(1)
    return (weights[:, :, None, None, None] * pictures[None]).sum(1)


def memorizer(schedule, prediction="x0", low=-1.0, high=1.0, seen=None):
    """A network that holds PICTURES in its own pixel range, fed as a user's network of that schedule is."""
    pictures = low + (PICTURES + 1) / 2 * (high - low)

    def fn(x, t, cond):
        if seen is not None:
            seen.append((x, t, cond))
        if schedule == "edm":
            alpha, sigma = torch.ones_like(t), t
        elif schedule == "flow":
            alpha, sigma = 1 - t, t
        else:
            alpha, sigma = (v.to(x) for v in DiscreteSchedule.linear().alpha_sigma(t.double()))
        alpha, sigma = alpha, sigma.clamp_min(1e-3)
        chosen = pictures if "label" not in cond else None
        if chosen is None:
            rows = []
            for row, label in enumerate(cond["label"].tolist()):
                mine = pictures if label == 3 else pictures[label : label + 1]
                rows.append(closest(x[row : row + 1], alpha[row : row + 1], sigma[row : row + 1], mine))
            x0 = torch.cat(rows)
        else:
            x0 = closest(x, alpha, sigma, chosen)
        a, s = alpha.reshape(-1, 1, 1, 1), sigma.reshape(-1, 1, 1, 1)
        eps = (x - a * x0) / s
        return {"x0": x0, "epsilon": eps, "score": -eps / s, "flow": eps - x0}[prediction]

    return fn


def grey(picture):
    return np.asarray(picture, np.float32) / 127.5 - 1


@pytest.mark.parametrize(
    ("schedule", "prediction"),
    [("linear", "x0"), ("linear", "epsilon"), ("flow", "flow"), ("flow", "x0"), ("edm", "x0"), ("edm", "epsilon"),
     ("edm", "score")],
)  # fmt: skip
@pytest.mark.parametrize("pixels", [(-1.0, 1.0), (0.0, 1.0), (-0.5, 0.5)])
def test_the_built_in_sampler_ends_on_the_pictures_that_a_network_holds(schedule, prediction, pixels):
    target = Target.from_callable(
        memorizer(schedule, prediction, *pixels), SHAPE, prediction=prediction, schedule=schedule, pixel_range=pixels
    )
    assert target.denoiser.space == "pixel"
    made = target.generate(["a", "b", "c"], [0, 1, 2], 0, Sampling(steps=40))
    for picture in made:
        assert min(np.abs(grey(picture) - p[0].numpy()).max() for p in PICTURES) < 0.03
    again = target.generate(["b"], [1], 0, Sampling(steps=40))[0]
    assert again.tobytes() == made[1].tobytes()
    assert target.generate(["b"], [1], 1, Sampling(steps=40))[0].size == (4, 4)


def test_a_network_is_given_t_in_the_type_and_on_the_device_of_x():
    seen = []
    fn = memorizer("linear", seen=seen)
    denoiser = Target.from_callable(fn, SHAPE, prediction="x0").denoiser
    denoiser.predict(torch.zeros(2, *SHAPE), 10.0, denoiser.null())
    x, t, cond = seen[0]
    assert (t.dtype, t.shape, t.device, dict(cond)) == (x.dtype, (2,), x.device, {})
    double = Target.from_callable(lambda x, t, c: x * t.reshape(-1, 1, 1, 1), SHAPE, dtype=torch.float64).denoiser
    assert double.predict(torch.ones(1, *SHAPE, dtype=torch.float64), 3.0, double.null()).unique().tolist() == [3.0]


@pytest.mark.parametrize("schedule", [VESchedule(0.02, 20.0), EDMSchedule()])
def test_a_noise_level_network_sees_x0_plus_noise_at_its_level(schedule):
    seen = []

    def fn(x, t, cond):
        seen.append((x, t))
        return torch.zeros_like(x)

    denoiser = Target.from_callable(fn, SHAPE, schedule=schedule).denoiser
    noise, x0 = torch.randn(1, *SHAPE), torch.randn(1, *SHAPE)
    alpha, sigma = schedule.at(3.0)
    assert sigma / alpha == pytest.approx(3.0)
    denoiser.predict(alpha * x0 + sigma * noise, 3.0, denoiser.null())
    torch.testing.assert_close(seen[0][0], x0 + 3 * noise)
    assert float(seen[0][1]) == 3.0


@pytest.mark.parametrize("schedule", [VESchedule(), EDMSchedule()])
def test_noise_levels_fall_from_the_largest_to_the_least(schedule):
    times = schedule.sampling_times(10)
    assert times == sorted(times, reverse=True)
    assert (times[0], times[-1]) == pytest.approx((schedule.t_max, schedule.t_min))
    assert schedule.time_at_ratio(1.5) == 1.5
    assert schedule.share_at(schedule.time_at_share(0.3)) == pytest.approx(0.3, abs=0.002)
    training = schedule.training_times(torch.linspace(0, 0.999, 50, dtype=torch.float64))
    assert schedule.t_min <= training.min() and training.max() <= schedule.t_max
    with pytest.raises(UsageError, match="outside"):
        schedule.at(1000.0)


def test_karras_levels_are_those_of_the_paper():
    # Karras et al. 2022, eq. 5 with 18 steps: the second level of sigma in [.002, 80] at rho = 7.
    levels = EDMSchedule().sampling_times(18)
    assert levels[1] == pytest.approx((80 ** (1 / 7) + 1 / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7)
    assert levels[1] == pytest.approx(57.586, abs=0.01)


def test_a_reversed_flow_is_given_one_minus_s():
    seen = []

    def fn(x, t, cond):
        seen.append(t)
        return x

    denoiser = Target.from_callable(fn, SHAPE, prediction="x0", schedule=FlowSchedule(1.0, reversed=True)).denoiser
    denoiser.predict(torch.zeros(1, *SHAPE), 0.25, denoiser.null())
    assert seen[0].tolist() == [0.75]
    assert denoiser.schedule.at(0.25) == (0.75, 0.25)


def test_cumulative_alphas_are_a_schedule():
    abar = np.cumprod(np.linspace(0.999, 0.98, 100))
    schedule = Target.from_callable(lambda x, t, c: x, SHAPE, schedule=abar).denoiser.schedule
    assert schedule.t_max == 99
    assert schedule.at(40)[0] ** 2 == pytest.approx(abar[40])
    cosine = DiscreteSchedule.cosine()
    assert cosine.at(500)[0] == pytest.approx(np.cos((501 / 1000 + 0.008) / 1.008 * np.pi / 2), abs=1e-3)
    with pytest.raises(UsageError, match="cumulative alphas"):
        Target.from_callable(lambda x, t, c: x, SHAPE, schedule=abar[::-1].copy())


class TestRefusals:
    def refuses(self, match, error=UsageError, fn=lambda x, t, c: x, **arguments):
        with pytest.raises(error, match=match):
            Target.from_callable(fn, SHAPE, **arguments)

    def test_an_unknown_prediction(self):
        self.refuses("Unknown prediction 'eps'.*'epsilon'.*'x0'.*'v'.*'flow'.*'score'", prediction="eps")

    def test_an_unknown_schedule(self):
        self.refuses("Unknown schedule 'sigmoid'.*linear, cosine, flow, ve, edm", schedule="sigmoid")

    def test_a_velocity_of_a_noise_level_network(self):
        self.refuses("does not go with", schedule="edm", prediction="v")

    def test_a_range_without_extent(self):
        self.refuses("pixel_range is", pixel_range=(1.0, 1.0))

    def test_classes_and_an_encoder(self):
        self.refuses("not both", classes=3, encode=lambda p: torch.zeros(len(p), 1))

    def test_a_null_without_prompts(self):
        self.refuses("there is none", null=3)

    def test_guidance_without_an_unconditional_branch(self):
        self.refuses("no `null`", classes=3, guidance=2.0)

    def test_a_network_in_training_mode(self):
        network = torch.nn.Sequential(torch.nn.Dropout(0.5))
        self.refuses("call .eval", ModelError, fn=lambda x, t, c: network(x))
        self.refuses("call .eval", ModelError, fn=functools.partial(network.forward))
        network.eval()
        Target.from_callable(lambda x, t, c: network(x), SHAPE)

    def test_a_shape_with_the_batch_missing(self):
        with pytest.raises(UsageError, match="sample_shape is 28"):
            Target.from_callable(lambda x, t, c: x, 28)

    def test_options_of_pipelines(self):
        target = Target.from_callable(memorizer("linear"), SHAPE, prediction="x0")
        for sampling in (Sampling(height=8), Sampling(scheduler="dpm++"), Sampling(guidance=2.0)):
            with pytest.raises(UsageError):
                target.generate(["a"], [0], 0, sampling)


def classed(null=None, **more):
    return Target.from_callable(
        memorizer("flow"), SHAPE, prediction="x0", schedule="flow", classes=["cat", "dog", "owl"], null=null, **more
    )


def test_classes_are_asked_for_by_number_or_name():
    target = classed()
    for prompts in (["1"], ["dog"]):
        made = target.generate(prompts, [0], 0, Sampling(steps=20))[0]
        assert np.abs(grey(made) - PICTURES[1, 0].numpy()).max() < 0.02
    with pytest.raises(ModelError, match="one of its names"):
        target.generate(["cow"], [0])


def test_without_an_unconditional_branch_prompt_scores_are_refused_and_all_else_works(tmp_path):
    target = classed()
    with pytest.raises(ModelError, match="no unconditional branch"):
        target.denoiser.null()
    result = score(target, ["cat", "dog"], ["score-difference"], draws=2)
    assert "unconditional branch" in result.refused["score-difference"]
    assert "no `null` in from_callable" in result.refused["score-difference"]
    made = target.generate(["cat", "dog"], [0, 0], 0, Sampling(steps=10))
    for number, picture in enumerate(made):
        picture.save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(["cat", "dog"][number])
    measured = measure(target, tmp_path, ["loss", "pia"])
    assert len(measured.values("loss")) == 2
    assert len(target.fingerprint) == 32
    with pytest.raises(ScoreRefused, match="condition=caption"):
        measure(target, tmp_path, ["vgr-bottom:condition=null"])
    with pytest.raises(MitigationRefused, match="no unconditional branch"):
        parse_mitigation("transition-static").check(target.denoiser)


def test_guidance_goes_from_the_null_class_towards_the_class():
    target = classed(null=3)
    x, t = torch.randn(1, *SHAPE), 0.9
    denoiser = target.denoiser
    c = denoiser.predict(x, t, denoiser.encode_prompts(["cat"]))
    u = denoiser.predict(x, t, denoiser.null())
    assert (c - u).abs().max() > 0.05
    from diffmem.models.conditioning import Conditioning

    _, eps = target.pipeline._estimates(x, t, denoiser.encode_prompts(["cat"]), 3.0)
    torch.testing.assert_close(eps, (x - 0.1 * (u + 3 * (c - u))) / 0.9)
    assert target.generation_nfe(Sampling(steps=5, guidance=3.0)) == 10
    assert target.generation_nfe(Sampling(steps=5)) == 5
    assert isinstance(denoiser.null(), Conditioning)
    result = score(target, ["cat", "dog"], ["score-difference"], draws=2)
    assert all(np.isfinite(v).all() and (v > 0).all() for v in result.values("score-difference").values())


def test_a_mitigation_of_the_guidance_steers_the_built_in_sampler():
    target = classed(null=3, guidance=2.0)
    plain = target.generate(["cat"], [0], 0, Sampling(steps=10))[0]
    with parse_mitigation("transition-static:until=1000").apply(target):
        same = target.generate(["cat"], [0], 0, Sampling(steps=10))[0]
    with parse_mitigation("transition-static:until=0").apply(target):  # guidance scale 0 throughout
        changed = target.generate(["cat"], [0], 0, Sampling(steps=10))[0]
    free = classed(null=3).generate(["cat"], [0], 0, Sampling(steps=10, guidance=0.0))[0]
    assert plain.tobytes() == same.tobytes()
    assert changed.tobytes() == free.tobytes() != plain.tobytes()
    assert target.generate(["cat"], [0], 0, Sampling(steps=10))[0].tobytes() == plain.tobytes()
    for name in ("random-tokens", "wen", "ren"):
        with pytest.raises(MitigationRefused):
            parse_mitigation(name).check(target.denoiser)


def test_random_tokens_need_a_tokenizer():
    made = Target.from_callable(lambda x, t, c: x, SHAPE, encode=lambda p: torch.zeros(len(p), 2), null="")
    with pytest.raises(MitigationRefused, match="tokenizer"):
        parse_mitigation("random-tokens").check(made.denoiser)


def test_own_functions_for_images_and_latents():
    made = Target.from_callable(
        lambda x, t, c: torch.zeros_like(x), (4, 2, 2), encode_images=lambda pixels: pixels.repeat(1, 4, 1, 1)[..., ::2, ::2],
        decode=lambda x0: x0[:, :1].repeat_interleave(2, 2).repeat_interleave(2, 3), pixel_range=(0.0, 1.0),
    )  # fmt: skip
    assert made.denoiser.space == "latent"
    pixels = torch.full((1, 1, 4, 4), -1.0)
    assert made.denoiser.encode_images(pixels).unique().tolist() == [0.0]
    assert made.denoiser.decode(torch.ones(1, 4, 2, 2)).unique().tolist() == [1.0]
    wide = Target.from_callable(
        lambda x, t, c: x, (3, 2, 2), pixel_range=([-1.0, -2.0, -3.0], [1.0, 2.0, 3.0])
    ).denoiser
    assert wide.space == "pixel"
    assert wide.encode_images(torch.ones(1, 3, 2, 2))[0, :, 0, 0].tolist() == [1.0, 2.0, 3.0]
    torch.testing.assert_close(wide.decode(wide.encode_images(torch.ones(1, 3, 2, 2) / 3)), torch.ones(1, 3, 2, 2) / 3)


def test_images_of_other_channels_are_refused():
    with pytest.raises(ModelError, match="1 or 3 channels"):
        Target.from_callable(lambda x, t, c: torch.zeros_like(x), (4, 2, 2)).generate(["a"], [0])


def test_copies_made_by_the_built_in_sampler_are_found(tmp_path):
    """End to end: a network that holds its pictures is caught by matching."""
    side = 16
    pictures = torch.rand(6, 1, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1

    def fn(x, t, cond):
        return closest(x, 1 - t, t.clamp_min(1e-3), pictures)

    (tmp_path / "train").mkdir()
    (tmp_path / "made").mkdir()
    for number, picture in enumerate(pictures):
        Image.fromarray(((picture[0].numpy() + 1) * 127.5).round().astype(np.uint8)).save(
            tmp_path / f"train/{number}.png"
        )
    target = Target.from_callable(fn, (1, side, side), prediction="x0", schedule="flow", steps=20)
    for number, picture in enumerate(target.generate(["x"] * 4, [0, 1, 2, 3])):
        picture.save(tmp_path / f"made/{number}.png")
    found = match_images(tmp_path / "made", tmp_path / "train")
    assert [row["similarity"] > 0.95 for row in found.rows] == [True] * 4


def test_a_noise_level_network_takes_image_scores_and_refuses_the_one_that_steps_in_time():
    pictures = [np.uint8(np.round((p[0].numpy() + 1) * 127.5)) for p in PICTURES]
    target = Target.from_callable(memorizer("edm"), SHAPE, prediction="x0", schedule="edm")
    result = measure(target, pictures, ["loss", "pia", "secmi", "vgr-paper"])
    assert "vgr-subspace" in result.refused["vgr-paper"]
    assert all(len(result.values(name)) == 3 for name in ("loss", "pia", "secmi"))
    assert max(result.values("loss").values()) < 0.01  # it holds these pictures
