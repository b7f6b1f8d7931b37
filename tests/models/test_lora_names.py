"""The names of a model's first code mean the layers (and the rows of them) that diffusers' checkpoint converters make."""

import re

import pytest
import torch
from diffusers.loaders.single_file_utils import (
    convert_flux_transformer_checkpoint_to_diffusers,
    convert_ldm_unet_checkpoint,
    convert_sd3_transformer_checkpoint_to_diffusers,
    convert_z_image_transformer_checkpoint_to_diffusers,
)
from tests import tiny_families as families
from tests.models.lora_files import assert_changes, rand, write
from tests.tiny import tiny_sd

from diffmem.errors import ModelError
from diffmem.models.lora import load_lora
from diffmem.models.lora.first_names import first_names, flat
from diffmem.models.lora.names import Names

KEPT = ("input_blocks", "middle_block", "output_blocks", "in_layers", "out_layers", "emb_layers", "skip_connection",
        "transformer_blocks", "time_embed", "label_emb", "proj_in", "proj_out", "to_q", "to_k", "to_v", "to_out",
        "joint_blocks", "x_block", "context_block", "x_embedder", "t_embedder", "y_embedder", "final_layer",
        "adaLN_modulation", "context_embedder", "double_blocks", "single_blocks", "img_attn", "txt_attn", "img_mlp",
        "txt_mlp", "img_mod", "txt_mod", "query_norm", "key_norm", "img_in", "txt_in", "time_in", "vector_in",
        "guidance_in", "in_layer", "out_layer", "ln_q", "ln_k")  # fmt: skip


def dotted(name):
    """A flat name with its dots again."""
    words = "|".join(sorted(KEPT, key=len, reverse=True))
    return (
        re.sub(rf"(?<=_)(?=\d)|(?<=\d)_|({words})_?|_", lambda m: f"{m[1]}." if m[1] else ".", name)
        .replace("..", ".")
        .strip(".")
    )


def converters():
    def unet(make):
        pipe = make()
        network = pipe.unet

        def convert(checkpoint):
            return convert_ldm_unet_checkpoint(
                {f"model.diffusion_model.{k}": v for k, v in checkpoint.items()}, dict(network.config)
            )

        return pipe, network, convert

    def sd3():
        pipe = families.sd3()

        def convert(checkpoint):
            checkpoint["pos_embed"] = torch.zeros(1)
            return convert_sd3_transformer_checkpoint_to_diffusers(checkpoint)

        return pipe, pipe.transformer, convert

    def flux():
        pipe = families.flux()
        return pipe, pipe.transformer, None

    return {"sd": lambda: unet(tiny_sd), "sdxl": lambda: unet(families.sdxl), "sd3": sd3, "flux": flux}


def originals(network):
    """First name -> parts, of those layers of a network that diffusers has."""
    layers = {n: m for n, m in network.named_modules() if getattr(m, "weight", None) is not None}
    found = {}
    for more in first_names(network, layers):
        for name, parts in more:
            if all(part.layer in layers for part in parts):
                found.setdefault(name, parts)
    return layers, found


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3"])
def test_against_the_converter_of_checkpoints(family):
    _, network, convert = converters()[family]()
    layers, names = originals(network)
    start = ("input_blocks", "middle_block", "output_blocks", "out_", "time_embed_", "label_emb")
    if family == "sd3":
        start = ("joint_blocks", "x_embedder", "t_embedder", "y_embedder", "final_layer", "context_embedder")
        names["context_embedder"] = Names(converters()[family]()[0]).find("context_embedder").parts
    names = {k: v for k, v in names.items() if k.startswith(start)}
    checkpoint = {}
    for name, parts in names.items():
        rows = sum(len(layers[part.layer].weight) for part in parts)
        shape = (rows, *layers[parts[0].layer].weight.shape[1:])
        checkpoint |= {f"{dotted(name)}.weight": rand(*shape), f"{dotted(name)}.bias": rand(rows)}
    given = dict(checkpoint)
    converted = convert(checkpoint)
    reached = set()
    for name, parts in names.items():
        for part in parts:
            whole = given[f"{dotted(name)}.weight"]
            mine = whole if part.rows is None else torch.cat([whole[a:b] for a, b in part.rows])
            truth = converted[f"{part.layer}.weight"]
            assert torch.equal(mine.reshape(truth.shape), truth), (name, part.layer)
            reached.add(part.layer)
    assert reached == {n for n in layers if f"{n}.weight" in network.state_dict()}


