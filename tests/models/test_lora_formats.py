"""LoRA files of many trainers: each layer's weight changes as the file says, whatever its naming, rank and alpha."""

import json
import math

import pytest
import torch
from tests import tiny_families as families
from tests.models.lora_files import assert_changes, convs, linears, pair, rand, write
from tests.tiny import tiny_sd

from diffmem.models.lora import load_lora


@pytest.fixture
def sd():
    return tiny_sd()


def kohya(name):
    return "lora_unet_" + name.replace(".", "_")


def diffusers(name):
    return f"unet.{name}"


NAMINGS = {
    "sd-scripts": lambda n: (kohya(n), "lora_down.weight", "lora_up.weight"),
    "diffusers": lambda n: (diffusers(n), "lora_A.weight", "lora_B.weight"),
    "diffusers 0.20": lambda n: (diffusers(n), "lora.down.weight", "lora.up.weight"),
    "peft": lambda n: (f"base_model.model.{n}", "lora_A.weight", "lora_B.weight"),
    "peft, adapter's name": lambda n: (f"base_model.model.{n}", "lora_A.default.weight", "lora_B.default.weight"),
    "peft of a compiled network": lambda n: (f"base_model.model._orig_mod.{n}", "lora_A.weight", "lora_B.weight"),
    "ComfyUI": lambda n: (f"diffusion_model.{n}", "lora_down.weight", "lora_up.weight"),
    "no prefix": lambda n: (n, "lora_A.weight", "lora_B.weight"),
    "lycoris": lambda n: ("lycoris_" + n.replace(".", "_"), "lora_down.weight", "lora_up.weight"),
}


@pytest.mark.parametrize("naming", NAMINGS)
def test_rank_and_alpha_of_each_layer(sd, tmp_path, naming):
    tensors, wanted = {}, {}
    for i, (name, layer) in enumerate((linears(sd.unet) | convs(sd.unet)).items()):
        rank, alpha = (2, 4, 1)[i % 3], (1.0, 4.0, 0.5, 3.0)[i % 4]
        start, down_name, up_name = NAMINGS[naming](name)
        down, up, product = pair(layer, rank)
        tensors |= {f"{start}.{down_name}": down, f"{start}.{up_name}": up, f"{start}.alpha": torch.tensor(alpha)}
        wanted[name] = alpha / rank * product
    loaded = load_lora(sd, write(tensors, tmp_path / "lora.safetensors"))
    assert_changes(sd.unet, wanted)
    assert f"{len(wanted)} of unet" in loaded.summary and "ranks 1 to 4" in loaded.summary


def test_attention_processors_of_diffusers_before_0_20(sd, tmp_path):
    tensors, wanted = {}, {}
    for name, layer in linears(sd.unet).items():
        attention, _, projection = name.rpartition(".to_")
        down, up, wanted[name] = pair(layer)
        start = f"{attention}.processor.to_{projection.removesuffix('.0')}_lora"
        tensors |= {f"{start}.down.weight": down, f"{start}.up.weight": up}
    texts, text_wanted = {}, {}
    for name, layer in linears(sd.text_encoder, ("q_proj", "out_proj")).items():
        down, up, text_wanted[name] = pair(layer)
        start = f"text_encoder.text_model.{name}.lora_linear_layer"
        texts |= {f"{start}.down.weight": down, f"{start}.up.weight": up}
    load_lora(sd, write(tensors | texts, tmp_path / "lora.safetensors"))
    assert_changes(sd.unet, wanted)
    assert_changes(sd.text_encoder, text_wanted)


