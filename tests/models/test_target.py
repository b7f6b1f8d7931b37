"""Targets from real pipelines: the check, generation that does not depend on the batch, loading from disk."""

import json
import shutil

import numpy as np
import pytest
import torch
from tests.tiny import tiny_ddpm, tiny_sd

from diffmem.errors import ModelError, UsageError
from diffmem.models.capture import capture
from diffmem.models.generation import Sampling
from diffmem.models.target import Target

MAKERS = {
    "sd1-epsilon": lambda: tiny_sd(),
    "sd2-v": lambda: tiny_sd("v_prediction"),
    "sd2-v-zero-snr": lambda: tiny_sd("v_prediction", zero_snr=True),
    "ddpm": lambda: tiny_ddpm(),
    "ddim": lambda: tiny_ddpm(kind="ddim"),
}


@pytest.mark.parametrize("name", MAKERS)
def test_check_passes_on_the_pipeline_itself_after_saving_and_loading(name, tmp_path):
    MAKERS[name]().save_pretrained(tmp_path / "m", safe_serialization=True)
    target = Target.from_pretrained(tmp_path / "m")
    result = target.check("abc")
    assert result.passed, result.message
    assert result.calls >= 4
    assert result.output_difference < 1e-5
    assert not target.pipeline.components["unet"]._forward_hooks


def test_check_passes_in_bfloat16(tmp_path):
    tiny_sd().save_pretrained(tmp_path / "m")
    target = Target.from_pretrained(tmp_path / "m", dtype="bfloat16")
    assert target.denoiser.dtype == torch.bfloat16
    assert target.check("abc").passed


@pytest.mark.parametrize("scheduler", ["euler", "dpm++", "ddpm", "pndm"])
def test_check_passes_whatever_the_sampler(scheduler):
    target = Target.from_pipeline(tiny_sd())
    result = target.check("abc", Sampling(steps=3, scheduler=scheduler))
    assert result.passed, result.message


def test_check_notices_another_network():
    target = Target.from_pipeline(tiny_sd())
    denoiser = target.denoiser
    honest = denoiser.forward
    denoiser.forward = lambda x, t, cond: 1.01 * honest(x, t, cond)
    assert not target.check("abc").passed
    denoiser.forward = honest
    encode = denoiser.encode_prompts
    denoiser.encode_prompts = lambda prompts: encode([p.upper() + "z" for p in prompts])
    result = target.check("abc")
    assert not result.passed
    assert "encoded prompts" in result.message


def test_capture_leaves_no_hook_after_an_exception():
    target = Target.from_pipeline(tiny_sd())
    with pytest.raises(KeyError), capture(target.denoiser):
        raise KeyError("x")
    assert not target.pipeline.unet._forward_hooks


@pytest.mark.parametrize("scheduler", [None, "euler-ancestral"])
def test_images_do_not_depend_on_the_batch_or_its_order(scheduler):
    target = Target.from_pipeline(tiny_sd())
    sampling = Sampling(steps=3, guidance=3.0, scheduler=scheduler)
    together = target.generate(["a", "b", "a"], [0, 1, 2], 5, sampling)
    for i, (prompt, draw) in enumerate([("a", 0), ("b", 1), ("a", 2)]):
        alone = target.generate([prompt], [draw], 5, sampling)[0]
        assert np.abs(np.asarray(alone, int) - np.asarray(together[i], int)).max() <= 1
    other = target.generate(["a"], [1], 5, sampling)[0]
    assert np.abs(np.asarray(other, int) - np.asarray(together[0], int)).max() > 5


def test_generation_puts_the_users_pipeline_back():
    target = Target.from_pipeline(tiny_sd())
    before = target.pipeline.scheduler
    target.generate(["a"], [0], 0, Sampling(steps=2, scheduler="euler"))
    assert target.pipeline.scheduler is before
    with pytest.raises(UsageError, match="Unknown scheduler"):
        target.generate(["a"], [0], 0, Sampling(steps=2, scheduler="nope"))
    assert target.pipeline.scheduler is before


def test_unconditional_generation_is_seeded():
    target = Target.from_pipeline(tiny_ddpm())
    first = target.generate(["", ""], [0, 1], 0, Sampling(steps=2))
    again = target.generate([""], [1], 0, Sampling(steps=2))
    assert np.abs(np.asarray(first[1], int) - np.asarray(again[0], int)).max() <= 1
    with pytest.raises(UsageError, match="guidance_scale"):
        target.generate([""], [0], 0, Sampling(steps=2, guidance=2.0))


def test_a_cut_prompt_is_reported():
    denoiser = Target.from_pipeline(tiny_sd()).denoiser
    cond = denoiser.encode_prompts(["abc", "abcdefghijklmnopqrstuvwxyz"])
    assert cond.truncated[0] is None
    assert cond.truncated[1] == "opqrstuvwxyz"


def test_images_go_to_latents_and_back_to_their_shape():
    denoiser = Target.from_pipeline(tiny_sd()).denoiser
    latents = denoiser.encode_images(torch.zeros(2, 3, 16, 16))
    assert latents.shape == (2, 4, 8, 8)
    assert denoiser.decode(latents).shape == (2, 3, 16, 16)
    with pytest.raises(ModelError, match="resize"):
        denoiser.encode_images(torch.zeros(1, 3, 32, 32))


