"""The two models of the digits testbed: a text-to-image pipeline in pixel space and its unconditional twin."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from diffmem.errors import UsageError
from diffmem.randomness import seed_of
from diffmem.testbeds.digits.captions import ADJECTIVES, NOUNS, captions_for
from diffmem.testbeds.digits.data import SIZE
from diffmem.testbeds.parts import clip_text_encoder, clip_tokenizer, identity_vae

if TYPE_CHECKING:
    from diffusers import DDPMPipeline, StableDiffusionPipeline

Kind = Literal["text", "unconditional"]
KINDS: tuple[Kind, ...] = ("text", "unconditional")
PREDICTIONS = ("epsilon", "v_prediction")
WIDTHS = (32, 64)
MAX_TOKENS = 16
VOCABULARY = 1400
TEXT_WIDTH = 64


def check_kind(kind: str) -> Kind:
    """The kind itself; UsageError if there is no such model."""
    for known in KINDS:
        if kind == known:
            return known
    raise UsageError(f"There is no digits model of kind '{kind}'; the kinds are {', '.join(KINDS)}.")


def build_text(seed: int, prediction: str = "epsilon") -> StableDiffusionPipeline:
    """An untrained StableDiffusionPipeline on 8×8 grey pixels: UNet 1.0M, text encoder .13M, identity autoencoder.

    Args:
        seed: root seed of the initial weights.
        prediction: what the UNet gives, "epsilon" or "v_prediction".
    """
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    _check_prediction(prediction)
    sentences = [caption for digit in range(10) for caption in captions_for(digit)]
    tokenizer = clip_tokenizer([*sentences, *ADJECTIVES, *NOUNS], VOCABULARY, MAX_TOKENS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "weights", "text"))
        text_encoder = clip_text_encoder(tokenizer, hidden=TEXT_WIDTH)
        unet: Any = UNet2DConditionModel(
            sample_size=SIZE,
            in_channels=1,
            out_channels=1,
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
        prediction_type=prediction,
    )
    return StableDiffusionPipeline(
        vae=identity_vae(1, SIZE),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def build_unconditional(seed: int, prediction: str = "epsilon") -> DDPMPipeline:
    """An untrained DDPMPipeline on 8×8 grey pixels, UNet .7M; arguments as in `build_text`."""
    import torch
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    _check_prediction(prediction)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "weights", "unconditional"))
        unet: Any = UNet2DModel(
            sample_size=SIZE,
            in_channels=1,
            out_channels=1,
            layers_per_block=1,
            block_out_channels=WIDTHS,
            down_block_types=("AttnDownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "AttnUpBlock2D"),
            attention_head_dim=8,
            norm_num_groups=8,
        )
    scheduler = DDPMScheduler(
        beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=False, prediction_type=prediction
    )
    return DDPMPipeline(unet=unet.eval(), scheduler=scheduler)


def save(pipe: Any, folder: Path) -> None:
    """Write the folder of a pipeline made here with the networks' weights in float16 (the autoencoder, 2.4k numbers, in float32).

    The text encoder's config says float32, so that a plain `from_pretrained` gives one dtype throughout.
    """
    import torch

    pipe.unet.to(torch.float16)
    encoder = getattr(pipe, "text_encoder", None)
    if encoder is not None:
        encoder.to(torch.float16)
    pipe.save_pretrained(folder)
    pipe.unet.to(torch.float32)
    if encoder is not None:
        encoder.to(torch.float32)
        path = folder / "text_encoder" / "config.json"
        config = json.loads(path.read_text())
        config["dtype"] = "float32"
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def load_text(folder: Path) -> StableDiffusionPipeline:
    """The text pipeline in a folder, in float32, in eval mode, without a progress bar."""
    import torch
    from diffusers import StableDiffusionPipeline

    pipe: Any = StableDiffusionPipeline.from_pretrained(
        folder, torch_dtype=torch.float32, safety_checker=None, requires_safety_checker=False, local_files_only=True
    )
    pipe.unet.eval()
    pipe.text_encoder.eval()
    pipe.set_progress_bar_config(disable=True)
    loaded: StableDiffusionPipeline = pipe
    return loaded


def load_unconditional(folder: Path) -> DDPMPipeline:
    """The unconditional pipeline in a folder, in float32, in eval mode, without a progress bar."""
    import torch
    from diffusers import DDPMPipeline

    pipe: Any = DDPMPipeline.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True)
    pipe.unet.eval()
    pipe.set_progress_bar_config(disable=True)
    loaded: DDPMPipeline = pipe
    return loaded


def _check_prediction(prediction: str) -> None:
    if prediction not in PREDICTIONS:
        raise UsageError(f"The prediction type is '{prediction}'; it can be {' or '.join(PREDICTIONS)}.")
