"""Which part of a checkpoint it is: components put back, LoRAs left out, an autoencoder that knows its training images."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from diffmem.data.images import load_images
from diffmem.errors import UsageError
from diffmem.experiments._run import open_run
from diffmem.experiments.monitor.checkpoints import Checkpoint, find_checkpoints
from diffmem.experiments.monitor.look import Watched
from diffmem.experiments.monitor.opening import Opening
from diffmem.experiments.monitor.parts import autoencoder_row, differing, parts_of
from diffmem.experiments.monitor.plan import MonitorPlan
from diffmem.experiments.monitor.run import monitor
from diffmem.models.generation import Sampling
from diffmem.models.model_image import to_pixels
from diffmem.models.target import Target
from tests.tiny import picture, random_lora, tiny_sd

SMALL = MonitorPlan(images=4, prompts=4, images_per_prompt=1, draws=1, times=(0.1, 0.4), sampling=Sampling(steps=2))


def mixed():
    """The network of one pipeline and the text encoder of another, all else of the base."""
    made = tiny_sd()
    made.register_modules(unet=tiny_sd(seed=3).unet, text_encoder=tiny_sd(seed=4).text_encoder)
    return made


def images_of(pipeline):
    made = Target.from_pipeline(pipeline).generate(["aaa picture"], [0], 0, Sampling(steps=2))
    return np.asarray(made[0], int)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    tiny_sd().save_pretrained(folder / "base")
    mixed().save_pretrained(folder / "saved" / "checkpoint-5")
    for name, count, first in (("train", 6, 0), ("heldout", 8, 50)):
        (folder / name).mkdir()
        for i in range(count):
            picture(first + i).save(folder / name / f"{i}.png")
        rows = [json.dumps({"file_name": f"{i}.png", "text": f"{chr(97 + i) * 3} picture"}) for i in range(count)]
        (folder / name / "metadata.jsonl").write_text("\n".join(rows))
    return folder


def test_components_that_differ_are_put_back_one_at_a_time(saved):
    assert differing(mixed(), tiny_sd()) == ["text_encoder", "unet"]
    opening = Opening(str(saved / "base"), device="cpu")
    found = {part.name: part.open for part in parts_of(opening, find_checkpoints(saved / "saved").checkpoints[0])}
    assert sorted(found) == ["text_encoder", "unet"]
    without_unet = tiny_sd()
    without_unet.register_modules(text_encoder=tiny_sd(seed=4).text_encoder)
    without_text = tiny_sd()
    without_text.register_modules(unet=tiny_sd(seed=3).unet)
    for name, truth in (("unet", without_unet), ("text_encoder", without_text)):
        assert np.abs(images_of(found[name]().pipeline) - images_of(truth)).max() <= 1
    assert np.abs(images_of(without_unet) - images_of(mixed())).max() > 1


def test_the_run_tells_of_each_part_and_keeps_it(saved, tmp_path):
    arguments = {"out": tmp_path, "heldout": saved / "heldout", "opening": Opening(str(saved / "base"), device="cpu")}
    run = monitor(saved / "saved", saved / "train", SMALL, parts=True, **arguments)
    rows = {row["part"]: row for row in run.summary.parts}
    assert list(rows) == ["text_encoder", "unet", "autoencoder alone"]
    assert (
        rows["unet"]["pairs"] > 0
        and rows["unet"]["copied_change"] == rows["unet"]["copied_after"] - rows["unet"]["copied_before"]
    )
    assert rows["autoencoder alone"]["gap_low"] < 0.9
    assert "Which part did it" in run.report().read_text()
    again = monitor(saved / "saved", saved / "train", SMALL, **arguments)
    assert again.summary.parts == run.summary.parts == open_run(tmp_path).summary.parts


def test_each_lora_of_a_stack_is_left_out_in_turn(saved, tmp_path):
    file, _ = random_lora(tiny_sd(), tmp_path / "lora")
    (tmp_path / "saved").mkdir()
    shutil.copy(file, tmp_path / "saved" / "cat-000010.safetensors")
    style = tmp_path / "style.safetensors"
    shutil.copy(file, style)
    opening = Opening(str(saved / "base"), loras=(f"{style}:0.5",), device="cpu")
    checkpoint = find_checkpoints(tmp_path / "saved").checkpoints[0]
    found = {part.name: part.open for part in parts_of(opening, checkpoint)}
    assert "the LoRA cat-000010" in found and any("style" in name for name in found) and "unet" in found
    alone = Target.from_pretrained(saved / "base", device="cpu", lora=f"{style}:0.5").pipeline
    assert np.abs(images_of(found["the LoRA cat-000010"]().pipeline) - images_of(alone)).max() <= 1
    assert np.abs(images_of(found["unet"]().pipeline) - images_of(tiny_sd())).max() <= 1


def test_the_base_may_be_a_bundled_model_by_its_name():
    base = Checkpoint("testbed:digits", 0, "base", "testbed:digits")
    opened = Opening("testbed:digits", device="cpu").open(base)
    assert opened.need_denoiser().conditional and opened.name == "testbed:digits"


def test_without_a_base_there_is_no_part_to_put_back(saved, tmp_path):
    with pytest.raises(UsageError, match="putting parts of its base back"):
        monitor(saved / "saved", saved / "train", SMALL, out=tmp_path, parts=True)


def test_an_autoencoder_that_knows_its_training_images_is_told_from_one_that_does_not(tmp_path):
    random = np.random.default_rng(0)
    sets = {}
    for name in ("train", "heldout"):
        pictures = {f"{name}-{i}": Image.fromarray(random.integers(0, 255, (8, 8), dtype=np.uint8)) for i in range(20)}
        sets[name] = load_images(pictures)
    known = torch.stack([to_pixels(item.image) for item in sets["train"] if item.image is not None])

    def target(remembers):
        def decode(x):
            near = torch.cdist(x.flatten(1), torch.nn.functional.avg_pool2d(known, 2).flatten(1))
            plain = torch.nn.functional.interpolate(x, scale_factor=2.0)
            hit = (near.min(1).values < 1e-3)[:, None, None, None] & remembers
            return torch.where(hit, known[near.argmin(1)] + 0.05, plain)

        return Target.from_callable(
            lambda x, t, cond: x, (1, 4, 4), encode_images=lambda x: torch.nn.functional.avg_pool2d(x, 2), decode=decode
        )

    watched = Watched(sets["train"], sets["heldout"], None, SMALL)
    knowing, plain = (autoencoder_row(target(remembers), watched) for remembers in (True, False))
    assert knowing["gap_low"] > 0.9 and knowing["status"] == "ok"
    assert plain["gap_low"] < 0 < plain["gap_high"]
    without = autoencoder_row(target(True), Watched(sets["train"], None, None, SMALL))
    assert without["status"] == "not measured" and "held-out" in without["reason"]
