"""Cliques against an exhaustive search, extraction on sets whose copies are known."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffmem.copies.cliques import largest_clique
from diffmem.copies.extraction import Extraction, edges_within, extract, false_edges, pairwise, share_of_free_pairs
from diffmem.copies.metrics import Metric
from diffmem.errors import UsageError

PIXELS = Metric("tiled-rms")


def brute_force(edges):
    nodes = range(len(edges))
    for size in range(len(edges), 0, -1):
        for members in itertools.combinations(nodes, size):
            if all(edges[i, j] for i, j in itertools.combinations(members, 2)):
                return size
    return 0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 11), st.floats(0, 1))
def test_the_largest_clique_equals_exhaustive_search(seed, n, density):
    upper = np.triu(np.random.default_rng(seed).random((n, n)) < density, 1)
    edges = upper | upper.T
    found = largest_clique(edges)
    assert found.exact
    assert len(found.members) == brute_force(edges)
    assert all(edges[i, j] for i, j in itertools.combinations(found.members, 2))


def test_a_planted_clique_is_found_in_a_large_graph():
    random = np.random.default_rng(0)
    upper = np.triu(random.random((500, 500)) < 0.1, 1)
    planted = np.sort(random.choice(500, 25, replace=False))
    edges = upper | upper.T
    edges[np.ix_(planted, planted)] = True
    found = largest_clique(edges)
    assert found.exact and set(planted) == set(found.members)


def test_a_search_that_is_stopped_says_so_and_gives_a_clique():
    upper = np.triu(np.random.default_rng(0).random((120, 120)) < 0.9, 1)
    edges = upper | upper.T
    found = largest_clique(edges, steps=200)
    assert not found.exact
    assert all(edges[i, j] for i, j in itertools.combinations(found.members, 2))
    with pytest.raises(UsageError, match="square symmetric"):
        largest_clique(upper)


def test_two_repeated_images_among_new_ones_are_both_extracted():
    random = np.random.default_rng(0)
    first, second = random.random((2, 48))
    images = random.random((40, 48))
    images[5:19] = first + 0.01 * random.normal(size=(14, 48))
    images[25:36] = second + 0.01 * random.normal(size=(11, 48))
    found = extract(images.astype(np.float32), PIXELS, 0.9)
    assert [e.members for e in found] == [tuple(range(5, 19)), tuple(range(25, 36))]
    for extraction, truth in zip(found, (first, second), strict=True):
        errors = np.square(images[list(extraction.members)] - truth).mean(1)
        assert np.square(images[extraction.medoid] - truth).mean() <= np.median(errors)
        assert 0.95 < extraction.mean_similarity < 1
    assert found[0].confidence == (14 / 40, found[0].mean_similarity)
    assert extract(images[:5].astype(np.float32), PIXELS, 0.9, 5) == []
    assert extract(images[:4].astype(np.float32), PIXELS, 0.9) == []


def test_a_chain_of_alike_images_is_no_clique():
    chain = np.linspace(0, 3, 31)[:, None].astype(np.float32)
    (one, *_) = extract(chain, PIXELS, 0.85, 2)
    assert len(one.members) == 2


def test_pairwise_similarities():
    rows = np.random.default_rng(0).random((6, 12)).astype(np.float32)
    found = pairwise(rows, Metric("tiled-rms", 3))
    for i, j in itertools.product(range(6), repeat=2):
        worst = np.sqrt(np.square(rows[i].astype(float) - rows[j]).reshape(3, 4).mean(1)).max()
        assert found[i, j] == pytest.approx(1 - worst)


def test_false_edges_count_pairs_of_different_prompts():
    rows = np.array([[0.0], [0.0], [0.05], [1.0]], np.float32)
    found = false_edges(rows, np.array(["a", "a", "b", "b"]), PIXELS, 0.9)
    assert found.value == pytest.approx(2 / 4)
    assert found.low <= found.value <= found.high
    assert false_edges(rows, np.zeros(4), PIXELS, 0.9).value is None
    many = np.random.default_rng(0).random((900, 3)).astype(np.float32)
    names = np.repeat(np.arange(90), 10)
    exact = pairwise(many, PIXELS)[names[:, None] != names[None]] >= 0.8
    assert false_edges(many, names, PIXELS, 0.8).value == pytest.approx(exact.mean(), abs=0.005)


def cloud(seed, count, spread):
    """Descriptors of unit length about one direction: images of a prompt that are alike without being one image."""
    values = np.random.default_rng(seed).normal(0, spread, (count, 16))
    values[:, 0] += 1
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def test_the_densest_part_of_a_cloud_is_doubtful_and_a_repeated_image_is_not():
    vectors = cloud(0, 60, 0.12)
    edge = float(np.median(pairwise(vectors, Metric("cosine"))[np.triu_indices(60, 1)]))
    dense = extract(vectors, "cosine", edge, 10)[0]
    assert dense.is_doubtful and dense.outside > 0.2
    repeated = np.concatenate([cloud(1, 12, 0.001), -cloud(2, 40, 0.3)])
    (one,) = extract(repeated, "cosine", 0.99, 10)
    assert (one.members, one.outside, one.is_doubtful) == (tuple(range(12)), 0.0, False)
    (whole,) = extract(cloud(1, 12, 0.001), "cosine", 0.99, 10)
    assert whole.outside is None and not whole.is_doubtful


def test_edges_of_a_prompt_are_counted_outside_of_its_extractions():
    joined = np.zeros((6, 6), bool)
    joined[:3, :3] = True  # an extraction
    joined[0, 3] = joined[3, 0] = True
    found = [Extraction((0, 1, 2), 0, 1.0, 6, True, 0.1)]
    # 15 pairs, 3 of them in the extraction, one of the other 12 joined.
    assert share_of_free_pairs(joined, found) == pytest.approx(1 / 12)
    assert share_of_free_pairs(np.ones((3, 3), bool), [Extraction((0, 1, 2), 0, 1.0, 3, True)]) is None
    whole = edges_within([0.5, None, 0.1])
    assert whole.value == pytest.approx(0.3) and whole.n == 2 and whole.low < 0.3 < whole.high
    assert edges_within([None]).value is None
