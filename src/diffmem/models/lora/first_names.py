"""Layers under the names of the code that a model first came with: Stable Diffusion, SD3, Flux, Lumina, Z-Image.

Their LoRAs speak of these names, and of layers that diffusers has split (query, key and value in one) or whose rows it
has put in another order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Part:
    """A layer, and the rows of the file's change that are its own (all of them where None), in this order."""

    layer: str
    rows: tuple[tuple[int, int], ...] | None = None


Named = Iterator[tuple[str, tuple[Part, ...]]]


def flat(name: str) -> str:
    """A name as sd-scripts writes it, dots as underscores; without what CLIP's classes put before their layers."""
    return name.replace("_orig_mod.", "").replace(".", "_").removeprefix("text_model_")


def first_names(component: Any, layers: Mapping[str, Any]) -> tuple[Named, ...]:
    """(name with underscores, the layers that it means), of all models; a caller leaves out layers that are not there."""
    return (_first_unet(component), _fused(layers), _first_sd3(layers), _first_flux(layers), _first_lumina(layers))


def _first_unet(unet: Any) -> Named:
    """Names of CompVis' and Stability's UNet: input_blocks, middle_block, output_blocks."""
    if not all(hasattr(unet, name) for name in ("down_blocks", "mid_block", "up_blocks")) or unet.mid_block is None:
        return
    blocks = {}
    n = 1
    for i, block in enumerate(unet.down_blocks):
        for j in range(len(block.resnets)):
            blocks[f"input_blocks_{n}_0"] = f"down_blocks.{i}.resnets.{j}"
            blocks[f"input_blocks_{n}_1"] = f"down_blocks.{i}.attentions.{j}"
            n += 1
        blocks[f"input_blocks_{n}_0_op"] = f"down_blocks.{i}.downsamplers.0.conv"
        n += bool(getattr(block, "downsamplers", None))
    for k, name in enumerate(("resnets.0", "attentions.0", "resnets.1")):
        blocks[f"middle_block_{k}"] = f"mid_block.{name}"
    n = 0
    for i, block in enumerate(unet.up_blocks):
        attends = bool(getattr(block, "attentions", None))
        for j in range(len(block.resnets)):
            blocks[f"output_blocks_{n}_0"] = f"up_blocks.{i}.resnets.{j}"
            if attends:
                blocks[f"output_blocks_{n}_1"] = f"up_blocks.{i}.attentions.{j}"
            n += 1
        blocks[f"output_blocks_{n - 1}_{1 + attends}_conv"] = f"up_blocks.{i}.upsamplers.0.conv"
    inner = {"norm1": "in_layers_0", "conv1": "in_layers_2", "time_emb_proj": "emb_layers_1", "norm2": "out_layers_0",
             "conv2": "out_layers_3", "conv_shortcut": "skip_connection"}  # fmt: skip
    own = [name for name, _ in unet.named_modules()]
    for theirs, ours in blocks.items():
        for name in own:
            if name == ours:
                yield theirs, (Part(name),)
            elif name.startswith(f"{ours}."):
                rest = name.removeprefix(f"{ours}.")
                yield f"{theirs}_{inner.get(rest, flat(rest))}", (Part(name),)
    for theirs, ours in {
        "input_blocks_0_0": "conv_in", "out_0": "conv_norm_out", "out_2": "conv_out",
        "time_embed_0": "time_embedding.linear_1", "time_embed_2": "time_embedding.linear_2",
        "label_emb_0_0": "add_embedding.linear_1", "label_emb_0_2": "add_embedding.linear_2",
    }.items():  # fmt: skip
        yield theirs, (Part(ours),)


def _joined(layers: Mapping[str, Any], *names: str) -> tuple[Part, ...]:
    """Layers whose rows stand under each other in a file's one layer."""
    parts, start = [], 0
    for name in names:
        if name not in layers or layers[name].weight.shape[1:] != layers[names[0]].weight.shape[1:]:
            return (Part(""),)  # is in no network, so the caller leaves it out
        stop = start + int(layers[name].weight.shape[0])
        parts.append(Part(name, ((start, stop),)))
        start = stop
    return tuple(parts)


