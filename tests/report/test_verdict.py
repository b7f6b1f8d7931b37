"""The verdict: what each state rests on, and which comes first."""

import json
import re

import numpy as np
import pytest
from tests.report.made import COMMAND, THRESHOLD, add_prompts, image_row, match_row, new_run, picture

from diffmem.copies.alignment import Alignment
from diffmem.evaluation.chance import Chance, fewest_calls, fewest_signed_prompts, most_not_excluded, sign_test
from diffmem.evaluation.proportion import clopper_pearson
from diffmem.report.digest import build_digest
from diffmem.runs.facts import write_fact
from diffmem.runs.manifest import record_stage

LADY = "the portrait of a lady in a red dress number {}"

DESCRIPTOR = {"name": "l2-tiled", "misses": "crops", "images": 500, "metric": ["tiled-rms", 9]}


def aligned(evidence, verified=31.0):
    found = Alignment(0, evidence, 3.0, 0.25, 0.9, (2.0, 0, 1.0, 0, 2.0, 1.0), (0, 0, 0.5, 0.5))
    return {"verified": verified, "alignment": json.dumps(found.as_dict())}


def made_run(
    folder,
    calls,
    prompts=120,
    *,
    text=None,
    threshold=None,
    check=True,
    descriptor=DESCRIPTOR,
    label=None,
    command=COMMAND,
):
    """One image per prompt; `calls` are the training images of the called ones, {prompt: train id} or a number."""
    calls = {i: f"t{i}" for i in range(calls)} if isinstance(calls, int) else calls
    store = new_run(folder, command=command)
    random = np.random.default_rng(3)
    text = text or (lambda i: "".join(chr(int(n)) for n in random.integers(97, 123, 40)))
    add_prompts(store, [(f"p{i:03}", text(i), label and label(i)) for i in range(prompts)])
    image = picture(0, 8)
    store.append("images", [image_row(f"p{i:03}", 0, image) for i in range(prompts)])
    rows = []
    for i in range(prompts):
        more = calls.get(i)
        if isinstance(more, dict):
            rows.append(match_row(f"p{i:03}", 0, f"t{i}", 0.4, **more))
        else:
            rows.append(match_row(f"p{i:03}", 0, more or f"t{i}", 0.3 if more else 0.9))
    store.append("matches", rows)
    rate = {"nominal_fpr": 0.01, "per_image_fpr": 0.01, "images_per_prompt": 1}
    write_fact(
        folder, "copies",
        {"threshold": THRESHOLD | rate | (threshold or {}), "descriptor": descriptor, "problems": {}},
    )  # fmt: skip
    write_fact(folder, "check", {"passed": check, "calls": 4, "message": "The pipeline ran another network."})
    return folder


def verdict(folder):
    return build_digest(folder, methods=False).verdict


def test_more_calls_than_chance_reproduce_and_one_less_does_not(tmp_path):
    needed = fewest_calls(120, Chance.of_rate(1000, 0.01, 1))
    assert needed == 6
    found = verdict(made_run(tmp_path / "a", needed))
    assert (found.state, found.by, found.independent) == ("reproduces", "rate", needed)
    assert found.p_value <= 0.01 < verdict(made_run(tmp_path / "b", needed - 1)).p_value
    assert (
        "6 of 120 prompts gave images that are called copies of 6 training images, 1 expected by chance"
        in found.sentence
    )
    commands = " ".join(command for step in found.steps for command in step.commands)
    assert str(tmp_path / "a") in commands
    assert "diffmem curate" in commands
    assert "diffmem mitigate ./model" in commands


def test_no_excess_states_its_bound(tmp_path):
    found = verdict(made_run(tmp_path / "r", 2))
    assert (found.state, found.by) == ("no-excess", "rate")
    assert found.bound == pytest.approx(most_not_excluded(2, 120))
    assert found.sentence == (
        "No more than chance: 2 of 120 prompts gave images that are called copies of 2 training images, 1 expected by "
        "chance; up to 5.2\u00a0% of such prompts not excluded."
    )
    assert found.excess == pytest.approx(2 / 120 - 10 / 1001, rel=1e-3)
    assert found.excess_interval[0] < 0 < found.excess_interval[1]


def planted_fact(back, seen, found=None):
    return {
        "planted": 40, "found": seen if found is None else found, "given_back": back, "found_of_given_back": seen, "controls": 40,
        "controls_found": 0, "images_per_prompt": 1, "steps": 500, "cost": 0.25, "page": "control/page.html", "notes": [],
    }  # fmt: skip


