"""What every volume score keeps to: invariances, real networks with attention, flow and latent models, bad input."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.scores.vgr_cases import VPSDE, compute, items_of, normal, rotation
from tests.tiny import tiny_ddpm, tiny_sd
from tests.tiny_families import flux, sd3
from torch.nn.attention import SDPBackend

from diffmem.errors import ScoreRefused
from diffmem.evaluation.roc import auroc
from diffmem.models.families.callable import CallableDenoiser
from diffmem.models.target import Target
from diffmem.scores.image import IMAGE_SCORES
from diffmem.scores.image.vgr.flow import Flow
from diffmem.scores.image.vgr.grid import noise_grid
from diffmem.scores.image.vgr.kernel import propagate, push, random_frames
from diffmem.scores.image.vgr.memory import peak_bytes, portions
from diffmem.scores.image.vgr.precision import forward_mode
from diffmem.scores.spec import parse_image_score
from diffmem.testbeds import digits
from diffmem.testbeds.closed_form import empirical_bayes, gaussian_mixture
from diffmem.testbeds.digits.data import to_signed

FAST = {
    "vgr": "vgr:steps=6,k=4,limit=1",
    "vgr-bottom": "vgr-bottom:steps=6,k=4,limit=1",
    "vgr-subspace": "vgr-subspace:steps=6,k=4,limit=1",
    "vgr-exact": "vgr-exact:steps=4,limit=1",
    "vgr-trace": "vgr-trace:steps=6,limit=1",
    "vgr-likelihood": "vgr-likelihood:steps=6,limit=1",
    "vgr-paper": "vgr-paper:steps=30,k=4,limit=100",
}
KEYS = {
    "curve", "spectrum", "share_of_cap", "cap", "beyond_cap", "latent_norm2", "prior", "log_likelihood", "round_trip", "k",
    "d", "steps", "method",
}  # fmt: skip


def points(count=5, size=8):
    """A smooth mixture around some points, and images near and far."""
    denoiser = gaussian_mixture(normal(4, size, seed=1), 0.05 * torch.ones(4, size), schedule=VPSDE())
    return denoiser, denoiser.means[:1] + 0.4 * normal(count, size, seed=3)


def test_all_are_registered():
    assert set(FAST) == {name for name in IMAGE_SCORES.names() if name.startswith("vgr")}


@pytest.mark.parametrize("name", FAST)
def test_it_says_what_a_reader_must_know_and_fills_what_the_report_reads(name):
    about = IMAGE_SCORES.get(name).about
    assert about.name == name
    assert all((about.summary, about.formula, about.reference, about.cost, about.fails_when)) and about.unit == "nats"
    assert parse_image_score(name).label == name
    denoiser, x = points(2)
    score = parse_image_score(FAST[name])
    for result in compute(score, denoiser, x):
        assert result.error is None and result.value == result.evidence and math.isfinite(result.value)
        assert set(result.components) >= KEYS and result.components["method"] == name
        json.dumps(result.components, allow_nan=False)
        ratios = [point[0] for point in result.components["curve"]]
        assert ratios == sorted(ratios) and result.components["curve"][0][1] == pytest.approx(0, abs=1e-9)
        assert result.components["curve"][-1][1] == pytest.approx(result.components["log_volume"])
        if result.components["spectrum"] is not None:
            assert result.components["spectrum"] == sorted(result.components["spectrum"])
            assert sum(result.components["spectrum"]) == pytest.approx(result.components["log_volume"])
        asked = score.estimate(denoiser)
        assert (result.nfe.forward, result.nfe.tangent) == (asked.forward, asked.tangent)


@pytest.mark.parametrize("name", FAST)
def test_a_batch_gives_what_one_by_one_gives_in_any_order_and_under_any_memory(name):
    denoiser, x = points(3)
    names = ["a", "b", "c"]
    score = parse_image_score(FAST[name])
    together = {r.id: r for r in compute(score, denoiser, x, names=names)}
    scarce = parse_image_score(f"{FAST[name]},memory=1e-9")
    assert portions(3, 4, 8, 1000, 1e-9 * 2**30) == (1, 1)
    for i in (2, 0):
        [alone] = compute(score, denoiser, x[i : i + 1], names=[names[i]])
        assert alone.value == pytest.approx(together[names[i]].value, rel=1e-9)
        assert alone.error_bar == pytest.approx(together[names[i]].error_bar)
        assert alone.nfe == together[names[i]].nfe
    [slow] = compute(scarce, denoiser, x[1:2], names=["b"])
    assert slow.value == pytest.approx(together["b"].value, rel=1e-9)
    if name != "vgr-paper":
        assert slow.nfe.forward > together["b"].nfe.forward and slow.nfe.tangent == together["b"].nfe.tangent
    others = [compute(score, denoiser, x[1:2], seed, ["b"])[0].value for seed in (0, 1)]
    if name != "vgr-exact":
        assert others[0] != others[1]


@settings(max_examples=6)
@given(every=st.integers(1, 12), chunk=st.integers(1, 6))
def test_reorthonormalising_and_chunks_change_rounding_only(every, chunk):
    denoiser, x = points(2)
    flow = Flow(denoiser, denoiser.null(), noise_grid(denoiser.schedule, 6))
    frames = random_frames(["a", "b"], 5, (8,), 0)
    with torch.no_grad():
        one = propagate(flow, x, frames, range(7), 5, 1).stretches
        other = propagate(flow, x, frames, range(7), chunk, every).stretches
    torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_a_rotation_of_the_data_rotates_the_frame_and_nothing_else():
    turn = rotation(8, 4)
    denoiser, x = points(2)
    turned = gaussian_mixture(denoiser.means @ turn.T, 0.05 * torch.ones(4, 8), schedule=VPSDE())
    frames = random_frames(["a", "b"], 3, (8,), 0)
    with torch.no_grad():
        values = [
            propagate(Flow(d, d.null(), noise_grid(d.schedule, 8)), y, f, range(9), 3, 2).stretches
            for d, y, f in ((denoiser, x, frames), (turned, x @ turn.T, frames @ turn.T))
        ]
    torch.testing.assert_close(*values, rtol=0, atol=1e-9)


def test_scaled_coordinates_add_a_constant_per_direction():
    """log VGR_k of y = x/alpha is that of x plus k log(alpha_0/alpha_T)."""

    class Scaled(Flow):
        def step(self, x, start, stop):
            return super().step(x * self.levels[start][0], start, stop) / self.levels[stop][0]

    denoiser, x = points(2)
    times = noise_grid(denoiser.schedule, 8)
    frames = random_frames(["a", "b"], 3, (8,), 0)
    plain, scaled = Flow(denoiser, denoiser.null(), times), Scaled(denoiser, denoiser.null(), times)
    with torch.no_grad():
        value = propagate(plain, x, frames, range(9), 3, 2).stretches.sum(1)
        other = propagate(scaled, x / plain.levels[0][0], frames, range(9), 3, 2).stretches.sum(1)
    constant = 3 * math.log(plain.levels[0][0] / plain.levels[-1][0])
    torch.testing.assert_close(other - value, torch.full((2,), constant, dtype=torch.float64))


def test_edges_are_never_shorter_than_the_volume():
    denoiser, x = points(4)
    for result in compute(parse_image_score("vgr-paper:steps=60,k=6,limit=100"), denoiser, x):
        assert result.value >= result.components["qr_value"] > 0


def test_the_error_bar_of_the_trace_covers_the_exact_value():
    # Equal numbers in a rotated frame: no probe sees the diagonal only.
    variances = torch.logspace(-4, 0, 8, dtype=torch.float64)
    covariance = (rotation(8, 2) * variances) @ rotation(8, 2).T
    denoiser = gaussian_mixture(torch.zeros(1, 8), covariance[None], schedule=VPSDE())
    x = normal(1, 8)
    count = 150
    flow = Flow(denoiser, denoiser.null(), noise_grid(denoiser.schedule, 16))
    [exact] = compute(parse_image_score("vgr-trace:steps=16,probes=4000"), denoiser, x)
    names = [f"n{i}" for i in range(count)]
    found = compute(parse_image_score("vgr-trace:steps=16,probes=8"), denoiser, x.expand(count, 8), names=names)
    assert flow.last == 16 and exact.error_bar < 0.1
    # Student's t with 7 degrees of freedom, 95 %: 2.365.
    covered = sum(abs(r.value - exact.value) < 2.365 * r.error_bar for r in found) / count
    assert 0.87 < covered <= 1.0


def test_forward_products_agree_with_differences_and_reverse_mode():
    denoiser = Target.from_pipeline(tiny_ddpm()).denoiser
    denoiser.network.double()
    x, v = normal(1, 3, 8, 8), normal(2, 1, 3, 8, 8, seed=1)
    flow = Flow(denoiser, denoiser.null(), noise_grid(denoiser.schedule, 8))

    def step(y):
        return flow.step(y, 4, 5)

    with forward_mode(denoiser.device):
        value, products = push(step, x, v, chunk=1)
        torch.testing.assert_close(value, step(x))
        differences = torch.stack([(step(x + 1e-4 * w) - step(x - 1e-4 * w)) / 2e-4 for w in v])
        # Reverse mode twice, which the fast attention kernels do not have either.
        _, reverse = torch.autograd.functional.jvp(step, x, v[0])
    torch.testing.assert_close(products, differences, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(products[0], reverse, rtol=1e-6, atol=1e-9)


def test_the_jacobian_of_an_exact_score_is_symmetric_and_a_network_s_is_not_quite():
    """An exact eps is a gradient. How far a network is from one is what its full volumes rest on."""

    def asymmetry(denoiser, x, t):
        def eps(y):
            return denoiser.predict(y, t, denoiser.null(), "epsilon")

        with forward_mode(denoiser.device):
            frame = torch.eye(x.numel()).reshape(-1, *x.shape).to(x)
            jacobian = push(eps, x, frame, chunk=16)[1].reshape(x.numel(), -1).double()
        return float((jacobian - jacobian.T).norm() / jacobian.norm())

    exact, x = points(1)
    assert asymmetry(exact, x, exact.schedule.time_at_ratio(0.3)) < 1e-9
    network = Target.from_pretrained(digits.model_path("unconditional")).denoiser
    image = torch.from_numpy(to_signed(digits.load().training[0].pixels[None]))[None].float()
    assert 1e-3 < asymmetry(network, image, network.schedule.time_at_ratio(0.3)) < 0.5


MODELS = {
    "pixels": tiny_ddpm,
    "latent": tiny_sd,
    "zero terminal SNR": lambda: tiny_sd("v_prediction", zero_snr=True),
    "flow": sd3,
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", ["vgr-subspace:k=2", "vgr-bottom:k=2", "vgr-trace:probes=2"])
def test_it_runs_through_attention_on_every_kind_of_model_and_leaves_it_as_it_was(model, name):
    target = Target.from_pipeline(MODELS[model]())
    denoiser = target.denoiser
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cuda.flash_sdp_enabled()
    x = denoiser.encode_images(normal(1, 3, *((8, 8) if model == "pixels" else (16, 16))).float().clamp(-1, 1)).detach()
    [result] = compute(parse_image_score(f"{name},steps=3,limit=1e9"), denoiser, x.float())
    assert math.isfinite(result.value) and result.components["space"] == denoiser.space
    assert all(math.isfinite(point[0]) for point in result.components["curve"])
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cuda.flash_sdp_enabled()) == before
    assert not any(p.grad is not None for p in denoiser.network.parameters())


def test_the_caption_is_used_on_request_and_a_distilled_model_needs_it():
    denoiser = Target.from_pipeline(tiny_sd()).denoiser
    x = normal(1, 4, 8, 8).float()
    [item] = items_of(denoiser, x)
    score, null = (parse_image_score(f"vgr-subspace:steps=3,k=2,limit=1e9,condition={c}") for c in ("caption", "null"))
    values = []
    for caption in ("a cat", "a house"):
        captioned = type(item)(item.id, item.pixels, item.x0, caption, denoiser.encode_prompts([caption]))
        values.append(score.compute(denoiser, [captioned], 0)[0].value)
        assert null.compute(denoiser, [captioned], 0)[0].value == null.compute(denoiser, [item], 0)[0].value
    assert values[0] != values[1]
    bare, said = score.compute(denoiser, [item, captioned], 0)
    assert (bare.components["condition"], said.components["condition"]) == ("null", "caption")
    with pytest.raises(ScoreRefused, match="condition=caption"):
        null.check(Target.from_pipeline(flux(distilled=True)).denoiser)


def test_a_noised_start_averages_over_noises_and_gives_their_spread():
    denoiser, x = points(2)
    results = compute(parse_image_score("vgr-subspace:steps=6,k=3,limit=1,start=noised,draws=3"), denoiser, x)
    [clean, _] = compute(parse_image_score("vgr-subspace:steps=6,k=3,limit=1"), denoiser, x)
    for result in results:
        assert result.error_bar > 0
    assert results[0].value != clean.value and results[0].nfe.total == 3 * clean.nfe.total


@pytest.mark.parametrize("name", FAST)
def test_an_image_on_which_the_network_fails_gets_an_error_and_the_others_their_value(name):
    inner, x = points(3)

    def fn(y, t, tensors):
        bad = torch.where((y[:, :1] > 50), torch.nan, 1.0)
        return inner.forward(y, t, inner.null().expand(len(y))) * bad

    denoiser = CallableDenoiser(fn, (8,), schedule=VPSDE(), dtype=torch.float64)
    x = torch.cat([x[:1], torch.full((1, 8), 100.0), x[2:]])
    good, bad, after = compute(parse_image_score(FAST[name]), denoiser, x, names=["a", "b", "c"])
    assert good.error is None and after.error is None
    assert bad.value is None and bad.evidence is None and "not finite" in bad.error
    json.dumps(bad.components, allow_nan=False)
    [alone] = compute(parse_image_score(FAST[name]), denoiser, x[:1], names=["a"])
    assert alone.value == pytest.approx(good.value, rel=1e-9)


@pytest.mark.parametrize("name", FAST)
def test_kernels_and_precision_are_restored_even_if_the_network_fails(name):
    """The network sees plain attention in full precision; whatever was chosen before is back after an exception."""
    seen = []

    def fn(y, t, tensors):
        seen.append((torch.backends.cuda.math_sdp_enabled(), torch.backends.cuda.flash_sdp_enabled(),
                     torch.backends.cuda.matmul.allow_tf32))  # fmt: skip
        raise RuntimeError("the network fell over")

    denoiser = CallableDenoiser(fn, (8,), schedule=VPSDE(), dtype=torch.float64)
    old = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        with torch.nn.attention.sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            with pytest.raises(RuntimeError, match="fell over"):
                compute(parse_image_score(FAST[name]), denoiser, points(1)[1])
            assert seen and set(seen) == {(True, False, False)}
            assert torch.backends.cuda.flash_sdp_enabled() and not torch.backends.cuda.math_sdp_enabled()
            assert torch.backends.cuda.matmul.allow_tf32 and torch.overrides._len_torch_function_stack() == 0
    finally:
        torch.backends.cuda.matmul.allow_tf32 = old


def test_a_way_back_that_misses_the_image_makes_the_row_unusable():
    denoiser, x = points(1)
    [result] = compute(parse_image_score("vgr-subspace:steps=2,k=2,limit=1e-6"), denoiser, x)
    assert result.value is None and "misses the image" in result.error
    assert result.components["round_trip"] > 1e-6 and result.components["unusable_value"] is not None


def test_what_cannot_be_measured_is_refused_with_the_reason():
    flow = Target.from_pipeline(sd3()).denoiser
    with pytest.raises(ScoreRefused, match="use vgr-subspace"):
        parse_image_score("vgr-paper").check(flow)
    with pytest.raises(ScoreRefused, match="largest=256"):
        parse_image_score("vgr-exact:largest=255").check(flow)
    with pytest.raises(ScoreRefused, match="largest=256"):
        parse_image_score("vgr-likelihood:volume=exact,largest=255").check(flow)
    with pytest.raises(ScoreRefused, match="steps=1000"):
        parse_image_score("vgr-paper:steps=1001").check(Target.from_pipeline(tiny_ddpm()).denoiser)
    with pytest.raises(ScoreRefused, match="float32"):
        parse_image_score("vgr").check(CallableDenoiser(lambda x, t, c: x, (8,), dtype=torch.bfloat16))
    zero = Target.from_pipeline(tiny_sd("v_prediction", zero_snr=True)).denoiser
    zero.prediction = "epsilon"
    with pytest.raises(ScoreRefused, match="alpha = 0"):
        parse_image_score("vgr").check(zero)


def test_times_are_training_timesteps_and_evenly_spaced_where_there_are_enough():
    denoiser = Target.from_pipeline(tiny_ddpm()).denoiser
    times = noise_grid(denoiser.schedule, 50)
    assert len(times) == 51 and times[0] == 0 and times[-1] == 999
    assert all(t == round(t) for t in times) and times == sorted(set(times))
    zero = Target.from_pipeline(tiny_sd("v_prediction", zero_snr=True)).denoiser
    times = noise_grid(zero.schedule, 20)
    assert len(times) == 21 and times[-1] == 999 and zero.schedule.at(times[-2])[0] > 0


def test_memory_is_measured_where_it_is_used():
    def call():
        a = torch.zeros(1000)
        b = a + 1
        del a
        return (b * 2).sum()

    assert 8000 <= peak_bytes(call) <= 8100
    together, chunk = portions(images=10, k=100, numbers=64, evaluation=10**6, budget=10**8)
    assert together * (3 * 8 * 100 * 64 + 2 * 10**6 * chunk) <= 10**8 < (together + 1) * (3 * 8 * 6400 + 4 * 10**6) * 10
    assert portions(2, 5, 10, 100, 1e12) == (2, 5)


def test_isolated_images_of_a_trained_set_stand_out():
    images = torch.cat([normal(3, 8, seed=1), normal(1, 8, seed=5).expand(12, 8) + 0.3 * normal(12, 8, seed=6)])
    denoiser = empirical_bayes(images, schedule=VPSDE())
    results = compute(parse_image_score("vgr-exact:steps=12,limit=1"), denoiser, images)
    values = [r.value for r in results]
    assert min(values[:3]) > max(values[3:])


@pytest.mark.parametrize("name", ["vgr-bottom:k=4,steps=25", "vgr-likelihood:probes=4,steps=25"])
def test_on_a_trained_model_images_that_it_reproduces_stand_above_those_seen_once(name):
    hits = {row["group"]: row["hits"] for row in digits.truth("unconditional")}
    reproduced = [image for image in digits.load().training if image.count == 50 and hits[image.group]][::5]
    once = [image for image in digits.load().training if image.tier == "hard" and not hits[image.group]][::50]
    denoiser = Target.from_pretrained(digits.model_path("unconditional")).denoiser
    x = torch.from_numpy(to_signed(np.stack([image.pixels for image in reproduced + once])))[:, None]
    results = compute(parse_image_score(name), denoiser, x)
    values = np.array([result.value for result in results])
    assert auroc(values[: len(reproduced)], values[len(reproduced) :]) > 0.95


def test_the_default_costs_500_evaluations_and_the_published_settings_132_times_that():
    """25 Heun steps: 50 in, 50 back, 50 of 8 tangents; published: 1000 Euler steps of the image, its way back and 64 frames."""
    denoiser = empirical_bayes(torch.randn(2, 1, 8, 8))
    default, published = (parse_image_score(name).estimate(denoiser) for name in ("vgr", "vgr-paper"))
    assert (default.forward, default.tangent) == (100, 400)
    assert published.total == 66_000 == 132 * default.total
