"""Several LoRAs, scales, tokens beside them, and the other ways in: names, fingerprints, the command line."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests import tiny_families as families
from tests.models.lora_files import assert_changes, linears, pair, rand, write
from tests.tiny import random_lora, tiny_sd

from diffmem.cli.app import main
from diffmem.errors import ModelError, UsageError
from diffmem.models.lora import LoraChoice, choices, load_lora, load_loras, name_of
from diffmem.models.target import Target
from diffmem.runs.facts import read_fact


def made(pipe, file, rank=2, alpha=1.0, magnitudes=False, words=("to_q", "to_v"), factor=1.0):
    """A random LoRA as a file, and the changes of its layers."""
    tensors, wanted = {}, {}
    for name, layer in linears(pipe.unet, words).items():
        start = "lora_unet_" + name.replace(".", "_")
        down, up, product = pair(layer, rank)
        down, product = factor * down, factor * product
        tensors |= {
            f"{start}.lora_down.weight": down,
            f"{start}.lora_up.weight": up,
            f"{start}.alpha": torch.tensor(alpha),
        }
        wanted[name] = alpha / rank * product
        if magnitudes:
            weight = layer.weight.detach()
            m = torch.rand(len(weight), 1) + 1
            whole = weight + wanted[name]
            tensors[f"{start}.dora_scale"] = m
            wanted[name] = m * whole / whole.norm(dim=1, keepdim=True) - weight
    return write(tensors, file), wanted


def total(*weighted):
    """The sum of changes, each times its scale."""
    layers = {name for _, wanted in weighted for name in wanted}
    return {n: sum(scale * wanted[n] for scale, wanted in weighted if n in wanted) for n in layers}


@pytest.mark.parametrize("dora", [(False, False), (True, False), (True, True)])
def test_changes_of_several_add_up(tmp_path, dora):
    pipe = tiny_sd()
    one, first = made(pipe, tmp_path / "one.safetensors", magnitudes=dora[0])
    two, second = made(pipe, tmp_path / "two.safetensors", rank=4, magnitudes=dora[1], words=("to_q", "to_k"))
    for order in ([(one, 0.5), (two, -2.0)], [(two, -2.0), (one, 0.5)]):
        pipe = tiny_sd()
        load_loras(pipe, order)
        assert_changes(pipe.unet, total((0.5, first), (-2.0, second)))
    pipe = tiny_sd()
    load_loras(pipe, [one, f"{two}:1"])
    assert_changes(pipe.unet, total((1.0, first), (1.0, second)))


@pytest.mark.parametrize("magnitudes", [False, True])
def test_a_scale_multiplies_the_whole_change(tmp_path, magnitudes):
    pipe = tiny_sd()
    file, wanted = made(pipe, tmp_path / "one.safetensors", magnitudes=magnitudes)
    loaded = load_lora(pipe, file, 0.25)
    assert_changes(pipe.unet, total((0.25, wanted)))
    assert "scale 0.25" in loaded.summary


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("magnitudes", [False, True])
def test_a_model_in_half_precision(tmp_path, dtype, magnitudes):
    """Changes far smaller than the weights stay whole: they are not added to rounded weights."""
    pipe = tiny_sd().to(dtype)
    file, wanted = made(pipe, tmp_path / "one.safetensors", magnitudes=magnitudes, factor=1e-2)
    load_lora(pipe, file)
    assert all(w.dtype == dtype for n, w in pipe.unet.named_parameters() if "lora" not in n)
    assert_changes(pipe.unet.float(), {n: w.float() for n, w in wanted.items()}, rtol=1e-2)
    pipe = tiny_sd().to(dtype)
    load_lora(pipe, file)
    with torch.no_grad():
        out = pipe.unet(rand(1, 4, 8, 8).to(dtype), 5, rand(1, 3, 16).to(dtype)).sample
    assert out.dtype == dtype and torch.isfinite(out).all()


def test_what_lora_arguments_can_be(tmp_path):
    assert choices(None) == () == choices([])
    assert choices("a.safetensors:0.5") == choices(("a.safetensors", 0.5)) == (LoraChoice("a.safetensors", 0.5),)
    assert choices(["a:2", tmp_path, ("b", -1)]) == (
        LoraChoice("a", 2.0),
        LoraChoice(str(tmp_path)),
        LoraChoice("b", -1.0),
    )
    (tmp_path / "x:1").mkdir()
    assert choices(f"{tmp_path}/x:1") == (LoraChoice(f"{tmp_path}/x:1"),), "a file that is so called"
    assert choices(r"C:\loras\cat.safetensors") == (LoraChoice(r"C:\loras\cat.safetensors"),)
    assert name_of(["s/pytorch_lora_weights.safetensors", ("cat.safetensors", 0.5)]) == "+s+cat:0.5"
    for bad in ("a:0", ("a", float("nan")), ["a", "a"], [3], [("a", "strong")]):
        with pytest.raises(UsageError):
            choices(bad)


def test_fingerprints_know_alpha_and_scale(tmp_path):
    """Neither is in a weight: without them, runs of different strength would be resumed as one."""
    tiny_sd().save_pretrained(tmp_path / "m")
    file, _ = made(tiny_sd(), tmp_path / "one.safetensors")
    seen = {
        Target.from_pretrained(tmp_path / "m", lora=choice).fingerprint for choice in (None, file, (file, 1), (file, 2))
    }
    assert len(seen) == 3, "none, 1 twice, 2"
    tensors = load_file(file)
    save_file({k: 2 * v if k.endswith("alpha") else v for k, v in tensors.items()}, file)
    assert Target.from_pretrained(tmp_path / "m", lora=file).fingerprint not in seen - {
        Target.from_pretrained(tmp_path / "m", lora=(file, 1)).fingerprint
    }


def test_the_command_line_takes_several_and_says_what_was_loaded(tmp_path, capsys):
    tiny_sd().save_pretrained(tmp_path / "m")
    one, _ = made(tiny_sd(), tmp_path / "one.safetensors")
    two, _ = made(tiny_sd(), tmp_path / "two.safetensors", rank=4)
    common = ["score", str(tmp_path / "m"), "a fox", "--score", "score-difference", "--draws", "1", "--json"]
    values = []
    for loras in ([], [str(one)], [str(one), f"{two}:0.5"], [str(one), f"{two}:2"]):
        assert main([*common, *(word for lora in loras for word in ("--lora", lora))]) == 0
        captured = capsys.readouterr()
        values.append(captured.out)
        for lora in loras:
            assert (
                f"LoRA {lora.rpartition('/')[2].split('.')[0]}: LoRA in the format of sd-scripts, layers: 16 of unet"
                in captured.err
            )
    assert len(set(values)) == 4
    assert main([*common, "--lora", f"{one}:0"]) == 2
    assert "expected a number other than 0" in capsys.readouterr().err


def advanced(folder, tokens=2):
    """The output of diffusers' advanced DreamBooth script: a LoRA and the embeddings of its new tokens."""
    file, _ = random_lora(tiny_sd(), folder)
    vectors = rand(tokens, 16)
    save_file({"clip_l": vectors}, folder / f"{folder.name}_emb.safetensors")
    return file, vectors


