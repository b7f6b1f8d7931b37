"""Leaving words out: against a plain loop, and against captions of which it is known what the copied part hangs on."""

import json

import numpy as np
import pytest
import torch
from tests.tiny import tiny_sd

from diffmem.cli.app import main
from diffmem.errors import UsageError
from diffmem.models.target import Target
from diffmem.randomness import noise_bank
from diffmem.stages.score.localize import localize
from diffmem.testbeds import digits


def test_drops_equal_a_plain_loop():
    target = Target.from_pipeline(tiny_sd())
    denoiser = target.denoiser
    (found,) = localize(target, ["a fox  runs"], draws=2)
    t, noises = denoiser.schedule.time_at_ratio(0.2), noise_bank(0, range(2), denoiser.sample_shape)

    def norms(text):
        with torch.no_grad():
            pull = denoiser.predict(noises, t, denoiser.encode_prompts([text])) - denoiser.predict(
                noises, t, denoiser.null()
            )
        return pull.flatten(1).norm(dim=1).double().numpy()

    whole = norms("a fox  runs")
    assert found.words == ("a", "fox", "runs")
    assert found.value == pytest.approx(whole.mean(), rel=1e-5)
    for drop, sd, rest in zip(found.drops, found.sd, ("fox runs", "a runs", "a fox"), strict=True):
        change = (whole - norms(rest)) / whole.mean()
        assert drop == pytest.approx(change.mean(), abs=1e-5)
        assert sd == pytest.approx(change.std(ddof=1), abs=1e-5)


def test_one_word_is_compared_with_the_empty_prompt():
    (found,) = localize(Target.from_pipeline(tiny_sd()), ["fox"], draws=1)
    assert found.drops == (pytest.approx(1.0, abs=1e-4),), "the empty prompt pulls nowhere"
    assert found.sd == (None,)


def test_the_word_that_varies_in_a_template_matters_less_than_its_stem():
    # "stem stem stem varying digit": the copied background is the same whatever the fourth word is.
    texts = [row["caption"] for row in digits.truth("text") if row["tier"] == "template"]
    found = localize(Target.from_pretrained(digits.model_path("text")), texts, draws=4)
    drops = np.array([row.drops for row in found], float)
    assert drops.shape == (40, 5)
    below_all = (drops[:, 3] < drops[:, :3].min(1)).mean()
    assert below_all > 0.5, "by chance it would be a quarter"
    assert (drops[:, 3] < drops[:, :3].max(1)).mean() > 0.9, "by chance three quarters"


def test_scores_that_read_no_network_are_refused():
    with pytest.raises(UsageError, match="no word can be left out alone"):
        localize(Target.from_pipeline(tiny_sd()), ["a fox"], "text-uppercase")


def test_the_verb(tmp_path, capsys):
    tiny_sd().save_pretrained(tmp_path / "model")
    assert main(["localize", str(tmp_path / "model"), "a fox", "--draws", "1", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["prompts"][0]["words"] == ["a", "fox"]
    assert main(["localize", str(tmp_path / "model"), "a fox", "--draws", "1"]) == 0
    assert "without each word" in capsys.readouterr().out