def test_the_bound_is_divided_by_the_recall_that_the_control_measures(tmp_path):
    folder = made_run(tmp_path / "r", 2)
    write_fact(folder, "control", planted_fact(20, 15))
    found = verdict(folder)
    assert (found.recall, found.recall_of, found.state) == (0.75, "control", "no-excess")
    assert found.bound == pytest.approx(most_not_excluded(2, 120) / 0.75)
    assert "given that 75.0\u00a0% of the planted pictures that come out are found" in found.sentence
    digest = build_digest(folder, methods=False)
    assert digest.control.sensitivity == 15 / 40 and digest.control.sensitivity_interval == clopper_pearson(15, 40)
    assert next(check.state for check in digest.checks if check.check == "positive control") == "passed"
    write_fact(folder, "control", planted_fact(9, 3))
    assert verdict(folder).recall is None, "nine pictures measure nothing"
    write_fact(folder, "control", planted_fact(12, 0, found=0))
    blind = verdict(folder)
    assert blind.state == "unknown" and "matcher called none" in blind.sentence
    write_fact(folder, "control", {"refused": "its network takes no adapter"})
    digest = build_digest(folder, methods=False)
    assert (digest.control.sensitivity, digest.verdict.bound) == (None, pytest.approx(most_not_excluded(2, 120)))
    assert digest.checks[-1].state == "not run" and "takes no adapter" in digest.checks[-1].found


def test_labelled_prompts_measure_recall_before_the_control_does(tmp_path):
    folder = made_run(tmp_path / "r", 11, label=lambda i: i < 20)
    write_fact(folder, "control", planted_fact(20, 5))
    found = verdict(folder)
    assert (found.recall, found.recall_of) == (11 / 20, "labels")


def test_few_references_make_a_count_say_less(tmp_path):
    """Six of 120 are enough with 1,000 references and not with 99: the threshold itself is uncertain."""
    assert verdict(made_run(tmp_path / "r", 6, threshold={"n_reference": 99})).state != "reproduces"


def test_near_duplicate_prompts_with_one_training_image_are_one_call(tmp_path):
    calls = dict.fromkeys(range(12), "t1")
    found = verdict(made_run(tmp_path / "r", calls, text=lambda i: LADY.format(i) if i < 12 else f"{i:b} {i**7:x}"))
    assert (found.called, found.independent, found.state) == (12, 1, "no-excess")
    apart = verdict(made_run(tmp_path / "s", calls))
    assert (apart.called, apart.independent, apart.state) == (12, 12, "reproduces")


@pytest.mark.parametrize(
    ("more", "by"),
    [({"similarity": 1.0}, "pixel identity"), (aligned(900.0), "verification")],
)
def test_a_confirmed_pair_comes_before_everything(tmp_path, more, by):
    """Neither a failed check nor a missing calibration nor a low rate hides it."""
    uncalibrated = {
        "calibrated": False,
        "n_reference": 0,
        "reference": None,
        "realised_fpr": None,
        "realised_interval": None,
    }
    for name, options in {"clean": {}, "check": {"check": False}, "uncalibrated": {"threshold": uncalibrated}}.items():
        found = verdict(made_run(tmp_path / name, {3: more | {"group": "g"}, 9: more | {"group": "g"}}, **options))
        assert (found.state, found.by, found.confirmed) == ("reproduces", by, 1), name
        assert found.sentence.startswith("Reproduces 1 training image: confirmed"), name


@pytest.mark.parametrize(
    "more",
    [
        {"similarity": 1.0, "background": True},
        aligned(900.0, 29.9),
        aligned(899.0),
        {"verified": 31.0},
    ],
)
def test_what_is_no_proof_confirms_nothing(tmp_path, more):
    assert verdict(made_run(tmp_path / "r", {3: more})).confirmed == 0


def test_equal_feature_vectors_are_no_equal_pixels(tmp_path):
    features = DESCRIPTOR | {"name": "sscd", "metric": ["cosine", 1]}
    assert verdict(made_run(tmp_path / "r", {3: {"similarity": 1.0}}, descriptor=features)).confirmed == 0


def test_verification_has_to_beat_the_controls(tmp_path):
    of_run = {"statistic": "verified", "value": 40.0}
    assert verdict(made_run(tmp_path / "r", {3: aligned(900.0)}, threshold=of_run)).confirmed == 0
    assert verdict(made_run(tmp_path / "s", {3: aligned(900.0, 41.0)}, threshold=of_run)).confirmed == 1


