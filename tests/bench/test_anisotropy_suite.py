"""The anisotropy paper's tables on a model of one's own: each figure is that of the scores themselves."""

import json

import numpy as np
import pytest
from tests.tiny import tiny_sd

from diffmem.bench.anisotropy import anisotropy_suite
from diffmem.cli.app import main
from diffmem.errors import DiffmemError, UsageError
from diffmem.evaluation.roc import auroc
from diffmem.models.target import Target
from diffmem.stages.score.score import score

WORDS = ["a red fox", "the lazy cat", "blue sky", "an old house", "green hills", "two boats", "my dog", "red wine"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_sd().save_pretrained(folder / "sd")
    lines = [{"prompt": f"{word} {i}", "label": i < 8} for i, word in enumerate(WORDS * 2)]
    (folder / "prompts.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return folder / "sd", folder / "prompts.jsonl"


def test_the_table_holds_the_scores_own_figures(model):
    folder, prompts = model
    rows = anisotropy_suite([f"{folder}={prompts}"], draws=2, silent=True, regimes=False)
    labels = ["score-difference", "alignment:at=step", "anisotropy-paper"]
    found = score(Target.from_pretrained(folder), prompts, labels, draws=2, silent=True)
    norm, cosine, released = (np.stack(list(found.values(label).values())) for label in found.labels)
    table = {(row["measure"], row["draws"]): row for row in rows}
    for draws in (1, 2):
        expected = {
            "norm at the first step": norm, "cosine, unconditional-difference": cosine,
            "M, gamma of sd-1.4": norm + 2 * cosine, "M, gamma of sd-2": norm + 0.1 * cosine,
            "M, gamma of realistic-vision-5.1": 2 * norm + cosine, "M, released procedure": released,
        }  # fmt: skip
        for measure, values in expected.items():
            means = values[:, :draws].mean(1)
            assert table[measure, draws]["auroc"] == pytest.approx(auroc(means[:8], means[8:])), measure
        released_row = table["M, released procedure", draws]
        assert released_row["seconds_per_10_prompts"] > 0
        assert released_row["nfe_per_prompt"] == pytest.approx(draws * found.nfe_per_prompt_seed["anisotropy-paper"])
    assert {row["draws"] for row in rows} == {0, 1, 2}
    assert ("M, gamma fitted", 2) in table


def test_models_and_lists_that_do_not_fit_are_told(model, tmp_path, capsys):
    with pytest.raises(UsageError, match="neither of digits, digits-v"):
        anisotropy_suite(["my-model"])
    unlabelled = tmp_path / "p.txt"
    unlabelled.write_text("a fox\na hen\n")
    with pytest.raises(DiffmemError, match="label"):
        anisotropy_suite([f"{model[0]}={unlabelled}"])
    assert main(["bench", "--suite", "digits", "--models", "photos"]) == 2
    assert "no option --models" in capsys.readouterr().err


def test_the_command_prints_any_set_of_models(model, capsys):
    folder, prompts = model
    arguments = ["--suite", "anisotropy-paper", "--models", f"{folder}={prompts}", "--draws", "1", "--json"]
    assert main(["bench", *arguments]) == 0
    rows = json.loads(capsys.readouterr().out)
    regimes = {row["ratio"] for row in rows if row["figure"] == "regimes"}
    assert regimes == {30.0, 10.0, 3.0, 1.0, 0.5, 0.2, 0.1}
