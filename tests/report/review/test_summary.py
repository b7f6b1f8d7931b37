"""The review in the verdict, the report, JSON and gates; estimates against truth that is known."""

from datetime import UTC, datetime

import numpy as np
import pytest
from tests.report.made import add_prompts, image_row, match_row, new_run, picture, small_run
from tests.report.review.test_labels import rows_of, with_fingerprint

from diffmem.cli.app import main
from diffmem.keys import row_key
from diffmem.report.columns import read_prompts
from diffmem.report.digest import build_digest
from diffmem.report.html import write_report
from diffmem.report.matches import judge, read_match_rows
from diffmem.report.pair_identity import PairContent
from diffmem.report.review.estimate import Unit, precision, recall, strata_of
from diffmem.report.review.labels import Place, append, make_label
from diffmem.report.review.sample import draw_sample, keep_sample, read_sample
from diffmem.runs.store import RunStore

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


def matches_of(folder):
    store = RunStore(folder)
    rows = read_match_rows(store)
    return judge(folder, rows, read_prompts(store, rows))[1]


def say(folder, reviewer, category, *names):
    """Label the pairs (prompt, draw) of a run; the pictures themselves do not matter here."""
    made = []
    for row in rows_of(folder)[1].values():
        if (row["prompt_id"], row["draw"]) in names:
            place = Place(row["image_key"], row["prompt_id"], row["draw"], row["train_id"], "a" * 32)
            number = int.from_bytes(row["image_key"][:4], "big")
            content = PairContent(bytes([number % 256]) * 3072, row["image_key"] * 192, (0.01, 0.01))
            made.append(make_label(reviewer, category, "", content, place, NOON))
    assert len(made) == len(names)
    append(RunStore(folder), made)


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    small_run(folder)
    with_fingerprint(folder)
    return folder


def test_a_pair_that_reviewers_call_a_copy_is_confirmed(run):
    assert build_digest(run, methods=False).verdict.by is None
    say(run, "anna", "altered copy", ("a", 0))
    say(run, "bert", "cannot say", ("a", 0))
    found = build_digest(run, methods=False)
    assert (found.verdict.state, found.verdict.by, found.verdict.confirmed) == ("reproduces", "review", 1)
    assert "1 confirmed by 2 reviewers" in found.verdict.sentence
    assert (found.review.called, found.review.called_labelled, found.review.copies) == (2, 1, 1)
    say(run, "carl", "unrelated", ("a", 0))
    found = build_digest(run, methods=False)
    assert found.verdict.by != "review" and found.review.disputed == 1
    shown = {pair.prompt_id: pair.said for gallery in found.galleries for pair in gallery.pairs}
    assert shown.pop("a") == {"anna": "altered copy", "bert": "cannot say", "carl": "unrelated"}
    assert shown and not any(shown.values())
    assert "<p><bdi>anna</bdi>: altered copy; <bdi>bert</bdi>: cannot say; " in write_report(run).read_text()
    assert found.copies.images_copied == 2, "a disputed pair stays as the rule has it"
    assert [(one.train_id, one.said) for one in found.review.disagreements] == [
        ("t0.png", {"anna": "altered copy", "bert": "cannot say", "carl": "unrelated"})
    ]


def test_a_pair_below_the_threshold_can_be_confirmed_too(run):
    say(run, "anna", "copy", ("b", 0))
    found = build_digest(run, methods=False)
    assert (found.verdict.by, found.review.copies, found.review.called_labelled) == ("review", 1, 0)


def test_a_refuted_pair_counts_no_longer_even_if_it_is_pixel_for_pixel(tmp_path):
    folder = tmp_path / "run"
    small_run(folder)
    with_fingerprint(folder)
    from diffmem.runs.facts import read_fact, write_fact

    fact = read_fact(folder, "copies")
    write_fact(folder, "copies", fact | {"descriptor": fact["descriptor"] | {"metric": ["tiled-rms", 4]}})
    RunStore(folder).append("matches", [match_row("a", 0, "t0.png", 0.1, turn=3, similarity=1.0)])
    assert build_digest(folder, methods=False).verdict.by == "pixel identity"
    say(folder, "anna", "unrelated", ("a", 0))
    found = build_digest(folder, methods=False)
    assert found.verdict.state != "reproduces" and found.verdict.confirmed == 0
    assert (found.copies.images_copied, found.review.called, found.review.refuted) == (1, 2, 1)
    assert "reviewers call no copies" in found.verdict.sentence or found.verdict.state == "unknown"


def test_report_terminal_and_gates_read_the_review(run, capsys):
    gate = ["show", str(run), "--fail-if", "precision<0.9"]
    assert main(gate) == 3, "nobody has labelled"
    say(run, "<b>anna", "copy", ("a", 0))
    say(run, "<b>anna", "unrelated", ("c", 0), ("d", 0), ("e", 0))
    say(run, "bert", "same subject", ("c", 0), ("a", 0))
    keep_sample(run, matches_of(run), below=10)
    capsys.readouterr()
    assert main(["show", str(run)]) == 0
    out = capsys.readouterr().out
    assert "Review   " in out and "precision 0.25" in out and "(2)" in out
    page = write_report(run).read_text()
    assert 'id="review"' in page and "&lt;b&gt;anna" in page and "<b>anna" not in page
    assert main(gate) == 1
    assert "precision is 0.25" in capsys.readouterr().err
    assert main(["show", str(run), "--fail-if", "review.disputed>5"]) == 0
    assert main(["show", str(run), "--fail-if", "recall>5"]) == 2
    say(run, "anna", "copy", ("b", 0), ("a", 1))
    found = build_digest(run, methods=False).review
    assert [(s.stratum, s.images, s.drawn, s.used) for s in found.strata] == [("called", 2, 2, 2), ("below-1", 4, 4, 4)]
    # Called: half a copy (one of two says so) and none; below: two copies.
    assert (found.precision, found.recall) == (pytest.approx(0.25), pytest.approx(0.5 / 2.5))
    assert found.agreements[0].pairs == 2 and found.agreements[0].differing == 2