@pytest.mark.parametrize(
    "words", [("q_proj", "v_proj"), ("fc1", "fc2"), ("q_proj", "k_proj", "v_proj", "out_proj", "fc1")]
)
def test_any_part_of_a_text_encoder(sd, tmp_path, words):
    tensors, wanted = {}, {}
    for name, layer in linears(sd.text_encoder, words).items():
        down, up, product = pair(layer, 4)
        start = "lora_te_text_model_" + name.replace(".", "_")
        tensors |= {
            f"{start}.lora_down.weight": down,
            f"{start}.lora_up.weight": up,
            f"{start}.alpha": torch.tensor(2.0),
        }
        wanted[name] = 0.5 * product
    load_lora(sd, write(tensors, tmp_path / "lora.safetensors"))
    assert_changes(sd.text_encoder, wanted)


@pytest.mark.parametrize(
    ("family", "encoder", "prefix"),
    [("sdxl", "text_encoder", "lora_te1_text_model_"), ("sdxl", "text_encoder_2", "lora_te2_text_model_"),
     ("sd3", "text_encoder_2", "lora_te2_text_model_"), ("sd3", "text_encoder_3", "lora_te3_"),
     ("sd3", "text_encoder_3", "text_encoders.t5xxl.transformer."), ("flux", "text_encoder", "lora_te1_text_model_"),
     ("flux", "text_encoder_2", "lora_te3_"), ("flux", "text_encoder_2", "lora_te2_"),
     ("sdxl", "text_encoder_2", "text_encoders.clip_g.transformer.text_model."), ("pixart", "text_encoder", "lora_te_")],
)  # fmt: skip
def test_every_text_encoder_has_its_name(tmp_path, family, encoder, prefix):
    pipe = families.FAMILIES[family]()
    tensors, wanted = {}, {}
    component = pipe.components[encoder]
    for i, (name, layer) in enumerate(
        linears(component, ("q_proj", "fc1", "SelfAttention.q", "DenseReluDense.wo")).items()
    ):
        down, up, product = pair(layer)
        bare = name.removeprefix("text_model.")
        start = prefix + (bare if prefix.endswith(".") else bare.replace(".", "_"))
        tensors |= {
            f"{start}.lora_down.weight": down,
            f"{start}.lora_up.weight": up,
            f"{start}.alpha": torch.tensor(1.0 + i),
        }
        wanted[name] = (1 + i) / 2 * product
    assert len(wanted) == 4
    load_lora(pipe, write(tensors, tmp_path / "lora.safetensors"))
    assert_changes(component, wanted)


def magnitude_of(weight, product):
    """(DoRA's magnitudes per output, the change that they make)."""
    whole = weight.detach() + product
    dims = list(range(1, whole.ndim))
    m = torch.rand(len(whole), *(1,) * (whole.ndim - 1)) + 1
    return m, m * whole / whole.pow(2).sum(dims, keepdim=True).sqrt() - weight.detach()


@pytest.mark.parametrize("form", ["dora_scale", "per input", "peft"])
def test_magnitudes_of_dora(sd, tmp_path, form):
    tensors, wanted = {}, {}
    for name, layer in (linears(sd.unet) | convs(sd.unet)).items():
        down, up, product = pair(layer)
        weight = layer.weight
        m, done = magnitude_of(weight, 0.5 * product)
        start = kohya(name)
        if form == "per input":  # LyCORIS without wd_on_out
            m, done = (x.transpose(0, 1) for x in magnitude_of(weight.transpose(0, 1), 0.5 * product.transpose(0, 1)))
        tensors |= {
            f"{start}.lora_down.weight": down,
            f"{start}.lora_up.weight": up,
            f"{start}.alpha": torch.tensor(1.0),
        }
        if form == "peft":
            tensors[f"{start}.lora_magnitude_vector.weight"] = m.flatten() if m.ndim == 2 else m.reshape(1, -1, 1, 1)
        else:
            tensors[f"{start}.dora_scale"] = m
        wanted[name] = done
    loaded = load_lora(sd, write(tensors, tmp_path / "lora.safetensors"))
    assert_changes(sd.unet, wanted)
    assert "DoRA" in loaded.summary


