"""The names of Stable Diffusion's first code for the parts of a diffusers pipeline, as single-file checkpoints have them."""

from __future__ import annotations

import re

import torch

_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
}  # fmt: skip
_UNET = {
    "conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def checkpoint(pipe):
    """All tensors of a StableDiffusionPipeline by their first names."""
    unet = {f"model.diffusion_model.{_unet(k, pipe.unet)}": v for k, v in pipe.unet.state_dict().items()}
    vae = {f"first_stage_model.{k}": v for k, v in (_vae(k, v, pipe.vae) for k, v in pipe.vae.state_dict().items())}
    start = "cond_stage_model.transformer.text_model."
    text = {start + k.removeprefix("text_model."): v for k, v in pipe.text_encoder.state_dict().items()}
    return {k: v.clone().contiguous() for k, v in (unet | vae | text).items()}


def _unet(key, unet):
    for name, first in _UNET.items():
        if key.startswith(f"{name}."):
            return first + key.removeprefix(name)
    layers, last = unet.config.layers_per_block, len(unet.config.block_out_channels) - 1
    kind, rest = key.split(".", 1)
    if kind == "mid_block":
        part, number, rest = rest.split(".", 2)
        place = "middle_block.1" if part == "attentions" else f"middle_block.{2 * int(number)}"
    else:
        block, part, number, rest = rest.split(".", 3)
        block, number = int(block), int(number)
        if kind == "down_blocks":
            first = (layers + 1) * block + number + 1
            place = {"resnets": f"input_blocks.{first}.0", "attentions": f"input_blocks.{first}.1",
                     "downsamplers": f"input_blocks.{(layers + 1) * (block + 1)}.0"}[part]  # fmt: skip
            rest = rest.replace("conv.", "op.") if part == "downsamplers" else rest
        else:
            first = (layers + 1) * block + number
            attends = unet.config.up_block_types[block].startswith("CrossAttn")
            place = {"resnets": f"output_blocks.{first}.0", "attentions": f"output_blocks.{first}.1",
                     "upsamplers": f"output_blocks.{(layers + 1) * block + layers}.{2 if attends else 1}"}[part]  # fmt: skip
            assert part != "upsamplers" or block < last
    if part == "resnets":
        inner, _, end = rest.partition(".")
        rest = f"{_RESNET[inner]}.{end}"
    return f"{place}.{rest}"


def _vae(key, value, vae):
    last = len(vae.config.block_out_channels) - 1
    attention = re.match(r"(encoder|decoder)\.mid_block\.attentions\.0\.(.+)\.(weight|bias)", key)
    if attention:
        side, inner, end = attention.groups()
        matrix = value[..., None, None] if end == "weight" and inner != "group_norm" else value
        return f"{side}.mid.attn_1.{_ATTENTION[inner]}.{end}", matrix
    key = key.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    key = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", key)
    key = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", key)
    key = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{last - int(m[1])}.block.{m[2]}", key)
    key = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{last - int(m[1])}.upsample", key)
    return key, torch.as_tensor(value)
