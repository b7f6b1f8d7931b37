"""Shards of the verbs that make images: the parts and the command that finishes give the rows of one whole command."""

import numpy as np
import pytest

from diffmem.data.prompts import load_prompts
from diffmem.errors import UsageError
from diffmem.experiments.audit.run import audit
from diffmem.experiments.extract.run import extract_images
from diffmem.experiments.mitigate.run import mitigate
from diffmem.models.generation import Sampling
from diffmem.models.target import Target
from diffmem.runs.facts import read_fact
from diffmem.runs.store import RunStore
from diffmem.stages.generate import Generation
from tests.tiny import picture, tiny_sd

FAST = Sampling(steps=2)
PROMPTS = [f"prompt {i}" for i in range(9)]
KEPT = {
    "scores": ["key", "prompt_id", "score", "draw", "value", "status"],
    "images": ["key", "prompt_id", "draw", "png", "status"],
    "matches": ["key", "image_key", "train_id", "similarity", "normalised"],
}


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    for i in range(60):
        picture(i).save(folder / f"{i:03d}.png")
    return folder


@pytest.fixture(scope="module")
def target():
    return Target.from_pipeline(tiny_sd())


def rows(folder, stage):
    return RunStore(folder).read(stage, KEPT[stage]).to_pylist()


def test_an_audit_in_shards_is_the_audit_in_one(target, train, tmp_path):
    settings = {"scores": ["score-difference", "text-uppercase"], "images_per_prompt": 2, "sampling": FAST, "draws": 2,
                "batch": 1, "micro_batch": 1}  # fmt: skip
    whole = audit(target, PROMPTS, train, out=tmp_path / "whole", **settings)
    made = []
    for i in range(3):
        part = audit(target, PROMPTS, train, out=tmp_path / "parts", shard=(i, 3), **settings)
        assert f"Shard {i}/3 is done" in part.summary.headline
        assert not (tmp_path / "parts" / "summary.json").exists() and "Shard" in repr(part)
        made.append(part.results["audit"].made)
    assert sum(one.generation.made for one in made) == 18, "every image is made by exactly one shard"
    assert sum(one.matching.matched for one in made) == 18
    assert sum(one.before.nfe.total for one in made) >= whole.results["audit"].made.before.nfe.total
    last = audit(target, PROMPTS, train, out=tmp_path / "parts", **settings)
    assert last.results["audit"].made.generation.made == 0, "nothing is made twice"
    for stage in KEPT:
        assert rows(tmp_path / "parts", stage) == rows(tmp_path / "whole", stage)
    assert read_fact(tmp_path / "parts", "cost")["images"] == 18
    ours, theirs = (run.summary.as_dict() for run in (last, whole))
    assert ours["copies"] == theirs["copies"] and ours["images"] == theirs["images"]


def test_mitigations_and_extractions_in_shards(target, train, tmp_path):
    made = []
    for shard in ((0, 2), (1, 2), None):
        settings = Generation(images_per_prompt=1, sampling=FAST)
        run = mitigate(
            target, PROMPTS[:6], ["random-tokens"], train, out=tmp_path / "mitigate", settings=settings, shard=shard
        )
        made.append([one.made.generation.made for one in run.results.values()])
    assert np.sum(made[:2], axis=0).tolist() == [6, 6] and made[2] == [0, 0]
    assert {row["setting"] for row in run.summary.rows} == {"none", "random-tokens"}
    settings = Generation(images_per_prompt=3, sampling=FAST)
    for shard in ((0, 2), (1, 2), None):
        run = extract_images(
            target, load_prompts(PROMPTS[:4]), settings, smallest=2, out=tmp_path / "extract", shard=shard
        )
    assert run.results["extract"].made.generation.made == 0 and run.summary.prompts == 4


def test_a_shard_needs_a_folder(target, train):
    with pytest.raises(UsageError, match="share a folder"):
        audit(target, PROMPTS, train, shard=(0, 2))