def test_flux_against_the_converter():
    """Its converter knows one width only, so each block's rules are compared by what they say of equal thirds and halves."""
    pipe = families.flux()
    layers, names = originals(pipe.transformer)
    width = layers["transformer_blocks.0.attn.to_q"].weight.shape[0]
    starts = {}
    for name, parts in names.items():
        if name.startswith(
            ("double_blocks", "single_blocks", "final_layer", "img_in", "txt_in", "time_in", "vector_in", "guidance_in")
        ):
            starts[name] = parts
    real, checkpoint = 3072, {}
    for name, parts in starts.items():
        rows = sum(len(layers[part.layer].weight) for part in parts) // width * real
        if len(layers[parts[0].layer].weight) % width:  # layers of another size are not cut
            rows = len(layers[parts[0].layer].weight)
        key = dotted(name).replace("adaLN_modulation.1", "adaLN_modulation.1")
        suffix = "scale" if key.endswith("_norm") else "weight"
        checkpoint |= {f"{key}.{suffix}": torch.arange(float(rows))[:, None], f"{key}.bias": torch.zeros(rows)}
    given = dict(checkpoint)
    converted = convert_flux_transformer_checkpoint_to_diffusers(checkpoint)
    for name, parts in starts.items():
        key = dotted(name)
        whole = given.get(f"{key}.weight", given.get(f"{key}.scale"))
        for part in parts:
            scale = len(whole) // sum(len(layers[p.layer].weight) for p in parts)
            rows = [(0, len(whole))] if part.rows is None else [(a * scale, b * scale) for a, b in part.rows]
            mine = torch.cat([whole[a:b] for a, b in rows])
            assert torch.equal(mine, converted[f"{part.layer}.weight"]), name


def lora_on(names, layers, starts, alpha=1.0, rank=2):
    """A random LoRA on layers by their first names, and the change of each of the pipeline's layers."""
    tensors, wanted = {}, {}
    for name in starts:
        parts = names[name]
        rows = sum(len(layers[part.layer].weight) for part in parts)
        inside = layers[parts[0].layer].weight.shape[1:]
        down, up = rand(rank, *inside), rand(rows, rank)
        tensors |= {f"lora_unet_{name}.lora_down.weight": down, f"lora_unet_{name}.alpha": torch.tensor(alpha)}
        tensors[f"lora_unet_{name}.lora_up.weight"] = up.reshape(rows, rank, *(1,) * (len(inside) - 1))
        product = alpha / rank * torch.einsum("or,r...->o...", up, down)
        for part in parts:
            wanted[part.layer] = product if part.rows is None else torch.cat([product[a:b] for a, b in part.rows])
    return tensors, wanted


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux"])
def test_a_lora_on_every_layer_by_its_first_name(tmp_path, family):
    pipe, network, _ = converters()[family]()
    layers, names = originals(network)
    matrices = [n for n, parts in names.items() if layers[parts[0].layer].weight.ndim > 1]
    first = {parts: name for name, parts in reversed([(n, names[n]) for n in matrices])}  # one name for each place
    taken, chosen = set(), []
    for parts, name in first.items():
        if not {p.layer for p in parts} & taken:
            taken |= {p.layer for p in parts}
            chosen.append(name)
    tensors, wanted = lora_on(names, layers, chosen)
    load_lora(pipe, write(tensors, tmp_path / "lora.safetensors"))
    assert_changes(network, wanted)


