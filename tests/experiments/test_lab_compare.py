"""Differences between cells, against figures computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from diffmem.experiments.lab.compare import contrasts, over_seeds


def images(values, **more):
    return [
        {"asked": f"i{n}", "status": "ok", "similarity": v, "copied": v > 0.5, **more} for n, v in enumerate(values)
    ]


def test_difference_is_paired_per_image_and_per_seed():
    random = np.random.default_rng(0)
    base = {seed: random.normal(0, 1, 40) for seed in (0, 1, 2)}
    shift = {0: 0.1, 1: 0.2, 2: 0.3}
    cells = {
        "plain": {s: images(v) for s, v in base.items()},
        "other": {s: images(v + shift[s]) for s, v in base.items()},
    }
    found = {row["measure"]: row for row in contrasts(cells)}
    row = found["similarity_mean"]
    assert (row["first"], row["second"]) == ("other", "plain")
    assert row["difference"] == pytest.approx(0.2)
    # Every image has the same difference: other images would give the same, other trainings would not.
    assert row["low"] == pytest.approx(0.2)
    assert row["high"] == pytest.approx(0.2)
    assert list(row["seeds"].values()) == pytest.approx([0.1, 0.2, 0.3])
    reach = 4.302653 * 0.1 / np.sqrt(3)
    assert (row["seeds_low"], row["seeds_high"]) == pytest.approx((0.2 - reach, 0.2 + reach), rel=1e-5)
    assert "alignment" not in found  # nothing judged it


def test_images_that_one_cell_lacks_are_left_out_of_the_pair():
    one, two = images([0.0, 1.0, 1.0]), images([1.0, 1.0, 1.0])
    two[0] = {"asked": "i0", "status": "set aside", "reason": "black"}
    (row, copied) = contrasts({"a": {0: one}, "b": {0: two}})
    assert row["images"] == 2
    assert row["difference"] == 0
    assert copied["measure"] == "share_copied"


def test_cells_without_a_common_seed_are_not_compared():
    assert contrasts({"a": {0: images([1.0])}, "b": {1: images([1.0])}}) == []
    assert over_seeds([0.4]) == (None, None)
