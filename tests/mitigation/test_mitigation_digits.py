"""What each mitigation does on the trained digits testbed, whose copies are known."""

import itertools
from functools import lru_cache

import numpy as np
import pytest
import torch

from diffmem.errors import UsageError
from diffmem.mitigation.amg import Amg
from diffmem.mitigation.calibrate import calibrated, ordinary_levels
from diffmem.mitigation.local_index import LocalIndex
from diffmem.mitigation.spec import parse_mitigation
from diffmem.models.generation import Sampling
from diffmem.models.ode import ddim_update, guided
from diffmem.models.target import Target
from diffmem.randomness import generation_noise
from diffmem.testbeds import digits
from diffmem.testbeds.digits.data import to_signed
from diffmem.testbeds.digits.matching import References

SAMPLING = Sampling(steps=20, guidance=2.0)


@lru_cache
def shipped():
    return Target.from_pretrained(digits.model_path("text"))


@lru_cache
def memorized(count=8):
    rows = [row for row in digits.truth("text") if row["label"] == "reproduced" and row["rate"] == 1]
    return tuple(row["caption"] for row in rows[:: len(rows) // count][:count])


@lru_cache
def plain():
    return images(shipped())


def images(made, count=8, sampling=SAMPLING):
    captions = memorized()[:count]
    pictures = made.generate(captions, [0] * len(captions), 0, sampling)
    return np.stack([np.asarray(p.convert("L"), np.float32) / 127.5 - 1 for p in pictures])


def copies(pictures):
    return References(digits.load()).match(pictures).copies


def training():
    found = digits.load().training
    x0 = torch.from_numpy(np.stack([to_signed(image.pixels) for image in found]))[:, None]
    return LocalIndex(x0, [image.captions[0] for image in found])


def test_the_captions_are_copied_without_mitigation():
    assert copies(plain()).mean() > 0.9


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("wen:pull=0.5,lr=0.1,steps=20", 0.75),
        ("anisotropy:weights=0/1,target=-0.25,lr=0.1", 0.5),
        ("low-noise-norm", 0.5),
    ],
)
def test_optimised_embeddings_lower_what_they_optimise_and_the_copies(text, left):
    with parse_mitigation(text).apply(shipped()) as record:
        after = images(shipped())
    assert all(item["after"] < item["before"] for item in record.items)
    evaluated = sum(item["steps"] for item in record.items)
    assert evaluated > 0
    assert record.nfe.backward >= 2 * evaluated
    assert copies(after).mean() <= left * copies(plain()).mean()


def test_the_low_noise_norm_is_the_score_of_that_name_on_the_images_own_noise():
    made, caption = shipped(), memorized()[0]
    denoiser, t = made.denoiser, made.denoiser.schedule.time_at_ratio(0.1)
    alpha, sigma = denoiser.schedule.at(t)
    assert sigma / alpha == pytest.approx(0.1, rel=0.05)
    with parse_mitigation("low-noise-norm:pull=1000").apply(made) as record:
        made.generate([caption], [0], 0, Sampling(steps=2, guidance=2.0))
    x = generation_noise(0, caption, 0, (1, 8, 8))[None]
    with torch.no_grad():
        cond, null = denoiser.encode_prompts([caption]), denoiser.null()
        pull = (denoiser.predict(x, t, cond) - denoiser.predict(x, t, null)).square().mean().sqrt() * sigma / alpha
    assert record.items[0]["before"] == pytest.approx(float(pull), rel=1e-4) and record.items[0]["steps"] == 0


def test_random_tokens_lower_the_copies_on_the_same_seeds():
    with parse_mitigation("random-tokens").apply(shipped()):
        after = images(shipped())
    assert copies(after).mean() <= 0.5 * copies(plain()).mean()


def test_anti_memorization_guidance_keeps_away_from_the_index():
    with Amg(index=training()).apply(shipped()) as record:
        after = images(shipped())
    assert all(item["steps"] > 0 for item in record.items)
    before, now = (References(digits.load()).match(p).first for p in (plain(), after))
    assert now.mean() > 1.5 * before.mean()
    assert copies(after).mean() <= 0.6 * copies(plain()).mean()


def test_the_noise_methods_lower_what_they_optimise():
    for text, measure in (("han-sample:lr=0.1,pull=0.2", "pull"), ("sail:candidates=1,sharpness=0.05", "sharpness")):
        with parse_mitigation(text).apply(shipped()) as record:
            images(shipped(), 3, Sampling(steps=5, guidance=2.0))
        assert {item["measure"] for item in record.items} == {measure}
        assert np.mean([item["after"] for item in record.items]) < np.mean([item["before"] for item in record.items])


