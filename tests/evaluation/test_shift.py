"""The shift check: silent where both sets come from one source, loud where they do not."""

import numpy as np
import pytest

from diffmem.errors import UsageError
from diffmem.evaluation.shift import RIDGE, _logistic_regression, image_features, shift_check


def noise(count, seed, bright=0.0):
    return np.random.default_rng(seed).normal(bright, 1, (count, 1, 8, 8))


def test_one_source_is_rarely_called_shifted():
    checks = [shift_check(noise(30, 2 * k), noise(30, 2 * k + 1), permutations=19) for k in range(20)]
    assert sum(c.shifted for c in checks) <= 4
    assert 0.3 < np.mean([c.p_value for c in checks]) < 0.7
    assert all(c.low <= c.auroc <= c.high for c in checks)


def test_a_small_difference_of_brightness_is_found():
    check = shift_check(noise(100, 0, bright=0.15), noise(100, 1))
    assert check.shifted
    assert check.low > 0.5
    assert "differ by themselves" in check.message


def test_copies_in_both_folds_do_not_pretend_a_shift():
    members, others = noise(12, 0), noise(60, 1)
    repeated = np.repeat(members, 20, axis=0)
    groups = [*np.repeat(np.arange(12), 20), *range(12, 72)]
    naive, grouped = (shift_check(repeated, others, g, permutations=39) for g in (None, groups))
    assert naive.auroc > grouped.auroc + 0.1
    assert not grouped.shifted


def test_features_are_what_they_say():
    image = np.zeros((1, 1, 8, 8))
    image[0, 0, :, 4:] = 1
    features = image_features(image)[0]
    assert features[:64].tolist() == image.ravel().tolist()
    mean, deviation, low, high, down, across = features[64:]
    assert (mean, deviation, low, high, down) == (0.5, 0.5, 0, 1, 0)
    assert across == pytest.approx(1 / 7)
    assert image_features(noise(3, 0).repeat(5, 2).repeat(5, 3)).shape == (3, 70)


def test_bad_input_is_refused():
    with pytest.raises(UsageError, match="at least 10 distinct"):
        shift_check(noise(9, 0), noise(50, 1))
    with pytest.raises(UsageError, match="one size"):
        shift_check(noise(20, 0), noise(20, 1)[..., :4])
    with pytest.raises(UsageError, match="\\[N, C, H, W\\]"):
        image_features(np.zeros((3, 8, 8)))


def test_the_classifier_is_the_library_s():
    from sklearn.linear_model import LogisticRegression

    random = np.random.default_rng(0)
    features, labels = random.normal(size=(80, 12)), random.random(80) < 0.3
    ours = _logistic_regression(np.c_[features, np.ones(80)], labels)
    theirs = LogisticRegression(C=1 / RIDGE, class_weight="balanced", tol=1e-10, max_iter=10_000).fit(features, labels)
    np.testing.assert_allclose(ours, [*theirs.coef_[0], *theirs.intercept_], atol=1e-5)
