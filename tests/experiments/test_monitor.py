"""A training watched: planted networks that copy from a known step on, real pipelines with LoRAs, resuming, loops."""

from __future__ import annotations

import json
import random
import shutil
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

import diffmem as dm
from diffmem.cli.app import main
from diffmem.errors import IncompatibleRun, UsageError
from diffmem.experiments._run import open_run
from diffmem.experiments.monitor.loop import Monitor
from diffmem.experiments.monitor.opening import Opening
from diffmem.experiments.monitor.plan import MonitorPlan
from diffmem.experiments.monitor.run import monitor
from diffmem.experiments.monitor.watch import Watching
from diffmem.models.generation import Sampling
from diffmem.models.target import Target
from tests.tiny import picture, random_lora, tiny_sd

PLAN = MonitorPlan(images=24, prompts=12, images_per_prompt=2, draws=1, sampling=Sampling(steps=10))
NETWORK = """
import json
from pathlib import Path

import numpy as np
import torch

from diffmem import Target

HERE = Path(__file__).parent


def build(path):
    told = json.loads(Path(path).read_text())
    known = torch.from_numpy(np.load(HERE / f"{told['knows']}.npy")).flatten(1)
    width = told.get("width", 0.0)

    def fn(x, t, cond):  # the posterior mean of x0 where the training set is what the network knows
        abar = torch.cos((t / 1000 + 0.008) / 1.008 * torch.pi / 2) ** 2
        a, s = abar.sqrt()[:, None], (1 - abar).clamp(min=1e-4).sqrt()[:, None]
        scale = s.square() + (a * width).square()
        weight = torch.softmax(-torch.cdist(x.flatten(1), known).square() * 0 - (
            (x.flatten(1)[:, None] - a[:, None] * known[None]).square().sum(-1) / (2 * scale)), 1)
        return (weight @ known).view_as(x)

    return Target.from_callable(fn, (1, 8, 8), prediction="x0", schedule="cosine", steps=10)
"""


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Checkpoints that know other pictures of the kind until step 300, and the training pictures from there on."""
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("planted")
    values = load_digits().images[np.random.default_rng(0).permutation(1797)] * (255 / 16)
    sets = {"train": values[:40], "heldout": values[40:340], "other": values[340:1340]}
    for name, images in sets.items():
        np.save(folder / f"{name}.npy", (images / 127.5 - 1).astype(np.float32)[:, None])
        (folder / name).mkdir()
        for i, image in enumerate(images if name != "other" else []):
            Image.fromarray(image.round().astype(np.uint8)).save(folder / name / f"{i:03d}.png")
    (folder / "net.py").write_text(NETWORK)
    for step, knows in ((100, "other"), (200, "other"), (300, "train"), (400, "train")):
        (folder / f"net-step{step}.json").write_text(json.dumps({"knows": knows}))
    return folder


def sources(folder, *steps):
    return [f"{folder}/net.py:build({folder}/net-step{step}.json)" for step in steps]


@pytest.fixture(scope="module")
def watched(planted, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    return monitor(sources(planted, 100, 200, 300, 400), planted / "train", PLAN, out=out, heldout=planted / "heldout")


def test_the_first_copying_checkpoint_is_found_and_the_one_before_it_named(watched):
    summary = watched.summary
    assert [row["finding"] for row in summary.rows] == ["none detected", "none detected", "excess", "excess"]
    assert summary.last_clean["step"] == 200 and summary.first_excess["step"] == summary.first_warning["step"] == 300
    assert "net-step200.json is the last checkpoint without detected excess" in summary.headline
    assert [row["level"] for row in summary.rows] == pytest.approx([0.01 / 2, 0.01 / 6, 0.01 / 12, 0.01 / 20])
    for row in summary.rows[:2]:
        assert abs(row["gap"]) < 0.5 and row["standing_p"] > row["level"] and 0 < row["detectable"] < 1
    for row in summary.rows[2:]:
        assert row["gap"] > 0.9 and row["standing"] == 24 and row["calls"] >= row["calls_needed"]
        assert row["copied"] > 0.8 and row["copied_low"] <= row["copied"] <= row["copied_high"]
        assert row["membership"][0]["auroc"] > 0.9
    assert summary.onset["after"] == 200 and summary.onset["by"] == 300
    assert summary.unit == "step" and summary.training == 40 and summary.heldout == 300


def test_a_summary_lost_to_a_kill_is_the_same_when_the_command_comes_again(watched, planted, tmp_path):
    """All checkpoints are measured, so nothing of the second run opens the index of training images by itself."""
    folder = shutil.copytree(watched.path, tmp_path / "run")
    (folder / "summary.json").unlink()
    steps = sources(planted, 100, 200, 300, 400)
    again = monitor(steps, planted / "train", PLAN, out=folder, heldout=planted / "heldout").summary
    assert len(watched.summary.images) > 0 and again.images == watched.summary.images


def test_the_folder_alone_gives_summary_page_and_pictures(watched, tmp_path):
    again = open_run(watched.path)
    assert again.summary == watched.summary and again.verb == "monitor"
    page = again.report().read_text()
    for words in (
        "last checkpoint without detected excess",
        "step 200",
        "The most copied training images",
        "called a copy",
    ):
        assert words.lower() in page.lower()
    copied = next(image for image in again.summary.images if image.generated[-1][2])
    assert copied.training is not None and [step for step, *_ in copied.generated] == [100, 200, 300, 400]
    hidden = again.report(out=tmp_path / "shared.html").read_text()  # leaves the folder: blurred
    assert 'class="blurred"' in hidden and 'class="pixels"' not in hidden
    assert 'src="data:' not in again.report("hash", out=tmp_path / "hashed.html").read_text()


def test_the_same_call_measures_nothing_again_and_takes_new_checkpoints(planted, watched, tmp_path, monkeypatch):
    out = tmp_path / "run"
    monitor(sources(planted, 100), planted / "train", PLAN, out=out, heldout=planted / "heldout")
    both = monitor(sources(planted, 100, 300), planted / "train", PLAN, out=out, heldout=planted / "heldout")
    assert [row["step"] for row in both.summary.rows] == [100, 300] and both.summary.first_excess["step"] == 300
    assert [row["look"] for row in both.summary.rows] == [1, 2]
    monkeypatch.setattr(Target, "generate", lambda *_: pytest.fail("an image was made again"))
    monkeypatch.setattr(Opening, "open", lambda *_: pytest.fail("a checkpoint was opened again"))
    same = monitor(sources(planted, 100, 300), planted / "train", PLAN, out=out, heldout=planted / "heldout")
    assert same.summary.rows == both.summary.rows
    with pytest.raises(IncompatibleRun):
        monitor(sources(planted, 100), planted / "heldout", PLAN, out=out, heldout=planted / "train")


def test_one_bad_checkpoint_is_an_error_row_and_the_others_go_on(planted, tmp_path, capsys):
    folder = tmp_path / "net"
    shutil.copytree(planted, folder)
    (folder / "net-step200.json").write_text("{")
    run = monitor(
        sources(folder, 100, 200, 300), folder / "train", PLAN, out=tmp_path / "run", heldout=folder / "heldout"
    )
    assert [row["finding"] for row in run.summary.rows] == ["none detected", "error", "excess"]
    assert "JSONDecodeError" in run.summary.rows[1]["reason"]
    assert run.summary.last_clean["step"] == 100
    assert "JSONDecodeError" in run.report().read_text()
    (folder / "net-step200.json").write_text(json.dumps({"knows": "other"}))
    again = monitor(
        sources(folder, 100, 200, 300), folder / "train", PLAN, out=tmp_path / "run", heldout=folder / "heldout"
    )
    assert [row["finding"] for row in again.summary.rows] == ["none detected", "none detected", "excess"]


def test_without_held_out_images_nothing_is_called_clean(planted, tmp_path):
    run = monitor(sources(planted, 100), planted / "train", PLAN, out=tmp_path)
    row = run.summary.rows[0]
    assert row["finding"] == "unknown" and "not calibrated" in row["reason"] and row["standing"] is None
    assert run.summary.last_clean is None and "unknown" in run.summary.headline
    assert "not calibrated" in run.summary.nothing_judged()


def test_watching_waits_for_the_next_checkpoint(planted, tmp_path):
    folder = tmp_path / "net"
    shutil.copytree(planted, folder)
    late = (folder / "net-step300.json").read_text()
    for step in (200, 300, 400):
        (folder / f"net-step{step}.json").unlink()

    def write_later():
        time.sleep(1.0)
        (folder / "net-step300.json").write_text(late)

    writer = threading.Thread(target=write_later)
    writer.start()
    run = monitor(
        f"{folder}/net.py:build({folder}/net-step*.json)", folder / "train", PLAN, out=tmp_path / "run",
        heldout=folder / "heldout", watching=Watching(idle=8.0, settled=0.0, pause=0.1),
    )  # fmt: skip
    writer.join()
    assert [row["step"] for row in run.summary.rows] == [100, 300] and run.summary.first_excess["step"] == 300


def test_from_the_command_line(planted, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(planted)
    arguments = ["monitor", "net.py:build(net-step*.json)", "--train", "train", "--heldout", "heldout"]
    assert main([*arguments, "--dry-run"]) == 0
    assert "net-step400.json" in capsys.readouterr().out
    less = ["--measure-images", "24", "--prompt-count", "12", "--draws", "1", "--steps", "10", "--quiet"]
    assert main([*arguments, "--out", str(tmp_path / "run"), *less, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["last_clean"]["step"] == 200 and (tmp_path / "run" / "monitor.html").exists()
    assert main(["show", str(tmp_path / "run"), "--fail-if", "first_excess.step<=300"]) == 1
    assert main([*arguments, "--out", str(tmp_path / "run"), "--offload"]) == 2
    assert "--offload is not for checkpoints" in capsys.readouterr().err


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny base with pictures and captions, a LoRA as sd-scripts names it, and folders as diffusers' scripts save them."""
    folder = tmp_path_factory.mktemp("trained")
    tiny_sd().save_pretrained(folder / "base")
    for name, count, first in (("train", 12, 0), ("heldout", 120, 100)):
        (folder / name).mkdir()
        rows = []
        for i in range(count):
            picture(first + i).save(folder / name / f"{i}.png")
            rows.append(json.dumps({"file_name": f"{i}.png", "text": f"picture {first + i} {chr(97 + i % 26) * 3}"}))
        (folder / name / "metadata.jsonl").write_text("\n".join(rows))
    file, _ = random_lora(tiny_sd(), folder / "lora")
    (folder / "saved").mkdir()
    shutil.copy(file, folder / "saved" / "cat-000010.safetensors")
    (folder / "saved" / "cat-000020.safetensors").write_bytes(file.read_bytes()[:-40])
    tiny_sd(seed=3).unet.save_pretrained(folder / "full" / "checkpoint-500" / "unet")
    tiny_sd(seed=4).save_pretrained(folder / "full" / "checkpoint-1000")
    return folder


