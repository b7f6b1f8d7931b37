"""LoRA files that are not what they should be: refused with what is wrong, never loaded in part."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests import tiny_families as families
from tests.models.lora_files import assert_changes, linears, pair, rand, write
from tests.tiny import tiny_sd

from diffmem.errors import ModelError, UsageError
from diffmem.models.lora import choices, load_lora
from diffmem.models.target import Target

Q = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


@pytest.fixture
def sd():
    return tiny_sd()


def whole(pipe=None, rank=2):
    """A good LoRA in sd-scripts' format."""
    tensors = {}
    for name, layer in linears((pipe or tiny_sd()).unet).items():
        start = "lora_unet_" + name.replace(".", "_")
        down, up, _ = pair(layer, rank)
        tensors |= {
            f"{start}.lora_down.weight": down,
            f"{start}.lora_up.weight": up,
            f"{start}.alpha": torch.tensor(1.0),
        }
    return tensors


def refuses(pipe, file, match):
    with pytest.raises(ModelError, match=match) as caught:
        load_lora(pipe, file)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


def without(tensors, end):
    gone = next(k for k in tensors if k.endswith(end))
    return {k: v for k, v in tensors.items() if k != gone}


BROKEN = {
    "a key that nobody knows": (lambda t: t | {f"{Q}.secret": rand(2)}, r"1 of its 97 keys .*secret"),
    "an up without its down": (lambda t: without(t, "lora_down.weight"), r"has .*lora_up.weight but no down"),
    "a down without its up": (lambda t: without(t, "lora_up.weight"), r"but no up"),
    "an alpha alone": (lambda t: t | {"lora_unet_conv_in.alpha": torch.tensor(1.0)}, "nothing but lora_unet_conv_in.alpha"),
    "values not finite": (lambda t: t | {f"{Q}.lora_up.weight": torch.full((16, 2), float("nan"))}, r"not finite"),
    "an infinite alpha": (lambda t: t | {f"{Q}.alpha": torch.tensor(float("inf"))}, r"alpha holds values that are not finite"),
    "several alphas": (lambda t: t | {f"{Q}.alpha": rand(3)}, r"alpha holds 3 values"),
    "ranks that differ": (lambda t: t | {f"{Q}.lora_up.weight": rand(16, 3)}, r"rank 2 .* the rank 3"),
    "another width": (lambda t: t | {f"{Q}.lora_down.weight": rand(2, 8)}, r"another architecture: .*\(16, 8\).*has \(16, 16\)"),
    "a layer that is not there": (
        lambda t: t | {"lora_unet_mid_block_attentions_7_proj_in.lora_down.weight": rand(2, 16),
                       "lora_unet_mid_block_attentions_7_proj_in.lora_up.weight": rand(16, 2)},
        r"32 of its 33 layers .* there is no lora_unet_mid_block_attentions_7_proj_in"),
    "a text encoder that is not there": (
        lambda t: t | {"lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": rand(2, 16),
                       "lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": rand(32, 2)},
        r"in its text encoders there is no lora_te2"),
    "magnitudes of another size": (lambda t: t | {f"{Q}.dora_scale": rand(5, 1)}, r"dora_scale has the shape \(5, 1\)"),
    "quantised": (lambda t: t | {f"{Q}.lora_up.weight": torch.ones(16, 2, dtype=torch.int8)}, "quantised"),
    "a factor for each layer": (lambda t: t | {f"{Q}.scalar": rand(1)}, "use_scalar"),
    "one tensor for each rank": (lambda t: t | {f"{Q}.up_list.0": rand(16, 1)}, "DyLoRA as it is trained"),
    "a changed shape": (lambda t: t | {f"{Q}.reshape_weight": rand(2)}, "belong to nothing"),
    "a scale of fp8": (lambda t: t | {f"{Q}.scale_weight": rand(1)}, "quantised weights"),
    "LoRA and LoHa of one layer": (lambda t: t | {f"{Q}.hada_w1_a": rand(16, 2)}, "LoRA and LoHa"),
    "no layer at all": (lambda t: {"bundle_emb.cat.string_to_param.*": rand(1, 16)}, "holds no layers"),
    "a layer of rank 0": (lambda t: t | {f"{Q}.lora_down.weight": rand(0, 16), f"{Q}.lora_up.weight": rand(16, 0)}, "rank 0"),
    "an alpha that is no number": (lambda t: t | {f"{Q}.alpha": torch.tensor(True)}, "torch.bool"),
    "zeros": (lambda t: {k: 0 * v if "up" in k else v for k, v in t.items()}, "changes nothing"),
    "alpha zero": (lambda t: {k: 0 * v if "alpha" in k else v for k, v in t.items()}, "changes nothing"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files(sd, tmp_path, case):
    change, match = BROKEN[case]
    refuses(sd, write(change(whole()), tmp_path / "lora.safetensors"), match)


OTHERS = {
    "OFT": ({f"{Q}.oft_blocks": (4, 4, 4), f"{Q}.alpha": ()}, "OFT"),
    "BOFT": ({f"{Q}.oft_diag": (2, 4, 4, 4)}, "OFT or BOFT"),
    "GLoRA": ({f"{Q}.{n}.weight": (16, 16) for n in ("a1", "a2", "b1", "b2")}, "GLoRA"),
    "IA3": ({f"{Q}.weight": (16, 1), f"{Q}.on_input": ()}, r"\(IA\)\^3"),
    "VeRA": ({"base_model.model.mid_block.x.vera_lambda_b": (16,)}, "VeRA"),
    "cloneofsimo's": ({"unet:0:up": (16, 2), "unet:0:down": (2, 16)}, "numbered format of cloneofsimo"),
    "Custom Diffusion": ({"mid_block.attn2.processor.to_k_custom_diffusion.weight": (16, 16)}, "Custom Diffusion"),
    "an IP-Adapter": ({"ip_adapter.1.to_k_ip.weight": (16, 16), "image_proj.proj.weight": (4, 4)}, "IP-Adapter"),
    "ControlNet-LLLite": ({"lllite_unet_input_blocks_1.down.0.weight": (4, 4)}, "ControlNet"),
    "a textual inversion": ({"string_to_param": (2, 16)}, "textual inversion"),
    "one for SDXL": ({"clip_l": (2, 16), "clip_g": (2, 16)}, "textual inversion"),
    "one of diffusers": ({"<cat>": (16,)}, "textual inversion"),
    "a checkpoint": ({"model.diffusion_model.out.2.weight": (4, 8, 3, 3), "first_stage_model.decoder.conv_in.weight": (8, 4)},
                     "whole checkpoint"),
    "a UNet": ({"conv_in.weight": (8, 4, 3, 3), "down_blocks.0.resnets.0.conv1.weight": (8, 8, 3, 3)}, "whole UNet"),
    "a transformer": ({"transformer_blocks.0.attn.to_q.weight": (8, 8)}, "whole transformer"),
    "a text encoder": ({"text_model.encoder.layers.0.mlp.fc1.weight": (32, 16)}, "whole text encoder"),
    "whole layers of peft": ({"base_model.model.conv_in.lora_A.weight": (2, 4, 3, 3), "base_model.model.conv_in.lora_B.weight":
                              (8, 2, 1, 1), "base_model.model.conv_out.weight": (4, 8, 3, 3)}, "modules_to_save"),
    "something else": ({"layer.weight": (2, 2)}, "none of its 1 keys is one of a LoRA"),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHERS)
def test_what_is_no_lora_or_none_that_can_be_loaded_is_named(sd, tmp_path, case):
    shapes, match = OTHERS[case]
    refuses(sd, write({k: torch.randn(shape) for k, shape in shapes.items()}, tmp_path / "lora.safetensors"), match)


CONTENTS = {
    "nothing": (b"", "an empty file"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 10\n", "Git LFS"),
    "a page": (b"<!DOCTYPE html><html></html>", "a web page"),
    "GGUF": (b"GGUF" + bytes(60), "GGUF"),
    "noise": (b"not a file of weights", "no file of weights"),
}


@pytest.mark.parametrize("case", CONTENTS)
def test_files_of_another_kind(sd, tmp_path, case):
    content, match = CONTENTS[case]
    (tmp_path / "lora.safetensors").write_bytes(content)
    refuses(sd, tmp_path / "lora.safetensors", f"cannot be loaded: it is .*{match}")


def test_a_file_that_was_cut_off_or_holds_nothing(sd, tmp_path):
    file = write(whole(), tmp_path / "lora.safetensors")
    content = file.read_bytes()
    for length in (100, len(content) - 10):
        file.write_bytes(content[:length])
        refuses(sd, file, "cannot be loaded")
    save_file({}, file)
    refuses(sd, file, "no weights at all")


def test_the_content_counts_not_the_ending(sd, tmp_path):
    write(whole(), tmp_path / "lora.ckpt")
    assert "32 of unet" in load_lora(sd, tmp_path / "lora.ckpt").summary
    torch.save(whole(), tmp_path / "lora.safetensors")
    refuses(tiny_sd(), tmp_path / "lora.safetensors", "is a pickle")


@pytest.mark.parametrize("wrap", [lambda t: t, lambda t: {"state_dict": t}])
def test_pickles_where_they_are_allowed(sd, tmp_path, wrap):
    torch.save(wrap(whole()), tmp_path / "lora.pt")
    refuses(sd, tmp_path / "lora.pt", "--allow-pickle")
    assert "32 of unet" in load_lora(sd, tmp_path / "lora.pt", allow_pickle=True).summary
    torch.save({"a": 1}, tmp_path / "x.pt")
    with pytest.raises(ModelError, match="'a' in it is no tensor"):
        load_lora(tiny_sd(), tmp_path / "x.pt", allow_pickle=True)


CONFIGS = {
    "another kind": ({"peft_type": "OFT"}, "OFT adapter"),
    "a start that changes the base": (
        {"init_lora_weights": "pissa_niter_4"},
        "taking a part out of the base's weights",
    ),
    "whole layers": ({"modules_to_save": ["conv_in"]}, "modules_to_save"),
    "DoRA without magnitudes": ({"use_dora": True}, "holds no magnitudes"),
    "another rank": ({"r": 16}, "says rank 16 .* have rank 2"),
    "no alpha": ({"lora_alpha": None}, "lora_alpha = None; expected a number"),
    "a word for alpha": ({"lora_alpha": "x"}, "expected a number"),
    "a list of patterns": ({"alpha_pattern": [1]}, "alpha_pattern"),
    "a pattern that is none": ({"rank_pattern": {"[": 2}}, "no regular expression"),
    "another alpha": ({"lora_alpha": 8}, "alpha makes alpha/r 0.5, and adapter_config.json 4"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config_that_says_otherwise(sd, tmp_path, case):
    config, match = CONFIGS[case]
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 1} | config))
    refuses(sd, write(whole(), tmp_path / "adapter_model.safetensors"), match)
    (tmp_path / "adapter_config.json").write_text("{")
    refuses(sd, tmp_path, "not valid JSON")


def test_an_alpha_in_sd_scripts_header_alone_is_asked_for(tmp_path):
    """sd-scripts' own loaders take alpha from tensors only; a converter may have multiplied it in and kept the header."""
    tensors = {k: v for k, v in whole().items() if "alpha" not in k}
    file = write(tensors, tmp_path / "lora.safetensors", ss_network_alpha="1", ss_network_dim="2")
    refuses(tiny_sd(), file, r"alpha 1 at rank 2.*lora.safetensors:0.5 or .*:1")
    assert "scale 0.5" in load_lora(tiny_sd(), file, 0.5).summary
    write(tensors, file, ss_network_alpha="2", ss_network_dim="2")
    load_lora(tiny_sd(), file)
    for header in ({"network_alpha": "1"}, {"alpha": "1", "rank": "2"}, {"config": json.dumps({"net": {"alpha": 1}})}):
        write(tensors, file, **header)
        refuses(tiny_sd(), file, "alpha 1 at rank 2")


@pytest.mark.parametrize("trainer", ["networks.dylora", "lycoris.kohya"])
def test_a_dylora_is_named_and_loaded_at_full_rank(sd, tmp_path, trainer):
    arguments = json.dumps({"algo": "dylora"} if "lycoris" in trainer else {"unit": 1})
    file = write(whole(), tmp_path / "lora.safetensors", ss_network_module=trainer, ss_network_args=arguments)
    loaded = load_lora(sd, file)
    assert "rank 2" in loaded.summary
    assert any("DyLoRA" in note and "full rank" in note for note in loaded.notes)


def test_a_converter_that_multiplied_alpha_in_and_kept_the_header(tmp_path):
    """sd-scripts' converters to the names of diffusers do, and everything loads such a file as it is."""
    pipe, wanted, tensors = tiny_sd(), {}, {}
    for name, layer in linears(pipe.unet).items():
        down, up, wanted[name] = pair(layer)
        tensors |= {f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}
    loaded = load_lora(pipe, write(tensors, tmp_path / "lora.safetensors", ss_network_alpha="1", ss_network_dim="2"))
    assert_changes(pipe.unet, wanted)
    assert "after multiplying alpha/r in" in loaded.notes[0]


@pytest.mark.parametrize(("text", "said"), [("50%", "'50%'"), ("0,5", "'0,5'"), ("nan", "'nan'"), ("", "''")])
def test_a_scale_that_is_no_number(tmp_path, text, said):
    file = write(whole(), tmp_path / "lora.safetensors")
    with pytest.raises(UsageError, match=f"has the scale {said}; expected a number"):
        load_lora(tiny_sd(), f"{file}:{text}")


def test_a_folder_of_checkpoints_says_where_they_are(sd, tmp_path):
    (tmp_path / "checkpoint-500").mkdir()
    write(whole(), tmp_path / "checkpoint-500" / "pytorch_lora_weights.safetensors")
    refuses(sd, tmp_path, "give one, such as .*checkpoint-500")
    load_lora(sd, tmp_path / "checkpoint-500")


def test_paths_of_windows_are_no_scales():
    assert [str(c) for c in choices([r"C:\loras\a.safetensors", r"C:\loras\b.safetensors:0.5"])] == [
        r"C:\loras\a.safetensors", r"C:\loras\b.safetensors:0.5",
    ]  # fmt: skip
    assert choices(r"C:\loras\a.safetensors")[0].scale is None


@pytest.mark.parametrize("family", ["sdxl", "sd3", "flux", "pixart", "dit"])
def test_a_lora_of_stable_diffusion_fits_no_other_family(tmp_path, family):
    refuses(families.FAMILIES[family](), write(whole(), tmp_path / "lora.safetensors"), "another architecture")


def test_adapters_that_are_there_already(sd, tmp_path):
    file = write(whole(), tmp_path / "lora.safetensors")
    load_lora(sd, file)
    refuses(sd, file, "holds adapters already; load all LoRAs in one call")


def test_files_in_half_precision_and_below(sd, tmp_path):
    for dtype in (torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float64):
        file = write({k: v.to(dtype) for k, v in whole().items()}, tmp_path / "lora.safetensors")
        assert load_file(file)[f"{Q}.alpha"].dtype == dtype
        load_lora(tiny_sd(), file)


@pytest.mark.parametrize("inner", ["", "pytorch_lora_weights.safetensors"])
def test_a_lora_given_as_the_model(tmp_path, inner):
    write(whole(), tmp_path / "pytorch_lora_weights.safetensors")
    with pytest.raises(ModelError, match="is a LoRA, not a model: give its base as the model"):
        Target.from_pretrained(tmp_path / inner)


def test_layers_that_are_never_called_are_refused(tmp_path):
    """An adapter on torch's own attention would be in the model and not heard."""
    pipe = tiny_sd()
    pipe.unet.pool = torch.nn.MultiheadAttention(16, 2)
    tensors = {"unet.pool.out_proj.lora_A.weight": rand(2, 16), "unet.pool.out_proj.lora_B.weight": rand(16, 2)}
    refuses(pipe, write(tensors, tmp_path / "lora.safetensors"), "MultiheadAttention, where no adapter works")


def test_pickled_embeddings_beside_a_lora_are_not_passed_over(tmp_path):
    write(whole(), tmp_path / "pytorch_lora_weights.safetensors")
    torch.save({"<cat>": rand(16)}, tmp_path / "learned_embeds.bin")
    torch.save({}, tmp_path / "optimizer.bin")
    refuses(tiny_sd(), tmp_path, "learned_embeds.bin is a pickle")
    assert load_lora(tiny_sd(), tmp_path, allow_pickle=True).tokens == ["<cat>"]
