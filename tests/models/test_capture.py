"""The family by capture: the same scores as the known families', and pipelines that no family knows."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from tests.tiny import LORA_TARGETS, network_of, random_lora, tiny_sd
from tests.tiny_captured import CAPTURED, TARGETS
from tests.tiny_families import FAMILIES, flux

from diffmem.errors import ModelError
from diffmem.models.families import denoiser_for
from diffmem.models.families.capture import Captured
from diffmem.models.generation import Sampling
from diffmem.models.target import Target
from diffmem.stages.score.score import score

KNOWN = {
    "text-unet": tiny_sd, "text-unet-v": lambda: tiny_sd("v_prediction", zero_snr=True),
    "flux-true": lambda: flux(distilled=False), **{k: v for k, v in FAMILIES.items() if k not in ("dit", "flux")},
}  # fmt: skip
PROMPTS = ["a fox", "abcdefg", ""]


def sized(pipe):
    """Pipelines whose call fixes the size of its images are told the tiny one."""
    if type(pipe).__name__ in ("SanaPipeline", "AuraFlowPipeline"):
        pipe.default_sample_size = 8
    return pipe


def counted(pipe):
    """The number of real evaluations of the network, as a list that grows."""
    seen = []
    network_of(pipe).register_forward_hook(lambda *_: seen.append(1))
    return seen


@contextmanager
def watched_steps(pipe, see):
    """Tell of every step of the scheduler: (prediction, t, the latents after it)."""
    step = pipe.scheduler.step

    def watched(prediction, t, *args, **kwargs):
        result = step(prediction, t, *args, **kwargs)
        see((prediction.detach().clone(), float(t), result[0].detach().clone()))
        return result

    pipe.scheduler.step = watched
    try:
        yield
    finally:
        del pipe.scheduler.step


@pytest.mark.parametrize("name", KNOWN)
def test_known_families_score_the_same_through_it(name):
    pipe = sized(KNOWN[name]())
    evaluated = counted(pipe)
    captured = Captured(pipe)
    captured.encode_prompts(PROMPTS)
    assert not evaluated, "neither opening nor encoding evaluates the network"
    own = denoiser_for(pipe)
    assert captured.sample_shape == own.sample_shape
    assert captured.prediction == own.prediction
    assert captured.schedule.sampling_times(4) == pytest.approx(own.schedule.sampling_times(4))
    methods = ["score-difference", "alignment", "anisotropy:weights=1/1"]
    theirs, ours = (score(Target(name, d, pipe), PROMPTS, methods, draws=2) for d in (own, captured))
    assert not ours.refused
    for method in ours.labels:
        for prompt, values in theirs.values(method).items():
            np.testing.assert_allclose(ours.values(method)[prompt], values, rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module", params=CAPTURED)
def captured(request):
    pipe = CAPTURED[request.param]()
    return request.param, Target.from_pipeline(pipe, name=request.param)


def test_the_replay_is_what_the_pipeline_runs(captured):
    _, target = captured
    assert target.denoiser.family == "capture"
    assert target.denoiser.unconditional_branch == (target.name != "flux2-dev")
    result = target.check("a fox", Sampling(steps=2))
    assert result.passed, result.message
    assert result.calls == 2 * len(target.denoiser.seen.step.calls)
    assert not any(m._forward_hooks for m in target.denoiser.network.modules())


def test_it_is_read_anew_at_another_size(captured):
    """Positions, shifted times and size embeddings follow the size, as the check sees."""
    name, target = captured
    if name in ("kandinsky5", "hidream"):
        pytest.skip("its call moves every size to one of its table, or to its own area")
    channels, rows, columns = target.denoiser.sample_shape
    factor = getattr(target.pipeline, "vae_scale_factor", 1)
    size = {"height": rows * factor, "width": 2 * columns * factor}
    assert target.denoiser.under(**size, guidance=None).sample_shape == (channels, rows, 2 * columns)
    result = target.check("a fox", Sampling(steps=2, **size))
    assert result.passed, result.message
    assert target.generate(["a fox"], [0], 0, Sampling(steps=2, **size))[0].size == (
        2 * columns * factor,
        rows * factor,
    )


def test_the_cost_is_what_the_network_is_asked(captured):
    _, target = captured
    seen = []
    network = target.denoiser.network
    handle = network.register_forward_hook(
        lambda m, a, k, o: seen.append(len(o[0] if isinstance(o, tuple) else o.sample)), with_kwargs=True
    )
    try:
        for guidance in (None, 1.0, 3.0):
            seen.clear()
            target.generate(["a fox"], [0], 0, Sampling(steps=3, guidance=guidance))
            assert target.generation_nfe(Sampling(steps=3, guidance=guidance)) == sum(seen)
    finally:
        handle.remove()


def test_rows_do_not_depend_on_the_batch(captured):
    _, target = captured
    denoiser = target.denoiser
    x = torch.randn(3, *denoiser.sample_shape, generator=torch.Generator().manual_seed(0))
    times = torch.tensor(denoiser.schedule.sampling_times(4)[:3])
    with torch.no_grad():
        cond = denoiser.encode_prompts(PROMPTS)
        together = denoiser.predict(x, times, cond)
        for i, prompt in enumerate(PROMPTS):
            alone = denoiser.predict(x[i : i + 1], float(times[i]), denoiser.encode_prompts([prompt]))
            torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-4)
        other = denoiser.predict(x[:1], float(times[0]), cond.select([1]))
        assert (together[0] - other[0]).abs().max() > 1e-5, "the prompt matters"


def test_scores_run(captured):
    _, target = captured
    result = score(target, ["a fox", "abc"], ["score-difference", "alignment", "anisotropy:weights=1/1"], draws=2)
    if not target.denoiser.unconditional_branch:
        assert len(result.refused) == 3
        return
    assert not result.refused
    for label in result.labels:
        assert all(np.isfinite(v).all() and (v != 0).any() for v in result.values(label).values()), label


def test_images_are_seeded_and_do_not_depend_on_the_batch(captured):
    _, target = captured
    together = target.generate(["a fox", "abc"], [0, 1], 3, Sampling(steps=2))
    alone = target.generate(["abc"], [1], 3, Sampling(steps=2))[0]
    assert np.abs(np.asarray(together[1], int) - np.asarray(alone, int)).max() <= 2


def test_images_are_encoded_and_decoded_as_the_pipeline_does(captured):
    """Our decoding of the pipeline's last latents is its image; and where the VAE is told, encoding is the inverse."""
    _, target = captured
    pipe, denoiser, seen = target.pipeline, target.denoiser, []
    with watched_steps(pipe, lambda step: seen.append(step)):
        arguments = denoiser.generation_arguments(["a fox"]) | {"num_inference_steps": 2, "output_type": "pt"}
        image = pipe(**arguments, generator=torch.Generator().manual_seed(0))[0]
    if target.name == "deep-floyd":
        image = (image / 2 + 0.5).clamp(0, 1)  # its "pt" is not rescaled
    with torch.no_grad():
        x0 = denoiser.read_latents(seen[-1][2])
        ours = denoiser.decode(x0)
        torch.testing.assert_close((ours / 2 + 0.5).clamp(0, 1), image, rtol=1e-4, atol=1e-4)
        assert torch.equal(denoiser.read_latents(denoiser.initial_latents(x0)), x0)
        assert denoiser.encode_images(ours).shape == x0.shape
        with pytest.raises(ModelError, match="resize"):
            denoiser.encode_images(torch.zeros(1, 3, *(2 * n for n in ours.shape[2:])))