@pytest.mark.parametrize("as_folder", [True, False])
def test_embeddings_of_new_tokens_beside_a_lora(tmp_path, as_folder):
    file, vectors = advanced(tmp_path / "style")
    pipe = tiny_sd()
    plain = pipe.encode_prompt("a <s0><s1> fox", "cpu", 1, False)[0]
    loaded = load_lora(pipe, file.parent if as_folder else file)
    assert loaded.tokens == ["<s0>", "<s1>"] and "style_emb.safetensors" in loaded.notes[0]
    ids = pipe.tokenizer("a <s0><s1> fox", add_special_tokens=False)["input_ids"]
    new = pipe.tokenizer.convert_tokens_to_ids(["<s0>", "<s1>"])
    assert new == [i for i in ids if i in new]
    torch.testing.assert_close(pipe.text_encoder.get_input_embeddings().weight[new].detach(), vectors)
    assert not torch.allclose(pipe.encode_prompt("a <s0><s1> fox", "cpu", 1, False)[0], plain)


def test_embeddings_within_the_file_and_of_each_encoder(tmp_path):
    pipe = families.sdxl()
    tensors = {"bundle_emb.cat.clip_l": rand(2, 16), "bundle_emb.cat.clip_g": rand(2, 16)}
    for name, layer in linears(pipe.unet).items():
        down, up, _ = pair(layer)
        tensors |= {f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}
    loaded = load_lora(pipe, write(tensors, tmp_path / "lora.safetensors"))
    assert loaded.tokens == ["cat", "cat_1"]
    for tokenizer, encoder, key in (
        (pipe.tokenizer, pipe.text_encoder, "l"),
        (pipe.tokenizer_2, pipe.text_encoder_2, "g"),
    ):
        ids = tokenizer.convert_tokens_to_ids(["cat", "cat_1"])
        torch.testing.assert_close(
            encoder.get_input_embeddings().weight[ids].detach(), tensors[f"bundle_emb.cat.clip_{key}"]
        )