def test_han_batch_is_the_published_step():
    """x - gamma (D(x + rho D/||D||) - D(x)), in epsilon scaled from SD 1.4's first step to this one's."""
    made = shipped()
    denoiser, caption = made.denoiser, memorized()[0]
    t = denoiser.schedule.sampling_times(20)[0]
    alpha, sigma = denoiser.schedule.at(t)
    x = generation_noise(0, caption, 0, (1, 8, 8))[None]
    cond, null = denoiser.encode_prompts([caption]), denoiser.null()
    with torch.no_grad():

        def difference(at):
            return denoiser.predict(at, t, cond) - denoiser.predict(at, t, null)

        here = difference(x)
        ahead = difference(x + 0.39 * 8 * here / here.norm())
    wanted = x - 0.7 * 0.0763 * sigma / alpha * (ahead - here)
    seen = []
    handle = made.pipeline.unet.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        with parse_mitigation("han-batch:rounds=1,until=1000").apply(made):
            made.generate([caption], [0], 0, Sampling(steps=20, guidance=2.0))
    finally:
        handle.remove()
    first = next(a for a in seen if len(a) == 2)
    torch.testing.assert_close(first[:1], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("text", "scale", "until"),
    [
        ("transition-static:until=600", 0.0, 600),
        ("opposite-guidance", -2.0, 650),
        ("transition-static:before=1", 1.0, 600),
    ],
)
def test_early_scales_equal_a_sampler_with_that_scale(text, scale, until):
    """Against a sampler written out: DDIM with one scale before the time and the pipeline's own after it."""
    made = shipped()
    denoiser, caption = made.denoiser, memorized()[0]
    x = generation_noise(0, caption, 0, (1, 8, 8))[None]
    times = [*denoiser.schedule.sampling_times(20), None]
    cond = denoiser.encode_prompts([caption])
    with torch.no_grad():
        for t, t_next in itertools.pairwise(times):
            w = scale if t > until else 2.0
            out = guided(denoiser.predict(x, t, denoiser.null()), denoiser.predict(x, t, cond), w)
            x = ddim_update(denoiser, x, out, t, t_next if t_next is not None else 0.0)
    with parse_mitigation(text).apply(made):
        image = made.generate([caption], [0], 0, SAMPLING)[0]
    np.testing.assert_allclose(np.asarray(image.convert("L"), float) / 127.5 - 1, x[0, 0].clamp(-1, 1), atol=0.02)


def test_targets_from_ordinary_prompts_leave_their_share_alone():
    rows = [row["caption"] for row in digits.truth("text") if row["tier"] == "generic"]
    denoiser = shipped().denoiser
    made = calibrated(parse_mitigation("anisotropy"), denoiser, rows[:40], quantile=0.9, steps=20)
    levels = ordinary_levels(denoiser, rows[:40], steps=20)
    measure = made.settings.weights[0] * levels.pulls + made.settings.weights[1] * levels.cosines
    assert (measure <= made.settings.target).mean() == pytest.approx(0.9, abs=0.03)
    wen = calibrated(parse_mitigation("wen:lr=0.1"), denoiser, rows[:40], quantile=0.9, steps=20)
    assert wen.settings.pull == pytest.approx(np.quantile(levels.pulls, 0.9), rel=1e-3)
    assert wen.settings.lr == 0.1
    low = calibrated(parse_mitigation("low-noise-norm:ratio=0.2"), denoiser, rows[:40], quantile=0.9, steps=20)
    assert (
        low.settings.pull == pytest.approx(np.quantile(levels.low_pulls, 0.9), rel=1e-3) and low.settings.ratio == 0.2
    )
    captions = ordinary_levels(denoiser, memorized(), steps=20)
    assert (captions.low_pulls > low.settings.pull).all()
    above = made.settings.weights[0] * captions.pulls + made.settings.weights[1] * captions.cosines
    assert (above > made.settings.target).mean() > 0.7
    assert parse_mitigation("low-noise-norm:ratio=0.2").has_open_target and not low.has_open_target
    assert not parse_mitigation("random-tokens").has_open_target
    with pytest.raises(UsageError, match="at least 20"):
        calibrated(parse_mitigation("wen"), denoiser, rows[:3])
