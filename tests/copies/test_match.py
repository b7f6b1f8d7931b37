import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from diffmem.copies.agreement import agreement
from diffmem.copies.descriptors.l2 import L2Tiled
from diffmem.copies.index import CopyIndex
from diffmem.copies.match import match
from diffmem.copies.metrics import Metric
from diffmem.copies.statistics import neighbourhood
from diffmem.errors import DataError, UsageError

DESCRIPTOR = L2Tiled.of(side=8, channels=1)


def train(seed=0, n=120):
    """Distinct images, of which number 3 lies there five times and number 4 with a slightly changed twin."""
    rng = np.random.default_rng(seed)
    base = rng.uniform(size=(n, 64)).astype(np.float32)
    near = base[4:5] + np.float32(0.01)
    return np.concatenate([base, base[[3, 3, 3, 3]], near]), rng


def definition(query, vectors, groups, n, alpha=0.5):
    """Ratio and normalised distance from the definitions, over one distance per group."""
    distance = np.sqrt(np.square(vectors.astype(float) - query.astype(float)).mean(1))
    per_group = np.sort([distance[groups == g].min() for g in np.unique(groups)])
    return per_group[0] / per_group[1], per_group[0] / (alpha * per_group[:n].mean())


@given(st.integers(0, 10**6), st.integers(2, 60))
def test_statistics_are_the_definitions_over_distinct_groups(seed, n):
    vectors, rng = train(seed, 40)
    index = CopyIndex.from_vectors(vectors, DESCRIPTOR)
    groups = index.duplicates().group
    queries = np.concatenate([vectors[:3] + 0.02 * rng.normal(size=(3, 64)), rng.uniform(size=(2, 64))])
    found = neighbourhood(queries, index, nearest=n)
    for i, query in enumerate(queries):
        ratio, normalised = definition(query, vectors, groups, n)
        assert found.ratio[i] == pytest.approx(ratio, abs=1e-9)
        assert found.normalised[i] == pytest.approx(normalised, abs=1e-9)


def test_matches_name_the_group_and_ignore_its_other_members():
    vectors, _ = train()
    index = CopyIndex.from_vectors(vectors, DESCRIPTOR, [f"im-{i}" for i in range(len(vectors))])
    rows = match(vectors[[3, 10]] + np.float32(0.001), index, k=3)
    assert [(m.query, m.rank) for m in rows] == [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (1, 3)]
    first = rows[0]
    assert (first.train_id, first.group, first.group_size) == ("im-3", "im-3", 5)
    assert first.distance == pytest.approx(0.001, abs=1e-6) and first.similarity == pytest.approx(0.999, abs=1e-6)
    assert first.ratio == pytest.approx(first.distance / rows[1].distance) and first.ratio < 0.02
    assert {m.group for m in rows[:3]} & {"im-120", "im-121"} == set()
    assert rows[1].ratio is None and rows[1].normalised is None
    assert rows[3].group_size == 1
    twin = match(vectors[4:5], index)[0]
    assert (twin.train_id, twin.group_size, twin.ratio) == ("im-4", 2, 0)


def test_k_does_not_change_the_normalised_distance():
    vectors, rng = train()
    index = CopyIndex.from_vectors(vectors, DESCRIPTOR)
    query = rng.uniform(size=(1, 64))
    values = {match(query, index, k=k, nearest=5)[0].normalised for k in (1, 4, 9)}
    assert len(values) == 1 and len(match(query, index, k=9, nearest=5)) == 9


def test_orientation_higher_is_more_like_a_copy():
    vectors, rng = train()
    index = CopyIndex.from_vectors(vectors, DESCRIPTOR)
    copy, other = match(np.stack([vectors[7] + np.float32(0.01), rng.uniform(size=64)]), index)
    for statistic in ("similarity", "ratio", "normalised"):
        assert copy.oriented(statistic) > other.oriented(statistic)
    found = neighbourhood(vectors[:2], index)
    assert found.oriented("similarity").tolist() == [1, 1] and found.oriented("ratio").tolist() == [0, 0]
    with pytest.raises(UsageError, match="no copy statistic 'size'"):
        found.oriented("size")


def test_a_single_group_has_no_ratio():
    index = CopyIndex.from_vectors(np.repeat(np.full((1, 64), 0.5), 4, 0), DESCRIPTOR)
    (found,) = match(np.full((1, 64), 0.6), index, k=3)
    assert found.ratio is None and found.normalised is None and found.oriented("ratio") is None
    assert found.distance == pytest.approx(0.1, abs=1e-6) and found.group_size == 4


def test_images_are_described_by_the_index():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 8, 8), dtype=np.uint8)
    index = CopyIndex.build(list(pixels), DESCRIPTOR)
    assert match([Image.fromarray(pixels[5])], index)[0].train_id == "000005"
    assert match([], index) == [] and match(np.zeros((0, 64)), index) == []
    with pytest.raises(UsageError, match="PIL images only"):
        match([pixels[0]], index)
    with pytest.raises(UsageError, match="at least 1"):
        match(np.zeros((1, 64)), index, k=0)
    with pytest.raises(UsageError, match="at least 2"):
        neighbourhood(np.zeros((1, 64)), index, nearest=1)


# --- agreement -------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.integers(2, 12), st.sampled_from([Metric("cosine"), Metric("tiled-rms", 2)]))
def test_agreement_is_over_all_pairs(seed, k, metric):
    rng = np.random.default_rng(seed)
    vectors = rng.uniform(size=(k, 4))[rng.integers(0, k, k)]
    pairs = {(i, j): metric.exact(vectors[[i]], vectors[[j]])[0] for i in range(k) for j in range(i)}
    cut = float(rng.choice(list(pairs.values())))
    found = agreement(vectors, metric, cut)
    assert found.pairs == k * (k - 1) // 2
    assert found.mean == pytest.approx(np.mean(list(pairs.values()))) and found.highest == max(pairs.values())
    assert found.edges == sum(value >= cut for value in pairs.values())
    sets = [{i} for i in range(k)]
    for (i, j), value in pairs.items():
        if value >= cut:
            a, b = next(s for s in sets if i in s), next(s for s in sets if j in s)
            if a is not b:
                sets.remove(b)
                a |= b
    assert found.largest == max(map(len, sets))


def test_agreement_is_high_where_one_image_repeats():
    rng = np.random.default_rng(0)
    memorized = rng.uniform(size=64) + 0.02 * rng.normal(size=(8, 64))
    free = rng.uniform(size=(8, 64))
    one, two = (agreement(v, "tiled-rms", 0.9) for v in (memorized, free))
    assert one.mean > two.mean and (one.edges, one.largest) == (28, 8) and (two.edges, two.largest) == (0, 1)


def test_agreement_of_too_few_images():
    assert agreement(np.ones((1, 3)), "cosine", 0.5).mean is None
    assert agreement(np.ones((0, 3)), "cosine", 0.5).largest == 0
    with pytest.raises(DataError, match="row 1"):
        agreement(np.array([[1.0], [np.nan]]), "cosine", 0.5)
    with pytest.raises(UsageError, match=r"\[k, D\]"):
        agreement(np.ones(3), "cosine", 0.5)
