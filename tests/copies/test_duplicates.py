import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffmem.copies.duplicates import near_duplicates
from diffmem.copies.metrics import Metric
from diffmem.errors import DataError

METRICS = [Metric("cosine"), Metric("tiled-rms"), Metric("tiled-rms", 2)]


def components(vectors, metric, cut):
    """Flood fill over the full matrix."""
    n = len(vectors)
    near = [[metric.exact(vectors[i][None], vectors[j][None])[0] >= cut for j in range(n)] for i in range(n)]
    group, count = [-1] * n, 0
    for start in range(n):
        if group[start] >= 0:
            continue
        stack = [start]
        while stack:
            i = stack.pop()
            if group[i] < 0:
                group[i] = count
                stack += [j for j in range(n) if near[i][j] and group[j] < 0]
        count += 1
    return group


@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(1, 33), st.sampled_from(METRICS))
def test_equals_flood_fill_for_any_chunk(seed, n, chunk, metric):
    rng = np.random.default_rng(seed)
    vectors = rng.uniform(size=(n, 4)).astype(np.float32)[rng.integers(0, n, n)]
    sims = metric.exact(vectors[rng.integers(0, n, 9)], vectors[rng.integers(0, n, 9)])
    cut = float(sims[rng.integers(0, 9)])  # a similarity that occurs, so that ≥ and > differ
    found = near_duplicates(vectors, metric, cut, chunk=chunk)
    assert found.group.tolist() == components(vectors, metric, cut)
    assert found.size.tolist() == np.bincount(found.group).tolist()
    assert found.count == len(found.size) and found.largest == found.size.max()
    assert all(found.group[i] == g for g, i in enumerate(found.first))
    first = vectors[found.first[found.group]]
    assert found.chained == (metric.exact(vectors, first) < cut).sum()


def test_planted_duplicates_are_found_and_others_left_alone():
    rng = np.random.default_rng(0)
    vectors = rng.uniform(size=(500, 64)).astype(np.float32)
    vectors[100:150] = vectors[7]
    vectors[200:210] = vectors[8] + rng.normal(size=(10, 64)) * 0.01
    found = near_duplicates(vectors, Metric("tiled-rms"), 0.95)
    assert found.count == 500 - 60
    assert found.size[found.group[7]] == 51 and found.size[found.group[8]] == 11
    assert found.warning is None and found.chained == 0


def test_a_chain_is_said():
    line = np.linspace(0, 1, 101)[:, None].astype(np.float32)
    found = near_duplicates(line, Metric("tiled-rms"), 0.985)
    assert found.count == 1 and found.largest == 101 and found.chained == 99
    assert "101 of 101" in found.warning and "0.985" in found.warning


def test_memory_is_bounded_although_all_pairs_are_near():
    rng = np.random.default_rng(0)
    vectors = (0.5 + 1e-3 * rng.normal(size=(3000, 16))).astype(np.float32)
    tracemalloc.start()
    found = near_duplicates(vectors, Metric("tiled-rms"), 0.9, chunk=250)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.count == 1 and found.chained == 0
    assert peak < 12e6  # all pairs would be 36 MB in float32


def test_odd_sets():
    assert near_duplicates(np.zeros((0, 4)), "cosine", 0.5).largest == 0
    assert near_duplicates(np.ones((1, 4)), "cosine", 0.5).size.tolist() == [1]
    with pytest.raises(DataError, match="row 2"):
        near_duplicates(np.array([[1.0], [2.0], [np.inf]]), "cosine", 0.5)


@pytest.mark.parametrize("metric", [*METRICS, Metric("tiled-rms", 4)])
def test_pairs_sought_among_principal_coordinates_are_all_pairs(metric, monkeypatch):
    rng = np.random.default_rng(5)
    # Two clusters as dense as the cut is wide, so that thousands of pairs lie right at its edge.
    base = np.repeat(rng.uniform(size=(2, 48)), 150, 0) + rng.normal(0, 0.02, (300, 48))
    vectors = np.concatenate([base, rng.uniform(size=(200, 48))]).astype(np.float32)
    sims = np.sort([metric.exact(vectors[i : i + 1], vectors[j : j + 1])[0] for i, j in rng.integers(0, 150, (200, 2))])
    for cut in (float(sims[20]), float(sims[100]), float(sims[150])):
        whole = near_duplicates(vectors, metric, cut)
        monkeypatch.setattr("diffmem.copies.duplicates._FEW", 10)
        monkeypatch.setattr("diffmem.copies.duplicates._STRIPE", 64)
        sought = near_duplicates(vectors, metric, cut)
        monkeypatch.undo()
        assert sought.group.tolist() == whole.group.tolist() and sought.chained == whole.chained


def test_only_confirmed_pairs_are_joined():
    rng = np.random.default_rng(6)
    vectors = np.repeat(rng.uniform(size=(6, 16)), 3, 0).astype(np.float32)
    vectors += rng.normal(0, 1e-3, vectors.shape).astype(np.float32)
    assert near_duplicates(vectors, Metric("tiled-rms"), 0.95).size.tolist() == [3] * 6
    found = near_duplicates(vectors, Metric("tiled-rms"), 0.95, confirm=lambda a, b: (a < 9) & (b < 9))
    assert found.size.tolist() == [3, 3, 3] + [1] * 9
