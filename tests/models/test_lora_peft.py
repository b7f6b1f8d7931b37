"""Adapters as peft itself makes and saves them: the network with the loaded file is the network that was saved."""

import pytest
import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from safetensors.torch import save_file
from tests import tiny_families as families
from tests.tiny import tiny_sd

from diffmem.models.lora import load_lora

LINEAR = ["to_q", "to_k", "to_v", "to_out.0"]
CONFIGS = {
    "plain": LoraConfig(r=3, lora_alpha=5, target_modules=LINEAR),
    "rank-stabilised": LoraConfig(r=3, lora_alpha=5, use_rslora=True, target_modules=LINEAR),
    "patterns": LoraConfig(
        r=3, lora_alpha=5, rank_pattern={"to_q": 1, "attn2.to_k": 4}, alpha_pattern={"attn1.to_k": 2}, target_modules=LINEAR
    ),
    "a bias": LoraConfig(r=3, lora_alpha=5, lora_bias=True, target_modules=["to_out.0", "ff.net.2"]),
    "convolutions": LoraConfig(r=3, lora_alpha=5, target_modules=["conv1", "conv_in", "proj_in", "conv"]),
    "DoRA": LoraConfig(r=3, lora_alpha=5, use_dora=True, target_modules=LINEAR),
    "DoRA of convolutions": LoraConfig(r=3, lora_alpha=5, use_dora=True, target_modules=["conv1", "conv_in", "proj_out"]),
    "LoHa": LoHaConfig(r=3, alpha=5, target_modules=[*LINEAR, "conv1"]),
    "LoHa of kernels": LoHaConfig(r=3, alpha=5, use_effective_conv2d=True, target_modules=["conv1", "conv2", "to_q"]),
    "LoKr": LoKrConfig(r=2, alpha=5, target_modules=[*LINEAR, "conv1"]),
    "LoKr of two products": LoKrConfig(r=2, alpha=5, decompose_both=True, target_modules=[*LINEAR, "conv1"]),
    "LoKr of kernels": LoKrConfig(r=2, alpha=5, use_effective_conv2d=True, target_modules=["conv1", "conv2", "to_q"]),
}  # fmt: skip


def trained(network, config):
    """The network with a random adapter, and the adapter's weights as peft saves them."""
    torch.manual_seed(4)
    inject_adapter_in_model(config, network)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if "lora_magnitude" in name:
                weight.mul_(1.3)
            elif any(word in name for word in ("lora_", "hada_", "lokr_")):
                weight.normal_(0, 0.5)
    return {f"base_model.model.{k}": v.clone() for k, v in get_peft_model_state_dict(network).items()}


def output(unet):
    torch.manual_seed(5)
    with torch.no_grad():
        return unet.eval()(torch.randn(1, 4, 8, 8), 5, torch.randn(1, 3, 16)).sample


@pytest.mark.parametrize("config", CONFIGS)
def test_a_folder_that_peft_saved(tmp_path, config):
    saved, pipe = tiny_sd(), tiny_sd()
    save_file(trained(saved.unet, CONFIGS[config]), tmp_path / "adapter_model.safetensors")
    CONFIGS[config].save_pretrained(tmp_path)
    base = output(pipe.unet)
    loaded = load_lora(pipe, tmp_path)
    assert loaded.notes == []
    truth = output(saved.unet)
    assert (truth - base).norm() > 0.01 * base.norm()
    assert (output(pipe.unet) - truth).norm() < 1e-4 * (truth - base).norm()


def test_without_the_config_alpha_is_said_to_be_missing(tmp_path):
    save_file(trained(tiny_sd().unet, CONFIGS["plain"]), tmp_path / "adapter_model.safetensors")
    assert "adapter_config.json, which holds alpha: taken as the rank" in load_lora(tiny_sd(), tmp_path).notes[0]


@pytest.mark.parametrize("family", ["sd3", "flux", "pixart"])
def test_dora_of_transformers(tmp_path, family):
    saved, pipe = families.FAMILIES[family](), families.FAMILIES[family]()
    config = LoraConfig(r=2, lora_alpha=3, use_dora=True, target_modules=["to_q", "to_k", "to_v"])
    save_file(trained(saved.transformer, config), tmp_path / "adapter_model.safetensors")
    config.save_pretrained(tmp_path)
    load_lora(pipe, tmp_path)
    for name, layer in saved.transformer.named_modules():
        if hasattr(layer, "lora_A") and len(layer.lora_A):
            x = torch.eye(layer.in_features)
            twin = pipe.transformer.get_submodule(name)
            with torch.no_grad():
                torch.testing.assert_close(twin(x), layer(x), rtol=1e-5, atol=1e-5)


def test_target_modules_without_a_layer_in_the_file_are_said(tmp_path):
    weights = {k: v for k, v in trained(tiny_sd().unet, CONFIGS["plain"]).items() if "to_v" not in k}
    save_file(weights, tmp_path / "adapter_model.safetensors")
    CONFIGS["plain"].save_pretrained(tmp_path)
    assert "lists target modules of which the file holds no layer: to_v;" in load_lora(tiny_sd(), tmp_path).notes[0]
