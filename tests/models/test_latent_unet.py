"""Unconditional latent diffusion on real classes, however it is packaged: round trips, check, seeds, scores."""

import json

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from tests.tiny import tiny_autoencoder, tiny_latent_unet, tiny_ldm

from diffmem.errors import ModelError, ScoreRefused
from diffmem.models.generation import Sampling
from diffmem.models.ode import sample
from diffmem.models.target import Target
from diffmem.scores.spec import parse_score

CASES = {
    "kl-vae-ddim": lambda: tiny_ldm("kl", "vae"),
    "vq-vqvae-ddim": lambda: tiny_ldm("vq", "vqvae"),
    "vq-vae-ddpm": lambda: tiny_ldm("vq", "vae", DDPMScheduler()),
    "kl-vqvae-ddpm-v": lambda: tiny_ldm("kl", "vqvae", DDPMScheduler(prediction_type="v_prediction")),
}


@pytest.fixture(scope="module", params=CASES)
def saved(request, tmp_path_factory):
    """A folder as diffusers saves it, naming the class that diffusers has deprecated."""
    folder = tmp_path_factory.mktemp("ldm") / "m"
    CASES[request.param]().save_pretrained(folder)
    file = folder / "model_index.json"
    index = json.loads(file.read_text())
    file.write_text(json.dumps(index | {"_class_name": "LDMPipeline"}))
    return request.param, Target.from_pretrained(folder)


def test_it_is_recognised_and_its_check_passes(saved):
    name, target = saved
    denoiser = target.denoiser
    assert (denoiser.family, denoiser.space, denoiser.sample_shape) == ("latent-unet", "latent", (3, 8, 8))
    assert denoiser.prediction == ("v" if name.endswith("-v") else "epsilon")
    result = target.check("", Sampling(steps=3))
    assert result.passed, result.message
    assert result.calls == 3


def test_encoding_and_decoding_is_what_the_autoencoder_does(saved):
    _, target = saved
    vae, denoiser = target.pipeline.autoencoder, target.denoiser
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        there_and_back = denoiser.decode(denoiser.encode_images(images))
        expected = vae(images).sample  # the mode of the posterior for a VAE, by default
    assert there_and_back.shape == images.shape
    torch.testing.assert_close(there_and_back, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ModelError, match="resize"):
        denoiser.encode_images(torch.zeros(1, 3, 32, 32))


def test_images_are_seeded_and_do_not_depend_on_the_batch(saved):
    _, target = saved
    few = Sampling(steps=3)
    together = target.generate(["", ""], [0, 1], 3, few)
    alone = target.generate([""], [1], 3, few)[0]
    assert together[0].size == (16, 16)
    assert np.abs(np.asarray(together[1], int) - np.asarray(alone, int)).max() <= 1
    assert np.abs(np.asarray(together[0], int) - np.asarray(together[1], int)).max() > 1


def test_scores_of_prompts_refuse_with_the_reason(saved):
    _, target = saved
    with pytest.raises(ScoreRefused, match="takes no prompts"):
        parse_score("score-difference").needs(target.denoiser)
    with pytest.raises(ModelError, match="unconditional"):
        target.denoiser.encode_prompts(["a fox"])


def test_our_sampler_equals_the_pipelines():
    pipe = tiny_ldm(scheduler=DDIMScheduler(clip_sample=False))
    denoiser = Target.from_pipeline(pipe).denoiser
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = sample(denoiser, x, denoiser.null(), steps=4)
    theirs = pipe(latents=x, num_inference_steps=4, output_type="latent").images
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_it_makes_the_images_of_diffusers_own_deprecated_class():
    diffusers = pytest.importorskip("diffusers")
    if not hasattr(diffusers, "LDMPipeline"):
        pytest.skip("this diffusers has no LDMPipeline any more")
    theirs = diffusers.LDMPipeline(vqvae=tiny_autoencoder("vq"), unet=tiny_latent_unet(), scheduler=DDIMScheduler())
    theirs.set_progress_bar_config(disable=True)
    target = Target.from_pipeline(theirs)
    assert target.name == "LDMPipeline"
    assert target.pipeline.unet is theirs.unet
    one, two = (
        p(batch_size=2, generator=torch.Generator().manual_seed(1), num_inference_steps=4, output_type="np").images
        for p in (theirs, target.pipeline)
    )
    np.testing.assert_allclose(one, two, atol=1e-5)


def test_a_class_that_no_diffusers_knows_opens_by_its_parts(tmp_path):
    tiny_ldm().save_pretrained(tmp_path / "m")
    one = Target.from_pretrained(tmp_path / "m")
    file = tmp_path / "m" / "model_index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"_class_name": "LatentDiffusionUncondPipeline"}))
    assert Target.from_pretrained(tmp_path / "m").fingerprint == one.fingerprint
    file.write_text(json.dumps({"_class_name": "NoSuchPipeline", "scheduler": ["diffusers", "DDIMScheduler"]}))
    with pytest.raises(ModelError, match="NoSuchPipeline"):
        Target.from_pretrained(tmp_path / "m")