def test_unknown_says_what_would_change_it(tmp_path):
    failed = verdict(made_run(tmp_path / "check", 9, check=False))
    assert (failed.state, failed.by) == ("unknown", None)
    assert "check of the model failed: the pipeline ran another network" in failed.sentence
    assert failed.steps[0].commands == ("diffmem doctor ./model",)
    bare = {"calibrated": False, "n_reference": 1, "reference": None, "realised_fpr": None, "realised_interval": None}
    found = verdict(made_run(tmp_path / "bare", 9, threshold=bare))
    assert found.needs.startswith("98 more held-out images")
    assert found.expected is None
    assert found.steps[1].commands == ("diffmem audit ./model --prompts p.csv --out r --heldout HELDOUT",)
    few = verdict(made_run(tmp_path / "few", 1, prompts=12))
    assert "12 distinct prompts judged by 1,000 reference images are too few" in few.sentence
    assert "more distinct prompts" in few.needs
    record_stage(made_run(tmp_path / "cut", 2), "generate", state="stopped", done=3, total=9)
    cut = verdict(tmp_path / "cut")
    assert "not finished (generate)" in cut.sentence
    assert cut.steps[0].what == "Run the same command again."


def test_called_pairs_that_nobody_has_confirmed_are_to_be_looked_at_first(tmp_path):
    label = f"diffmem review {tmp_path}/{{}} --reviewer NAME"
    for name, calls, state in (("more", 9, "reproduces"), ("few", 2, "no-excess")):
        found = verdict(made_run(tmp_path / name, calls))
        assert (found.state, found.confirmed) == (state, 0)
        assert label.format(name) in found.steps[0].commands
    for name, calls in (("none", 0), ("sure", {3: aligned(900.0)})):
        assert "diffmem review" not in str(verdict(made_run(tmp_path / name, calls)).steps)


def test_the_prompts_that_are_asked_for_are_enough(tmp_path):
    needs = verdict(made_run(tmp_path / "few", 0, prompts=12)).needs
    more = int(needs.split()[0])
    assert verdict(made_run(tmp_path / "enough", 0, prompts=12 + more)).state == "no-excess"
    assert verdict(made_run(tmp_path / "less", 0, prompts=11 + more)).state == "unknown"


def test_few_references_are_asked_for_rather_than_thousands_of_prompts(tmp_path):
    """113 references for two images of a prompt at 5 %: the doubt about the rate is what hides a share of one in ten."""
    of_run = {"n_reference": 113, "images_per_prompt": 2, "nominal_fpr": 0.05, "per_image_fpr": 1 - 0.95**0.5}
    needs = verdict(made_run(tmp_path / "few", 0, prompts=12, threshold=of_run)).needs
    images, prompts = (int(text) for text in re.findall(r"([\d,]+) more", needs)[:2])
    assert "more held-out images and" in needs and prompts < 600
    more = of_run | {"n_reference": 113 + images}
    assert verdict(made_run(tmp_path / "enough", 0, prompts=12 + prompts, threshold=more)).state == "no-excess"


def test_the_command_for_more_prompts_has_no_limit(tmp_path):
    line = ["diffmem", "audit", "./model", "--prompts", "p.csv", "--limit", "12", "--out", "r"]
    few = verdict(made_run(tmp_path / "few", 0, prompts=12, command=line))
    assert few.steps[0].commands == ("diffmem audit ./model --prompts p.csv --out r",)


def test_known_copies_give_the_recall_that_the_bound_needs(tmp_path):
    found = verdict(made_run(tmp_path / "r", 2, label=lambda i: True if i < 10 else None))
    assert found.recall == pytest.approx(0.2)
    assert found.bound == pytest.approx(5 * most_not_excluded(2, 120))
    blind = verdict(made_run(tmp_path / "s", {20: "t20"}, label=lambda i: True if i < 10 else None))
    assert blind.state == "unknown"
    assert "of 10 prompts known to be reproduced the matcher called none" in blind.sentence


def control(folder, train, gallery, both=0, prompts=120):
    """The fact of a two-gallery control: so many prompts called on one side alone, each with a picture of its own."""
    called = {f"p{i:03}": {"train": [f"t{i}"], "gallery": []} for i in range(train)}
    called |= {f"p{60 + i:03}": {"train": [], "gallery": [f"g{i}"]} for i in range(gallery)}
    called |= {f"p{100 + i:03}": {"train": ["t"], "gallery": ["g"]} for i in range(both)}
    write_fact(folder, "gallery", {"about": {}, "size": 500, "prompts": prompts, "called": called})


def test_a_gallery_decides_also_without_calibration(tmp_path):
    bare = {"calibrated": False, "n_reference": 0, "reference": None, "realised_fpr": None, "realised_interval": None}
    control(made_run(tmp_path / "a", 9, threshold=bare), 7, 0, both=2)
    found = verdict(tmp_path / "a")
    assert (found.state, found.by, found.expected) == ("reproduces", "gallery", 2)
    assert found.p_value == pytest.approx(2**-7)
    assert found.excess == pytest.approx(7 / 120)
    assert found.excess_interval[0] > 0
    control(made_run(tmp_path / "b", 9, threshold=bare), 6, 0, both=2)
    fewer = verdict(tmp_path / "b")
    assert (fewer.state, fewer.by) == ("no-excess", "gallery")
    assert "2 prompts against as many images that no training saw" in fewer.sentence