def _swapped(layers: Mapping[str, Any], name: str) -> tuple[Part, ...]:
    """A layer of which diffusers keeps the scale's rows before the shift's, the first code behind."""
    if name not in layers:
        return (Part(""),)
    rows = int(layers[name].weight.shape[0])
    return (Part(name, ((rows // 2, rows), (0, rows // 2))),)


def _fused(layers: Mapping[str, Any]) -> Named:
    """Query, key and value in one layer (`attention.qkv` of Lumina and Z-Image), and their output layer `out`."""
    for name in layers:
        if name.endswith(".to_q"):
            attention = name.removesuffix(".to_q")
            qkv = _joined(layers, name, f"{attention}.to_k", f"{attention}.to_v")
            for start in {attention, re.sub(r"\.attn$", ".attention", attention)}:
                yield f"{flat(start)}_qkv", qkv
                yield f"{flat(start)}_to_qkv", qkv
                yield f"{flat(start)}_out", (Part(f"{attention}.to_out.0"),)


def _first_lumina(layers: Mapping[str, Any]) -> Named:
    """Names of Lumina-Image 2 and of Z-Image's final layer."""
    for name in layers:
        for ours, theirs in (
            (r"all_final_layer\.2-1\.", "final_layer."), (r"all_x_embedder\.2-1$", "x_embedder"),
            (r"\.feed_forward\.linear_([123])$", r".feed_forward.w\1"), (r"(layers\.\d+)\.norm1\.linear$",
            r"\1.adaLN_modulation.1"), (r"(noise_refiner\.\d+)\.norm1\.linear$", r"\1.adaLN_modulation.1"),
        ):  # fmt: skip
            if re.search(ours, name):
                yield flat(re.sub(ours, theirs, name)), (Part(name),)


def _first_sd3(layers: Mapping[str, Any]) -> Named:
    """Names of Stability's SD3: joint_blocks."""
    if "pos_embed.proj" not in layers:
        return
    blocks = _blocks(layers, "transformer_blocks")
    for n in blocks:
        ours = f"transformer_blocks.{n}"
        for theirs, attention, added in (("x_block_attn", "attn", ""), ("x_block_attn2", "attn2", ""),
                                         ("context_block_attn", "attn", "added")):  # fmt: skip
            start = f"joint_blocks_{n}_{theirs}"
            three = ("add_q_proj", "add_k_proj", "add_v_proj") if added else ("to_q", "to_k", "to_v")
            yield f"{start}_qkv", _joined(layers, *(f"{ours}.{attention}.{name}" for name in three))
            yield f"{start}_proj", (Part(f"{ours}.{attention}.{'to_add_out' if added else 'to_out.0'}"),)
            for norm in "qk":
                yield f"{start}_ln_{norm}", (Part(f"{ours}.{attention}.norm_{'added_' if added else ''}{norm}"),)
        for theirs, feed in (("x_block", "ff"), ("context_block", "ff_context")):
            yield f"joint_blocks_{n}_{theirs}_mlp_fc1", (Part(f"{ours}.{feed}.net.0.proj"),)
            yield f"joint_blocks_{n}_{theirs}_mlp_fc2", (Part(f"{ours}.{feed}.net.2"),)
        yield f"joint_blocks_{n}_x_block_adaLN_modulation_1", (Part(f"{ours}.norm1.linear"),)
        # The last block's context takes a scale and a shift only, in the other order.
        context = f"{ours}.norm1_context.linear"
        last = n == blocks[-1]
        yield (
            f"joint_blocks_{n}_context_block_adaLN_modulation_1",
            _swapped(layers, context) if last else (Part(context),),
        )
    yield "x_embedder_proj", (Part("pos_embed.proj"),)
    for k, linear in ((0, "linear_1"), (2, "linear_2")):
        yield f"t_embedder_mlp_{k}", (Part(f"time_text_embed.timestep_embedder.{linear}"),)
        yield f"y_embedder_mlp_{k}", (Part(f"time_text_embed.text_embedder.{linear}"),)
    yield "final_layer_linear", (Part("proj_out"),)
    yield "final_layer_adaLN_modulation_1", _swapped(layers, "norm_out.linear")


def _first_flux(layers: Mapping[str, Any]) -> Named:
    """Names of Black Forest Labs' Flux: double_blocks, single_blocks (Chroma's too)."""
    if not any(name.startswith("single_transformer_blocks.") for name in layers):
        return
    for n in _blocks(layers, "transformer_blocks"):
        ours = f"transformer_blocks.{n}"
        for theirs, three, out, feed, norm in (
            ("img", ("to_q", "to_k", "to_v"), "to_out.0", "ff", "norm1"),
            ("txt", ("add_q_proj", "add_k_proj", "add_v_proj"), "to_add_out", "ff_context", "norm1_context"),
        ):
            start = f"double_blocks_{n}_{theirs}"
            yield f"{start}_attn_qkv", _joined(layers, *(f"{ours}.attn.{name}" for name in three))
            yield f"{start}_attn_proj", (Part(f"{ours}.attn.{out}"),)
            for inner in ("net.0.proj", "linear_in"):  # Flux 1, Flux 2
                yield f"{start}_mlp_0", (Part(f"{ours}.{feed}.{inner}"),)
            for inner in ("net.2", "linear_out"):
                yield f"{start}_mlp_2", (Part(f"{ours}.{feed}.{inner}"),)
            yield f"{start}_mod_lin", (Part(f"{ours}.{norm}.linear"),)
            for kind, short in (("query", "q"), ("key", "k")):
                own = f"norm_{'added_' if theirs == 'txt' else ''}{short}"
                yield f"{start}_attn_norm_{kind}_norm", (Part(f"{ours}.attn.{own}"),)
    for n in _blocks(layers, "single_transformer_blocks"):
        ours, start = f"single_transformer_blocks.{n}", f"single_blocks_{n}"
        four = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
        yield f"{start}_linear1", _joined(layers, *(f"{ours}.{name}" for name in four))
        yield f"{start}_qkv", _joined(layers, *(f"{ours}.{name}" for name in four[:3]))
        yield f"{start}_linear2", (Part(f"{ours}.proj_out"),)
        yield f"{start}_linear1", (Part(f"{ours}.attn.to_qkv_mlp_proj"),)  # Flux 2
        yield f"{start}_linear2", (Part(f"{ours}.attn.to_out"),)
        yield f"{start}_modulation_lin", (Part(f"{ours}.norm.linear"),)
        for kind, short in (("query", "q"), ("key", "k")):
            yield f"{start}_norm_{kind}_norm", (Part(f"{ours}.attn.norm_{short}"),)
    for theirs, embedder in (("time", "timestep"), ("vector", "text"), ("guidance", "guidance")):
        for layer, linear in (("in_layer", "linear_1"), ("out_layer", "linear_2")):
            for embed in ("time_text_embed", "time_guidance_embed"):
                yield f"{theirs}_in_{layer}", (Part(f"{embed}.{embedder}_embedder.{linear}"),)
    for name in ("double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation"):
        yield f"{name}_lin", (Part(f"{name}.linear"),)
    yield "img_in", (Part("x_embedder"),)
    yield "txt_in", (Part("context_embedder"),)
    yield "final_layer_linear", (Part("proj_out"),)
    yield "final_layer_adaLN_modulation_1", _swapped(layers, "norm_out.linear")


def _blocks(layers: Mapping[str, Any], name: str) -> list[int]:
    found = {int(m[1]) for layer in layers if (m := re.match(rf"{name}\.(\d+)\.", layer))}
    return sorted(found)
