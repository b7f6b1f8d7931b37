"""Opening models: every weight from its files, hostile folders refused unopened, what a pipeline needs recognised."""

import json
import os
import shutil

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from safetensors.torch import load_file, save_file
from tests.models.ldm_names import checkpoint
from tests.tiny import tiny_ddpm, tiny_sd
from tests.tiny_families import FAMILIES

from diffmem.errors import ModelError, UsageError
from diffmem.models.components import not_from_files
from diffmem.models.target import Target


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "sd"
    tiny_sd().save_pretrained(folder)
    return folder


@pytest.fixture()
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "m")


def edit(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def rewrite(file, change):
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def refused(folder, *words, **options):
    with pytest.raises(ModelError) as caught:
        Target.from_pretrained(folder, **options)
    said = str(caught.value)
    assert all(word in said for word in words), said
    assert "\n" not in said
    return said


WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


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


@pytest.mark.parametrize(
    "changes",
    [
        {"beta_start": 0.0, "beta_end": 0.0}, {"beta_start": float("nan")}, {"beta_end": float("inf")},
        {"beta_end": 1.5}, {"beta_start": -0.1}, {"trained_betas": [0.0] * 1000}, {"trained_betas": [0.1, "x"]},
        {"trained_betas": []}, {"num_train_timesteps": 0}, {"num_train_timesteps": 10**12},
        {"num_train_timesteps": "1000"}, {"beta_schedule": "nope"}, {"prediction_type": "nope"},
    ],
)  # fmt: skip
def test_impossible_schedules_are_refused_when_opening(folder, changes):
    edit(folder / "scheduler" / "scheduler_config.json", **changes)
    refused(folder)


@pytest.mark.parametrize(
    ("part", "name", "changes", "word"),
    [
        ("scheduler", "scheduler_config.json", {"rescale_betas_zero_snr": 7.5}, "true or false"),
        ("scheduler", "scheduler_config.json", {"clip_sample": "no"}, "true or false"),
        ("scheduler", "scheduler_config.json", {"timestep_spacing": 3}, "a text"),
        ("scheduler", "scheduler_config.json", {"steps_offset": "1"}, "a finite number"),
        ("unet", "config.json", {"center_input_sample": {"a": 1}}, "true or false"),
        ("unet", "config.json", {"norm_eps": "1e-5"}, "a finite number"),
        ("unet", "config.json", {"norm_eps": float("inf")}, "a finite number"),
        ("vae", "config.json", {"act_fn": 3}, "a text"),
        ("vae", "config.json", {"scaling_factor": 1e9}, "scaling_factor"),
    ],
)
def test_settings_of_another_type_are_refused(folder, part, name, changes, word):
    edit(folder / part / name, **changes)
    refused(folder, word, *changes)


def test_settings_that_a_config_may_hold(folder, saved):
    edit(folder / "unet" / "config.json", only_cross_attention=[False, False], center_input_sample=0, dropout=0)
    edit(folder / "scheduler" / "scheduler_config.json", steps_offset=1, clip_sample=None, novel={"a": [1]})
    one, other = (Target.from_pretrained(place).denoiser for place in (folder, saved))
    x = torch.ones(1, *one.sample_shape)
    with torch.no_grad():
        assert torch.equal(*(d.predict(x, 500, d.encode_prompts(["a fox"])) for d in (one, other)))


class TestTokenizers:
    @pytest.mark.parametrize("left", [[], ["vocab.json"], ["merges.txt"]])
    def test_a_lost_vocabulary(self, folder, left):
        """transformers makes a tokenizer without words, and every prompt scores alike."""
        (folder / "tokenizer" / "tokenizer.json").unlink()
        for name in left:
            (folder / "tokenizer" / name).write_text("{}" if name.endswith("json") else "")
        refused(folder, "tokenizer", "no vocabulary")

    def test_the_vocabulary_of_another_model(self):
        from transformers import CLIPTokenizer

        pipe = tiny_sd()
        pipe.tokenizer = CLIPTokenizer(
            vocab={"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2}, merges=[], model_max_length=16
        )
        with pytest.raises(ModelError, match=r"knows 3 tokens and text_encoder has embeddings for 514"):
            Target.from_pipeline(pipe)

    @pytest.mark.parametrize("limit", [None, 0, -1, 10**30, "16", [16], 17, 1e308])
    def test_a_limit_beyond_the_encoders_positions(self, folder, limit):
        edit(folder / "tokenizer" / "tokenizer_config.json", model_max_length=limit)
        refused(folder, "model_max_length" if limit not in ("16", [16], None) else "tokenizer")

    def test_fewer_tokens_than_positions_are_another_model_that_is_seen_rightly(self, folder):
        edit(folder / "tokenizer" / "tokenizer_config.json", model_max_length=8)
        target = Target.from_pretrained(folder)
        assert target.check("a fox").passed
        assert target.denoiser.encode_prompts(["a"]).tensors["encoder_hidden_states"].shape[1] == 8

    @pytest.mark.parametrize("kind", ["bos_token", "unk_token", "pad_token", "eos_token"])
    def test_an_empty_special_token(self, folder, kind):
        edit(folder / "tokenizer" / "tokenizer_config.json", **{kind: ""})
        refused(folder, "tokenizer")

    def test_a_special_token_without_an_embedding(self, folder):
        edit(folder / "tokenizer" / "tokenizer_config.json", pad_token="nope")
        refused(folder, "nope", "no embedding")

    @pytest.mark.parametrize(("end", "right"), [(2, True), (-514, False), (7, False)])
    def test_the_end_of_a_text_at_which_pooling_looks(self, tmp_path, end, right):
        pipe = FAMILIES["sdxl"]()
        pipe.text_encoder_2.config.eos_token_id = end
        if right:
            assert Target.from_pipeline(pipe).denoiser.family == "sdxl"
            return
        with pytest.raises(ModelError, match="eos_token_id"):
            Target.from_pipeline(pipe)


def test_a_decoder_that_gives_no_numbers_fails_the_check():
    """Its images are black, like those that a safety checker has blacked out."""
    pipe = tiny_sd()
    with torch.no_grad():
        pipe.vae.decoder.conv_in.weight.fill_(float("nan"))
    result = Target.from_pipeline(pipe).check("a fox")
    assert not result.passed and "decoded images" in result.message


@pytest.mark.parametrize("betas", [[0.0] * 10, [0.5, float("nan")], [1.0, 1.0]])
def test_impossible_schedules_of_loaded_pipelines(betas):
    pipe = tiny_sd()
    config = dict(pipe.scheduler.config)
    pipe.scheduler = DDIMScheduler.from_config(config, trained_betas=[1e-3] * 10)
    assert Target.from_pipeline(pipe).denoiser.schedule.t_max == 9
    pipe.scheduler = DDIMScheduler.from_config(config, trained_betas=betas)
    with pytest.raises(ModelError, match="noise levels"):
        Target.from_pipeline(pipe)


def test_continuous_times_are_refused():
    """No score asks the network at 0.25 ln(sigma), the only times at which such a network is ever run."""
    pipe = tiny_sd()
    pipe.scheduler = EulerDiscreteScheduler.from_config(
        pipe.scheduler.config,
        timestep_type="continuous",
        prediction_type="v_prediction",
        sigma_min=0.002,
        sigma_max=700,
    )
    with pytest.raises(ModelError, match="continuous"):
        Target.from_pipeline(pipe)


@pytest.mark.parametrize("value", [None, 0, -8, "8", [8], [8, 8, 8], True, 8.5])
def test_a_size_that_is_none(tmp_path, value):
    tiny_ddpm().save_pretrained(tmp_path / "m")
    edit(tmp_path / "m" / "unet" / "config.json", sample_size=value)
    refused(tmp_path / "m")


@pytest.mark.parametrize(
    ("part", "key"),
    [("unet", "in_channels"), ("vae", "scaling_factor"), ("vae", "latent_channels"), ("unet", "out_channels")],
)
def test_nulls_in_configs(folder, part, key):
    edit(folder / part / "config.json", **{key: None})
    refused(folder)


@pytest.mark.parametrize("device", ["gpu", "cuda", "cuda:99", "meta3", ""])
def test_a_device_that_is_not_there(saved, device):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    if device == "":
        assert Target.from_pretrained(saved, device=None).denoiser is not None
        return
    with pytest.raises(UsageError, match="device"):
        Target.from_pretrained(saved, device=device)


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """A checkpoint in the names of Stable Diffusion's first code, beside the configs of its kind."""
    folder = tmp_path_factory.mktemp("single") / "m"
    tiny_sd().save_pretrained(folder)
    for file in folder.rglob("*.safetensors"):
        file.unlink()
    save_file(checkpoint(tiny_sd()), folder / "x.safetensors")
    return folder


class TestSingleFiles:
    def test_every_weight_is_the_models(self, single):
        target, truth = Target.from_pretrained(single / "x.safetensors"), tiny_sd()
        for part in WEIGHTS:
            ours, theirs = (dict(p.components[part].named_parameters()) for p in (target.pipeline, truth))
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        assert target.check("a fox").passed

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision(self, single, tmp_path, dtype):
        folder = shutil.copytree(single, tmp_path / "m")
        rewrite(folder / "x.safetensors", lambda w: {k: v.to(dtype) for k, v in w.items()})
        assert Target.from_pretrained(folder / "x.safetensors").check("a fox").passed
        assert Target.from_pretrained(folder / "x.safetensors", dtype=dtype).denoiser.dtype == dtype

    @pytest.mark.parametrize(
        ("change", "word"),
        [
            (lambda w: {k: v for k, v in w.items() if "output_blocks.1.1" not in k}, "no weights for"),
            (lambda w: {k: v for k, v in w.items() if not k.endswith("decoder.conv_out.weight")}, "no weights for"),
            (lambda w: {k: v for k, v in w.items() if "layers.1" not in k}, "no weights for"),
            (lambda w: {k: v for k, v in w.items() if "cond_stage" not in k}, ""),
            (lambda w: w | {"model.diffusion_model.input_blocks.9.0.op.weight": torch.ones(3, 3)}, "leave out"),
            (lambda w: w | {"first_stage_model.decoder.up.7.block.0.conv1.weight": torch.ones(7)}, "leave out"),
        ],
    )
    def test_weights_lost_or_too_many(self, single, tmp_path, change, word):
        folder = shutil.copytree(single, tmp_path / "m")
        rewrite(folder / "x.safetensors", change)
        refused(folder / "x.safetensors", word)

    def test_configs_of_another_model(self, single, tmp_path):
        folder = shutil.copytree(single, tmp_path / "m")
        edit(folder / "unet" / "config.json", cross_attention_dim=24)
        refused(folder / "x.safetensors", "x.safetensors")

    def test_a_pickle_needs_leave(self, single, tmp_path):
        folder = shutil.copytree(single, tmp_path / "m")
        torch.save({"state_dict": load_file(folder / "x.safetensors")}, folder / "x.ckpt")
        refused(folder / "x.ckpt", "pickle")
        assert Target.from_pretrained(folder / "x.ckpt", allow_pickle=True).check("a fox").passed

    def test_a_lora_is_no_model(self, tmp_path):
        save_file({"unet.down.lora_A.weight": torch.ones(2, 2)}, tmp_path / "a.safetensors")
        refused(tmp_path / "a.safetensors", "--lora")

    def test_a_checkpoint_without_configs(self, tmp_path):
        save_file({"model.diffusion_model.input_blocks.0.0.weight": torch.ones(4, 4, 3, 3)}, tmp_path / "a.safetensors")
        refused(tmp_path / "a.safetensors", "configs", "Convert it")

    def test_pickles_and_others(self, tmp_path):
        for name in ("a.ckpt", "a.gguf", "a.safetensors"):
            (tmp_path / name).write_bytes(b"nothing")
        refused(tmp_path / "a.ckpt", "pickle")
        refused(tmp_path / "a.gguf", "is a file")
        refused(tmp_path / "a.safetensors", "no readable safetensors")
        refused(tmp_path / "a.ckpt", "cannot be read", allow_pickle=True)
