"""Thresholds: the order statistic, the realised rate, what they remember and where they are refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from diffmem.errors import IncompatibleRun, UsageError
from diffmem.evaluation.calibration import ScoreThreshold, Setting, calibrate_threshold, require_matching
from diffmem.evaluation.conformal import conformal_p_values
from diffmem.evaluation.proportion import clopper_pearson

SETTING = Setting(
    score="anisotropy:weights=fitted", version="1", parameters={"weights": "fitted", "steps": [1, 2], "gamma": None},
    draws=4, noise="common, seed 0", model="abc",
)  # fmt: skip


def calibrated(values, rate, **options):
    return calibrate_threshold(np.asarray(values, float), rate, SETTING, "captions", "f00d", **options)


@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=80), st.sampled_from([0.01, 0.05, 0.2, 0.5]), st.integers(0, 31)
)
def test_flags_are_exactly_the_p_values_at_most_the_rate(reference, rate, value):
    threshold = calibrated(reference, rate)
    p = conformal_p_values(np.array([value]), np.array(reference))[0]
    if (len(reference) + 1) * rate < 1 - 1e-9:
        assert not threshold.measurable and p > rate
        with pytest.raises(UsageError, match="Not measurable"):
            threshold.flags(np.array([value]))
    else:
        assert threshold.flags(np.array([value]))[0] == (p <= rate + 1e-12)


@pytest.mark.parametrize(("n", "measurable"), [(98, False), (99, True)])
def test_a_reference_too_small_is_not_measurable(n, measurable):
    threshold = calibrated(np.arange(n), 0.01)
    assert threshold.measurable is measurable
    assert ("at least 99" in threshold.note) is not measurable


@pytest.mark.parametrize(("n", "rate"), [(199, 0.01), (199, 0.05), (470, 0.01)])
def test_realised_rate_is_the_nominal_one_on_average(n, rate):
    random = np.random.default_rng(0)
    realised = [
        calibrated(random.gamma(2.0, size=n), rate, date="-").flags(random.gamma(2.0, size=500)).mean()
        for _ in range(1500)
    ]
    expected = np.floor((n + 1) * rate + 1e-9) / (n + 1)
    assert np.mean(realised) == pytest.approx(expected, abs=4 * np.std(realised) / np.sqrt(1500))


def test_clusters_widen_the_interval_of_the_realised_rate():
    values = np.random.default_rng(0).standard_normal(400)
    alone, clustered = calibrated(values, 0.05), calibrated(values, 0.05, groups=np.arange(400) // 8)
    assert alone.value == clustered.value and alone.realised_fpr == clustered.realised_fpr == 19 / 400
    assert (alone.n_effective, clustered.n_effective) == (400, 50)
    assert (alone.realised_low, alone.realised_high) == clopper_pearson(19, 400)
    assert clustered.realised_high - clustered.realised_low > 2 * (alone.realised_high - alone.realised_low)


def test_it_survives_json_and_never_flags_what_has_no_value():
    threshold = calibrated(np.arange(100), 0.05)
    again = ScoreThreshold.model_validate_json(threshold.model_dump_json())
    assert again == threshold and again.date.endswith("+00:00")
    assert not threshold.flags(np.array([np.nan]))[0]


def test_it_is_refused_elsewhere_naming_all_that_differs():
    threshold = calibrated(np.arange(100), 0.05)
    require_matching(threshold, SETTING)
    changes = {"score": "alignment", "version": "2", "parameters": {}, "draws": 1, "noise": "per prompt", "model": "x"}
    for name, value in changes.items():
        with pytest.raises(IncompatibleRun):
            require_matching(threshold, SETTING.model_copy(update={name: value}))
    with pytest.raises(IncompatibleRun) as caught:
        require_matching(threshold, SETTING.model_copy(update={"draws": 1, "model": "other"}))
    text = str(caught.value)
    assert "draws per prompt: threshold 4, here 1" in text and "'abc', here 'other'" in text and "noise" not in text


@pytest.mark.parametrize(("values", "rate"), [([1, np.nan], 0.5), ([1, 2], 1.0), ([[1, 2]], 0.5)])
def test_wrong_arguments(values, rate):
    with pytest.raises(UsageError, match="expected a rate"):
        calibrated(values, rate)


@given(st.integers(1, 300), st.data())
def test_clopper_pearson_is_exact(n, data):
    hits = data.draw(st.integers(0, n))
    low, high = clopper_pearson(hits, n)
    assert low <= hits / n <= high
    assert hits == 0 or binom.sf(hits - 1, n, low) == pytest.approx(0.025, rel=1e-6)
    assert hits == n or binom.cdf(hits, n, high) == pytest.approx(0.025, rel=1e-6)


def test_clopper_pearson_refuses_impossible_counts():
    with pytest.raises(UsageError, match="5 hits of 4"):
        clopper_pearson(5, 4)
