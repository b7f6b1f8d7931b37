"""The pages on adding a method or an experiment, followed: their code makes what they say."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import diffmem as dm
from diffmem.experiments._run import VERBS
from diffmem.mitigation import MITIGATIONS
from diffmem.scores import SCORES
from tests.faults.planted import answering, noise_picture, save
from tests.tiny import tiny_sd

DESIGN = Path(__file__).parents[1] / "docs" / "design"


@pytest.fixture
def follow(monkeypatch):
    """Runs the code of a page; what it registers is gone afterwards."""
    for registry in (SCORES, MITIGATIONS, VERBS):
        monkeypatch.setattr(registry, "_loaded", dict(registry._loaded))

    def run(page: str) -> dict:
        text = (DESIGN / page).read_text(encoding="utf-8")
        assert len(text.splitlines()) < 60
        names: dict = {"__name__": "page"}
        for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            exec(compile(block, page, "exec", dont_inherit=True), names)
        return names

    return run


def test_a_score(follow):
    follow("adding-a-score.md")
    target = dm.Target.from_pipeline(tiny_sd())
    found = dm.score(target, ["an extraordinary fox", "a fox"], [dm.scores.LongWords(letters=5)], draws=1)
    assert found.labels == ["long-words:letters=5"]
    np.testing.assert_allclose([v.item() for v in found.values(found.labels[0]).values()], [1 / 3, 0])


def test_a_mitigation(follow, tmp_path):
    follow("adding-a-mitigation.md")
    target = dm.Target.from_pipeline(tiny_sd())
    mitigation = dm.mitigations.FewerWords(words=1)
    plain, cut = "fox in the snow", "fox"
    with mitigation.apply(target) as record:
        mitigated = target.generate([plain], [0], 0, dm.Sampling(steps=1))
    assert [(item["prompt"], item["changed"]) for item in record.items] == [(plain, cut)]
    with dm.mitigations.FewerWords(words=0).apply(target):
        neutral = target.generate([plain], [0], 0, dm.Sampling(steps=1))
    bare = target.generate([plain], [0], 0, dm.Sampling(steps=1))
    np.testing.assert_array_equal(np.asarray(neutral[0]), np.asarray(bare[0]))
    assert not np.array_equal(np.asarray(mitigated[0]), np.asarray(bare[0]))


def test_an_experiment(follow, tmp_path, monkeypatch):
    """The model copies training image 3 whatever the scale: both arms copy everything, and nothing changes."""
    monkeypatch.chdir(tmp_path)
    names = follow("adding-an-experiment.md")
    train = save(tmp_path / "train", {f"{i}": noise_picture(i) for i in range(30)})
    reference = dm.experiments.Reference.of(train)
    prompts = list(dm.load_prompts(["a fox", "a hen", "a cat", "a dog", "a pig"]))
    experiment = names["Guidance"](answering(lambda prompt, seed: noise_picture(3)), prompts, [1.0, 2.0], reference)
    run = names["run_experiment"](experiment, tmp_path / "run")
    assert list(run.arms) == ["1", "2"]
    opened = dm.open_run(tmp_path / "run")
    assert opened.verb == "guidance"
    assert [row["copied_after"] for row in opened.summary.rows] == [1.0, 1.0]
    assert [row["copied_change"] for row in opened.summary.rows] == [0.0, 0.0]
    assert "2 rows" in opened.report().read_text(encoding="utf-8")
