"""ROC figures against brute force and scikit-learn."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from diffmem.evaluation.roc import auroc, roc_curve, tpr_at_fpr

VALUES = st.lists(st.integers(-5, 5), min_size=1, max_size=30).map(lambda v: np.array(v, float))


@given(VALUES, VALUES)
def test_auroc_counts_pairs_and_half_the_ties(p, n):
    pairs = (p[:, None] > n).mean() + 0.5 * (p[:, None] == n).mean()
    assert auroc(p, n) == pytest.approx(pairs)
    labels = np.r_[np.ones(len(p)), np.zeros(len(n))]
    assert auroc(p, n) == pytest.approx(roc_auc_score(labels, np.r_[p, n]))
    assert auroc(40 + p, 40 + n) == pytest.approx(auroc(p, n)), "unbounded scores are not squashed"


@given(VALUES, VALUES, st.floats(0.01, 0.99))
def test_threshold_is_the_smallest_that_keeps_the_rate(p, n, rate):
    point = tpr_at_fpr(p, n, rate)
    assert point.realised_fpr <= rate + 1e-9
    assert point.tpr == (p >= point.threshold).mean()
    # Any lower candidate threshold (a value that occurs) would flag too many negatives.
    lower = [v for v in np.unique(np.r_[p, n]) if v < point.threshold]
    if lower:
        assert (n >= max(lower)).mean() > rate or not np.isin(max(lower), n)
    assert point.measurable == (len(n) * rate >= 1)


def test_empty_sides():
    assert auroc(np.array([]), np.array([1.0])) is None
    assert tpr_at_fpr(np.array([]), np.array([1.0]), 0.5).tpr is None


@given(VALUES, VALUES)
def test_roc_curve_holds_every_operating_point_and_its_area_is_the_auroc(positives, negatives):
    fpr, tpr, thresholds = roc_curve(positives, negatives)
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    for f, t, threshold in zip(fpr, tpr, thresholds, strict=True):
        assert (f, t) == (np.mean(negatives >= threshold), np.mean(positives >= threshold))
    assert np.sum(np.diff(fpr) * (tpr[1:] + tpr[:-1]) / 2) == pytest.approx(auroc(positives, negatives))
