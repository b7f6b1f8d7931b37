"""Opening models: hostile or odd folders are refused before anything of them is run or read whole."""

import json
import os

import pytest
from tests.models.saved_folders import WEIGHTS, edit, refused

from diffmem.models.target import Target


class TestIndex:
    @pytest.mark.parametrize(
        ("entry", "words"),
        [
            (["helper_module", "Thing"], ["helper_module", "diffusers and transformers only"]),
            (["os.path", "join"], ["diffusers and transformers only"]),
            (["diffusers", "StableDiffusionPipeline"], ["cannot open as a component"]),
            (["diffusers", "NoSuchModel"], ["cannot open as a component"]),
            (["diffusers", "models.UNet2DModel"], ["cannot open as a component"]),
            (["transformers", "set_seed"], ["cannot open as a component"]),
            (["diffusers"], ["expected [library, class]"]),
            ([1, 2], ["expected [library, class]"]),
            ([None, "UNet2DModel"], ["expected [library, class]"]),
            ([["diffusers"], {}], ["expected [library, class]"]),
        ],
    )
    def test_odd_entries(self, folder, entry, words):
        edit(folder / "model_index.json", unet=entry)
        refused(folder, "unet", *words)

    def test_the_folders_own_python_is_never_run(self, folder, monkeypatch):
        (folder / "helper_module.py").write_text("open('ran', 'w').close()\nclass Thing: pass\n")
        (folder / "unet" / "diffusers.py").write_text("open('ran', 'w').close()\n")
        edit(folder / "model_index.json", vae=["helper_module", "Thing"])
        monkeypatch.chdir(folder)
        monkeypatch.syspath_prepend(str(folder))
        refused(folder, "helper_module")
        assert not (folder / "ran").exists()

    @pytest.mark.parametrize("name", [None, 5, {}, "", "UNet2DConditionModel", "StableDifusionPipeline", "os"])
    def test_no_pipeline_class(self, folder, name):
        edit(folder / "model_index.json", _class_name=name)
        refused(folder, "class")

    def test_the_way_to_the_pipelines_folder_is_said(self, folder):
        refused(folder.parent, "There are pipelines in it", str(folder))
        refused(folder / "unet", "give the folder above it")
        refused(folder / "model_index.json", "give the folder")

    def test_a_near_name_is_proposed(self, folder):
        edit(folder / "model_index.json", _class_name="StableDifusionPipeline")
        refused(folder, "Did you mean 'StableDiffusionPipeline'?")

    @pytest.mark.parametrize("text", ["[]", "3", '"a"', "null", "{", "", "\xff", '{"a":' * 30000, '{"x": NaN}'])
    @pytest.mark.parametrize("name", ["model_index.json", "unet/config.json"])
    def test_configs_that_are_no_objects(self, folder, name, text):
        (folder / name).write_text(text, encoding="latin-1")
        refused(folder, name.rpartition("/")[2])

    def test_a_component_that_the_class_does_not_know_or_that_is_not_there(self, folder):
        index = json.loads((folder / "model_index.json").read_text())
        del index["unet"]
        (folder / "model_index.json").write_text(json.dumps(index))
        refused(folder, "unet")

    @pytest.mark.parametrize("name", ["safety_checker", "feature_extractor", "image_encoder"])
    def test_a_deleted_part_says_what_to_write(self, folder, name):
        edit(folder / "model_index.json", **{name: ["transformers", "CLIPImageProcessor"]})
        refused(folder, f'"{name}": [null, null]')


class TestFiles:
    @pytest.mark.parametrize("place", ["unet/config.json", "tokenizer/tokenizer.json", "model_index.json"])
    def test_a_fifo_is_not_opened(self, folder, place):
        (folder / place).unlink()
        os.mkfifo(folder / place)
        refused(folder, "FIFO")

    @pytest.mark.parametrize("place", ["scheduler/scheduler_config.json", "vae/diffusion_pytorch_model.safetensors"])
    def test_a_device_behind_a_link_is_not_opened(self, folder, place):
        (folder / place).unlink()
        (folder / place).symlink_to("/dev/zero")
        refused(folder, "device")

    def test_a_huge_config_is_not_read(self, folder):
        with (folder / "vae" / "config.json").open("ab") as file:
            file.truncate(1 << 30)
        refused(folder, "1024 MiB")

    def test_more_layers_than_any_model_has(self, folder):
        edit(folder / "text_encoder" / "config.json", num_hidden_layers=10**8)
        refused(folder, "num_hidden_layers")

    @pytest.mark.parametrize("value", [0, -16, 2.5, 10**9, float("inf")])
    @pytest.mark.parametrize(
        ("part", "key"), [("unet", "cross_attention_dim"), ("vae", "latent_channels"), ("text_encoder", "hidden_size")]
    )
    def test_widths_that_no_model_has(self, folder, part, key, value):
        edit(folder / part / "config.json", **{key: value})
        refused(folder, key, "whole number")

    @pytest.mark.parametrize("value", ["16", [16], {"a": 1}, True])
    def test_widths_that_are_no_number(self, folder, value):
        edit(folder / "unet" / "config.json", in_channels=value)
        refused(folder, "in_channels" if value != [16] else "unet")

    def test_an_index_of_shards_that_points_to_a_pickle(self, folder):
        part = folder / "text_encoder"
        (part / "model.safetensors").rename(part / "pytorch_model.bin")
        (part / "model.safetensors.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": {"x": "pytorch_model.bin"}})
        )
        refused(folder, "pickle", "text_encoder")

    @pytest.mark.parametrize(
        ("shards", "words"),
        [({"x": "../vae/a.safetensors"}, "outside"), ({"x": "a.safetensors"}, "missing"), ([], "weight_map"),
         ({"x": 3}, "weight_map")],
    )  # fmt: skip
    def test_other_indices_of_shards(self, folder, shards, words):
        (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(
            json.dumps({"weight_map": shards})
        )
        refused(folder, words)

    def test_links_to_plain_files_are_opened(self, folder, saved, tmp_path):
        file = folder / "unet" / WEIGHTS["unet"]
        file.rename(tmp_path / "blob")
        file.symlink_to(tmp_path / "blob")
        assert Target.from_pretrained(folder).fingerprint == Target.from_pretrained(saved).fingerprint
