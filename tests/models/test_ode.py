"""Deterministic steps on real pipeline classes: there and back, and the pipeline's own DDIM."""

import itertools

import pytest
import torch
from tests.tiny import tiny_ddpm, tiny_sd

from diffmem.models.ode import ode_step, sample
from diffmem.models.target import Target

MAKERS = {
    "sd-epsilon": tiny_sd,
    "sd-v": lambda: tiny_sd("v_prediction"),
    "sd-v-zero-snr": lambda: tiny_sd("v_prediction", zero_snr=True),
    "ddpm-x0": lambda: tiny_ddpm("sample"),
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("method", ["ddim", "heun"])
def test_there_and_back(name, method):
    denoiser = Target.from_pipeline(MAKERS[name]()).denoiser
    x = torch.randn(2, *denoiser.sample_shape, generator=torch.Generator().manual_seed(0))
    cond = denoiser.encode_prompts(["a", "b"]) if denoiser.conditional else denoiser.null()
    times = [float(t) for t in range(100, 901, 10)]
    y = x
    with torch.no_grad():
        for a, b in itertools.pairwise(times):
            y = ode_step(denoiser, y, a, b, cond, method=method)
        moved = float((y - x).norm() / x.norm())
        for a, b in itertools.pairwise(times[::-1]):
            y = ode_step(denoiser, y, a, b, cond, method=method)
    error = float((y - x).norm() / x.norm())
    assert moved > 0.1
    assert error < (0.05 if method == "ddim" else 0.005)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_sampling_equals_the_pipelines_ddim(prediction):
    pipe = tiny_sd(prediction, set_alpha_to_one=True)
    denoiser = Target.from_pipeline(pipe).denoiser
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = sample(denoiser, x, denoiser.encode_prompts(["a", "b"]), steps=10, guidance=3.0)
    theirs = pipe(["a", "b"], latents=x, num_inference_steps=10, guidance_scale=3.0, output_type="latent").images
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
