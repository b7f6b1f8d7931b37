"""Tiny pipelines of real diffusers classes, built from configs, for every test that needs a model."""

from __future__ import annotations

import inspect

import numpy as np
import torch
from PIL import Image


def tiny_tokenizer(max_length: int = 16):
    """A CLIP tokenizer over single letters and a few merges."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    alphabet = sorted(ByteLevel.alphabet())
    pieces = [*alphabet, *(a + "</w>" for a in alphabet), "<|startoftext|>", "<|endoftext|>"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=max_length), len(vocab)


def tiny_sd(prediction: str = "epsilon", zero_snr: bool = False, seed: int = 0, latent_channels: int = 4, **scheduler):
    """A StableDiffusionPipeline with random weights, 16x16 pixels, 8x8 latents."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(seed)
    tokenizer, size = tiny_tokenizer()
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=latent_channels, out_channels=latent_channels, layers_per_block=1,
        block_out_channels=(8, 16), norm_num_groups=4, attention_head_dim=4, cross_attention_dim=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    vae = AutoencoderKL(
        in_channels=3, out_channels=3, block_out_channels=(8, 8), norm_num_groups=4, latent_channels=latent_channels,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, sample_size=16,
    )  # fmt: skip
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=size, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=16, bos_token_id=size - 2, eos_token_id=size - 1, pad_token_id=size - 1,
        )
    )  # fmt: skip
    if zero_snr:
        scheduler = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", **scheduler}
    settings = {"steps_offset": 1, "set_alpha_to_one": False} | scheduler
    ddim = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        prediction_type=prediction, **settings,
    )  # fmt: skip
    pipe = StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=tokenizer, unet=unet, scheduler=ddim, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    for part in (unet, vae, text):
        part.eval()
    # Random weights hardly listen to the prompt; differences would then be rounding. Make it matter.
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if "attn2.to_v" in name or "attn2.to_out" in name:
                weight.mul_(10)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_ddpm(prediction: str = "epsilon", seed: int = 0, kind: str = "ddpm"):
    """An unconditional pixel pipeline, 8x8x3."""
    from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(seed)
    unet = UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(8, 16),
        norm_num_groups=4, attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    unet.eval()
    if kind == "ddim":
        return DDIMPipeline(unet=unet, scheduler=DDIMScheduler(prediction_type=prediction))
    return DDPMPipeline(unet=unet, scheduler=DDPMScheduler(prediction_type=prediction))


def tiny_autoencoder(kind="vq"):
    """A VQModel ("vq") or AutoencoderKL ("kl") with random weights, 16x16x3 pixels to 8x8x3 latents."""
    from diffusers import AutoencoderKL, VQModel

    torch.manual_seed(3)
    common = {
        "in_channels": 3, "out_channels": 3, "block_out_channels": (8, 8), "norm_num_groups": 4, "latent_channels": 3,
        "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2, "sample_size": 16,
    }  # fmt: skip
    made = VQModel(**common, num_vq_embeddings=16, scaling_factor=0.5) if kind == "vq" else AutoencoderKL(**common)
    return made.eval()


def tiny_latent_unet():
    """An unconditional UNet on 8x8x3 latents."""
    return tiny_ddpm().unet


def tiny_ldm(kind="vq", name="vqvae", scheduler=None):
    """An unconditional latent pipeline whose autoencoder is called `name`."""
    from diffusers import DDIMScheduler

    from diffmem.models.latent_pipeline import UnconditionalLatentPipeline

    parts = {"unet": tiny_latent_unet(), "scheduler": scheduler or DDIMScheduler(), name: tiny_autoencoder(kind)}
    return UnconditionalLatentPipeline(**parts)


def picture(seed, noise=0.0):
    """A smooth random 16x16 colour picture; the noise is on [0, 1]."""
    coarse = np.random.default_rng(seed).uniform(0, 255, (4, 4, 3)).astype(np.uint8)
    image = Image.fromarray(coarse).resize((16, 16), Image.Resampling.BICUBIC)
    if noise:
        pixels = np.asarray(image) + np.random.default_rng(seed + 1).normal(0, 255 * noise, (16, 16, 3))
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    return image


LORA_TARGETS = ["to_k", "to_v", "to_q"]


def network_of(pipe):
    """The denoising network of a pipeline."""
    return pipe.components.get("unet") or pipe.transformer


def random_lora(pipe, folder, rank=2, targets=LORA_TARGETS):
    """A random LoRA as diffusers saves it, or, where it has no saver, peft's names under the component's."""
    from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
    from safetensors.torch import save_file

    torch.manual_seed(1)
    net = network_of(pipe)
    part = "unet" if "unet" in pipe.components else "transformer"
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights=False, target_modules=targets), net)
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if "lora_" in name:
                weight.normal_(0, 1)
    state = get_peft_model_state_dict(net)
    saver = getattr(pipe, "save_lora_weights", None)
    if saver is not None and f"{part}_lora_layers" in inspect.signature(saver).parameters:
        pipe.save_lora_weights(folder, **{f"{part}_lora_layers": state})
    else:
        folder.mkdir()
        save_file({f"{part}.{k}": v for k, v in state.items()}, folder / "pytorch_lora_weights.safetensors")
    return folder / "pytorch_lora_weights.safetensors", net
