"""The text-to-image pipeline of the photos testbed: real diffusers classes, latents [4, 8, 8] of 32×32 pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffmem.randomness import seed_of
from diffmem.testbeds.parts import clip_text_encoder, clip_tokenizer
from diffmem.testbeds.photos.autoencoder import LATENT_CHANNELS, LATENT_SIZE
from diffmem.testbeds.photos.captions import every_caption_word

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, StableDiffusionPipeline

WIDTHS = (32, 56)
MAX_TOKENS = 16
VOCABULARY = 1000
TEXT_WIDTH = 64


def build(seed: int, vae: AutoencoderKL) -> StableDiffusionPipeline:
    """An untrained StableDiffusionPipeline around a trained autoencoder: UNet .81M, text encoder .1M parameters.

    Args:
        seed: root seed of the initial weights.
        vae: the autoencoder.
    """
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    tokenizer = clip_tokenizer(every_caption_word(), VOCABULARY, MAX_TOKENS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "weights", "text"))
        text_encoder = clip_text_encoder(tokenizer, hidden=TEXT_WIDTH)
        unet: Any = UNet2DConditionModel(
            sample_size=LATENT_SIZE,
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            layers_per_block=1,
            block_out_channels=WIDTHS,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=TEXT_WIDTH,
            attention_head_dim=8,
            norm_num_groups=8,
        )
    scheduler = DDIMScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def save(pipe: Any, folder: Path) -> None:
    """Write the folder of the pipeline with all weights in float16; its configs say float32.

    A plain `from_pretrained` then gives one dtype throughout.
    """
    import torch

    parts = (pipe.unet, pipe.text_encoder, pipe.vae)
    for part in parts:
        part.to(torch.float16)
    pipe.save_pretrained(folder)
    for part in parts:
        part.to(torch.float32)
    path = folder / "text_encoder" / "config.json"
    config = json.loads(path.read_text())
    config["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
