"""What the digest and the report say of measured images; every number computed by hand."""

import json
import math
from itertools import pairwise

import numpy as np
import pytest
from tests.report.made import COMMAND, picture
from tests.report.test_html import HOSTILE

from diffmem.data.png import png_bytes
from diffmem.keys import row_key
from diffmem.report.digest import build_digest
from diffmem.report.html import write_report
from diffmem.report.measures.charts import curve_chart, kinds, strip_chart
from diffmem.report.measures.groups import median_interval
from diffmem.report.measures.summary import read_measures
from diffmem.runs.facts import read_fact, write_fact
from diffmem.runs.manifest import open_run, record_stage
from diffmem.runs.provenance import provenance
from diffmem.runs.store import RunStore

VGR = {"summary": "growth of volume", "unit": "nats", "high_means": "more memorized"}
INVMM = {"summary": "divergence from the prior", "unit": "nats per dimension", "high_means": "less memorized"}
LOSS = {"summary": "denoising loss", "unit": "1", "high_means": "less memorized"}


def target_row(name, **more):
    image = more.pop("image", None) or picture(len(name) + sum(map(ord, name)) % 1000, 16)
    return {
        "key": row_key(t=name), "image_id": name, "sha": name, "width": 16, "height": 16, "png": png_bytes(image),
        "duplicates": 1, "status": "ok", **more,
    }  # fmt: skip


def measure_row(name, score, value, evidence=None, **more):
    return {
        "key": row_key(m=name, s=score), "image_id": name, "score": score, "version": "1", "value": value,
        "evidence": value if evidence is None else evidence, "status": "ok", "nfe": 30.0, "nfe_forward": 10.0,
        "nfe_tangent": 20.0, "nfe_backward": 0.0, "seconds": 0.5, "dtype": "float32", "device": "cpu", **more,
    }  # fmt: skip


def vgr_parts(level):
    curve = [[0.01 * 2**i, level * i / 8] for i in range(9)]
    parts = {"curve": curve, "spectrum": [level / (1 + i) for i in range(16)], "cap": 4.5, "k": 16}
    return json.dumps(parts | {"share_of_cap": level / 100, "beyond_cap": 2.0 if level > 90 else 0.0})


def invmm_parts(reached):
    if reached:
        return json.dumps({"status": "reached", "steps": 20, "fresh_passed": 7, "prompt": "amber <cat>"})
    return json.dumps({"status": "not reached", "steps": 1, "worst_similarity": 0.5, "beta": 0.925, "prompt": None})


def measured_run(folder, captions=None, heldout=30):
    """40 trained images (8 of them five times) and held-out ones; a memorization, a never-reached and a membership score."""
    captions = captions or {}
    open_run(
        folder, {"measure": {"scores": ["vgr-bottom", "invmm", "loss"]}}, {"model": "f" * 32}, provenance(), COMMAND
    )
    write_fact(
        folder, "measured-model",
        {"name": "m", "space": "pixel", "mode": "RGB", "width": 16, "height": 16,
         "scores": {"vgr-bottom": VGR, "invmm": INVMM, "loss": LOSS}},
    )  # fmt: skip
    random = np.random.default_rng(3)
    store = RunStore(folder)
    targets, rows = [], []
    for i in range(40):
        name, often = f"train/{i:03d}.png", i < 8
        targets.append(
            target_row(name, member=True, duplicates=5 if often else 1, caption=captions.get(i, f"picture {i}"),
                       group="cats" if i % 2 else "dogs", note="grey turned into RGB" if i == 3 else None)
        )  # fmt: skip
        level = (90.0 if often else 50.0) + i / 10
        rows.append(measure_row(name, "vgr-bottom", level, components=vgr_parts(level)))
        reached = i < 6
        rows.append(
            measure_row(name, "invmm", 0.01 * (i + 1) if reached else math.inf, -0.01 * (i + 1) if reached else -10.0 - i,
                        error_bar=0.001 if reached else None, png=png_bytes(picture(i, 24)),
                        components=invmm_parts(reached))
        )  # fmt: skip
        rows.append(measure_row(name, "loss", 0.2 + i / 100, -0.2 - i / 100))
    for i in range(heldout):
        name = f"heldout/{i:03d}.png"
        targets.append(target_row(name, member=False))
        level = 30.0 + i / 10
        rows.append(measure_row(name, "vgr-bottom", level, components=vgr_parts(level)))
        rows.append(measure_row(name, "loss", 0.1, -0.1 + 1e-4 * float(random.normal())))
    targets.append(
        {"key": row_key(t="torn"), "image_id": "torn.png", "sha": "torn", "status": "error", "error": "torn"}
    )
    rows.append(measure_row("torn.png", "vgr-bottom", None, status="error", error=captions.get("error", "torn file")))
    store.append("targets", targets)
    store.append("measures", rows)
    record_stage(folder, "measure", state="done", done=len(rows), total=len(rows), seconds=12.0)
    return store


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("measured") / "run"
    measured_run(folder)
    return folder