def test_it_guides_as_the_pipeline_does_from_the_same_noise(captured):
    """The pipeline's own first step, with its guidance, equals the same step made of our two branches."""
    name, target = captured
    if name == "lumina2":
        pytest.skip("it rescales the guided prediction, which no formula of ours is to know")
    if not target.denoiser.unconditional_branch or not target.denoiser.takes_noise:
        pytest.skip("it has one branch, or draws its own noise")
    denoiser, pipe = target.denoiser, target.pipeline
    noise = torch.randn(1, *denoiser.sample_shape, generator=torch.Generator().manual_seed(0))
    seen = []
    with watched_steps(pipe, lambda step: seen.append(step)):
        arguments = denoiser.generation_arguments(["a fox"]) | {"num_inference_steps": 2, "guidance_scale": 3.0}
        pipe(**arguments, latents=denoiser.initial_latents(noise), output_type="latent")
    given, t, _ = seen[0]
    with torch.no_grad():
        c = denoiser.predict(noise, t, denoiser.encode_prompts(["a fox"]))
        u = denoiser.predict(noise, t, denoiser.null())
    torch.testing.assert_close(denoiser.read_latents(given), u + 3.0 * (c - u), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", CAPTURED)
def test_loras(name, tmp_path):
    """A LoRA of the right network changes what is replayed, for the pipelines that diffusers can load one into or not."""
    from diffmem.models.lora import load_lora

    pipe = CAPTURED[name]()
    file, _ = random_lora(CAPTURED[name](), tmp_path / "lora", targets=TARGETS.get(name, LORA_TARGETS))
    base = Target.from_pipeline(pipe).denoiser
    x = torch.randn(1, *base.sample_shape, generator=torch.Generator().manual_seed(0))
    t = base.schedule.sampling_times(4)[1]
    with torch.no_grad():
        before = base.predict(x, t, base.encode_prompts(["a fox"]))
        load_lora(pipe, file)
        target = Target.from_pipeline(pipe)
        after = target.denoiser.predict(x, t, target.denoiser.encode_prompts(["a fox"]))
    assert (before - after).abs().max() > 1e-3
    assert target.check("a fox", Sampling(steps=2)).passed
