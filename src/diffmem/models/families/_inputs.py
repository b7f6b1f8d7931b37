"""What a pipeline needs to make an image: recognised before a family is asked, so that nothing is scored as what it is not."""

from __future__ import annotations

import inspect
import re
import typing
from typing import Any

import torch

from diffmem.errors import GenerateOnly, ModelError

_PICTURES = ("image", "mask_image", "control_image", "original_image", "images")
_EDITORS = re.compile(
    r"Inpaint|Fill|Edit|Refiner|Variation|VisualCloze|Layered|Upscal|SuperRes|ControlNet|Redux|DiffEdit"
)
_MOVING = re.compile(r"^(num_frames|video|video_length|frames|audio\w*|src_audio|sample_audio)$")
_NO_IMAGES = {
    re.compile(r"Prior(?!.*Combined)|PriorEmb2Emb"): "makes embeddings for another pipeline",
    re.compile(r"ShapE"): "makes three-dimensional shapes",
    re.compile(r"Audio|Music|Speech"): "makes sound",
    re.compile(r"LLaDA|DiffusionGemma"): "makes text",
}
_OTHER_SAMPLING = {
    "PAG": "perturbed attention guidance adds a branch with other attention",
    "SAG": "self-attention guidance adds evaluations of blurred images",
    "Semantic": "semantic guidance adds branches",
    "AttendAndExcite": "the latents are moved by attention between the evaluations",
    "Panorama": "the network sees overlapping windows of a wider image",
    "Paradigms": "many steps are evaluated at once",
    "GLIGEN": "boxes ground the image beside the prompt",
    "ModelEditing": "the network's weights are edited while it runs",
    "LDM3D": "the autoencoder makes depth beside the image",
    "StableUnCLIP": "a prior turns the prompt into an image embedding first",
}
_FILLED = ("self", "args", "kwargs", "prompt", "class_labels")


def unwrapped(module: Any) -> Any:
    """A module without the wrappers of torch.compile, peft, accelerate and data parallelism."""
    while True:
        inner = getattr(module, "_orig_mod", None)
        if inner is None and type(module).__name__.startswith("PeftModel"):
            inner = module.base_model.model
        if inner is None and type(module).__name__ in ("DistributedDataParallel", "DataParallel"):
            inner = module.module
        if inner is None:
            return module
        module = inner


def kind_of(module: Any) -> str:
    """The class name of a module, whatever wraps it."""
    return type(unwrapped(module)).__name__


def network_of(pipeline: Any) -> Any:
    """The unwrapped network of a pipeline: its `unet`, or its `transformer`."""
    unet = pipeline.components.get("unet")
    return unwrapped(unet if unet is not None else pipeline.components.get("transformer"))


def check_inputs(pipeline: Any) -> None:
    """Raise where a prompt is not enough.

    Raises:
        ModelError: the pipeline needs a picture, a video or another input, or lacks what turns a prompt into numbers:
            no image can be made of a prompt alone.
        GenerateOnly: it makes images from a prompt, but not as any family looks at the network.
    """
    name = type(pipeline).__name__
    for pattern, makes in _NO_IMAGES.items():
        if pattern.search(name):
            raise ModelError(f"{name} {makes}, no images; diffmem audits models of images.")
    _needed_arguments(pipeline, name)
    _encoders(pipeline, name)
    _adapters(pipeline, name)
    _channels(pipeline, name)
    for word, reason in _OTHER_SAMPLING.items():
        if word in name:
            raise GenerateOnly(
                f"{name} does not sample as the plain text-to-image pipeline does ({reason}), so no score describes "
                "its images: it generates only. Score the plain pipeline of the same components instead."
            )


