"""The check of a declaration on images: wrong ones are named, right ones and useless networks raise no alarm."""

import itertools

import numpy as np
import pytest
import torch
from tests.tiny import tiny_sd
from tests.tiny_families import FAMILIES

from diffmem.data.images import load_images
from diffmem.errors import CheckFailed
from diffmem.experiments.audit.run import audit
from diffmem.models.fit import LEVELS, check_fit
from diffmem.models.schedule import DiscreteSchedule, FlowSchedule
from diffmem.models.target import Target
from diffmem.stages.measure.measure import measure

SIDE = 8
MEAN, SPREAD, PART = 0.2, 0.3, 4
"""Images of four quadrants of one brightness each, Gaussian in [-1, 1], so that the ideal network is a formula."""


def quadrants(x):
    """Every pixel replaced by its quadrant's mean."""
    return torch.nn.functional.avg_pool2d(x, PART).repeat_interleave(PART, -2).repeat_interleave(PART, -1)


@pytest.fixture(scope="module")
def images():
    corners = torch.randn(24, 1, SIDE // PART, SIDE // PART, generator=torch.Generator().manual_seed(0))
    values = quadrants(MEAN + SPREAD * corners.repeat_interleave(PART, -2).repeat_interleave(PART, -1))[:, 0]
    return load_images([np.uint8(((v.clamp(-1, 1) + 1) * 127.5).round().numpy()) for v in values])


def ideal(kind, schedule="linear", low=-1.0, high=1.0, reverse=False, divide=False):
    """The ideal network of these images; its x0_hat is the posterior mean of each quadrant."""
    scale = (high - low) / 2
    mean, variance = low + (MEAN + 1) * scale, (SPREAD * scale) ** 2

    def fn(x, t, cond):
        t = t * 1000 if divide else t
        if schedule == "linear":
            t = 999 - t if reverse else t
            alpha, sigma = (v.to(x) for v in DiscreteSchedule.linear().alpha_sigma(t.double().clamp(0, 999)))
        elif schedule == "edm":
            alpha, sigma = torch.ones_like(t), t
        else:
            t = (1 - t if reverse else t).clamp(0, 1)
            alpha, sigma = 1 - t, t
        a, s = alpha.reshape(-1, 1, 1, 1), sigma.reshape(-1, 1, 1, 1)
        x0 = mean + a * variance * (quadrants(x) - a * mean) / (a**2 * variance + s**2 / PART**2)
        eps = (x - a * x0) / s.clamp_min(1e-4)
        return {"epsilon": eps, "x0": x0, "v": a * eps - s * x0, "flow": eps - x0, "score": -eps / s.clamp_min(1e-4),
                "minus flow": x0 - eps}[kind]  # fmt: skip

    return fn


def declared(fn, **more):
    return Target.from_callable(fn, (1, SIDE, SIDE), **more)


RIGHT = [
    *[("linear", kind, low, high) for kind, (low, high) in itertools.product(["epsilon", "x0", "v", "score"], [(-1, 1), (0, 1)])],
    *[("flow", kind, low, high) for kind, (low, high) in itertools.product(["flow", "x0", "epsilon"], [(-1, 1), (-0.5, 0.5)])],
    *[("edm", kind, -1, 1) for kind in ("epsilon", "x0", "score")],
]  # fmt: skip


@pytest.mark.parametrize(("schedule", "kind", "low", "high"), RIGHT)
def test_a_right_declaration_passes_without_a_warning(images, schedule, kind, low, high):
    target = declared(ideal(kind, schedule, low, high), prediction=kind, schedule=schedule, pixel_range=(low, high))
    result = check_fit(target.denoiser, images)
    assert (result.passed, result.warning, result.better) == (True, False, None), result.message
    # A Gaussian's posterior variance over its own, 16 pixels having one value, whatever range, schedule and prediction.
    known = [(level / PART) ** 2 / (1 + (level / PART) ** 2) for level in LEVELS]
    assert all(0.4 < mine / value < 2.5 for mine, value in zip(result.losses, known, strict=True)), result.losses


WRONG = [
    (ideal("epsilon"), {"prediction": "x0"}, "as epsilon"),
    (ideal("epsilon"), {"prediction": "v"}, "as epsilon"),
    (ideal("x0"), {}, "as x0"),
    (ideal("v"), {"prediction": "x0"}, "as v"),
    (ideal("flow", "flow"), {"prediction": "x0", "schedule": "flow"}, "as flow"),
    (ideal("minus flow", "flow"), {"prediction": "flow", "schedule": "flow"}, "as x0 - eps"),
    (ideal("flow", "flow", reverse=True), {"prediction": "flow", "schedule": "flow"}, "with time reversed"),
    (ideal("epsilon", reverse=True), {}, "with time reversed"),
    (ideal("epsilon", divide=True), {}, "with t divided by 1000"),
    (ideal("epsilon", low=0, high=1), {"prediction": "x0", "pixel_range": (0, 1)}, "as epsilon"),
    (ideal("score", "edm"), {"prediction": "x0", "schedule": "edm"}, "as score"),
]


@pytest.mark.parametrize(("fn", "arguments", "named"), WRONG, ids=[f"{i}-{w[2]}" for i, w in enumerate(WRONG)])
def test_a_wrong_declaration_fails_and_the_right_one_is_named(images, fn, arguments, named):
    result = check_fit(declared(fn, **arguments).denoiser, images)
    assert result.passed is False, result.message
    assert result.better[0] == named
    assert result.better[1] > 5
    assert f"{named} the loss on these images is" in result.message


@pytest.mark.parametrize(("low", "high", "wrong"), [(-0.5, 0.5, (0, 1)), (0, 1, (-1, 1)), (-1, 1, (0, 1))])
def test_a_wrong_pixel_range_is_named(images, low, high, wrong):
    fn = ideal("x0", "flow", low, high)
    result = check_fit(declared(fn, prediction="x0", schedule="flow", pixel_range=wrong).denoiser, images)
    assert result.better is not None
    assert result.better[0] == f"with pixels in [{low:g}, {high:g}]"


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v"])
@pytest.mark.parametrize("size", [0.0, 0.1, 1.0, 10.0])
def test_a_network_without_use_is_a_warning_and_no_failure(images, prediction, size):
    noise = torch.Generator().manual_seed(1)

    def fn(x, t, cond):
        return size * torch.randn(x.shape, generator=noise)

    result = check_fit(declared(fn, prediction=prediction).denoiser, images)
    assert (result.passed, result.warning) == (True, True)
    assert "no better than a filter without a network" in result.message


def pictures_of(kind, count):
    """8-bit pictures [SIDE, SIDE]: noise, or of about one brightness, which few outputs miss by much."""
    random = np.random.default_rng(0)
    low, high = {"noise": (0, 256), "dark": (4, 20), "bright": (225, 250)}[kind]
    return load_images([random.integers(low, high, (SIDE, SIDE)).astype(np.uint8) for _ in range(count)])


@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize("kind", ["noise", "dark", "bright"])
@pytest.mark.parametrize(
    ("schedule", "prediction"),
    [("linear", "epsilon"), ("linear", "v"), ("flow", "x0"), ("flow", "flow"), ("edm", "epsilon")],
)
def test_random_weights_are_a_warning_on_any_images(schedule, prediction, kind, count):
    """What they return may lie near the images by chance: a convolution, a constant, a part of the input."""
    torch.manual_seed(0)
    convolution = torch.nn.Conv2d(1, 1, 3, padding=1).requires_grad_(False)
    for fn in (lambda x, t, c: convolution(x), lambda x, t, c: -0.8 + 0.05 * x.tanh(), lambda x, t, c: -0.7 * x):
        result = check_fit(declared(fn, prediction=prediction, schedule=schedule).denoiser, pictures_of(kind, count))
        assert (result.passed, result.better) == (True, None), result.message
        assert result.warning


@pytest.mark.parametrize("count", [1, 2, 8])
def test_random_weights_of_a_latent_flow_model_are_a_warning(count):
    """Sana's random encoder puts all latents near one value, from which a random output is not far."""
    images = load_images(list(np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3)).astype(np.uint8)))
    result = check_fit(Target.from_pipeline(FAMILIES["sana"]()).denoiser, images)
    assert (result.passed, result.warning, result.better) == (True, True, None), result.message


