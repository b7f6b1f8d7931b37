"""The split-product similarity against its definition, and on images that share a part."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffmem.copies import split_product
from diffmem.copies.split_product import split_top1
from diffmem.errors import UsageError


def brute(x, y, parts, across):
    """max over c (and d) of <x_c, y_d>, both of length 1."""
    x, y = (v / np.linalg.norm(v) for v in (x, y))
    a, b = x.reshape(parts, -1), y.reshape(parts, -1)
    return max(a[c] @ b[d] for c in range(parts) for d in (range(parts) if across else (c,)))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 9), st.sampled_from([1, 2, 3, 6]), st.booleans())
def test_it_is_its_definition(seed, n, m, parts, across):
    random = np.random.default_rng(seed)
    queries, corpus = random.normal(size=(n, 12)), random.normal(size=(m, 12))
    values, rows = split_top1(queries, corpus, parts, across)
    table = np.array([[brute(x, y, parts, across) for y in corpus] for x in queries])
    assert values == pytest.approx(table.max(1))
    assert table[np.arange(n), rows] == pytest.approx(table.max(1))
    if parts == 1:  # the cosine
        unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (queries, corpus)]
        assert values == pytest.approx((unit[0] @ unit[1].T).max(1))


def test_a_copied_part_is_found_where_the_whole_differs(monkeypatch):
    """x = (a, b)/sqrt 2 and y = (a, -b)/sqrt 2 with |a| = |b| = 1: cosine 0, best part 1/2; moved to the other place, too."""
    a, b = np.array([1.0, 0, 0, 0]), np.array([0, 1.0, 0, 0])
    x, y, moved = np.r_[a, b], np.r_[a, -b], np.r_[-b, a]
    corpus = np.stack([np.r_[0, 0, 0, 1.0, 0, 0, 0, 1.0], y])
    assert split_top1(x[None], corpus, 1)[0] == pytest.approx([0])
    assert [float(v[0]) for v in split_top1(x[None], corpus, 2)] == pytest.approx([0.5, 1])
    assert split_top1(x[None], moved[None], 2)[0] == pytest.approx([0])
    assert split_top1(x[None], moved[None], 2, across=True)[0] == pytest.approx([0.5])
    monkeypatch.setattr(split_product, "BLOCK", 1)  # row by row
    assert [float(v[0]) for v in split_top1(x[None], corpus, 2)] == pytest.approx([0.5, 1])
    itself = split_top1(corpus, corpus, 2, exclude=(np.arange(2), np.arange(2)))
    assert itself[1].tolist() == [1, 0] and itself[0] == pytest.approx([0, 0])
    with pytest.raises(UsageError, match="in 3 parts"):
        split_top1(x[None], corpus, 3)
