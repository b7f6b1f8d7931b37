"""The guard in front of image-to-image pipelines: prompts are scored before generation, images keep their start."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tests.tiny import picture, tiny_sd

import diffmem
from diffmem.copies.calibration import calibrate as calibrate_copies
from diffmem.copies.descriptors import make_descriptor
from diffmem.copies.index import CopyIndex
from diffmem.errors import UsageError

PROMPTS = [f"{a} {b}" for a in ("sea", "hill", "wood", "lake") for b in ("red", "blue", "dark", "old", "wet", "big")]
START = [picture(i) for i in range(3)]


def shares(pipe, prompts, image, copies=1, **more):
    generators = [torch.Generator().manual_seed(i) for i in range(len(prompts) * copies)]
    settings = {"num_inference_steps": 4, "output_type": "np", "generator": generators} | more
    return pipe(prompts, image=image, strength=0.5, num_images_per_prompt=copies, **settings).images


@pytest.fixture(scope="module")
def made():
    """The pipeline, a threshold that flags one of the first three prompts, and which."""
    from diffusers import StableDiffusionImg2ImgPipeline

    pipe = StableDiffusionImg2ImgPipeline(**tiny_sd().components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    calibration = diffmem.guard.calibrate(pipe, PROMPTS, 0.2, draws=1)
    with diffmem.guard(pipe, threshold=calibration, action="log") as guard:
        shares(pipe, PROMPTS[:3], START)
    values = [d.value for d in guard.decisions]
    ranked = sorted(values)
    threshold = calibration.threshold.model_copy(update={"value": (ranked[-1] + ranked[-2]) / 2})
    return pipe, threshold, int(np.argmax(values))


@pytest.mark.parametrize(
    "kind", [list, lambda images: torch.stack([torch.from_numpy(np.asarray(i) / 255.0) for i in images])]
)
def test_each_image_of_a_mixed_batch_keeps_its_start(made, kind):
    pipe, threshold, loud = made
    start = kind(START)
    if isinstance(start, torch.Tensor):
        start = start.permute(0, 3, 1, 2).float()
    bare = shares(pipe, PROMPTS[:3], start, copies=2)
    with diffmem.guard(pipe, threshold=threshold, action="refuse", on_refuse="blank") as guard:
        images = shares(pipe, PROMPTS[:3], start, copies=2)
    outcomes = [d.outcome for d in guard.decisions]
    assert outcomes == ["refused" if i // 2 == loud else "passed" for i in range(6)]
    kept = [i for i in range(6) if i // 2 != loud]
    np.testing.assert_allclose(images[kept], bare[kept], atol=1e-5)
    assert not images[[2 * loud, 2 * loud + 1]].any()


def test_one_start_for_all_and_a_passing_batch(made):
    pipe, threshold, _ = made
    bare = shares(pipe, PROMPTS[:3], START[0])
    with diffmem.guard(pipe, threshold=threshold.model_copy(update={"value": 1e9}), action="refuse"):
        assert np.array_equal(shares(pipe, PROMPTS[:3], START[0]), bare)


def test_a_flagged_image_is_mitigated_where_the_mitigation_takes_such_calls(made):
    pipe, threshold, loud = made
    with diffmem.guard(pipe, threshold=threshold, mitigation="transition-static", on_refuse="blank") as guard:
        images = shares(pipe, PROMPTS[:3], START)
    assert guard.decisions[loud].outcome == "mitigated" and images[loud].any()
    with diffmem.guard(pipe, threshold=threshold, mitigation="wen", on_refuse="blank") as guard:
        shares(pipe, PROMPTS[:3], START)
    decision = guard.decisions[loud]
    assert decision.outcome == "refused" and "takes no `latents`" in decision.attempts[-1].why


def test_other_noise_comes_from_another_generator(made):
    pipe, threshold, _ = made
    first = shares(pipe, PROMPTS[:1], START[0], output_type="pil")[0]
    random = np.random.default_rng(0)
    training = [first, *(Image.fromarray(random.integers(0, 255, (16, 16, 3), np.uint8)) for _ in range(120))]
    index = CopyIndex.build(training, make_descriptor("l2-tiled"))
    copies = calibrate_copies(index, statistic="similarity")
    with diffmem.guard(
        pipe, threshold=threshold.model_copy(update={"value": 1e9}), action="reseed", index=index,
        copy_threshold=copies, on_refuse="blank",
    ) as guard:  # fmt: skip
        shares(pipe, PROMPTS[:1], START[0], output_type="pil")
    (decision,) = guard.decisions
    assert [a.action for a in decision.attempts] == ["generate", "reseed"]
    assert decision.attempts[1].match < decision.attempts[0].match
    assert decision.nfe == 2 + 2 * 2  # the score, and the image a second time (half of 4 steps)


def test_during_generation_is_refused(made):
    pipe, _, _ = made
    with pytest.raises(UsageError, match="starts from an image"):
        diffmem.guard.calibrate(pipe, PROMPTS, 0.2, regime="generation", steps=4)