def test_groups_medians_separations_and_costs(run):
    found = read_measures(run)
    assert (found.images, found.held_out, found.unusable, found.converted, found.repeats) == (41, 30, 1, 1, 32)
    assert found.trained is True
    vgr = found.scores[0]
    assert (vgr.score, vgr.unit, vgr.images, vgr.errors, vgr.membership) == ("vgr-bottom", "nats", 70, 1, False)
    groups = {(group.kind, group.name): group for group in vgr.groups}
    assert groups["repeats", "5 to 9 times"].images == 8 and groups["repeats", "once"].images == 32
    assert groups["group", "cats"].images == groups["group", "dogs"].images == 20
    assert groups["set", "held-out"].median == pytest.approx(31.5) and groups["set", "held-out"].images == 30
    pairs = {(pair.positives, pair.negatives): pair for pair in vgr.separations}
    assert pairs["trained", "held-out"].auroc == 1.0 and pairs["trained", "held-out"].p_value < 1e-6
    assert pairs["5 to 9 times", "once"].n_positives == 8 and vgr.warning is None
    assert (vgr.cost.nfe, vgr.cost.nfe_tangent, vgr.cost.seconds) == (30, 20, 0.5)
    assert (vgr.cost.images, vgr.cost.nfe_total) == (71, 2130)  # the torn one was paid for, too
    assert [image.image_id for image in vgr.top[:2]] == ["train/007.png", "train/006.png"]
    assert vgr.bottom[-1].image_id == "heldout/000.png" and vgr.bottom[-1].rank == 70
    assert {curve.name for curve in vgr.curves} == {"once", "5 to 9 times", "held-out"}
    often = next(curve for curve in vgr.curves if curve.name == "5 to 9 times")
    assert often.x[0] == 0.01 and often.median[-1] == pytest.approx(90.35) and often.images == 8


def test_infinite_values_keep_their_order_and_say_so(run):
    invmm = read_measures(run).scores[1]
    assert (
        invmm.infinite == 34 and invmm.top[0].value == 0.01 and invmm.top[0].error_bar == 0.001 and invmm.top[0].strip
    )
    assert invmm.top[6].value == "inf" and invmm.bottom[-1].image_id == "train/039.png"
    once = next(group for group in invmm.groups if group.name == "once")
    assert once.median == "inf"
    # The scale is that of the six finite values: what orders infinite ones would squeeze them into one bar.
    assert (invmm.edges[0], invmm.edges[-1]) == pytest.approx((-0.06, -0.01))
    trained = next(group for group in invmm.groups if group.name == "trained")
    assert (sum(trained.counts), trained.infinite) == (6, 34) and max(trained.counts) == 1
    assert "∞" in strip_chart(invmm)


def test_a_score_without_any_finite_value_is_still_drawn(tmp_path):
    store = measured_run(tmp_path / "run", heldout=0)
    store.append(
        "measures", [measure_row(f"train/{i:03d}.png", "invmm:steps=1", math.inf, -1000.0 + i) for i in range(9)]
    )
    score = next(score for score in read_measures(tmp_path / "run").scores if score.score == "invmm:steps=1")
    assert score.edges == () and score.infinite == 9 and "∞" in strip_chart(score)
    assert "invmm:steps=1" in write_report(tmp_path / "run").read_text()