def test_xlabs_and_comfyui_names_of_flux(tmp_path):
    pipe = families.flux()
    layers, names = originals(pipe.transformer)
    places = {"double_blocks.0.processor.qkv_lora1": "double_blocks_0_img_attn_qkv",
              "double_blocks.0.processor.proj_lora2": "double_blocks_0_txt_attn_proj",
              "single_blocks.0.processor.qkv_lora": "single_blocks_0_qkv",
              "single_blocks.0.processor.proj_lora": "single_blocks_0_linear2"}  # fmt: skip
    made, wanted = lora_on(names, layers, places.values(), alpha=2.0)
    tensors = {}
    for theirs, name in places.items():
        tensors[f"{theirs}.down.weight"] = made[f"lora_unet_{name}.lora_down.weight"]
        tensors[f"{theirs}.up.weight"] = made[f"lora_unet_{name}.lora_up.weight"]
    load_lora(pipe, write(tensors, tmp_path / "xlabs.safetensors"))
    assert_changes(pipe.transformer, wanted)
    pipe = families.flux()
    tensors = {"diffusion_model." + dotted(k.removeprefix("lora_unet_").partition(".")[0]) + "." + k.partition(".")[2]: v
               for k, v in made.items() if "qkv" not in k or "img" in k}  # fmt: skip
    load_lora(pipe, write(tensors, tmp_path / "comfy.safetensors"))
    assert_changes(pipe.transformer, {k: v for k, v in wanted.items() if "single" not in k or k.endswith("proj_out")})


def test_z_image_in_its_first_names(tmp_path):
    from diffusers import ZImageTransformer2DModel

    torch.manual_seed(0)
    network = ZImageTransformer2DModel(
        in_channels=4, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16, axes_dims=[4, 4, 8],
        axes_lens=[16, 16, 16],
    )  # fmt: skip
    layers, names = originals(network)
    wanted = ("layers_0_attention_qkv", "layers_0_attention_out", "noise_refiner_0_attention_qkv", "final_layer_linear")
    for name in wanted:
        parts = names[name]
        key = (
            name.replace("_attention_", ".attention.").replace("layers_0", "layers.0").replace("refiner_0", "refiner.0")
        )
        key = key.replace("final_layer_", "final_layer.")
        whole = rand(sum(len(layers[p.layer].weight) for p in parts), layers[parts[0].layer].weight.shape[1])
        converted = convert_z_image_transformer_checkpoint_to_diffusers({f"{key}.weight": whole})
        for part in parts:
            mine = whole if part.rows is None else torch.cat([whole[a:b] for a, b in part.rows])
            assert torch.equal(mine, converted[f"{part.layer}.weight"])


@pytest.mark.parametrize("same", [True, False])
def test_a_layer_twice(tmp_path, same):
    """Joined and split, as some trainers of Z-Image write it: once where both say the same, else refused."""
    pipe = families.flux()
    layers, names = originals(pipe.transformer)
    tensors, wanted = lora_on(names, layers, ["double_blocks_0_img_attn_qkv"])
    down, up = (tensors[f"lora_unet_double_blocks_0_img_attn_qkv.lora_{d}.weight"] for d in ("down", "up"))
    start, rows = "transformer.transformer_blocks.0.attn.to_q", len(up) // 3
    tensors |= {
        f"{start}.lora_A.weight": 0.5 * down,
        f"{start}.lora_B.weight": up[:rows] if same else up[rows : 2 * rows],
    }
    file = write(tensors, tmp_path / "lora.safetensors")
    if not same:
        with pytest.raises(
            ModelError, match=r"are both for transformer\.transformer_blocks\.0\.attn\.to_q, and differ"
        ):
            load_lora(pipe, file)
        return
    assert "counts once" in load_lora(pipe, file).notes[0]
    assert_changes(pipe.transformer, wanted)


def test_names_are_flat_without_what_classes_put_before():
    assert flat("text_model.encoder.layers.0.mlp.fc1") == "encoder_layers_0_mlp_fc1"
    assert flat("_orig_mod.conv_in") == "conv_in"


@pytest.mark.parametrize("start", ["pipe.dit.", "dit.", "model.", "net.", "base_model.model.dit."])
def test_what_trainers_of_their_own_code_call_the_network(tmp_path, start):
    pipe = families.qwen_image()
    name, layer = next((n, m) for n, m in pipe.transformer.named_modules() if n.endswith("to_q"))
    down, up = rand(2, layer.in_features), rand(layer.out_features, 2)
    tensors = {f"{start}{name}.lora_A.default.weight": down, f"{start}{name}.lora_B.default.weight": up}
    load_lora(pipe, write(tensors, tmp_path / "lora.safetensors"))
    assert_changes(pipe.transformer, {name: up @ down})
