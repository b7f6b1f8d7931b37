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
PREDICTION_TYPES = {"epsilon": "epsilon", "v": "v_prediction", "flow": "flow_prediction"}
"""What the network of a variant gives, and how diffusers' schedulers call it."""
PREDICTIONS = tuple(PREDICTION_TYPES)
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


def check_prediction(prediction: str) -> str:
    """The prediction itself; UsageError if there is no such variant."""
    if prediction not in PREDICTION_TYPES:
        raise UsageError(f"There is no digits model that predicts '{prediction}'; it can be {', '.join(PREDICTIONS)}.")
    return prediction


def sampler(prediction: str) -> Any:
    """The scheduler of the text pipeline: DDIM for epsilon and v, Euler's method on the velocity for flow.

    Both take first-order deterministic steps. StableDiffusionPipeline cannot hold FlowMatchEulerDiscreteScheduler (it
    asks for `scale_model_input`); DPM-Solver++ of order 1 on flow sigmas takes the same steps x + (s' - s) u, from
    s = .999 in even steps to 0.
    """
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

    declared = PREDICTION_TYPES[check_prediction(prediction)]
    if prediction == "flow":
        return DPMSolverMultistepScheduler(
            solver_order=1, use_flow_sigmas=True, flow_shift=1.0, steps_offset=1, prediction_type=declared
        )
    return DDIMScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=declared,
    )


def build_text(seed: int, prediction: str = "epsilon") -> StableDiffusionPipeline:
    """An untrained StableDiffusionPipeline on 8×8 grey pixels: UNet 1.0M, text encoder .13M, identity autoencoder.

    Args:
        seed: root seed of the initial weights.
        prediction: what the UNet gives, "epsilon", "v" or "flow".
    """
    import torch
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    scheduler = sampler(prediction)
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
    """An untrained DDPMPipeline on 8×8 grey pixels, UNet .7M; epsilon or v only (DDPM has no flow)."""
    import torch
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    if check_prediction(prediction) == "flow":
        raise UsageError("The unconditional twin is a DDPMPipeline, which cannot hold a flow model; give epsilon or v.")
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
        beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=False,
        prediction_type=PREDICTION_TYPES[prediction],
    )  # fmt: skip
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