def test_what_the_rate_would_call_the_gallery_explains(tmp_path):
    """Generated images are no photographs: 9 of 120 are called at 1 %, and as many against pictures never trained on."""
    control(made_run(tmp_path / "r", 9), 5, 5, both=4)
    assert verdict(tmp_path / "r").state == "no-excess"


def test_one_picture_that_draws_many_calls_is_one_event(tmp_path):
    folder = made_run(tmp_path / "r", dict.fromkeys(range(12), "t1"))
    called = {f"p{i:03}": {"train": ["t1"], "gallery": []} for i in range(12)}
    write_fact(folder, "gallery", {"about": {}, "size": 500, "prompts": 120, "called": called})
    found = verdict(folder)
    assert (found.state, found.p_value) == ("no-excess", 0.5)


def test_a_gallery_of_few_prompts_cannot_tell(tmp_path):
    """The sign test needs 7 calls on one side; of 60 prompts, one in ten reproducing, it sees so many in a third of runs."""
    needed = fewest_signed_prompts(0.1, 0.8)
    random = np.random.default_rng(0)
    seen = [random.binomial(n, 0.1, 20_000) for n in (needed, needed - 1)]
    assert np.mean(seen[0] >= 7) == pytest.approx(0.8, abs=0.02)
    assert sign_test(7, 0) <= 0.01 < sign_test(6, 0)
    control(made_run(tmp_path / "r", 2, prompts=60), 2, 0, prompts=60)
    found = verdict(tmp_path / "r")
    assert (found.state, found.needs.split()[0]) == ("unknown", str(needed - 60))


def test_a_declaration_that_fails_on_images_is_a_failed_check(tmp_path):
    folder = made_run(tmp_path / "r", 9, check=None)
    assert verdict(folder).state == "reproduces"
    write_fact(
        folder, "fit", {"passed": False, "warning": False, "message": "The model is not what it was declared to be."}
    )
    assert "check of the model failed: the model is not what it was declared to be" in verdict(folder).sentence


def looked_at(folder, made, plan=None):
    write_fact(folder, "looks", {"plan": plan, "made": made})
    write_fact(folder, "asked", {"images_per_prompt": made[-1]})
    return verdict(folder)


def test_a_second_look_without_a_plan_finds_nothing_by_a_rate(tmp_path):
    needed = fewest_calls(120, Chance.of_rate(1000, 0.01, 1))
    folder = made_run(tmp_path / "a", needed)
    assert looked_at(folder, [1]).state == "reproduces"
    found = looked_at(folder, [4, 1])
    assert found.state == "unknown" and "looked at before" in found.sentence and "--looks" in found.needs
    assert looked_at(made_run(tmp_path / "b", 0), [4, 1]).state == "no-excess"


def test_a_planned_look_spends_its_own_level_only(tmp_path):
    chance = Chance.of_rate(1000, 0.01, 1)
    folder = made_run(tmp_path / "a", fewest_calls(120, chance))
    assert looked_at(folder, [1], {"1": 0.0003, "2": 0.0097}).state == "no-excess"
    folder = made_run(tmp_path / "b", fewest_calls(120, chance, 0.0003))
    assert looked_at(folder, [1], {"1": 0.0003, "2": 0.0097}).state == "reproduces"


def test_no_excess_proposes_looks_that_share_the_error(tmp_path):
    found = verdict(made_run(tmp_path / "run", 0))
    (plan,) = [command for step in found.steps for command in step.commands if "plan" in command]
    assert plan.endswith("--looks 1,2,4")


@pytest.mark.parametrize(("references", "state"), [(99, "passed"), (50_000, "failed")])
def test_false_calls_fail_the_check_only_where_the_threshold_cannot_explain_them(tmp_path, references, state):
    """6 of 120 is 5 % (2 to 11 %) at nominal 1 %: 99 references allow up to 3.7 % per image, 50,000 do not."""
    threshold = THRESHOLD | {
        "n_reference": references, "per_image_fpr": 0.01, "nominal_fpr": 0.01, "images_per_prompt": 1,
    }  # fmt: skip
    made_run(tmp_path, 6, threshold=threshold, label=False)
    (check,) = [c for c in build_digest(tmp_path).checks if c.check == "false positives on labelled prompts"]
    assert check.state == state and "6 of 120 prompts" in check.found
    assert ("a threshold set by 99 references allows up to 3.7" in check.found) == (state == "passed")
