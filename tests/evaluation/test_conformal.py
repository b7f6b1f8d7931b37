"""Conformal p-values and Benjamini-Hochberg against their definitions and in simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffmem.errors import UsageError
from diffmem.evaluation.conformal import benjamini_hochberg, conformal_p_values

P_VALUES = st.lists(st.sampled_from([0.001, 0.01, 0.02, 0.049, 0.05, 0.3, 0.8, 1.0]), min_size=1, max_size=12)


@given(st.lists(st.integers(0, 9), min_size=1), st.lists(st.integers(0, 9), min_size=1))
def test_p_values_count_ties(values, reference):
    found = conformal_p_values(np.array(values, float), np.array(reference, float))
    assert found == pytest.approx([(1 + sum(r >= v for r in reference)) / (len(reference) + 1) for v in values])


def test_p_values_are_valid_for_prompts_like_the_reference():
    random = np.random.default_rng(0)
    found = np.concatenate(
        [conformal_p_values(random.standard_normal(20), random.standard_normal(99)) for _ in range(1000)]
    )
    for level in (0.01, 0.05, 0.2):
        assert (found <= level + 1e-12).mean() == pytest.approx(level, rel=0.2)


@given(P_VALUES, st.sampled_from([0.05, 0.1, 0.25]))
def test_benjamini_hochberg_is_the_step_up_procedure(values, level):
    found = benjamini_hochberg(np.array(values), level)
    ordered = sorted(values)
    last = max((i for i, p in enumerate(ordered, 1) if p <= level * i / len(values) + 1e-12), default=0)
    limit = ordered[last - 1] if last else 0.0
    assert [bool(f) for f in found.flagged] == [p <= limit for p in values]
    assert (found.q_values >= np.array(values) - 1e-12).all() and (found.q_values <= 1).all()


@pytest.mark.parametrize("memorized", [0, 20, 100])
def test_false_discoveries_stay_below_the_level(memorized):
    random, shares, power = np.random.default_rng(0), [], []
    for _ in range(400):
        scores = random.standard_normal(300) + 4.0 * (np.arange(300) < memorized)
        flagged = benjamini_hochberg(conformal_p_values(scores, random.standard_normal(1000)), 0.1).flagged
        shares.append(flagged[memorized:].sum() / max(1, flagged.sum()))
        power.append(flagged[:memorized].mean() if memorized else 1.0)
    assert np.mean(shares) <= 0.1 + 3 * np.std(shares) / np.sqrt(400)
    assert np.mean(power) > 0.6


def test_wrong_arguments():
    with pytest.raises(UsageError, match="no reference"):
        conformal_p_values(np.ones(2), np.ones(0))
    with pytest.raises(UsageError, match="finite"):
        conformal_p_values(np.array([np.nan]), np.ones(3))
    with pytest.raises(UsageError, match="false-discovery rate is 1"):
        benjamini_hochberg(np.ones(2), 1)
    with pytest.raises(UsageError, match="outside"):
        benjamini_hochberg(np.array([0.0]), 0.1)
