"""The images of a run as a set and as files: every one that counts, under its prompt, with its own pixels."""

from __future__ import annotations

import json

import numpy as np
from PIL import Image
from tests.faults.planted import answering, noise_picture

import diffmem as dm
from diffmem.runs.asked import record_asked
from diffmem.runs.images import images_of, write_png

PROMPTS = [{"id": "a/b: 1", "prompt": "a fox"}, {"id": "..", "prompt": "a hen"}]
NUMBER = {"a fox": 0, "a hen": 1000}


def made(folder):
    target = answering(lambda prompt, seed: noise_picture(NUMBER[prompt] + seed % 1000))
    dm.generate(target, PROMPTS, dm.experiments.Generation(images_per_prompt=3), out=folder)
    return folder


def test_images_captions_and_ids(tmp_path):
    run = made(tmp_path / "run")
    rows = dm.open_run(run).table("images").to_pylist()
    found = images_of(run)
    assert sorted(found.ids) == sorted(f"{p['id']}/{d}" for p in PROMPTS for d in range(3))
    for row in rows:
        item = found.by_id(f"{row['prompt_id']}/{row['draw']}")
        text = next(p["prompt"] for p in PROMPTS if p["id"] == row["prompt_id"])
        assert item.caption == text
        np.testing.assert_array_equal(
            np.asarray(item.image), np.asarray(noise_picture(NUMBER[text] + row["seed"] % 1000))
        )
    record_asked(run, 1)
    assert sorted(images_of(run).ids) == sorted(f"{p['id']}/0" for p in PROMPTS)


def test_files_stay_in_their_folder_whatever_the_ids(tmp_path):
    run = made(tmp_path / "run")
    assert write_png(run, tmp_path / "png") == 6
    assert {path.parent for path in tmp_path.rglob("*.png")} == {tmp_path / "png"}
    lines = [
        json.loads(line) for line in (tmp_path / "png" / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert sorted((row["text"], row["draw"]) for row in lines) == sorted(
        (p["prompt"], d) for p in PROMPTS for d in range(3)
    )
    for row in lines:
        picture = np.asarray(Image.open(tmp_path / "png" / row["file_name"]))
        np.testing.assert_array_equal(picture, np.asarray(noise_picture(NUMBER[row["text"]] + row["seed"] % 1000)))
