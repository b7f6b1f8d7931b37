"""Pipelines whose calls cannot be replayed: each is refused, or generates only, by what could not be told apart."""

import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from tests.tiny import tiny_sd
from tests.tiny_captured import CAPTURED
from tests.tiny_families import FAMILIES, finished, t5
from tests.tiny_uncommon import UNCOMMON

from diffmem.errors import ModelError
from diffmem.models.families.capture import Captured
from diffmem.models.generation import Sampling
from diffmem.models.target import Target


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


def test_a_prompt_that_reaches_the_network_in_a_new_way_is_refused():
    captured = Captured(CAPTURED["chroma"]())
    row = captured._encoded("a fox")
    with pytest.raises(ModelError, match="was not seen when the pipeline was opened"):
        captured._conditioning([row | {"img_ids": row["img_ids"] + 1}])
