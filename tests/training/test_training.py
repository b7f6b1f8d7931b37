"""Training runs: what is learned, what is left as it was, and that interruptions and batch sizes change nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from tests import tiny_families
from tests.tiny import tiny_ddpm, tiny_sd

import diffmem
from diffmem.errors import DataError, IncompatibleRun, IncompleteRun, UsageError
from diffmem.models.target import Target
from diffmem.training import loop, stop
from diffmem.training.checkpoint import load_state
from diffmem.training.data import TrainingImage, TrainingSet, load_training_set
from diffmem.training.loop import Trainer, train
from diffmem.training.plan import TrainPlan, check_plan


def pictures(count=6, size=16, captions=True):
    random = np.random.default_rng(0)
    images = []
    for i in range(count):
        array = random.integers(0, 255, (size, size, 3), dtype=np.uint8)
        texts = (f"a picture {i}", f"another name {i}") if captions else ()
        images.append(TrainingImage(f"p{i}", Image.fromarray(array), texts, str(i % 2)))
    return TrainingSet(tuple(images), f"made-{count}-{size}-{captions}", {})


def plan_of(steps=4, batch=4, model=None, data=None, **sections):
    optimizer = {"steps": steps, "batch": batch, "lr": 1e-3, **sections.pop("optimizer", {})}
    values = {
        "model": {"base": "given", **(model or {})}, "data": {"images": "given", **(data or {})},
        "optimizer": optimizer, **sections,
    }  # fmt: skip
    return check_plan(values, TrainPlan, "a test")


def weights(target):
    return {k: v.clone() for k, v in target.pipeline.unet.state_dict().items()}


def assert_equal(a, b, tolerance=0.0):
    assert a.keys() == b.keys()
    distance = torch.cat([(a[name] - b[name]).abs().flatten() for name in a])
    if not tolerance:
        assert distance.max() == 0
    # Adam divides by the gradient's own size: where that is rounding, one weight in a thousand may go another way.
    assert distance.quantile(0.999) <= tolerance
    assert distance.max() <= 50 * tolerance


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_training_goes_on_to_the_same_weights(tmp_path, monkeypatch, number):
    plan = plan_of(steps=6, optimizer={"ema": 0.9}, changes={"embedding_noise": 0.1, "token_addition": 0.5})
    whole = Target.from_pipeline(tiny_sd())
    train(plan, tmp_path / "whole", data=pictures(), target=whole, device="cpu")

    broken = Trainer(plan, tmp_path / "broken", pictures(), Target.from_pipeline(tiny_sd()), "cpu", True)
    real = broken.optimizer.step

    def signalled(*args):
        if broken.step == 2:
            os.kill(os.getpid(), number)  # in the middle of a step: the step is whole before anything is saved
        return real(*args)

    monkeypatch.setattr(broken.optimizer, "step", signalled)
    with pytest.raises(IncompleteRun, match="after step 3 of 6"):
        broken.run()
    assert load_state(tmp_path / "broken").step == 3
    resumed = Target.from_pipeline(tiny_sd())
    result = train(plan, tmp_path / "broken", data=pictures(), target=resumed, device="cpu")
    assert_equal(weights(whole), weights(resumed))
    assert len(result.log["loss"]) == 6
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_signal_ends_at_once_and_saves_no_half_step(tmp_path, monkeypatch):
    monkeypatch.setattr(stop, "SAME_WISH", -1.0)  # any further signal is a second wish
    plan = plan_of(steps=6, checkpoint_every=2)
    trainer = Trainer(plan, tmp_path, pictures(), Target.from_pipeline(tiny_sd()), "cpu", True)
    real = trainer.optimizer.step

    def signalled_twice(*args):
        done = real(*args)
        if trainer.step == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return done

    monkeypatch.setattr(trainer.optimizer, "step", signalled_twice)
    with pytest.raises(IncompleteRun, match="in step 4 of 6; the same command goes on from the last checkpoint"):
        trainer.run()
    assert load_state(tmp_path).step == 2


def test_a_device_that_is_not_there_is_refused(tmp_path):
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UsageError, match="--device cuda, but torch sees no GPU"):
        train(plan_of(), tmp_path, data=pictures(), target=Target.from_pipeline(tiny_sd()), device="cuda")


def test_the_micro_batch_changes_nothing(tmp_path):
    targets = []
    for size in (1, 4):
        targets.append(Target.from_pipeline(tiny_sd()))
        plan = plan_of(optimizer={"micro_batch": size}, changes={"embedding_mixing": 1.0})
        train(plan, tmp_path / str(size), data=pictures(), target=targets[-1], device="cpu")
    assert_equal(weights(targets[0]), weights(targets[1]), 2e-5)
    assert not torch.equal(
        weights(targets[0])["conv_in.weight"], weights(Target.from_pipeline(tiny_sd()))["conv_in.weight"]
    )


def test_memory_that_runs_out_halves_the_micro_batch(tmp_path, monkeypatch):
    plan = plan_of(steps=2)
    roomy = Target.from_pipeline(tiny_sd())
    train(plan, tmp_path / "roomy", data=pictures(), target=roomy, device="cpu")
    tight = Target.from_pipeline(tiny_sd())
    real = tight.denoiser.forward

    def forward(x, t, cond):
        if len(x) > 2:
            raise RuntimeError("CUDA out of memory")
        return real(x, t, cond)

    monkeypatch.setattr(tight.denoiser, "forward", forward)
    result = train(plan, tmp_path / "tight", data=pictures(), target=tight, device="cpu")
    assert any("halved to 2" in note for note in result.notes)
    assert_equal(weights(roomy), weights(tight), 2e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_loss_falls_on_few_pictures(tmp_path, prediction):
    plan = plan_of(steps=120, batch=8, data={"captions": "none"}, model={"method": "scratch"}, optimizer={"lr": 3e-3})
    target = Target.from_pipeline(tiny_ddpm(prediction))
    result = train(plan, tmp_path / "run", data=pictures(2, 8, False), target=target, device="cpu")
    losses = result.log["loss"]
    assert np.mean(losses[-20:]) < 0.8 * np.mean(losses[:20])
    again = Target.from_pretrained(result.saved)
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([500.0, 500.0])
    one = target.denoiser.predict(x, t, target.denoiser.null())
    torch.testing.assert_close(one, again.denoiser.predict(x, t, again.denoiser.null()))
    assert again.fingerprint == target.fingerprint
    card = (tmp_path / "run" / "README.md").read_text()
    assert "2 images" in card and "optimizer.lr" in card and "0.003" in card


@pytest.mark.parametrize("family", ["sdxl", "sd3", "flux", "pixart"])
def test_every_text_family_trains(tmp_path, family):
    target = Target.from_pipeline(getattr(tiny_families, family)())
    network = target.denoiser.network
    before = {k: v.clone() for k, v in network.state_dict().items()}
    train(plan_of(steps=2, batch=2), tmp_path / "run", data=pictures(), target=target, device="cpu")
    moved = [k for k, v in network.state_dict().items() if not torch.equal(v, before[k])]
    assert len(moved) > len(before) / 2
    assert all(torch.isfinite(v).all() for v in network.state_dict().values())


def test_a_lora_moves_the_adapter_only_and_loads_again(tmp_path):
    target = Target.from_pipeline(tiny_sd())
    base = Target.from_pipeline(tiny_sd())
    plan = plan_of(steps=5, model={"method": "lora", "lora_rank": 2}, optimizer={"lr": 0.05})
    result = train(plan, tmp_path / "run", data=pictures(), target=target, device="cpu")
    base.pipeline.save_pretrained(tmp_path / "base")
    loaded = Target.from_pretrained(tmp_path / "base", lora=result.saved)
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([500.0, 500.0])
    outputs = [m.denoiser.predict(x, t, m.denoiser.encode_prompts(["a picture 1"])) for m in (target, loaded, base)]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-5)
    assert (outputs[0] - outputs[2]).abs().max() > 1e-4


SAVE_TWICE = """
import sys, torch
from safetensors.torch import save_file
from pathlib import Path
from diffmem.training.model import order_metadata
file = Path(sys.argv[1])
save_file({"b": torch.arange(3.0), "a": torch.ones(2)}, file, {name: "x" for name in {"format", "alpha", "rank", "é"}})
order_metadata(file)
"""


def test_loras_of_equal_tensors_are_equal_in_bytes(tmp_path):
    """Other processes put sets and the metadata of safetensors in other orders."""
    made = []
    for seed in range(3):
        file = tmp_path / f"{seed}.safetensors"
        environment = {**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": str(Path(diffmem.__file__).parents[1])}
        subprocess.run([sys.executable, "-c", SAVE_TWICE, str(file)], check=True, env=environment, timeout=120)
        made.append(file.read_bytes())
    assert made[0] == made[1] == made[2]
    with safe_open(tmp_path / "0.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("b"), torch.arange(3.0))
        assert list(file.metadata()) and file.metadata()["é"] == "x"


def test_a_trained_text_encoder_moves(tmp_path):
    target = Target.from_pipeline(tiny_sd())
    before = {k: v.clone() for k, v in target.pipeline.text_encoder.state_dict().items()}
    train(plan_of(model={"text_encoder": "trained"}), tmp_path / "run", data=pictures(), target=target, device="cpu")
    after = target.pipeline.text_encoder.state_dict()
    assert any(not torch.equal(after[k], before[k]) for k in before)


def test_samples_that_the_prompt_steers_too_much_are_left_out(tmp_path):
    counts = []
    for limit in (1e-6, 1e6):
        plan = plan_of(changes={"drop_score_difference": limit}, data={"caption_drop": 0.25})
        result = train(
            plan, tmp_path / str(limit), data=pictures(), target=Target.from_pipeline(tiny_sd()), device="cpu"
        )
        counts.append(result.log["left_out"])
    assert counts[1] == 0
    assert 0 < counts[0] < 16  # samples without a caption stay


def test_another_plan_is_refused_and_a_foreign_checkpoint_too(tmp_path):
    train(plan_of(steps=1), tmp_path / "run", data=pictures(), target=Target.from_pipeline(tiny_sd()), device="cpu")
    with pytest.raises(IncompatibleRun, match=r"optimizer\.steps is 1 there, 2 here"):
        train(plan_of(steps=2), tmp_path / "run", data=pictures(), target=Target.from_pipeline(tiny_sd()), device="cpu")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "checkpoint.pt").write_bytes((tmp_path / "run" / "checkpoint.pt").read_bytes())
    with pytest.raises(DataError, match="another architecture"):
        train(
            plan_of(steps=1, data={"captions": "none"}), tmp_path / "other", data=pictures(6, 8),
            target=Target.from_pipeline(tiny_ddpm()), device="cpu",
        )  # fmt: skip


def test_a_disk_that_fills_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    import errno

    plan = plan_of(steps=4, checkpoint_every=1)
    trainer = Trainer(plan, tmp_path, pictures(), Target.from_pipeline(tiny_sd()), "cpu", True)
    real = loop.save_state

    def save(folder, state):
        if state.step == 2:
            import os

            monkeypatch.setattr(os, "write", full)
        real(folder, state)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(loop, "save_state", save)
    with pytest.raises(IncompleteRun, match="is full"):
        trainer.run()
    monkeypatch.undo()
    assert load_state(tmp_path).step == 1
    result = train(plan, tmp_path, data=pictures(), target=Target.from_pipeline(tiny_sd()), device="cpu")
    assert result.log["steps"] == 4


def test_missing_captions_and_wrong_plans_are_said(tmp_path):
    bare = TrainingSet((*pictures(3).images, TrainingImage("bare", Image.new("RGB", (16, 16)), (), None)), "x", {})
    with pytest.raises(DataError, match=r"1 of 4 images lack a caption \(bare\)"):
        train(plan_of(), tmp_path / "a", data=bare, target=Target.from_pipeline(tiny_sd()), device="cpu")
    with pytest.raises(UsageError, match=r"unknown key 'optimizer.stepps'. Did you mean 'steps'"):
        check_plan({"model": {"base": "x"}, "data": {"images": "y"}, "optimizer": {"stepps": 3}}, TrainPlan, "p")
    with pytest.raises(UsageError, match="takes no prompts"):
        train(plan_of(), tmp_path / "b", data=pictures(2, 8), target=Target.from_pipeline(tiny_ddpm()), device="cpu")
    with pytest.raises(UsageError, match="have only one"):
        single = TrainingSet(
            tuple(TrainingImage(i.id, i.image, i.captions[:1], None) for i in pictures().images), "y", {}
        )
        plan = plan_of(duplication={"regime": "dup_image", "share": 0.5})
        train(plan, tmp_path / "c", data=single, target=Target.from_pipeline(tiny_sd()), device="cpu")


def test_pictures_with_repeats_are_seen_so_often(tmp_path):
    few = pictures()
    images = (few.images[0], replace(few.images[1], repeats=5), *few.images[2:])
    data = replace(few, images=images)
    trainer = Trainer(plan_of(), tmp_path, data, Target.from_pipeline(tiny_sd()), "cpu", True)
    seen = Counter(trainer.samples._order[place] for place in range(5 * (5 + len(images) - 1)))
    assert seen[1] == 5 * seen[0] == 25 and set(seen.values()) == {5, 25}


def test_a_folder_with_captions_is_read_and_a_broken_picture_left_out(tmp_path):
    for i in range(3):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"{i}.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    rows = [{"file_name": "0.png", "captions": ["one", "two"], "label": "red"}, {"file_name": "1.png", "text": "three"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "2.txt").write_text("four")
    data = load_training_set(tmp_path)
    assert [image.captions for image in data.images] == [("one", "two"), ("three",), ("four",)]
    assert data.images[0].label == "red"
    assert list(data.unreadable) == ["broken.png"]
