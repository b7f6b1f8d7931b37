import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffmem.copies.metrics import Metric
from diffmem.copies.neighbors import top_k
from diffmem.errors import DataError, UsageError

METRICS = [Metric("cosine"), Metric("tiled-rms"), Metric("tiled-rms", 3)]


def similarity(metric, a, b):
    """One pair, in float64, written as the definition says."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    if metric.kind == "cosine":
        scale = np.sqrt((a * a).sum() * (b * b).sum())
        return float(np.clip((a * b).sum() / scale, -1, 1)) if scale > 0 else 0.0
    tiles = np.square(a - b).reshape(metric.tiles, -1)
    return float(1 - max(np.sqrt(tile.sum() / len(tile)) for tile in tiles))


def brute_force(queries, corpus, k, metric, groups=None, exclude=None):
    groups = np.arange(len(corpus)) if groups is None else groups
    best, index = np.full((len(queries), k), -np.inf), np.full((len(queries), k), -1)
    for i, query in enumerate(queries):
        order = sorted((-similarity(metric, query, row), j) for j, row in enumerate(corpus))
        seen = set() if exclude is None else {exclude[i]}
        for value, j in order:
            if groups[j] in seen or len(seen) - (exclude is not None) == k:
                continue
            rank = len(seen) - (exclude is not None)
            best[i, rank], index[i, rank] = -value, j
            seen.add(groups[j])
    return best, index


@st.composite
def problems(draw):
    """Few distinct rows, many exact copies, zero rows, near-ties in the last bits of float32."""
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    dimension = 3 * draw(st.integers(1, 5))
    distinct = rng.normal(size=(draw(st.integers(1, 8)), dimension))
    style = draw(st.sampled_from(["plain", "integer", "close", "zero"]))
    if style == "integer":
        distinct = np.rint(distinct)
    if style == "close":
        distinct = distinct[0] + 1e-7 * distinct
    if style == "zero":
        distinct[::2] = 0
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    corpus = distinct[rng.integers(0, len(distinct), draw(st.integers(1, 40)))].astype(dtype)
    queries = distinct[rng.integers(0, len(distinct), draw(st.integers(1, 6)))]
    queries = (queries + rng.normal(size=queries.shape) * draw(st.sampled_from([0, 0, 1e-3, 1]))).astype(np.float32)
    return queries, corpus, draw(st.integers(1, 12)), draw(st.sampled_from(METRICS)), rng


@given(problems(), st.integers(1, 45), st.integers(1, 7))
def test_equals_brute_force_for_any_chunking(problem, chunk, query_chunk):
    queries, corpus, k, metric, _ = problem
    best, index = top_k(queries, corpus, k, metric, chunk=chunk, query_chunk=query_chunk)
    expected, expected_index = brute_force(queries, corpus, k, metric)
    np.testing.assert_array_equal(index, expected_index)
    np.testing.assert_array_equal(best, expected)


@given(problems(), st.integers(1, 45), st.integers(1, 7), st.booleans())
def test_groups_count_once_and_own_group_is_left_out(problem, chunk, query_chunk, leave_out):
    queries, corpus, k, metric, rng = problem
    groups = rng.integers(0, 5, len(corpus))
    exclude = rng.integers(0, 5, len(queries)) if leave_out else None
    best, index = top_k(
        queries, corpus, k, metric, groups=groups, exclude=exclude, chunk=chunk, query_chunk=query_chunk
    )
    expected, expected_index = brute_force(queries, corpus, k, metric, groups, exclude)
    np.testing.assert_array_equal(index, expected_index)
    np.testing.assert_array_equal(best, expected)


@pytest.mark.parametrize("k", [1, 3])
def test_a_row_with_many_exact_copies_is_matched_with_one_of_them_where_it_is_left_out_itself(k):
    rng = np.random.default_rng(0)
    distinct = rng.normal(size=(20, 6)).astype(np.float32)
    corpus = np.concatenate([np.repeat(distinct[:1], 50, 0), distinct[1:]])
    itself = np.arange(len(corpus))
    best, index = top_k(corpus, corpus, k, groups=itself, exclude=itself)
    expected, expected_index = brute_force(corpus, corpus, k, METRICS[0], exclude=itself)
    np.testing.assert_array_equal(index, expected_index)
    np.testing.assert_array_equal(best, expected)


@given(problems(), st.lists(st.integers(0, 9), min_size=1, max_size=8))
def test_an_iterable_of_uneven_chunks_gives_the_same(problem, cuts):
    queries, corpus, k, metric, _ = problem
    edges = np.minimum(np.cumsum([0, *cuts]), len(corpus))
    parts = (corpus[a:b] for a, b in zip([*edges, edges[-1]], [*edges[1:], edges[-1], len(corpus)]))
    for one, two in zip(top_k(queries, parts, k, metric), top_k(queries, corpus, k, metric)):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("metric", [Metric("cosine"), Metric("tiled-rms", 4)])
@settings(max_examples=5)
@given(st.integers(0, 1000))
def test_larger_arrays_with_near_ties(metric, seed):
    rng = np.random.default_rng(seed)
    base = rng.uniform(size=(3, 256))
    corpus = (base[rng.integers(0, 3, 700)] + 1e-6 * rng.integers(-2, 3, (700, 256))).astype(np.float32)
    corpus[rng.integers(0, 700, 300)] = corpus[5]
    queries = np.concatenate([corpus[:5], rng.uniform(size=(5, 256)).astype(np.float32)])
    expected = brute_force(queries, corpus, 9, metric)
    for chunk, query_chunk in [(700, 10), (64, 3), (101, 1)]:
        found = top_k(queries, corpus, 9, metric, chunk=chunk, query_chunk=query_chunk)
        np.testing.assert_array_equal(found[1], expected[1])
        np.testing.assert_array_equal(found[0], expected[0])


def test_fast_scores_stay_within_their_margin():
    rng = np.random.default_rng(1)
    for metric in METRICS:
        for scale in (1e-6, 1.0, 1e4):
            a, b = (scale * rng.normal(0.5, 1, (40, 1536)) for _ in range(2))
            b[:20] = a[:20] * (1 + 1e-8)
            one, two = metric.prepare(a), metric.prepare(b)
            exact = np.array([[similarity(metric, x, y) for y in b] for x in a])
            error = np.abs(one.scores(two) - one.bound(exact))
            assert (error <= one.margin(two)[:, None]).all()
            assert one.margin(two).max() < (1e-3 if metric.kind == "cosine" else 2e-3 * scale**2 + 2e-12)


def test_equal_rows_have_similarity_exactly_one():
    rows = np.random.default_rng(0).normal(size=(200, 37)).astype(np.float32)
    for metric in (Metric("cosine"), Metric("tiled-rms")):
        assert (metric.exact(rows, rows) == 1).all()
        assert (metric.distance(metric.exact(rows, rows)) == 0).all()


def test_distance_of_unit_vectors():
    a, b = np.random.default_rng(0).normal(size=(2, 50, 8))
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    metric = Metric("cosine")
    np.testing.assert_allclose(metric.distance(metric.exact(a, b)), np.linalg.norm(a - b, axis=1), atol=1e-12)


def test_a_million_copies_cost_no_more_than_their_chunk():
    rng = np.random.default_rng(0)
    corpus = np.repeat(rng.normal(size=(1, 8)).astype(np.float32), 200_000, 0)
    corpus[70_000] += 1e-3
    queries = np.repeat(corpus[:1], 200, 0)
    tracemalloc.start()
    best, index = top_k(queries, corpus, 3, "cosine")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (index == [0, 1, 2]).all() and (best == 1).all()
    assert peak < 64e6  # all pairs in float32 would be 160 MB
    groups = np.zeros(200_000, int)
    groups[70_000] = 1
    assert (top_k(queries, corpus, 2, "cosine", groups=groups)[1] == [0, 70_000]).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"k": 0}, "at least 1"),
        ({"metric": "euclid"}, "no metric 'euclid'"),
        ({"metric": Metric("tiled-rms", 4)}, "multiple of 4"),
        ({"exclude": np.zeros(2, int)}, "groups"),
        ({"groups": np.zeros(3, int)}, "3 groups"),
        ({"groups": np.full(5, -1)}, "numbered from 0"),
        ({"corpus": np.zeros((3, 7))}, "6 values and the corpus 7"),
        ({"corpus": np.zeros(3)}, r"\[n, D\]"),
    ],
)
def test_misuse_is_named(change, words):
    arguments = {"queries": np.ones((2, 6)), "corpus": np.ones((5, 6)), "k": 1, "metric": "cosine"} | change
    with pytest.raises(UsageError, match=words):
        top_k(**arguments)


def test_values_that_are_not_finite_are_named():
    corpus = np.ones((5, 6))
    corpus[3, 2] = np.nan
    with pytest.raises(DataError, match="row 3"):
        top_k(np.ones((1, 6)), corpus, 1)
