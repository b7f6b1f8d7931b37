"""A LoRA on every family: loaded from disk it changes outputs, fingerprint and name, and only as a whole."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny import LORA_TARGETS, network_of, random_lora, tiny_ddpm, tiny_ldm, tiny_sd
from tests.tiny_families import FAMILIES
from tests.tiny_families import reopened as opened

from diffmem.errors import ModelError
from diffmem.models.generation import Sampling
from diffmem.models.lora import load_lora, lora_name
from diffmem.models.target import Target

MAKERS = {"text-unet": tiny_sd, **FAMILIES, "pixel-unet": tiny_ddpm, "latent-unet": tiny_ldm}


@pytest.fixture(scope="module")
def loras(tmp_path_factory):
    """Family -> (pipeline folder, LoRA file, the network with the LoRA as it was saved)."""
    root = tmp_path_factory.mktemp("loras")
    made = {}
    for name, maker in MAKERS.items():
        maker().save_pretrained(root / name)
        made[name] = (root / name, *random_lora(maker(), root / f"{name}-lora"))
    return made


def outputs(target):
    """The network's outputs on one noise, under a prompt where it takes one."""
    denoiser = target.denoiser
    x = torch.randn(1, *denoiser.sample_shape, generator=torch.Generator().manual_seed(0))
    prompt = "3" if denoiser.family == "dit" else "a fox"
    with torch.no_grad():
        cond = denoiser.encode_prompts([prompt]) if denoiser.conditional else denoiser.null()
        return denoiser.predict(x, denoiser.schedule.sampling_times(4)[1], cond)


@pytest.mark.parametrize("name", MAKERS)
def test_it_changes_outputs_fingerprint_and_name(loras, name):
    folder, file, saved = loras[name]
    base, tuned = opened(folder), opened(folder, lora=file)
    assert base.fingerprint != tuned.fingerprint
    assert tuned.name == f"{name}+{name}-lora"
    assert (outputs(base) - outputs(tuned)).abs().max() > 1e-3
    assert not any(m.training for m in network_of(tuned.pipeline).modules())
    # What was loaded is what was saved: the same network with the same adapter gives the same.
    twin = opened(folder)
    setattr(twin.pipeline, "unet" if hasattr(twin.pipeline, "unet") else "transformer", saved.eval())
    torch.testing.assert_close(outputs(twin), outputs(tuned), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["text-unet", "pixart", "dit", "latent-unet"])
def test_scoring_sees_the_network_that_the_pipeline_runs(loras, name):
    folder, file, _ = loras[name]
    target = Target.from_pretrained(folder, lora=file)
    prompt = "3" if name == "dit" else "a fox"
    result = target.check(prompt, Sampling(steps=2))
    assert result.passed, result.message


@pytest.mark.parametrize(
    ("lora", "model"),
    [("text-unet", "sdxl"), ("text-unet", "sd3"), ("sd3", "text-unet"), ("flux", "sd3"), ("pixart", "dit"),
     ("dit", "pixart"), ("text-unet", "pixart"), ("pixart", "text-unet"), ("text-unet", "pixel-unet")],
)  # fmt: skip
def test_a_lora_of_another_architecture_is_refused(loras, lora, model):
    with pytest.raises(ModelError, match=r"another architecture|cannot be loaded"):
        Target.from_pretrained(loras[model][0], lora=loras[lora][1])


def test_peft_folders_and_their_alpha(loras, tmp_path):
    """adapter_config.json beside the weights sets alpha: twice the alpha is twice the change, to first order exactly."""
    import json

    from peft import LoraConfig

    folder, file, _ = loras["pixart"]
    changes = []
    for alpha in (2, 4):
        place = tmp_path / f"alpha{alpha}"
        place.mkdir()
        weights = {"base_model.model." + k.removeprefix("transformer."): v for k, v in load_file(file).items()}
        save_file(weights, place / "adapter_model.safetensors")
        LoraConfig(r=2, lora_alpha=alpha, target_modules=LORA_TARGETS).save_pretrained(place)
        assert json.loads((place / "adapter_config.json").read_text())["lora_alpha"] == alpha
        pipe = Target.from_pretrained(folder, lora=place).pipeline
        layer = pipe.transformer.transformer_blocks[0].attn1.to_k
        x = torch.ones(1, layer.in_features)
        changes.append(layer(x) - layer.base_layer(x))
    torch.testing.assert_close(changes[1], 2 * changes[0])


def test_a_lora_in_peft_format_loads_into_stable_diffusion_too(loras, tmp_path):
    folder, file, _ = loras["text-unet"]
    weights = {"base_model.model." + k.removeprefix("unet."): v for k, v in load_file(file).items()}
    save_file(weights, tmp_path / "adapter_model.safetensors")
    one = outputs(Target.from_pretrained(folder, lora=file))
    two = outputs(Target.from_pretrained(folder, lora=tmp_path / "adapter_model.safetensors"))
    torch.testing.assert_close(one, two)


def test_clear_refusals(loras, tmp_path, monkeypatch):
    file, pipe = loras["text-unet"][1], tiny_sd()

    def refuses(lora, match):
        with pytest.raises(ModelError, match=match):
            load_lora(pipe, lora)

    refuses(tmp_path, "holds no .safetensors file")
    torch.save(load_file(file), tmp_path / "x.bin")
    refuses(tmp_path / "x.bin", "is a pickle.*--allow-pickle")
    refuses(tmp_path, "is a pickle.*--allow-pickle")
    for name in ("a.safetensors", "b.safetensors"):
        shutil.copy(file, tmp_path / name)
    refuses(tmp_path, "several LoRAs")
    (tmp_path / "a.safetensors").write_bytes(b"not one")
    refuses(tmp_path / "a.safetensors", "cannot be loaded")
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    refuses(file, r"diffmem\[lora\]")


def test_names():
    assert lora_name("style/pytorch_lora_weights.safetensors") == "style"
    assert lora_name("pytorch_lora_weights.safetensors") == "pytorch_lora_weights"
    assert lora_name("cats.v1.safetensors") == "cats.v1"
    assert lora_name("owner/name") == "name"