SMALL = MonitorPlan(images=4, prompts=4, images_per_prompt=1, draws=1, times=(0.1, 0.4), sampling=Sampling(steps=2))


def test_loras_lie_over_the_base_which_is_measured_first(trained, tmp_path):
    run = monitor(
        trained / "saved", trained / "train", SMALL, out=tmp_path, heldout=trained / "heldout",
        opening=Opening(str(trained / "base"), device="cpu"),
    )  # fmt: skip
    base, lora, broken = run.summary.rows
    assert (base["is_base"], base["step"], base["finding"]) == (True, 0, "none detected")
    assert (lora["step"], lora["kind"]) == (10, "lora") and lora["norm"] is not None
    assert broken["finding"] == "error" and "cannot be loaded" in broken["reason"]
    images = run.table("images").to_pylist()
    assert {row["arm"] for row in images} == {f"0: {trained / 'base'}", "10: cat-000010.safetensors"}
    assert run.summary.last_clean["name"] == "cat-000010.safetensors"  # never the base


def test_components_and_pipelines_of_a_diffusers_training_are_the_models_that_they_hold(trained, tmp_path):
    run = monitor(
        trained / "full", trained / "train", SMALL, out=tmp_path, heldout=trained / "heldout",
        opening=Opening(str(trained / "base"), device="cpu"),
    )  # fmt: skip
    assert [(row["step"], row["kind"]) for row in run.summary.rows] == [
        (0, "base"),
        (500, "components"),
        (1000, "pipeline"),
    ]
    assert any("unet of the checkpoint" in note for note in run.summary.notes)
    mixed = tiny_sd()
    mixed.unet = tiny_sd(seed=3).unet
    own = Target.from_pipeline(mixed).generate(["picture 0 aaa"], [0], 0, Sampling(steps=2))[0]
    opened = Opening(str(trained / "base"), device="cpu").open(
        next(one for one in _found(trained / "full") if one.kind == "components")
    )
    made = opened.generate(["picture 0 aaa"], [0], 0, Sampling(steps=2))[0]
    assert np.abs(np.asarray(own, int) - np.asarray(made, int)).max() <= 1


