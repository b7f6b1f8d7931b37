"""The family by capture: the same scores as the known families', and pipelines that no family knows."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from tests.tiny import LORA_TARGETS, network_of, random_lora, tiny_sd
from tests.tiny_captured import CAPTURED, TARGETS
from tests.tiny_families import FAMILIES, finished, flux, t5
from tests.tiny_uncommon import UNCOMMON

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


def test_what_no_encoder_reads_is_found_without_its_tokenizer():
    """The same end of a prompt that the family finds by counting tokens."""
    pipe = tiny_sd()
    prompts = ["a fox that has run a very long way over hills and through rivers", "fox"]
    own, captured = denoiser_for(pipe), Captured(pipe)
    assert captured.encode_prompts(prompts).truncated == own.encode_prompts(prompts).truncated


def test_it_leaves_nothing_behind():
    from tests.mitigation.mitigations import traces

    pipe = tiny_sd()
    pipe("a fox", num_inference_steps=1)
    before = traces(pipe)
    Captured(pipe).encode_prompts(["a fox"])
    assert traces(pipe) == before


def test_it_can_be_asked_in_the_middle_of_a_run():
    """Encoding while the pipeline samples changes nothing of what it makes (its scheduler has a state)."""
    pipe = tiny_sd()
    captured = Captured(pipe)

    def ask(pipeline, i, t, arguments):
        captured.encode_prompts(["another"])
        return {}

    images = [
        pipe("a fox", num_inference_steps=3, generator=torch.Generator().manual_seed(0), output_type="pt", **more)[0]
        for more in ({}, {"callback_on_step_end": ask})
    ]
    assert torch.equal(*images)


def wan():
    from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel

    tokenizer, encoder = t5()
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=32,
        freq_dim=16, ffn_dim=16, num_layers=1, rope_max_seq_len=32,
    )  # fmt: skip
    vae = AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    pipe = WanPipeline(
        tokenizer=tokenizer, text_encoder=encoder, vae=vae, transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )  # fmt: skip
    return finished(pipe)


class HalvedFlowMatch(FlowMatchEulerDiscreteScheduler):
    """Its times are half its noise levels."""

    def set_timesteps(self, num_inference_steps=None, device=None, sigmas=None, mu=None, timesteps=None):
        super().set_timesteps(num_inference_steps, device, sigmas, mu, timesteps)
        self.timesteps = self.timesteps / 2


def rebuilt(cls, **more):
    return cls(**tiny_sd().components, requires_safety_checker=False, **more)


def test_refusals_say_what_could_not_be_told_apart():
    from diffusers import ScoreSdeVeScheduler, StableDiffusionImg2ImgPipeline, StableDiffusionPAGPipeline

    pag = rebuilt(StableDiffusionPAGPipeline, pag_applied_layers=["mid"])
    inverted = CAPTURED["lumina2"]()
    inverted.scheduler = type(inverted.scheduler).from_config(inverted.scheduler.config, invert_sigmas=True)
    halved = CAPTURED["lumina2"]()
    halved.scheduler = HalvedFlowMatch.from_config(halved.scheduler.config)
    strange = tiny_sd()
    strange.scheduler = ScoreSdeVeScheduler()
    twice = CAPTURED["chroma"]()
    twice.register_modules(image_encoder=CAPTURED["chroma"]().transformer)
    for pipe, said in (
        (rebuilt(StableDiffusionImg2ImgPipeline), "does not run on a prompt alone"),
        (pag, "Of 3 evaluations a step, 2 depend on the prompt"),
        (wan(), "no single image"),
        (twice, "it has 2 networks"),
        (inverted, "times do not fall"),
        (halved, "calls the noise level 1 the time 500"),
        (strange, "no beta schedule"),
    ):
        with pytest.raises(ModelError, match=said) as refused:
            Captured(pipe)
        assert type(pipe).__name__ in str(refused.value)
    assert not Captured.fits(FAMILIES["dit"]())


def test_what_cannot_be_captured_still_generates():
    """Named as such, with the reason; asked for a score, it says so again."""
    pipe = CAPTURED["lumina2"]()
    pipe.scheduler = HalvedFlowMatch.from_config(pipe.scheduler.config)
    target = Target.from_pipeline(pipe)
    assert target.denoiser is None
    assert "calls the noise level" in target.generates_only
    assert target.can_generate
    with pytest.raises(ModelError, match="only generates images"):
        target.need_denoiser()


@pytest.mark.parametrize(
    ("name", "side", "said"),
    [
        ("cogview4", 64, "calls the noise level"), ("kandinsky22", 64, "it has 2 networks"),
        ("amused", 4, "no beta schedule"), ("stable-cascade", 128, "No family"),
    ],
)  # fmt: skip
def test_pipelines_whose_networks_no_score_describes_make_images(name, side, said):
    target = Target.from_pipeline(UNCOMMON[name]())
    assert target.denoiser is None and said in target.generates_only
    settings = Sampling(steps=2, height=side, width=side)
    first, again, other = (target.generate(["a fox"], [draw], 0, settings)[0] for draw in (0, 0, 1))
    assert first.tobytes() == again.tobytes() != other.tobytes()
    together = target.generate(["a fox", "a dog"], [0, 1], 0, settings)  # aMUSEd takes one generator, no list of them
    difference = np.abs(np.asarray(together[0], int) - np.asarray(first, int))
    assert len(together) == 2 and (name == "stable-cascade" or difference.max() <= 2)


def test_a_package_that_is_not_installed_is_named(tmp_path, monkeypatch):
    """As diffusers writes code of optional packages: their names are defined only where they are there."""
    import diffusers.pipelines.prx.pipeline_prx as module

    pipe = CAPTURED["prx"]()
    monkeypatch.delattr(module, "ftfy")
    with pytest.raises(ModelError, match=r"runs a PRXPipeline with ftfy only, which is not installed"):
        Target.from_pipeline(pipe)


def test_a_network_of_lists_of_lists_is_refused_by_its_argument():
    """Z-Image Omni gives its network the pictures beside the latents, as a list of lists."""
    from diffusers import ZImageOmniPipeline

    parts = FAMILIES["z-image"]().components
    pipe = finished(ZImageOmniPipeline(**parts, siglip=None, siglip_processor=None))
    pipe.default_sample_size = 8
    target = Target.from_pipeline(pipe)
    assert target.denoiser is None
    assert "first argument x holds list in place of the noisy latents" in target.generates_only


def test_a_row_may_be_the_second_dimension():
    """HiDream gives its network the layers of a language model as [layer, row, token, width]."""
    from diffmem.models.pipelines.leaves import joined, kind_of, row_of

    once, twice = torch.randn(3, 2, 5), torch.randn(3, 4, 5)
    assert kind_of(once, twice, rows=2) == "columns"
    rows = [row_of(once, "columns", i) for i in range(2)]
    assert torch.equal(joined(rows, "columns"), once)
    assert kind_of(once, torch.randn(3, 4, 6), rows=2) is None


def test_a_distilled_guidance_leaves_one_branch():
    """FLUX.1-dev has classifier-free guidance in its weights: true guidance would be possible, and is not asked for."""
    pipe = FAMILIES["flux"]()
    captured, own = Captured(pipe), denoiser_for(pipe)
    assert not captured.unconditional_branch
    refused = score(Target("flux", captured, pipe), ["a fox"], ["score-difference"], draws=1).refused
    assert set(refused) == {"score-difference"}
    x = torch.randn(1, *own.sample_shape, generator=torch.Generator().manual_seed(0))
    for guidance in (None, 7.0):  # an input of the network
        ours, theirs = (one.under(None, None, guidance) for one in (captured, own))
        with torch.no_grad():
            outputs = [one.predict(x, 800.0, one.null()) for one in (ours, theirs)]
        torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
    assert Target("flux", captured, pipe).check("a fox", Sampling(steps=2, guidance=7.0)).passed


def test_a_pipeline_that_says_it_is_distilled_has_one_branch():
    pipe = CAPTURED["flux2-klein"]()
    pipe.register_to_config(is_distilled=True)
    target = Target.from_pipeline(pipe)
    assert not target.denoiser.unconditional_branch
    assert any("is_distilled" in note for note in target.notes)
    assert target.check("a fox", Sampling(steps=2)).passed


@pytest.mark.parametrize("name", ["lumina2", "hunyuan-dit", "flux2-klein"])
def test_in_half_precision(name):
    """Layouts, times and signs are read through bfloat16's rounding; the time it passes is up to 2 off, which is no finding."""
    captured = Captured(CAPTURED[name]())
    target = Target.from_pipeline(CAPTURED[name]().to(torch.bfloat16))
    half = target.denoiser
    result = target.check("a fox", Sampling(steps=4))
    assert result.passed, result.message
    assert half.sample_shape == captured.sample_shape
    assert torch.equal(half._layout.order, captured._layout.order)
    torch.testing.assert_close(half._layout.scale, captured._layout.scale, rtol=1e-2, atol=1e-2)
    assert (half.seen.times.scale, half.seen.times.offset) == (captured.seen.times.scale, captured.seen.times.offset)


def test_a_prompt_that_reaches_the_network_in_a_new_way_is_refused():
    captured = Captured(CAPTURED["chroma"]())
    row = captured._encoded("a fox")
    with pytest.raises(ModelError, match="was not seen when the pipeline was opened"):
        captured._conditioning([row | {"img_ids": row["img_ids"] + 1}])


def test_from_a_folder(tmp_path):
    CAPTURED["aura-flow"]().save_pretrained(tmp_path / "model")
    target = Target.from_pretrained(tmp_path / "model")
    assert target.denoiser.family == "capture"
    assert target.denoiser.sample_shape == (4, 512, 512)  # its call makes 1024 pixels unless it is told
    target.pipeline.default_sample_size = 8
    assert Target.from_pipeline(target.pipeline).check("a fox", Sampling(steps=2)).passed
