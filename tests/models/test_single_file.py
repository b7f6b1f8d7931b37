"""Opening single-file checkpoints with the configs beside them."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models.ldm_names import checkpoint
from tests.models.saved_folders import WEIGHTS, edit, refused, rewrite
from tests.tiny import tiny_sd

from diffmem.models.target import Target


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
