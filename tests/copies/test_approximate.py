"""Approximate search: exact where its recall says 1, its recall measured against the truth, and refused without FAISS."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
from tests.tiny import picture

from diffmem.cli.app import main
from diffmem.copies import approximate
from diffmem.copies.approximate import ApproximateSearch, choose_search, recall_at_1
from diffmem.copies.descriptors.l2 import L2Tiled
from diffmem.copies.duplicates import near_duplicates
from diffmem.copies.index import CopyIndex
from diffmem.copies.metrics import Metric
from diffmem.copies.neighbors import top_k
from diffmem.copies.vectors import Vectors
from diffmem.errors import UsageError

FAISS = pytest.mark.skipif(importlib.util.find_spec("faiss") is None, reason="the extra faiss is not installed")
METRICS = [Metric("cosine"), Metric("tiled-rms"), Metric("tiled-rms", 4)]


def corpus(count=3000, dimension=16, seed=0):
    """Clouds of points, in two parts."""
    random = np.random.default_rng(seed)
    rows = random.normal(size=(30, dimension))[random.integers(0, 30, count)] + 0.3 * random.normal(
        size=(count, dimension)
    )
    rows = rows.astype(np.float32)
    return Vectors([rows[: count // 3], rows[count // 3 :]], dimension)


def queries(vectors, count=80, seed=1):
    random = np.random.default_rng(seed)
    near = vectors[random.integers(0, len(vectors), count)]
    return (near + 0.2 * random.normal(size=near.shape)).astype(np.float32)


@FAISS
@pytest.mark.parametrize("metric", METRICS, ids=str)
@pytest.mark.parametrize("grouped", [False, True])
def test_it_is_the_exact_search_where_all_cells_are_looked_into(metric, grouped, monkeypatch):
    vectors = corpus()
    asked = queries(vectors)
    random = np.random.default_rng(2)
    groups = random.integers(0, 1500, len(vectors)) if grouped else None
    exclude = random.integers(0, 1500, len(asked)) if grouped else None
    monkeypatch.setattr(approximate, "FEWEST_CANDIDATES", len(vectors))
    search = ApproximateSearch(vectors, metric, probes=10_000)
    found = search.top_k(asked, 5, groups, exclude)
    exact = top_k(asked, vectors, 5, metric, groups=groups, exclude=exclude)
    np.testing.assert_array_equal(found[1], exact[1])
    np.testing.assert_array_equal(found[0], exact[0])
    recall = recall_at_1(search, asked, groups)
    assert (recall.value, recall.n, recall.high) == (1.0, 80, 1.0) and 0.95 < recall.low < 1


@FAISS
@pytest.mark.parametrize("memory", [1 << 30, 0])
def test_the_recall_is_the_share_that_was_found(memory):
    """Quantized and looked for in one cell only, it misses some; what it finds it compares exactly."""
    vectors, metric = corpus(10_000), Metric("tiled-rms")
    asked = queries(vectors, 300)
    search = ApproximateSearch(vectors, metric, probes=1, memory=memory)
    similarity, row = search.top_k(asked, 1)
    best, nearest = top_k(asked, vectors, 1, metric)
    np.testing.assert_array_equal(similarity[:, 0], metric.exact(asked, vectors[row[:, 0]]))
    share = float((row == nearest).mean())
    assert 0.5 < share < 1 and (similarity <= best).all()
    recall = recall_at_1(search, asked, most=300)
    assert recall.value == pytest.approx(share) and recall.low < share < recall.high
    sampled = recall_at_1(search, asked, most=100)
    assert sampled.n == 100 and sampled.low < share < sampled.high
    assert recall_at_1(search, asked[:0]).value is None


@FAISS
def test_near_duplicates_among_the_candidates():
    vectors, metric = corpus(1000), Metric("tiled-rms")
    rows = vectors[np.arange(len(vectors))]
    rows[500:520] = rows[100:120] + 1e-3
    rows[700] = rows[3]
    search = ApproximateSearch(Vectors([rows], 16), metric)
    exact = near_duplicates(rows, metric, 0.99)
    found = near_duplicates(rows, metric, 0.99, candidates=lambda q: search.candidates(q, 16), chunk=64)
    assert exact.count == 979
    np.testing.assert_array_equal(found.group, exact.group)


@FAISS
def test_an_index_keeps_its_search_until_it_grows(tmp_path):
    index = CopyIndex.build([picture(i) for i in range(50)], L2Tiled.of(side=8, channels=3), tmp_path / "i")
    exact = index.top_k(index.vectors[np.arange(9)], 3)
    assert index.use_search() == "exact" and index.approximate is None
    assert index.use_search("faiss") == "faiss"
    (file,) = (tmp_path / "i").glob("faiss-*")
    made = file.stat().st_mtime_ns
    again = CopyIndex.load(tmp_path / "i")
    again.use_search("faiss")
    assert file.stat().st_mtime_ns == made
    for one in (index, again):
        for mine, truth in zip(one.top_k(index.vectors[np.arange(9)], 3), exact, strict=True):
            np.testing.assert_array_equal(mine, truth)
    index.append({"new": picture(99)})
    assert index.approximate is None
    index.use_search("faiss")
    assert not file.exists() and len(list((tmp_path / "i").glob("faiss-*"))) == 1
    assert index.top_k(index.describe([picture(99)]), 1)[1].tolist() == [[50]]


def test_which_search_is_taken(monkeypatch):
    there = importlib.util.find_spec("json")
    monkeypatch.setattr(approximate, "find_spec", lambda name: there)
    assert [choose_search(None, n) for n in (10_000_000, 10_000_001)] == ["exact", "faiss"]
    assert choose_search("exact", 10**9) == "exact" and choose_search("faiss", 1) == "faiss"
    with pytest.raises(UsageError, match="no search 'annoy'"):
        choose_search("annoy", 1)
    monkeypatch.setattr(approximate, "find_spec", lambda name: None)
    assert choose_search(None, 10**9) == "exact"
    with pytest.raises(UsageError, match=r"pip install 'diffmem\[faiss\]'"):
        choose_search("faiss", 1)


@FAISS
def test_typed(tmp_path, monkeypatch, capsys):
    for name, places in (("train", range(60)), ("made", (3, 9, 200))):
        (tmp_path / name).mkdir()
        for i in places:
            picture(i, 0.01).save(tmp_path / name / f"{i}.png")
    command = ["match", str(tmp_path / "made"), "--train", str(tmp_path / "train"), "--quiet"]
    assert main([*command, "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["search"] == {"method": "exact", "recall_at_1": None}
    assert main([*command, "--search", "faiss", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    recall = found["search"]["recall_at_1"]
    assert (found["search"]["method"], recall["value"], recall["n"], recall["level"]) == ("faiss", 1.0, 3, 0.95)
    assert found["matches"] == plain["matches"]
    assert main([*command, "--search", "faiss"]) == 0
    assert "recall@1, 95 % interval" in capsys.readouterr().err
    monkeypatch.setattr(approximate, "find_spec", lambda name: None)
    assert main([*command, "--search", "faiss"]) == 2
    assert "pip install 'diffmem[faiss]'" in capsys.readouterr().err