def test_a_pipeline_is_checked_by_its_prediction_type(images):
    result = check_fit(Target.from_pipeline(tiny_sd()).denoiser, images)
    assert result.passed is True
    assert result.warning  # random weights
    assert "pixels" not in result.message.split("(")[1].split(")")[0]


def test_a_wrong_prediction_type_of_a_pipeline_is_named(tmp_path):
    """The digits testbed, which predicts the noise, passes; with v_prediction in its scheduler's config it fails."""
    import diffusers

    from diffmem.models.bundled import bundled_path
    from diffmem.testbeds.digits.inputs import materialize

    pictures = load_images(materialize(tmp_path, 10).train)
    right = Target.from_pretrained(bundled_path("testbed:digits"))
    assert check_fit(right.denoiser, pictures).passed is True
    pipeline = right.pipeline
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config, prediction_type="v_prediction")
    result = check_fit(Target.from_pipeline(pipeline).denoiser, pictures)
    assert (result.passed, result.better[0]) == (False, "as epsilon")
    assert "prediction_type" in result.message


class TestChecksOfATarget:
    def test_without_images_it_says_so(self):
        result = declared(ideal("epsilon")).check()
        assert result.passed is None
        assert result.message.startswith("Not checked")

    def test_with_images_it_decides(self, images):
        assert declared(ideal("epsilon")).check(images=images).passed is True
        assert declared(ideal("epsilon"), prediction="x0").check(images=images).passed is False

    def test_a_network_that_changes_from_call_to_call_fails(self):
        result = declared(lambda x, t, c: torch.randn_like(x)).check()
        assert (result.passed, "same input" in result.message) == (False, True)

    def test_a_network_whose_rows_depend_on_each_other_fails(self):
        result = declared(lambda x, t, c: x - x.mean(0, keepdim=True)).check()
        assert (result.passed, "other rows of its batch" in result.message) == (False, True)

    def test_images_without_captions_cannot_check_a_network_that_needs_them(self, images):
        target = declared(lambda x, t, c: x * 0, classes=3)
        result = target.check(images=images)
        assert (result.passed, "no captions" in result.message) == (None, True)

    def test_measuring_stops_at_a_wrong_declaration_unless_told(self, images, tmp_path):
        target = declared(ideal("epsilon"), prediction="x0")
        with pytest.raises(CheckFailed, match=r"as epsilon the loss on these images.*--despite-check"):
            measure(target, images, ["loss"], out=tmp_path / "a")
        target.despite_check = True
        assert any("declared x0" in note for note in measure(target, images, ["loss"], out=tmp_path / "b").notes)

    def test_an_audit_stops_at_a_wrong_declaration(self, images, tmp_path):
        target = declared(ideal("flow", "flow"), prediction="x0", schedule="flow", steps=2)
        with pytest.raises(CheckFailed, match="as flow"):
            audit(target, ["a"], images, out=tmp_path / "run", images_per_prompt=1)

    def test_an_audit_says_what_the_check_found(self, images, tmp_path):
        target = declared(ideal("flow", "flow"), prediction="flow", schedule=FlowSchedule(1.0), steps=2)
        run = audit(target, ["a"], images, out=tmp_path / "run", images_per_prompt=1)
        states = {check.check: check.state for check in run.summary.checks}
        assert states["the model is what it was declared to be"] == "passed"