def test_bfloat16_outputs_are_close_to_float32():
    pipe = tiny_sd()
    target = Target.from_pipeline(pipe)
    x = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    cond = target.denoiser.encode_prompts(["abc"])
    full = target.denoiser.predict(x, 500.0, cond)
    pipe.to(torch.bfloat16)
    half = Target.from_pipeline(pipe)
    low = half.denoiser.predict(x, 500.0, half.denoiser.encode_prompts(["abc"]))
    assert low.dtype == torch.float32
    assert (full - low).norm() / full.norm() < 0.05


def test_fingerprint_follows_the_weights(tmp_path):
    tiny_sd(seed=1).save_pretrained(tmp_path / "m")
    one, two = (Target.from_pretrained(tmp_path / "m").fingerprint for _ in range(2))
    assert one == two
    pipe = tiny_sd(seed=1)
    with torch.no_grad():
        next(pipe.unet.parameters())[0] += 1e-3
    assert Target.from_pipeline(pipe).fingerprint != Target.from_pipeline(tiny_sd(seed=1)).fingerprint
    assert (
        Target.from_pipeline(tiny_sd(seed=1, steps_offset=1)).fingerprint
        != Target.from_pipeline(tiny_sd("v_prediction", seed=1)).fingerprint
    )


def test_lora_changes_the_model(tmp_path):
    from peft import LoraConfig

    pipe = tiny_sd()
    pipe.save_pretrained(tmp_path / "base")
    pipe.unet.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=["to_k", "to_v"]))
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft.utils import get_peft_model_state_dict

    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(pipe.unet))
    pipe.save_lora_weights(tmp_path / "lora", unet_lora_layers=layers)
    base = Target.from_pretrained(tmp_path / "base")
    tuned = Target.from_pretrained(tmp_path / "base", lora=next((tmp_path / "lora").glob("*.safetensors")))
    assert base.fingerprint != tuned.fingerprint
    assert tuned.check("abc").passed
    x = torch.randn(1, 4, 8, 8)
    a, b = (t.denoiser.predict(x, 500.0, t.denoiser.encode_prompts(["abc"])) for t in (base, tuned))
    assert (a - b).abs().max() > 1e-4
    with pytest.raises(ModelError, match="no LoRA at"):
        Target.from_pretrained(tmp_path / "base", lora=tmp_path / "nothing")


def test_callable_models():
    def fn(x, t, cond):
        return x * cond["prompt"].reshape(-1, 1, 1, 1)

    def lengths(prompts):
        return torch.tensor([float(len(p)) for p in prompts])

    target = Target.from_callable(fn, (1, 2, 2), encode=lengths, null="")
    x = torch.ones(2, 1, 2, 2)
    out = target.denoiser.predict(x, 10.0, target.denoiser.encode_prompts(["ab", "abc"]))
    assert out[:, 0, 0, 0].tolist() == [2.0, 3.0]
    assert target.fingerprint == Target.from_callable(fn, (1, 2, 2), encode=lengths, null="").fingerprint
    assert target.fingerprint != Target.from_callable(lambda x, t, c: 2 * x + 1, (1, 2, 2)).fingerprint
    wrong = Target.from_callable(lambda x, t, c: x[:, 0], (1, 2, 2))
    with pytest.raises(ModelError, match="returned shape"):
        wrong.denoiser.predict(x, 10.0, wrong.denoiser.null())
    with pytest.raises(UsageError, match="sample_shape"):
        Target.from_callable(fn)
    with pytest.raises(ModelError, match="only generates"):
        Target.from_callable(generate=lambda prompts, seeds: []).need_denoiser()


def test_training_mode_is_refused():
    pipe = tiny_sd()
    pipe.unet.train()
    with pytest.raises(ModelError, match="training mode"):
        Target.from_pipeline(pipe)


class TestLoadingErrors:
    @pytest.fixture()
    def folder(self, tmp_path):
        tiny_sd().save_pretrained(tmp_path / "m")
        return tmp_path / "m"

    def refuses(self, folder, match):
        with pytest.raises(ModelError, match=match):
            Target.from_pretrained(folder)

    def test_no_such_folder(self):
        self.refuses("not there", "no folder not there")

    def test_a_file(self, folder):
        self.refuses(folder / "model_index.json", "is a config; give the folder")

    def test_a_component(self, folder):
        self.refuses(folder / "unet", "single component")

    def test_an_empty_folder(self, tmp_path):
        (tmp_path / "e").mkdir()
        self.refuses(tmp_path / "e", "found: nothing")

    def test_a_missing_component(self, folder):
        shutil.rmtree(folder / "vae")
        self.refuses(folder, "'vae'.*is missing")

    def test_a_config_without_weights(self, folder):
        (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
        self.refuses(folder, "'unet'.*no weights")

    def test_a_pickle(self, folder):
        weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
        weights.rename(weights.with_suffix(".bin"))
        self.refuses(folder, "pickle")

    def test_broken_weights(self, folder):
        weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:100])
        self.refuses(folder, "cannot be opened")

    def test_remote_code(self, folder):
        index = json.loads((folder / "model_index.json").read_text())
        index["_class_name"] = ["mine.py", "Mine"]
        (folder / "model_index.json").write_text(json.dumps(index))
        self.refuses(folder, "remote code")

    def test_broken_index(self, folder):
        (folder / "model_index.json").write_text("{")
        self.refuses(folder, "not valid JSON")

    def test_another_kind_of_model(self, folder):
        pipe = tiny_sd()
        pipe.unet.config.in_channels
        with pytest.raises(ModelError, match="extra inputs"):
            wide = tiny_sd()
            wide.unet.register_to_config(in_channels=9)
            Target.from_pipeline(wide)