def test_a_picture_says_how_its_value_came_about(run):
    vgr, invmm, loss = read_measures(run).scores
    assert vgr.top[0].detail == "91 % of the cap, 2 of 16 directions beyond it" and vgr.cap == 4.5
    assert vgr.bottom[-1].detail == "30 % of the cap" and loss.top[0].detail is None
    assert (
        invmm.top[0].detail == "reached after 20 steps; 7 fresh noises passed" and invmm.top[0].fitted == "amber <cat>"
    )
    assert invmm.top[-1].detail == "not reached in 1 step; came to 0.500 of 0.925" and invmm.top[-1].fitted is None
    page = write_report(run).read_text()
    assert "91 % of the cap" in page and "amber &lt;cat&gt;" in page
    assert "amber" not in write_report(run, "hash", hash_prompts=True).read_text()


def test_images_without_a_caption_among_captioned_ones_are_said(tmp_path):
    measured_run(tmp_path / "run")
    assert read_measures(tmp_path / "run").uncaptioned == (0, 0)  # a model that takes no prompts
    fact = read_fact(tmp_path / "run", "measured-model")
    write_fact(tmp_path / "run", "measured-model", fact | {"conditional": True, "condition": "caption"})
    assert read_measures(tmp_path / "run").uncaptioned == (0, 30)
    assert "30 images (30 held-out) came without a caption" in write_report(tmp_path / "run").read_text()
    write_fact(tmp_path / "run", "measured-model", fact | {"conditional": True, "condition": "none"})
    assert read_measures(tmp_path / "run").uncaptioned == (0, 0)


def test_a_group_has_one_colour_in_all_charts(run):
    vgr = read_measures(run).scores[0]
    bars, lines = strip_chart(vgr), curve_chart(vgr.curves, "growth", "x", "y", True)
    assert kinds(vgr.curves) == {"held-out": 0, "once": 1, "5 to 9 times": 2}
    rows = [part.split('"')[0] for part in bars.split('class="bar ')[1:]]
    assert list(dict.fromkeys(rows)) == ["all", "kind-1", "kind-2", "kind-0"]
    assert [part[0] for part in lines.split('class="line kind-')[1:]] == ["1", "2", "0"]


def test_a_reference_above_the_trained_images_is_a_warning(run):
    loss = read_measures(run).scores[2]
    assert loss.membership and "does not tell" in loss.warning and "30" in loss.warning


def test_membership_stands_beside_memorization(run):
    pairs = {pair.memorization: pair for pair in read_measures(run).pairings}
    assert pairs["vgr-bottom"].images == 70 and pairs["invmm"].images == 40
    assert pairs["vgr-bottom"].interval[0] < pairs["vgr-bottom"].spearman < pairs["vgr-bottom"].interval[1]
    assert sum(held for *_, held in pairs["vgr-bottom"].points) == 30
    assert not pairs["vgr-bottom"].ranks and pairs["invmm"].ranks
    assert sorted(y for _, y, _ in pairs["invmm"].points) == list(range(1, 41))


def test_intervals_of_medians_cover_whatever_the_distribution():
    random = np.random.default_rng(0)
    hits = [
        low <= math.log(2) <= high
        for low, high in (median_interval(np.sort(random.exponential(size=25))) for _ in range(2000))
    ]
    assert 0.95 - 0.01 <= np.mean(hits) <= 0.98
    assert median_interval(np.arange(5.0)) == (None, None) and median_interval(np.arange(6.0)) == (0.0, 5.0)


def test_the_digest_is_strict_json_and_leads_with_what_was_measured(run):
    digest = build_digest(run)
    text = json.dumps(digest.model_dump(mode="json"), allow_nan=False)
    assert '"inf"' in text
    finding, _, counts = digest.headline.partition(". ")
    assert finding.startswith("40 of 40 images of the group 'trained' rank above every one of 'held-out' by vgr-bottom")
    assert counts.startswith("41 images beside 30 held-out images")
    assert {method.name for method in digest.methods} >= {"vgr-bottom", "invmm", "loss"}
    assert any("not comparable between models" in limit for limit in digest.limits)
    assert not any("tokenizer" in check.check for check in digest.checks)  # there were no prompts