def test_a_sample_holds_all_calls_and_each_image_with_its_probability():
    random = np.random.default_rng(0)
    statistic = random.normal(size=1000)
    statistic[:5] = np.nan
    called = statistic > 1.8
    keys = [row_key(n=i) for i in range(1000)]
    drawn = draw_sample(statistic, called, keys, below=80)
    by = {}
    for one in drawn:
        by.setdefault(one.stratum, []).append(one)
    assert {one.number for one in by.pop("called")} == {*np.flatnonzero(called)}
    assert [len(members) for members in by.values()] == [20] * 4
    sizes = [members[0].size for members in by.values()]
    assert sizes[:3] == [20, 80, 320] and sum(sizes) == 995 - called.sum()
    for members in by.values():
        assert {one.inclusion for one in members} == {20 / members[0].size}
        assert sorted(one.place for one in members) == list(range(20))
    again = {one.number for one in draw_sample(statistic[:990], called[:990], keys[:990], below=80)}
    assert len(again & {one.number for one in drawn}) > 0.85 * len(drawn), "most stay when images come or go"
    counts = np.zeros(1000)
    for seed in range(200):
        for one in draw_sample(statistic, called, keys, below=80, seed=seed):
            counts[one.number] += 1
    for one in drawn:
        sd = np.sqrt(200 * one.inclusion * (1 - one.inclusion))
        assert abs(counts[one.number] - 200 * one.inclusion) <= 4.5 * sd + 1e-9


def test_only_the_first_part_of_the_random_order_is_used():
    """A reviewer who labels what looks like a copy first must not raise the estimate."""
    units = [Unit("below-1", 100, place, False, 1.0 if place == 3 else 0.0, place in (0, 1, 3)) for place in range(5)]
    stratum = strata_of(units)[0]
    assert (stratum.drawn, stratum.labelled, stratum.used) == (5, 3, 2)
    assert [unit.said for unit in stratum.units] == [0, 0] and stratum.weight == 50
    unsure = [Unit("called", 4, place, True, None if place == 1 else 1.0, True) for place in range(4)]
    assert strata_of(unsure)[0].weight == pytest.approx(4 / 3) and precision(strata_of(unsure)).n == 3


@pytest.mark.parametrize("share", [0.02, 0.3])
def test_estimates_of_drawn_samples_hold_the_truth(share):
    """A run of 1,500 images whose copies are known: samples are drawn, labelled by the truth and estimated from."""
    random = np.random.default_rng(int(100 * share))
    held, reps = np.zeros(2), 200
    keys = [row_key(n=i) for i in range(1500)]
    copy = random.random(1500) < share
    statistic = random.normal(size=1500) + 2.5 * copy
    called = statistic > 2.4
    truth = copy[called].mean(), called[copy].mean()
    for seed in range(reps):
        units = [
            Unit(one.stratum, one.size, one.place, bool(called[one.number]), float(copy[one.number]), True)
            for one in draw_sample(statistic, called, keys, 200, seed)
        ]
        strata = strata_of(units)
        found = precision(strata), recall(strata)
        assert found[0].value == pytest.approx(truth[0])
        held += [one.low <= true <= one.high for one, true in zip(found, truth, strict=True)]
    assert (held / reps >= 0.93).all(), held / reps


def test_a_sample_is_drawn_again_only_where_it_has_to_be(tmp_path):
    folder = tmp_path / "run"
    store = new_run(folder)
    from tests.report.made import THRESHOLD

    from diffmem.runs.facts import read_fact, write_fact

    write_fact(
        folder, "copies", {"threshold": THRESHOLD, "descriptor": {"name": "l2-tiled"}, "problems": {}, "train": "a"}
    )
    add_prompts(store, [(f"p{i:02d}", "text", None) for i in range(40)])
    store.append("images", [image_row(f"p{i:02d}", 0, picture(i, 4)) for i in range(40)])
    store.append("matches", [match_row(f"p{i:02d}", 0, f"t{i}", 0.3 + 0.02 * i) for i in range(39)])
    first = keep_sample(folder, matches_of(folder), below=8)
    assert keep_sample(folder, matches_of(folder)) == first
    assert keep_sample(folder, matches_of(folder), below=8, seed=0) == first
    assert len(read_sample(folder, first["sample"])) == 11 + 8
    fact = read_fact(folder, "copies")
    write_fact(folder, "copies", fact | {"threshold": THRESHOLD | {"value": -0.4}})
    assert keep_sample(folder, matches_of(folder)) == first, "fewer calls, all of them in it"
    write_fact(folder, "copies", fact | {"threshold": THRESHOLD | {"value": -0.9}})
    second = keep_sample(folder, matches_of(folder))
    assert second["sample"] != first["sample"]
    store.append("matches", [match_row("p39", 0, "t39", 2.0)])
    assert keep_sample(folder, matches_of(folder))["images"] == 40
    assert keep_sample(folder, matches_of(folder), seed=1)["seed"] == 1
