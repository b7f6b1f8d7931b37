"""The digest of small runs against numbers computed by hand, and of runs that lack a part."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.report.made import add_prompts, image_row, new_run, picture, score_row, small_run

from diffmem.errors import DataError
from diffmem.evaluation.bootstrap import auroc_interval
from diffmem.evaluation.roc import tpr_at_fpr
from diffmem.report.digest import build_digest, write_digest
from diffmem.report.prose import BUDGET, SHORT
from diffmem.report.rates import curve, histogram
from diffmem.report.scores import per_prompt
from diffmem.report.shape import Digest
from diffmem.runs.facts import write_fact
from diffmem.runs.store import RunStore


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "run"
    small_run(folder)
    return folder


@pytest.fixture(scope="module")
def digest(run):
    return build_digest(run, methods=False)


def test_scores_are_means_over_draws_and_joint_rows_count_once_the_latest(digest):
    by_name = {score.score: score for score in digest.scores}
    top = by_name["s"].top
    assert [(t.prompt_id, t.value) for t in top] == [("a", 4.0), ("c", 2.0), ("b", 1.0), ("d", 0.0)]
    assert top[0].sd == pytest.approx(math.sqrt(2))
    assert (by_name["s"].prompts, by_name["s"].errors, by_name["s"].reason) == (4, 1, "empty prompt")
    assert by_name["s"].median == 1.5
    joint = by_name["j"].top
    assert [(t.prompt_id, t.value) for t in joint] == [("a", 8.0), ("c", 4.0), ("b", 2.0), ("d", 0.0)]
    assert joint[0].sd == pytest.approx(np.std([0, 16], ddof=1))


def test_values_per_prompt_are_those_of_the_rows_read_one_by_one(run, digest):
    rows = per_prompt(RunStore(run))
    for score in digest.scores:
        assert {t.prompt_id: (t.value, t.sd) for t in score.top} == {
            p: (e["value"], pytest.approx(e["sd"])) for p, e in rows[score.score].items() if e["status"] == "ok"
        }


def test_separation(digest):
    roc = {score.score: score.roc for score in digest.scores}["s"]
    assert (roc.positives, roc.negatives, roc.auroc) == (2, 2, 0.75)
    assert roc.curve == ((0.0, 0.5), (0.5, 1.0), (1.0, 1.0))
    assert not roc.points[0].measurable
    assert (roc.points[0].tpr, roc.points[0].realised_fpr) == (0.5, 0.0)


def test_copies_are_counted_per_image_prompt_and_training_group(digest):
    copies = digest.copies
    assert (copies.images_copied, copies.images_matched) == (2, 6)
    assert (copies.prompts_copied, copies.prompts_matched) == (2, 5)
    assert copies.prompts_copied_interval == pytest.approx((0.05274, 0.85337), abs=1e-5)
    assert copies.training_images_copied == 1, "t0 and t1 are near-duplicates of each other"
    assert (copies.planted, copies.found, copies.negatives, copies.false) == (2, 1, 2, 1)
    assert (copies.unlabelled, copies.unlabelled_copied, copies.unreadable) == (1, 0, 1)
    assert digest.verdict.state == "unknown", "5 prompts with the same training image behind both calls"
    assert "2 of 5 prompts gave images that are called copies of 1 training image" in digest.headline
    assert digest.images.model_dump() == {"made": 7, "errors": 0, "degenerate": 1, "uncounted": 0}


def test_galleries_sort_pairs_by_what_is_known_of_them(digest):
    shown = {g.section: [(p.prompt_id, p.draw, p.train_id, p.value) for p in g.pairs] for g in digest.galleries}
    assert shown == {
        "copies": [("a", 0, "t0.png", 0.1)],
        "false": [("c", 0, "t1.png", 0.2)],
        "missed": [("b", 0, "t3.png", 0.7)],
        "below": [("e", 0, "t5.png", 0.6), ("d", 0, "t4.png", 0.8)],
    }
    pair = digest.galleries[0].pairs[0]
    assert (pair.images, pair.prompts, pair.seed) == (2, 2, 1000)
    command = "diffmem generate ./model 'prompt a' --images-per-prompt 1 --seed 7 --steps 20 --guidance 2.0 --out again"
    assert pair.command == command


def test_the_table_holds_every_prompt_copies_first(digest):
    rows = digest.table.rows
    assert [row.prompt_id for row in rows] == ["a", "c", "b", "d", "e"]
    assert [(row.copied, row.matched) for row in rows] == [(1, 2), (1, 1), (0, 1), (0, 1), (0, 1)]
    assert digest.table.scores == ("j", "s")
    assert rows[0].values == (8.0, 4.0)
    assert (rows[4].values, rows[4].problem) == ((None, None), "empty prompt")


def test_checks_name_what_failed_and_what_was_not_run(run, digest, tmp_path):
    states = {check.check: check.state for check in digest.checks}
    assert states["scoring sees the pipeline's network"] == "passed"
    assert states["score s"] == "note"
    assert states["copy threshold is calibrated"] == "passed"
    assert states["training images"] == "note"
    new_run(tmp_path / "r")
    assert build_digest(tmp_path / "r", methods=False).checks[0].state == "not run"
    with pytest.raises(DataError, match="no run directory"):
        build_digest(tmp_path / "nothing")


def test_the_schema_holds_and_refuses(run):
    jsonschema = pytest.importorskip("jsonschema")
    path = write_digest(run, build_digest(run))
    document = json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    schema = Digest.json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(document, schema)
    for wrong in ({**document, "surprise": 1}, {k: v for k, v in document.items() if k != "table"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


def test_summary_is_the_digest_without_methods(run):
    summary = build_digest(run, methods=False).model_dump(mode="json")
    assert summary["methods"] == []
    assert summary["copies"]["found"] == 1
    assert {m.name for m in build_digest(run).methods} == {"j", "s", "l2-tiled, normalised"}


def test_a_run_with_scores_only(tmp_path):
    store = new_run(tmp_path / "r")
    add_prompts(store, [("a", "x", None), ("b", "y", None)])
    store.append("scores", [score_row("a", "s", 0, 1.0), score_row("b", "s", 0, math.inf)])
    digest = build_digest(tmp_path / "r", methods=False)
    assert (digest.copies, digest.images, digest.galleries, digest.verdict.state) == (None, None, (), "unknown")
    assert digest.scores[0].roc is None
    assert digest.scores[0].p95 is None, "an infinite quantile has no JSON form"
    assert [t.prompt_id for t in digest.scores[0].top] == ["a"]
    json.dumps(digest.model_dump(mode="json"), allow_nan=False)


def test_a_run_without_a_training_set_and_an_empty_one(tmp_path):
    store = new_run(tmp_path / "r")
    add_prompts(store, [("a", "x", None)])
    store.append("images", [image_row("a", 0, picture(1))])
    write_fact(tmp_path / "r", "copies", {"threshold": None, "descriptor": {"name": "l2-tiled"}, "problems": {}})
    digest = build_digest(tmp_path / "r", methods=False)
    assert digest.copies is None
    assert "no training set was given" in digest.headline
    new_run(tmp_path / "empty")
    empty = build_digest(tmp_path / "empty", methods=False)
    assert (empty.prompts.total, empty.scores, empty.table.rows) == (0, (), ())


def test_long_prompts_are_cut_within_a_budget_for_all_of_them(tmp_path):
    store = new_run(tmp_path / "r")
    texts = {f"{i:04d}": f"{i} " + "x" * 10_000 for i in range(400)}
    add_prompts(store, [(key, text, None) for key, text in texts.items()])
    rows = build_digest(tmp_path / "r", methods=False).table.rows
    assert sum(len(row.prompt.text) for row in rows) <= BUDGET + 400 * SHORT
    assert all(texts[row.prompt_id].startswith(row.prompt.text) for row in rows)
    assert {row.prompt.length for row in rows[:5]} == {10_002}


scores = st.lists(st.integers(0, 12).map(float), min_size=1, max_size=30).map(np.array)


@given(scores, scores)
def test_every_point_of_the_curve_is_the_best_threshold_for_its_rate(positives, negatives):
    points = curve(positives, negatives)
    assert points == tuple(sorted(points))
    assert points[-1] == (1.0, 1.0)
    for fpr, tpr in points[:-1]:
        if 0 < fpr < 1:
            assert tpr == pytest.approx(tpr_at_fpr(positives, negatives, fpr).tpr)


def test_a_thinned_curve_keeps_its_ends_and_stays_on_the_curve():
    rng = np.random.default_rng(0)
    positives, negatives = rng.normal(1, 1, 5000), rng.normal(0, 1, 5000)
    points = curve(positives, negatives)
    assert len(points) <= 200
    assert points[0][0] == 0.0
    for fpr, tpr in points[1:-1]:
        assert tpr == pytest.approx(tpr_at_fpr(positives, negatives, fpr).tpr)


@given(st.lists(st.floats(allow_nan=False), min_size=1, max_size=60), st.randoms())
def test_a_histogram_counts_every_finite_value_once(values, random):
    labels = np.array([random.choice([-1, 0, 1]) for _ in values], np.int8)
    found = histogram(np.array(values), labels)
    finite = np.isfinite(values)
    if found is None:
        assert not finite.any()
        return
    assert sum(found.total) == finite.sum()
    assert all(a < b for a, b in zip(found.edges, found.edges[1:], strict=False))
    if found.positive is not None:
        assert sum(found.positive) == (finite & (labels == 1)).sum()


def test_intervals_count_near_duplicates_once_and_know_the_draws(tmp_path):
    words = [
        "a red fox",
        "harbour at dawn",
        "seven blue chairs",
        "portrait of a king",
        "wet street, neon",
        "map of a city",
        "old violin",
        "two zebras",
        "glacier lake",
        "jazz quartet",
    ]
    texts = [*words, words[0] + "!", words[3] + "!"]
    labels = [True, True, True, False, False, False, True, True, False, False, True, False]
    values = np.random.default_rng(0).normal(size=(12, 3)) + 0.5 * np.array(labels)[:, None]
    store = new_run(tmp_path / "r")
    add_prompts(store, [(str(i), text, label) for i, (text, label) in enumerate(zip(texts, labels, strict=True))])
    store.append("scores", [score_row(str(i), "s", d, values[i, d]) for i in range(12) for d in (2, 0, 1)])
    store.append("scores", [score_row(str(i), "j", None, values[i].mean(), list(values[i])) for i in range(12)])
    expected = auroc_interval(values, labels, [*range(10), 0, 3])
    for score in build_digest(tmp_path / "r", methods=False).scores:
        assert score.roc.interval == pytest.approx((expected.low, expected.high))
        assert "near-duplicate" in score.roc.interval_note


def test_without_enough_distinct_prompts_there_is_no_interval_and_it_says_why(digest):
    for score in digest.scores:
        assert score.roc.interval is None
        assert "at least 2 of each" in score.roc.interval_note