def test_the_page_shows_rankings_curves_strips_costs_and_no_prompts(run):
    write_fact(run, "shift", {"auroc": 0.9, "low": 0.8, "high": 0.95, "p_value": 0.01, "members": 40, "non_members": 30,
                              "shifted": True, "message": "Members differ by themselves"})  # fmt: skip
    page = write_report(run).read_text()
    for text in (
        "Measured images", "Growth along the path by group", "Growth per direction", "Membership beside memorization",
        "Target and samples of the first 6", "∞", "95&nbsp;% interval", "20 tangent", "Members differ by themselves",
        "shift check", "5 to 9 times", "Mann–Whitney", "±", "Most memorized by this measure",
        "Most surely seen by this measure", "means less surely seen in training", "evidence, more surely seen →",
    ):  # fmt: skip
        assert text in page, text
    assert 'id="prompts"' not in page and page.count("<svg") >= 7


def test_a_run_without_held_out_images_says_that_there_is_no_reference(tmp_path):
    measured_run(tmp_path / "run", heldout=0)
    digest = build_digest(tmp_path / "run")
    assert any("No held-out images" in limit for limit in digest.limits)
    assert "no held-out image for reference" in write_report(tmp_path / "run").read_text()


def test_hostile_captions_and_errors_stay_text_and_go_with_the_prompts(tmp_path):
    captions = dict(enumerate(HOSTILE.values())) | {"error": "<script>alert(1)</script>"}
    measured_run(tmp_path / "run", captions)
    page = write_report(tmp_path / "run").read_text()
    assert "<script>alert" not in page and page.count("<script>") == 1
    hidden = write_report(tmp_path / "run", "hash", hash_prompts=True).read_text()
    assert "picture 39" in page and "picture 39" not in hidden and "alert(1)" not in hidden
    assert "data:image" in page and "data:image" not in hidden


def test_a_blurred_page_has_no_pixels_to_sharpen(tmp_path):
    store = measured_run(tmp_path / "run", heldout=0)
    page = write_report(tmp_path / "run", "blur").read_text()
    sizes = [part.split('"')[1:4:2] for part in page.split('class="blurred"')[1:]]
    widths = [int(part.split('width="')[1].split('"')[0]) for part in page.split('class="blurred"')[1:]]
    assert widths and max(widths) <= 6 and sizes
    assert store.read("targets").num_rows == 41


def test_ranks_are_by_evidence_whatever_the_sign_of_the_value(run):
    for score in read_measures(run, shown=0).scores:
        ranked = [*score.top, *score.bottom]
        assert all(a.evidence >= b.evidence for a, b in pairwise(ranked)) and len(ranked) == score.images


def compared(folder, group, member, values):
    """One score on images of one group each, the second half held out."""
    store = RunStore(folder)
    names = [f"{'' if m else 'heldout/'}{g}/{i:03d}.png" for i, (g, m) in enumerate(zip(group, member, strict=True))]
    rows = [target_row(n, member=bool(m)) | {"group": g} for n, g, m in zip(names, group, member, strict=True)]
    store.append("targets", rows)
    store.append("measures", [measure_row(n, "loss", float(v)) for n, v in zip(names, values, strict=True)])
    return read_measures(folder).scores[0].separations[0]


def test_sets_of_another_mix_of_classes_are_compared_within_them(tmp_path):
    random = np.random.default_rng(0)
    member = np.arange(48) < 24
    group = [str(int(i % 4 == 0) if m else int(i % 4 != 0)) for i, m in enumerate(member)]
    values = random.normal(size=48) - 4 * np.array([int(g) for g in group])
    pair = compared(tmp_path, group, member, values)
    assert pair.strata == 2 and pair.p_value > 0.05 and "within the 2 groups" in pair.note


def test_small_sets_of_unknown_classes_get_no_p_value(tmp_path):
    random = np.random.default_rng(1)
    pair = compared(tmp_path / "a", [None] * 48, np.arange(48) < 24, random.normal(size=48))
    assert pair.p_value is None and "the sets may differ by themselves" in pair.note and 0 <= pair.auroc <= 1
    pair = compared(tmp_path / "b", [None] * 200, np.arange(200) < 100, random.normal(size=200))
    assert pair.p_value is not None and pair.note is None