def test_kernels_between_down_and_up(sd, tmp_path):
    tensors, wanted = {}, {}
    for name, layer in convs(sd.unet).items():
        out, inside, k, _ = layer.weight.shape
        down, mid, up = rand(3, inside, 1, 1), rand(2, 3, k, k), rand(out, 2, 1, 1)
        start = kohya(name)
        tensors |= {f"{start}.lora_down.weight": down, f"{start}.lora_mid.weight": mid, f"{start}.lora_up.weight": up}
        tensors[f"{start}.alpha"] = torch.tensor(6.0)
        wanted[name] = 2 * torch.einsum("op,pqkl,qi->oikl", up[:, :, 0, 0], mid, down[:, :, 0, 0])
    load_lora(sd, write(tensors, tmp_path / "lora.safetensors"))
    assert_changes(sd.unet, wanted)


@pytest.mark.parametrize("rank", [2, 3, 8])
@pytest.mark.parametrize("kind", ["plain", "kernels", "magnitudes"])
def test_loha(sd, tmp_path, rank, kind):
    tensors, wanted = {}, {}
    for name, layer in (convs(sd.unet) if kind == "kernels" else linears(sd.unet) | convs(sd.unet)).items():
        out, inside = layer.weight.shape[0], layer.weight[0].numel()
        start, product = kohya(name), 1
        for n in "12":
            if kind == "kernels":
                t, a, b = rand(rank, rank, *layer.weight.shape[2:]), rand(rank, out), rand(rank, layer.weight.shape[1])
                tensors[f"{start}.hada_t{n}"] = t
                product = product * torch.einsum("xykl,xo,yi->oikl", t, a, b)
            else:
                a, b = rand(out, rank), rand(rank, inside)
                product = product * (a @ b).reshape(layer.weight.shape)
            tensors |= {f"{start}.hada_w{n}_a": a, f"{start}.hada_w{n}_b": b}
        tensors[f"{start}.alpha"] = torch.tensor(1.0)
        wanted[name] = product / rank
        if kind == "magnitudes":
            tensors[f"{start}.dora_scale"], wanted[name] = magnitude_of(layer.weight, wanted[name])
    loaded = load_lora(sd, write(tensors, tmp_path / "lora.safetensors"))
    assert_changes(sd.unet, wanted)
    assert "LoHa" in loaded.summary


