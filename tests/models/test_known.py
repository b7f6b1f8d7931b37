"""The table of well-known models: consistent with diffmem's families and samplers, and told when a model is gone."""

import shutil

import pytest
from tests.tiny import tiny_ddpm

from diffmem.errors import ModelError
from diffmem.models.families import FAMILIES
from diffmem.models.generation import SCHEDULERS
from diffmem.models.known import find_known, known_models, loading_hint, resolve
from diffmem.models.target import Target


def test_every_entry_can_be_used():
    for model in known_models():
        assert model.family in FAMILIES, model.alias
        assert model.scheduler is None or model.scheduler in SCHEDULERS, model.alias
        assert model.dtype in ("float32", "float16", "bfloat16")
        assert model.prediction in (None, "epsilon", "x0", "v", "flow")
        assert model.hub_id.count("/") == 1
        assert model.confirmed, "a fact without its source"


def test_no_name_means_two_models():
    names = [name for model in known_models() for name in model.names]
    assert len(names) == len(set(names))
    removed = {old.lower() for model in known_models() for old in model.formerly}
    assert not removed & {model.hub_id.lower() for model in known_models()}, "a removed id is offered as current"


def test_aliases_resolve_and_folders_win(tmp_path, monkeypatch):
    assert resolve("SD1.4") == "CompVis/stable-diffusion-v1-4"
    assert resolve("owner/name") == "owner/name"
    assert resolve("runwayml/stable-diffusion-v1-5") == "runwayml/stable-diffusion-v1-5", "a cached copy may exist"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sdxl").mkdir()
    assert resolve("sdxl") == "sdxl"


def test_a_removed_model_is_named_with_its_present_place(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for old in ("runwayml/stable-diffusion-v1-5", "stabilityai/stable-diffusion-2-1"):
        now = find_known(old).hub_id
        with pytest.raises(ModelError, match=f"was removed from the hub and moved to {now}"):
            Target.from_pretrained(old)
    assert "gated" in loading_hint("flux-dev")
    assert "allow-pickle" in loading_hint("facebook/DiT-XL-2-256")
    assert loading_hint("owner/name") == ""


def test_a_mistyped_alias_is_guessed():
    with pytest.raises(ModelError, match=r"Did you mean 'sd1\.[45]'"):
        Target.from_pretrained("sd1.7")


def test_the_flat_layout_of_early_models_opens(tmp_path):
    """google/ddpm-cifar10-32 keeps the files of all components beside model_index.json."""
    tiny_ddpm().save_pretrained(tmp_path / "nested")
    flat = tmp_path / "flat"
    flat.mkdir()
    shutil.copy(tmp_path / "nested" / "model_index.json", flat)
    for part in ("unet", "scheduler"):
        for file in (tmp_path / "nested" / part).iterdir():
            shutil.copy(file, flat)
    one, two = Target.from_pretrained(tmp_path / "nested"), Target.from_pretrained(flat)
    assert one.fingerprint == two.fingerprint
    (flat / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ModelError, match="no weights"):
        Target.from_pretrained(flat)
