"""Opening models: every weight comes from the model's files, and the variant asked for is taken."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models.saved_folders import WEIGHTS, edit, refused, rewrite
from tests.tiny import tiny_sd

from diffmem.models.components import not_from_files
from diffmem.models.target import Target


class TestWeights:
    @pytest.mark.parametrize("part", WEIGHTS)
    def test_a_missing_weight_is_refused_in_every_component(self, folder, part):
        rewrite(folder / part / WEIGHTS[part], lambda w: dict(sorted(w.items())[1:]))
        refused(folder, part, "lack 1 of its weights", "drawn at random")

    @pytest.mark.parametrize("part", WEIGHTS)
    def test_a_weight_that_the_class_has_not_is_refused(self, folder, part):
        rewrite(folder / part / WEIGHTS[part], lambda w: w | {"novel.weight": torch.ones(2)})
        refused(folder, part, "novel.weight", "does not have")

    @pytest.mark.parametrize("part", WEIGHTS)
    def test_weights_under_other_names_are_refused(self, folder, part):
        rewrite(folder / part / WEIGHTS[part], lambda w: {f"module.{k}": v for k, v in w.items()})
        refused(folder, part, "under other names")

    def test_weights_of_another_shape_are_refused(self, folder):
        edit(folder / "text_encoder" / "config.json", hidden_size=8)
        refused(folder, "text_encoder")

    def test_buffers_and_the_other_tower_may_stand_beside_a_text_encoder(self, folder):
        more = {
            "text_model.embeddings.position_ids": torch.arange(16)[None],
            "vision_model.post_layernorm.weight": torch.ones(3),
            "logit_scale": torch.ones(()),
        }
        rewrite(folder / "text_encoder" / WEIGHTS["text_encoder"], lambda w: w | more)
        assert Target.from_pretrained(folder).check("a fox").passed

    @pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool])
    @pytest.mark.parametrize("part", WEIGHTS)
    def test_whole_numbers_are_no_weights(self, folder, part, dtype):
        key = {"unet": "conv_in.weight", "vae": "encoder.conv_in.weight"}.get(part)
        key = key or "embeddings.token_embedding.weight"
        rewrite(folder / part / WEIGHTS[part], lambda w: w | {k: v.to(dtype) for k, v in w.items() if k.endswith(key)})
        refused(folder, key, "whole numbers")

    def test_weights_of_a_decoder_that_the_config_has_not(self, folder):
        """They may stand beside T5's encoder, where they are not used; a VAE without them decodes otherwise."""
        edit(folder / "vae" / "config.json", up_block_types=[])
        refused(folder, "vae")

    def test_a_value_that_no_file_holds_is_found(self, folder):
        pipe = tiny_sd()
        files = [folder / "unet" / WEIGHTS["unet"]]
        assert not_from_files(pipe.unet, files) == []
        assert not_from_files(pipe.unet.to(torch.bfloat16), files) == []
        with torch.no_grad():
            pipe.unet.conv_in.weight.normal_()
        assert not_from_files(pipe.unet, files) == ["conv_in.weight"]

    def test_a_loader_that_draws_weights_and_says_nothing_is_found(self, folder, monkeypatch):
        from transformers import CLIPTextModel

        honest = CLIPTextModel.from_pretrained.__func__

        def silent(cls, *args, **options):
            model, report = honest(cls, *args, **options)
            with torch.no_grad():
                model.get_input_embeddings().weight.normal_()
            return model, report

        monkeypatch.setattr(CLIPTextModel, "from_pretrained", classmethod(silent))
        refused(folder, "text_encoder", "lack 1 of its weights", "token_embedding")

    @pytest.mark.parametrize("part", WEIGHTS)
    @pytest.mark.parametrize("left", [0, 7, 100, -1000])
    def test_cut_files_are_one_sentence(self, folder, part, left):
        file = folder / part / WEIGHTS[part]
        file.write_bytes(file.read_bytes()[:left])
        refused(folder, part, "copy them again")

    @pytest.mark.parametrize("part", ["unet", "text_encoder"])
    @pytest.mark.parametrize("method", ["bitsandbytes", "torchao", "gptq"])
    def test_quantised_components_are_named_as_such(self, folder, part, method):
        edit(folder / part / "config.json", quantization_config={"quant_method": method, "bits": 4})
        refused(folder, f"quantised ({method})")

    @pytest.mark.parametrize("name", ["diffusion_flax_model.msgpack", "model.onnx"])
    def test_weights_of_other_programs_are_named(self, folder, name):
        (folder / "unet" / WEIGHTS["unet"]).rename(folder / "unet" / name)
        refused(folder, name, "converted")

    def test_shards(self, folder, saved):
        file = folder / "unet" / WEIGHTS["unet"]
        weights = sorted(load_file(file).items())
        places = {}
        for number, part in enumerate((weights[:50], weights[50:]), start=1):
            name = f"diffusion_pytorch_model-{number:05d}-of-00002.safetensors"
            save_file(dict(part), file.with_name(name), metadata={"format": "pt"})
            places |= {key: name for key, _ in part}
        file.unlink()
        file.with_name(f"{file.name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
        assert Target.from_pretrained(folder).fingerprint == Target.from_pretrained(saved).fingerprint


class TestVariants:
    def test_only_a_variant_is_named_and_opened_when_asked_for(self, tmp_path):
        tiny_sd().to(torch.float16).save_pretrained(tmp_path / "m", variant="fp16")
        refused(tmp_path / "m", "variant fp16", "--variant fp16")
        assert Target.from_pretrained(tmp_path / "m", variant="fp16").check("a fox").passed
        refused(tmp_path / "m", "only as the variant fp16", variant="bf16")

    def test_a_variant_is_taken_where_both_are(self, folder, saved):
        tiny_sd(seed=5).save_pretrained(folder, variant="other")
        plain, other = Target.from_pretrained(folder), Target.from_pretrained(folder, variant="other")
        assert plain.fingerprint == Target.from_pretrained(saved).fingerprint != other.fingerprint
        assert torch.equal(other.pipeline.unet.conv_in.weight, tiny_sd(seed=5).unet.conv_in.weight)
        refused(folder, "no weights of the variant", variant="fp16")