@pytest.mark.parametrize(
    ("vectors", "name", "match"),
    [(rand(2, 7), "clip_l", r"shape \(2, 7\)"), (rand(2, 16), "clip_g", "text encoder that a .* does not have"),
     (rand(2, 16), "mystery", "no embedding of a token is recognised"),
     (torch.full((1, 16), float("nan")), "clip_l", "expected finite")],
)  # fmt: skip
def test_embeddings_that_have_no_place_are_refused(tmp_path, vectors, name, match):
    file, _ = advanced(tmp_path / "style")
    save_file({name: vectors}, tmp_path / "style" / "style_emb.safetensors")
    with pytest.raises(ModelError, match=match):
        load_lora(tiny_sd(), file)


def test_other_files_of_the_folder_are_named(tmp_path):
    file, _ = advanced(tmp_path / "style")
    save_file({"x": rand(1)}, tmp_path / "style" / "other.safetensors")
    loaded = load_lora(tiny_sd(), file.parent)
    assert any("other.safetensors lies beside the LoRA style and is not used" in note for note in loaded.notes)


def test_a_folder_with_one_adapter_for_each_component(tmp_path):
    pipe, wanted = tiny_sd(), {}
    for part, words, alpha in (("unet", ("to_q",), 4), ("text_encoder", ("q_proj",), 8)):
        (tmp_path / part).mkdir()
        tensors, wanted[part] = {}, {}
        for name, layer in linears(pipe.components[part], words).items():
            down, up, product = pair(layer)
            tensors |= {f"base_model.model.{name}.lora_A.weight": down, f"base_model.model.{name}.lora_B.weight": up}
            wanted[part][name] = alpha / 2 * product
        write(tensors, tmp_path / part / "adapter_model.safetensors")
        (tmp_path / part / "adapter_config.json").write_text(
            json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": alpha})
        )
    load_lora(pipe, tmp_path)
    for part, changes in wanted.items():
        assert_changes(pipe.components[part], changes)


@pytest.mark.parametrize(
    ("header", "name", "words"),
    [({"ss_base_model_version": "sdxl_base_v1-0"}, "x", "trained for sdxl_base_v1-0"),
     ({"modelspec.architecture": "flux-1-dev/lora"}, "x", "trained for flux-1-dev/lora"),
     ({"ss_base_model_version": "sd_v1"}, "x", None), ({"modelspec.architecture": "stable-diffusion-v1/lora"}, "x", None),
     ({"ss_v_parameterization": "True"}, "x", "predicts v_prediction"), ({"ss_v_parameterization": "False"}, "x", None),
     ({}, "pytorch_lcm_weights", "called after lcm"), ({"modelspec.title": "My Lightning 4 steps"}, "x", "after Lightning"),
     ({}, "flashlight", None)],
)  # fmt: skip
def test_what_the_header_says_of_the_base(tmp_path, header, name, words):
    file, _ = made(tiny_sd(), tmp_path / f"{name}.safetensors")
    write(load_file(file), file, **header)
    notes = load_lora(tiny_sd(), file).notes
    assert (len(notes) == 1 and words in notes[0]) if words else notes == []


def test_what_was_assumed_is_in_the_run_in_show_and_on_the_page(tmp_path, capsys):
    tiny_sd().save_pretrained(tmp_path / "m")
    file, _ = made(tiny_sd(), tmp_path / "lora.safetensors")
    write(load_file(file), file, ss_network_module="networks.dylora")
    run = tmp_path / "run"
    command = ["score", str(tmp_path / "m"), "a fox", "--score", "score-difference", "--draws", "1", "--out", str(run)]
    assert main([*command, "--lora", f"{file}:0.5"]) == 0
    said = ["layers: 16 of unet, rank 2, scale 0.5", "trained as a DyLoRA"]
    assert all(any(words in note for note in read_fact(run, "model")["notes"]) for words in said)
    capsys.readouterr()
    assert main(["show", str(run)]) == 0
    shown = capsys.readouterr().out
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert all(words in shown and words in page for words in said)