@pytest.mark.parametrize("one", ["full", "product"])
@pytest.mark.parametrize("two", ["full", "product", "kernels"])
def test_lokr(sd, tmp_path, one, two):
    tensors, wanted = {}, {}
    for name, layer in (convs(sd.unet) if two == "kernels" else linears(sd.unet) | convs(sd.unet)).items():
        out, inside, *kernel = layer.weight.shape
        (a, b), (c, d), r, start = (2, 2), (out // 2, inside // 2), 2, kohya(name)
        if one == "full":
            tensors[f"{start}.lokr_w1"] = w1 = rand(a, b)
        else:
            tensors[f"{start}.lokr_w1_a"], tensors[f"{start}.lokr_w1_b"] = w1a, w1b = rand(a, r), rand(r, b)
            w1 = w1a @ w1b
        if two == "full":
            tensors[f"{start}.lokr_w2"] = w2 = rand(c, d, *kernel)
        elif two == "product":
            w2a, w2b = rand(c, r), rand(r, d * math.prod(kernel))
            tensors[f"{start}.lokr_w2_a"], tensors[f"{start}.lokr_w2_b"] = w2a, w2b
            w2 = (w2a @ w2b).reshape(c, d, *kernel)
        else:
            t, w2a, w2b = rand(r, r, *kernel), rand(r, c), rand(r, d)
            tensors |= {f"{start}.lokr_t2": t, f"{start}.lokr_w2_a": w2a, f"{start}.lokr_w2_b": w2b}
            w2 = torch.einsum("xykl,xo,yi->oikl", t, w2a, w2b)
        tensors[f"{start}.alpha"] = torch.tensor(1.0)
        scaling = 1.0 if (one, two) == ("full", "full") else 1 / r
        # By definition: blocks of w2, each times one number of w1.
        blocks = [torch.cat([w1[i, j] * w2 for j in range(b)], dim=1) for i in range(a)]
        wanted[name] = scaling * torch.cat(blocks, dim=0)
    load_lora(sd, write(tensors, tmp_path / "lora.safetensors"))
    assert_changes(sd.unet, wanted)


def test_differences_of_weights_biases_and_norms(sd, tmp_path):
    layers = dict(sd.unet.named_modules())
    before = {k: v.clone() for k, v in sd.unet.state_dict().items()}
    norm, linear, attention = "conv_norm_out", "time_embedding.linear_1", next(iter(linears(sd.unet)))
    tensors = {
        f"{kohya(norm)}.w_norm": rand(*layers[norm].weight.shape), f"{kohya(norm)}.b_norm": rand(*layers[norm].bias.shape),
        f"{kohya(linear)}.diff": rand(*layers[linear].weight.shape), f"{kohya(linear)}.diff_b": rand(*layers[linear].bias.shape),
    }  # fmt: skip
    down, up, product = pair(layers[attention])
    bias = rand(len(up))
    tensors |= {f"unet.{attention}.lora_A.weight": down, f"unet.{attention}.lora_B.weight": up}
    tensors |= {f"unet.{attention}.lora_B.bias": bias, f"unet.{attention}.alpha": torch.tensor(4.0)}
    load_lora(sd, write(tensors, tmp_path / "lora.safetensors"))
    assert_changes(sd.unet, {attention: 2 * product, linear: tensors[f"{kohya(linear)}.diff"]})
    after = dict(sd.unet.named_modules())
    for role, name, key in (("weight", norm, "w_norm"), ("bias", norm, "b_norm"), ("bias", linear, "diff_b")):
        held = getattr(getattr(after[name], "base_layer", after[name]), role)
        torch.testing.assert_close(held - before[f"{name}.{role}"], tensors[f"{kohya(name)}.{key}"])
    torch.testing.assert_close(after[attention].base_layer.bias.detach(), 2 * bias)


CONFIGS = {
    "alpha": ({"r": 4, "lora_alpha": 8}, lambda name: 2.0),
    "rank-stabilised": ({"r": 4, "lora_alpha": 8, "use_rslora": True}, lambda name: 4.0),
    "patterns": (
        {"r": 4, "lora_alpha": 8, "alpha_pattern": {"attn1.to_q": 2, "to_k": 12}},
        lambda name: 0.5 if name.endswith("attn1.to_q") else 3.0 if name.endswith("to_k") else 2.0,
    ),
}


@pytest.mark.parametrize("place", ["adapter_config.json", "header", "header without component"])
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("family", ["sd", "pixart"])
def test_alpha_beside_the_weights(tmp_path, place, config, family):
    pipe = tiny_sd() if family == "sd" else families.pixart()
    part = "unet" if family == "sd" else "transformer"
    said, scaling = CONFIGS[config]
    tensors, wanted = {}, {}
    for name, layer in linears(pipe.components[part]).items():
        down, up, product = pair(layer, 4)
        tensors |= {f"{part}.{name}.lora_A.weight": down, f"{part}.{name}.lora_B.weight": up}
        wanted[name] = scaling(name) * product
    header = {}
    if place == "adapter_config.json":
        (tmp_path / place).write_text(json.dumps({"peft_type": "LORA", **said}))
    else:
        start = f"{part}." if place == "header" else ""
        header["lora_adapter_metadata"] = json.dumps({start + k: v for k, v in said.items()})
    load_lora(pipe, write(tensors, tmp_path / "pytorch_lora_weights.safetensors", **header))
    assert_changes(pipe.components[part], wanted)