def _found(folder):
    from diffmem.experiments.monitor.checkpoints import find_checkpoints

    return find_checkpoints(folder).checkpoints


def test_a_monitor_in_a_loop_leaves_the_training_as_it_was(trained, tmp_path):
    pipeline = tiny_sd()
    pipeline.unet.train()
    watch = dm.training.Monitor(trained / "train", tmp_path, heldout=trained / "heldout", plan=SMALL, share=None)
    torch.manual_seed(5)
    random.seed(5)
    state, weights = torch.get_rng_state(), {k: v.clone() for k, v in pipeline.unet.state_dict().items()}
    row = watch(100, pipeline)
    assert row["finding"] == "none detected" and row["step"] == 100
    assert torch.equal(torch.get_rng_state(), state)
    assert pipeline.unet.training and not pipeline.vae.training
    assert all(torch.equal(value, weights[key]) for key, value in pipeline.unet.state_dict().items())
    assert all(value.requires_grad for value in pipeline.unet.parameters())
    with torch.no_grad():
        pipeline.unet.conv_out.weight.mul_(1.5)
    watch(200, pipeline)
    assert [row["step"] for row in watch.run.summary.rows] == [100, 200]
    assert watch.report().exists()


def test_a_monitor_spends_no_more_than_its_share_and_names_what_it_left_out(planted, tmp_path):
    def build(name):
        space = {"__file__": str(planted / "net.py")}
        exec(NETWORK, space)
        return space["build"](planted / f"net-step{name}.json")

    watch = Monitor(planted / "train", tmp_path, heldout=planted / "heldout", plan=PLAN, build=build, share=1e-6)
    assert watch(100, "100") is not None  # the first is always made
    assert watch(200, "200") is None and watch(300, "300") is None and watch.skipped == [200, 300]
    watch.share = None
    watch(400, "400")
    assert any("2 looks of the monitor left out" in note for note in watch.run.summary.notes)
    with pytest.raises(UsageError, match="share is 0"):
        Monitor(planted / "train", tmp_path, share=0)


def test_a_model_that_a_monitor_cannot_use_is_an_error_row(planted, tmp_path):
    watch = Monitor(planted / "train", tmp_path, plan=PLAN)
    row = watch(1, torch.nn.Linear(2, 2))
    assert row["finding"] == "error" and "Monitor(build=FUNCTION)" in row["reason"]
