"""The suite of image scores: who is compared with whom, what a row says, what a small budget does."""

import json

import numpy as np
import pytest
from scipy.stats import mannwhitneyu
from tests import measuring

from diffmem.bench import digits_images
from diffmem.bench.digits_images import CONTRASTS, MOST, STEP, digits_images_suite
from diffmem.cli.app import main
from diffmem.scores.image.base import ImageResult
from diffmem.testbeds import digits

COLUMNS = {
    "score", "settings", "contrast", "n_positives", "n_negatives", "errors", "auroc", "auroc_low", "auroc_high",
    "p_value", "nfe_per_image", "seconds_per_image",
}  # fmt: skip


def test_kinds_follow_the_measured_truth_and_never_meet():
    sample = digits_images._sample()
    hits = {row["group"]: row["hits"] for row in digits.truth("unconditional")}
    training = {image.id: image for image in digits.load().training}
    assert all(len(names) == MOST for names in sample.kinds.values())
    assert len(set().union(*sample.kinds.values())) == 3 * MOST
    assert all(hits[name] > 0 for name in sample.kinds["memorized"])
    assert all(training[name].count == 1 and hits[name] == 0 for name in sample.kinds["member"])
    pixels = {image.pixels.tobytes() for image in training.values()}
    assert not pixels & {image.pixels.tobytes() for image in digits.load().held_out}


class Oracle(measuring.ToyBatch):
    """Knows the truth: plants high, other members middling, held-out low; one image fails."""

    about = measuring.about("oracle")

    def compute(self, denoiser, items, seed):
        level = {"plan": 3.0, "held": 1.0}
        found = [level.get(item.id[:4], 2.0) + 1e-3 * (sum(item.id.encode()) % 97) for item in items]
        return [
            ImageResult(i.id, v, v, nfe=measuring.Nfe(7), error="failed" if i.id == Oracle.fails else None)
            for i, v in zip(items, found, strict=True)
        ]


def test_rows_hold_what_they_say():
    Oracle.fails = digits_images._sample().kinds["heldout"][0]
    rows = {row["contrast"]: row for row in digits_images_suite([Oracle()], silent=True)}
    assert rows.keys() == CONTRASTS.keys() and all(row.keys() == COLUMNS for row in rows.values())
    assert [row["auroc"] for row in rows.values()] == [1.0, 1.0, 1.0]
    assert [row["n_positives"] for row in rows.values()] == [20, 40, 20]
    assert [row["n_negatives"] for row in rows.values()] == [20, 19, 19]
    assert [row["errors"] for row in rows.values()] == [0, 1, 1] and rows["trained_vs_heldout"]["nfe_per_image"] == 7
    expected = mannwhitneyu(np.arange(20, 40), np.arange(20)).pvalue
    assert rows["memorized_vs_members"]["p_value"] == pytest.approx(expected, rel=0.05)
    assert all(row["auroc_low"] < 1 and row["auroc_high"] == 1 for row in rows.values())


def test_a_used_up_budget_measures_fewer_images_and_says_how_many():
    Oracle.fails = None
    rows = digits_images_suite([Oracle()], silent=True, seconds=0)
    assert [(row["n_positives"], row["n_negatives"]) for row in rows] == [(STEP, STEP), (2 * STEP, STEP), (STEP, STEP)]


def test_the_verb_prints_rows_of_real_scores(capsys):
    assert main(["bench", "--suite", "digits-images", "--score", "pia", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["contrast"] for row in rows] == list(CONTRASTS) and rows[0]["score"] == "pia"
    assert all(row["nfe_per_image"] == 2 and row["seconds_per_image"] > 0 for row in rows)
    assert all(0 <= row["auroc_low"] <= row["auroc"] <= row["auroc_high"] <= 1 for row in rows)
