"""A monitor in diffmem's own training: when it is called, what it sees, and that it changes nothing."""

from __future__ import annotations

import json

import torch
from tests.tiny import picture, tiny_sd
from tests.training.test_training import assert_equal, pictures, plan_of, weights

from diffmem.cli.app import main
from diffmem.experiments._run import open_run
from diffmem.experiments.monitor.checkpoints import find_checkpoints
from diffmem.models.target import Target
from diffmem.training.identity import Identity
from diffmem.training.loop import train


def test_a_watch_sees_the_model_as_it_would_be_saved_and_changes_nothing(tmp_path):
    plan = plan_of(steps=5, checkpoint_every=2, optimizer={"ema": 0.5})
    alone, watched = Target.from_pipeline(tiny_sd()), Target.from_pipeline(tiny_sd())
    train(plan, tmp_path / "alone", data=pictures(), target=alone, device="cpu")
    seen, told = {}, {}

    def make(data, captions):
        told.update(captions)

        def watch(step, pipeline):
            seen[step] = {key: value.clone() for key, value in pipeline.unet.state_dict().items()}
            torch.rand(3)  # a monitor may draw; the training names its own noises

        return watch

    train(plan, tmp_path / "watched", data=pictures(), target=watched, device="cpu", watch=make)
    assert list(seen) == [0, 2, 4, 5]
    assert told == {f"p{i}": f"a picture {i}" for i in range(6)}
    assert_equal(weights(alone), weights(watched))
    assert_equal(seen[0], weights(Target.from_pipeline(tiny_sd())))
    assert_equal(seen[5], weights(watched))  # the averaged weights, which are those that are saved


def test_kept_checkpoints_are_the_models_that_a_watch_sees_and_change_nothing(tmp_path):
    plan = plan_of(steps=5, checkpoint_every=2, optimizer={"ema": 0.5})
    kept = plan.model_copy(update={"keep_checkpoints": True})
    seen, one, two = {}, Target.from_pipeline(tiny_sd()), Target.from_pipeline(tiny_sd())

    def make(data, captions):
        return lambda step, pipeline: seen.update({step: {k: v.clone() for k, v in pipeline.unet.state_dict().items()}})

    train(plan, tmp_path / "alone", data=pictures(), target=one, device="cpu")
    train(kept, tmp_path / "kept", data=pictures(), target=two, device="cpu", watch=make)
    assert_equal(weights(one), weights(two))
    found = find_checkpoints([str(tmp_path / "kept" / "checkpoints")], None).checkpoints
    assert [checkpoint.step for checkpoint in found] == [2, 4, 5]
    for step in (2, 4, 5):
        saved = Target.from_pretrained(tmp_path / "kept" / "checkpoints" / f"checkpoint-{step}")
        assert_equal(weights(saved), seen[step])
    # A run that began without them goes on with them: they change no result, and older plans keep their hashes.
    assert "keep_checkpoints" not in plan.model_dump(mode="json")
    Identity(tmp_path / "alone", kept, pictures().fingerprint, Target.from_pipeline(tiny_sd()).fingerprint).check()


def test_train_writes_the_monitor_s_run_beside_the_model(tmp_path, capsys):
    tiny_sd().save_pretrained(tmp_path / "base")
    for name, count, first in (("train", 12, 0), ("heldout", 12, 100)):
        (tmp_path / name).mkdir()
        for i in range(count):
            picture(first + i).save(tmp_path / name / f"{i}.png")
    rows = [json.dumps({"file_name": f"{i}.png", "text": f"{chr(97 + i) * 4} picture"}) for i in range(12)]
    (tmp_path / "train" / "metadata.jsonl").write_text("\n".join(rows))
    plan = tmp_path / "plan.toml"
    plan.write_text(
        '[model]\nbase = "base"\nmethod = "lora"\n[data]\nimages = "train"\ncaptions = "fixed"\nlimit = 8\n'
        "[optimizer]\nsteps = 1\nbatch = 2\n"
    )
    arguments = ["train", str(plan), "--out", str(tmp_path / "run"), "--device", "cpu", "--quiet"]
    assert main([*arguments, "--heldout", str(tmp_path / "heldout")]) == 2
    assert "--heldout belongs to --monitor" in capsys.readouterr().err
    assert main([*arguments, "--monitor", "--heldout", str(tmp_path / "heldout")]) == 0
    assert "1 look of the monitor left out" in capsys.readouterr().err
    run = open_run(tmp_path / "run" / "monitor")
    row = run.summary.rows[0]
    assert row["step"] == 0 and row["is_base"] and row["standing_of"] == 8  # only what is trained on
    asked = {row["text"] for row in run.table("prompts").to_pylist() if row["prompt_id"].startswith("fixed/")}
    assert asked == {"An image"}  # the caption that it is trained with
    assert (tmp_path / "run" / "monitor" / "monitor.html").exists() and (tmp_path / "run" / "lora").is_dir()
