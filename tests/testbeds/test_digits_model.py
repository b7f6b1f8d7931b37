"""The digits models: built from real classes, trained, saved in float16, loaded back as an ordinary pipeline."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from diffmem.errors import DataError, UsageError
from diffmem.models.families._schedulers import prediction_of, schedule_of
from diffmem.models.parameterization import convert
from diffmem.models.target import Target
from diffmem.testbeds.digits import measure
from diffmem.testbeds.digits.measure import generate_text, generate_unconditional
from diffmem.testbeds.digits.model import (
    PREDICTIONS,
    build_text,
    build_unconditional,
    load_text,
    load_unconditional,
    sampler,
)
from diffmem.testbeds.digits.train import noised, train


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    train("text", folder, steps=3, seed=7, prediction="v")
    return folder


@pytest.fixture(scope="module")
def unconditional_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unconditional")
    train("unconditional", folder, steps=3, seed=7)
    return folder


def test_training_lowers_the_loss(tmp_path):
    torch.set_num_threads(1)
    log = train("unconditional", tmp_path, steps=32, seed=1)
    assert len(log["loss"]) == 2
    assert log["loss"][1] < 0.8 * log["loss"][0]
    assert json.loads((tmp_path / "log.json").read_text()) == log


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_training_shows_what_scoring_will_assume(prediction):
    """The noisy image is alpha x0 + sigma eps at the time that is fed, and the target converts back to eps and x0."""
    scheduler = sampler(prediction)
    x0, eps = torch.randn(2, 64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    t, noisy, wanted = noised(scheduler, x0, eps, torch.Generator().manual_seed(1))
    assert prediction_of(scheduler) == prediction
    alpha, sigma = schedule_of(scheduler).alpha_sigma(t)
    assert 0 <= t.min() < 100 < 900 < t.max() <= 1000
    a, s = (level.float()[:, None, None, None] for level in (alpha, sigma))
    torch.testing.assert_close(noisy, a * x0 + s * eps, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(convert(wanted, noisy, alpha, sigma, prediction, "epsilon"), eps, atol=1e-4, rtol=1e-4)
    if prediction != "epsilon":  # epsilon -> x0 divides by alpha, which is .006 at the end
        torch.testing.assert_close(convert(wanted, noisy, alpha, sigma, prediction, "x0"), x0, atol=1e-4, rtol=1e-4)


def test_a_flow_model_trains_loads_and_is_seen_as_one(tmp_path):
    log = train("text", tmp_path, steps=2, seed=7, prediction="flow")
    assert log["prediction"] == "flow_prediction"
    target = Target.from_pretrained(tmp_path)
    assert (target.denoiser.prediction, target.denoiser.schedule.kind) == ("flow", "flow")
    assert target.check().passed
    facts = measure.how_generated("text", tmp_path)
    assert facts["scheduler"] == "DPMSolverMultistepScheduler"
    assert facts["times"].split(", ")[0] == "999"
    assert len(facts["times"].split(", ")) == measure.STEPS


def test_saved_weights_are_float16_and_load_as_float32(text_folder):
    assert {v.dtype for v in load_file(text_folder / "unet/diffusion_pytorch_model.safetensors").values()} == {
        torch.float16
    }
    pipe = load_text(text_folder)
    assert {module.dtype for module in (pipe.unet, pipe.text_encoder, pipe.vae)} == {torch.float32}
    assert not any(module.training for module in (pipe.unet, pipe.text_encoder, pipe.vae))
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    assert pipe.safety_checker is None
    assert pipe.vae_scale_factor == 1


def test_plain_loading_gives_one_dtype_and_the_same_image(text_folder):
    from diffusers import StableDiffusionPipeline

    settings = {"num_inference_steps": 4, "guidance_scale": 2.0, "output_type": "np"}
    images = []
    for pipe in (load_text(text_folder), StableDiffusionPipeline.from_pretrained(text_folder)):
        assert pipe.text_encoder.dtype == pipe.unet.dtype == torch.float32
        images.append(pipe("the digit two", generator=torch.Generator().manual_seed(3), **settings).images)
    assert images[0].shape == (1, 8, 8, 1)
    assert np.array_equal(*images)


def test_training_is_a_function_of_its_seed(text_folder, tmp_path):
    train("text", tmp_path / "same", steps=3, seed=7, prediction="v")
    train("text", tmp_path / "other", steps=3, seed=8, prediction="v")
    name = "unet/diffusion_pytorch_model.safetensors"
    first, same, other = (load_file(folder / name) for folder in (text_folder, tmp_path / "same", tmp_path / "other"))
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


def test_text_encoder_is_trained_along(text_folder):
    untrained = build_text(7, "v").text_encoder.state_dict()
    trained = load_text(text_folder).text_encoder.state_dict()
    assert max((trained[key] - untrained[key]).abs().max() for key in trained) > 1e-4


def test_generated_images_depend_on_prompt_and_draw_and_not_on_their_company(text_folder):
    both = list(generate_text(text_folder, ["the digit two", "velvet reef six"], range(2), root=1))
    alone = list(generate_text(text_folder, ["velvet reef six"], range(1, 2), root=1))
    assert both[0].shape == (2, 8, 8)
    assert np.abs(both[1][1] - alone[0][0]).max() < 1e-4
    assert np.abs(both[1][0] - both[1][1]).max() > 0.1
    assert np.abs(both[0][0] - both[1][0]).max() > 0.1


def test_unconditional_twin_samples_with_ddim_and_as_a_pipeline(unconditional_folder):
    images = np.concatenate(list(generate_unconditional(unconditional_folder, 5, root=1)))
    assert images.shape == (5, 8, 8)
    assert np.isfinite(images).all()
    assert np.abs(images).max() <= 1
    pipe = load_unconditional(unconditional_folder)
    assert pipe(num_inference_steps=2, output_type="np").images.shape == (1, 8, 8, 1)


def test_unknown_settings_are_refused(tmp_path):
    with pytest.raises(UsageError, match="epsilon, v, flow"):
        build_text(0, "x0")
    with pytest.raises(UsageError, match="cannot hold a flow"):
        build_unconditional(0, "flow")
    with pytest.raises(UsageError, match="1 or more"):
        train("text", tmp_path, steps=0)
    with pytest.raises(DataError, match="model_index"):
        measure.write("text", tmp_path, tmp_path / "out")