def _needed_arguments(pipeline: Any, name: str) -> None:
    parameters = inspect.signature(type(pipeline).__call__).parameters
    moving = [p for p in parameters if _MOVING.match(p)]
    if moving:
        raise ModelError(f"{name} makes videos or sound (it takes {moving[0]}); diffmem audits models of images.")
    needed = [
        p.name
        for p in parameters.values()
        if p.name not in _FILLED
        and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        and (p.default is p.empty or (p.name in _PICTURES and p.default is None and not _optional(p, name)))
    ]
    if needed:
        raise ModelError(
            f"{name} needs more than a prompt ({', '.join(needed)}): its images cannot be made or scored from prompts "
            "alone. Open the text-to-image pipeline of the same components "
            "(diffusers.AutoPipelineForText2Image.from_pipe(PIPELINE).save_pretrained(FOLDER)), where there is one."
        )


def _optional(parameter: inspect.Parameter, name: str) -> bool:
    """Whether a pipeline declares that it works without this picture (Flux 2, Kontext)."""
    if _EDITORS.search(name):
        return False
    annotation = parameter.annotation
    if isinstance(annotation, str):
        return "None" in annotation
    return parameter.name == "images" or type(None) in typing.get_args(annotation)


def _encoders(pipeline: Any, name: str) -> None:
    """Refuse a pipeline whose first encoder or tokenizer was left out: it takes embeddings, no prompts."""
    parts = pipeline.components
    pairs = [(key, key.replace("text_encoder", "tokenizer")) for key in parts if key.startswith("text_encoder")]
    lost = [
        part
        for encoder, tokenizer in pairs
        for part in (encoder, tokenizer)
        if part in parts and parts[part] is None and not _may_lack(part, name)
    ]
    if lost:
        raise ModelError(
            f"{name} was saved or opened without {' and '.join(lost)}: prompts cannot be encoded. Put the "
            f"component{'s' if len(lost) > 1 else ''} back (in model_index.json and as a folder, or in Python)."
        )


def _may_lack(part: str, name: str) -> bool:
    # The largest encoder of Stable Diffusion 3 is left out where memory is short; the model is meant to work without.
    return part in ("text_encoder_3", "tokenizer_3") and "StableDiffusion3" in name


def _adapters(pipeline: Any, name: str) -> None:
    for key in ("unet", "transformer"):
        network = unwrapped(pipeline.components.get(key))
        if not isinstance(network, torch.nn.Module):
            continue
        projection = getattr(network, "encoder_hid_proj", None)
        loaded = "IPAdapter" in type(projection).__name__ or any(
            "IPAdapter" in type(p).__name__ for p in (getattr(network, "attn_processors", None) or {}).values()
        )
        if loaded:
            raise ModelError(
                f"An IP-Adapter is loaded into the {key} of this {name}: it needs an image beside the prompt. Call "
                "pipeline.unload_ip_adapter(), or audit the model without it."
            )
        controlled = [k for k in ("controlnet", "adapter", "motion_adapter") if pipeline.components.get(k) is not None]
        if controlled:
            raise ModelError(
                f"{name} has a {controlled[0]}, which needs more than a prompt: audit the model without it."
            )


def _channels(pipeline: Any, name: str) -> None:
    """Refuse a UNet that takes more channels than the autoencoder's latents have (inpainting, depth, upscaling)."""
    unet, vae = pipeline.components.get("unet"), pipeline.components.get("vae")
    if unet is None or vae is None or kind_of(unet) != "UNet2DConditionModel":
        return
    takes, makes = unet.config.get("in_channels"), vae.config.get("latent_channels")
    if isinstance(takes, int) and isinstance(makes, int) and takes != makes:
        raise ModelError(
            f"This UNet takes {takes} channels while the VAE makes {makes}: it needs extra inputs (inpainting, depth), "
            f"which a prompt alone does not give, and {name} runs on latents."
        )
    for key in ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type"):
        if unet.config.get(key) is not None and not (key == "encoder_hid_dim_type" and unet.config[key] == "text_proj"):
            raise GenerateOnly(
                f"This UNet takes another input beside the prompt ({key} = {unet.config[key]!r}), which no score gives "
                "it: the model generates only."
            )
